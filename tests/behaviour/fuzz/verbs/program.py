"""What a random program can say, as data that prints as the Python that a user would write.

A program is a list of commands: edits are made and cleared, traces run, alone or in a session. The
block of a trace is a list of statements. Whatever a block sees it appends to its own list, `seen`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A value that comes by in a forward."""

    path: str  # of the module; "" is the root
    op: str  # an operation of its forward, as `source` names it; "" is the module itself
    kind: str  # "input" or "output"

    def of(self, model: str) -> str:
        """The module or the operation, as Python spells it."""
        parts = self.path.split(".") if self.path else []
        text = model + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in parts)
        return f"{text}.source.{self.op}" if self.op else text

    def text(self, model: str) -> str:
        return f"{self.of(model)}.{self.kind}"


@dataclass(frozen=True)
class Names:
    """What a block calls the things around it."""

    model: str
    seen: str | None  # the list of what it saw; None: it notes nothing
    scan: bool = False  # values have no numbers: their shapes are noted

    def note(self, value: str) -> list[str]:
        if self.seen is None:
            return []
        return [f"{self.seen}.append({f'tuple({value}.shape)' if self.scan else value})"]


PLAIN = "{value} * {factor}"
PRODUCTS = (
    "times({value}, {factor})",
    "by({factor})({value})",
    "Scaled({factor}).of({value})",
    "table[{factor}]({value})",
    "bound({value}, factor={factor})",
)
"""A product in other words: by a function, a closure, an object, a lambda and a partial."""
ENDS = ("1 // 0", "failing()")
HELPERS = """\
import functools
import warnings

import nnsight

SIGN = 1


def times(value, factor=1.0):
    return value * (factor * SIGN)


def by(factor):
    def scaled(value):
        return times(value, factor=factor)

    return scaled


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def of(self, value):
        return by(self.factor)(value)


def failing():
    return 1 // 0


def program(model, xs, seen, at=None):
    bound = functools.partial(times)
    table = {factor: (lambda value, factor=factor: value * factor) for factor in %s}
"""
FACTORS = (0.5, 2.0, -1.0, 0.0, 1.5)


def product(word: str, value: str, factor: float) -> str:
    return word.format(value=value, factor=factor)


# --- statements -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """Look at a value, and keep a copy under a name."""

    place: Place
    name: str
    aloud: str = ""  # a call that is told of it

    def lines(self, names: Names) -> list[str]:
        read = f"{self.name} = {self.place.text(names.model)}.clone()"
        aloud = [f'{self.aloud}(f"{self.name} {{tuple({self.name}.shape)}}")'] if self.aloud else []
        return [read, *aloud, *names.note(f"{self.name}.detach()")]


@dataclass(frozen=True)
class Change:
    """Put a multiple of a value, or of a named one, in its place."""

    place: Place
    factor: float
    name: str | None = None  # None: of the value that is there
    word: str = PLAIN

    def lines(self, names: Names) -> list[str]:
        place = self.place.text(names.model)
        return [f"{place} = {product(self.word, self.name or place, self.factor)}"]


@dataclass(frozen=True)
class InPlace:
    """Change the numbers of a value where it lies."""

    place: Place
    factor: float

    def lines(self, names: Names) -> list[str]:
        return [f"{self.place.text(names.model)}[:] *= {self.factor}"]


@dataclass(frozen=True)
class Skip:
    """Do not run a module or an operation: go on with a multiple of its input."""

    place: Place  # its input
    factor: float
    word: str = PLAIN

    def lines(self, names: Names) -> list[str]:
        target = self.place.of(names.model)
        return [f"{target}.skip({product(self.word, f'{target}.input', self.factor)})"]


@dataclass(frozen=True)
class Next:
    """Go on to a later step."""

    by: int
    at: str  # whose `.next()` it is

    def lines(self, names: Names) -> list[str]:
        return [f"{self.at.format(m=names.model)}.next({self.by if self.by > 1 else ''})"]


@dataclass(frozen=True)
class Stop:
    """End the run here."""

    def lines(self, names: Names) -> list[str]:
        return ["tracer.stop()"]


@dataclass(frozen=True)
class Fail:
    """An error of the block's own."""

    word: str

    def lines(self, names: Names) -> list[str]:
        return [self.word]


@dataclass(frozen=True)
class Result:
    """Look at what the call returned, and perhaps replace it."""

    replace: bool

    def lines(self, names: Names) -> list[str]:
        replaced = ["tracer.result = tracer.result + 1", *names.note("tracer.result")]
        return names.note("tracer.result") + (replaced if self.replace else [])


@dataclass(frozen=True)
class When:
    """Some statements, at one step of a loop."""

    step: int
    body: tuple[Statement, ...]

    def lines(self, names: Names) -> list[str]:
        return [f"if step == {self.step}:", *indented(self.body, names)]


@dataclass(frozen=True)
class Loop:
    """A loop over steps."""

    chosen: str  # `iter[1:3]`
    steps: tuple[int, ...]  # those it chooses, of as many as any program makes
    body: tuple[Statement, ...]
    word: str = "for"  # or "with"

    def lines(self, names: Names) -> list[str]:
        head = f"for step in tracer.{self.chosen}:"
        if self.word == "with":
            head = f"with tracer.{self.chosen} as step:"
        note = [] if names.seen is None else [f"    {names.seen}.append(step)"]
        return [head, *note, *indented(self.body, names)]


@dataclass(frozen=True)
class OpenCache:
    """Keep the values of modules from here on."""

    name: str
    modules: tuple[str, ...] | None  # paths; None is all
    inputs: bool

    def lines(self, names: Names) -> list[str]:
        given = [] if self.modules is None else [f"modules={list(self.modules)}"]
        given += ["include_inputs=True"] if self.inputs else []
        lines = [f"{self.name} = tracer.cache({', '.join(given)})"]
        return lines if names.seen is None else [*lines, f"{names.seen}.append({self.name})"]


@dataclass(frozen=True)
class Hold:
    """Bind a value itself, to take its gradient later."""

    place: Place
    name: str

    def lines(self, names: Names) -> list[str]:
        return [f"{self.name} = {self.place.text(names.model)}"]


@dataclass(frozen=True)
class Backward:
    """Go backward from a value, look at the gradients of others and change some."""

    loss: str
    held: tuple[tuple[str, float | None], ...]  # names, last first, and what to multiply it by
    retain: bool = False

    def lines(self, names: Names) -> list[str]:
        retain = "retain_graph=True" if self.retain else ""
        lines = [f"with {self.loss}.square().sum().backward({retain}):"]
        for name, factor in self.held:
            lines += [f"    {line}" for line in names.note(f"{name}.grad.clone()")]
            lines += [f"    {name}.grad = {name}.grad * {factor}"] if factor else []
        return lines


Statement = (
    Read
    | Change
    | InPlace
    | Skip
    | Next
    | Stop
    | Fail
    | Result
    | When
    | Loop
    | OpenCache
    | Hold
    | Backward
)


def indented(body: Sequence[Statement], names: Names) -> list[str]:
    """The statements of a block, below its `with`."""
    lines = [line for statement in body for line in statement.lines(names)]
    return [f"    {line}" for line in lines or ["pass"]]


# --- commands -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeEdit:
    """Keep a block with a model, or with another view of it."""

    model: str
    edited: str  # the name of the view; the model's own, for an edit in place
    body: tuple[Statement, ...]
    every_step: bool

    def lines(self) -> list[str]:
        given = ["every_step=True"] if self.every_step else []
        if self.edited == self.model:
            head = f"with {self.model}.edit({', '.join(['inplace=True', *given])}) as tracer:"
        else:
            head = f"with {self.model}.edit({', '.join(given)}) as {self.edited}:"
        return [head, *indented(self.body, Names(self.model, None))]


@dataclass(frozen=True)
class ClearEdits:
    model: str

    def lines(self) -> list[str]:
        return [f"{self.model}.clear_edits()"]


@dataclass(frozen=True)
class Entry:
    """A block of a run, and which input it brings; None sees the whole batch."""

    given: int | None
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Run:
    """One trace: a block with the input of its own, or invokes."""

    model: str
    verb: str  # trace, scan or generate
    blocks: tuple[Entry, ...]
    direct: bool  # one block, with the input of the trace
    index: int  # of its first block among all lists of what was seen
    steps: int | None = None  # of a call that makes several
    outer_cache: OpenCache | None = None  # in the body around invokes
    spoken: str = "model"  # what blocks call the model, where that is another view

    @property
    def scan(self) -> bool:
        return self.verb == "scan"

    def names(self, block: int) -> Names:
        return Names(self.spoken, f"seen_{self.index + block}", self.scan)

    @property
    def lists(self) -> list[str]:
        """The lists of what its blocks see."""
        count = len(self.blocks) + (self.outer_cache is not None)
        return [f"seen_{self.index + block}" for block in range(count)]

    def lines(self, sent: bool = False) -> list[str]:
        head = f"with {self.model}.{self.verb}"
        call = [*self._of_call(), *(["**at"] if sent else [])]
        saved = [f"    nnsight.save([{', '.join(self.lists)}])"] if sent else []
        if self.direct:
            given = f"xs[{self.blocks[0].given}]"
            lines = [f"{head}({', '.join([given, *self._of_input(), *call])}) as tracer:"]
            return [*lines, *saved, *indented(self.blocks[0].body, self.names(0))]
        lines = [f"{head}({', '.join(call)}) as tracer:", *saved]
        if self.outer_cache is not None:
            lines += indented([self.outer_cache], self.names(len(self.blocks)))
        for number, block in enumerate(self.blocks):
            given = [] if block.given is None else [f"xs[{block.given}]", *self._of_input()]
            lines += [f"    with tracer.invoke({', '.join(given)}):"]
            lines += [f"    {line}" for line in indented(block.body, self.names(number))]
        return lines

    def _of_call(self) -> list[str]:
        if self.steps is None:
            return []
        return [f"max_new_tokens={self.steps}"] if self.verb == "generate" else ["fn='roll'"]

    def _of_input(self) -> list[str]:
        return [str(self.steps)] if self.steps is not None and self.verb != "generate" else []


Command = MakeEdit | ClearEdits | Run


@dataclass(frozen=True)
class Program:
    """Commands, the last of them perhaps in a session."""

    commands: tuple[Command, ...]
    session: int | None = None  # from which command on
    grad: bool = False
    inputs: int = 0

    @property
    def blocks(self) -> int:
        """How many lists of what was seen there are."""
        runs = [c for c in self.commands if isinstance(c, Run)]
        return sum(len(run.blocks) + (run.outer_cache is not None) for run in runs)

    def source(self, sent: bool = False) -> str:
        """As a function of the model, the inputs and the lists of what each block sees.

        Args:
            sent: whether it takes `at` as well, which says where its traces run.
        """
        at = "**at" if sent else ""
        lines = (HELPERS % (FACTORS,)).splitlines()
        lines += [f"    seen_{n} = seen[{n}]" for n in range(self.blocks)]
        for number, command in enumerate(self.commands):
            if number == self.session:
                lines += [f"    with model.session({at}):"]
                runs = [c for c in self.commands[number:] if isinstance(c, Run)]
                lists = [name for run in runs for name in run.lists]
                lines += [f"        nnsight.save([{', '.join(lists)}])"] if sent else []
            inner = self.session is not None and number >= self.session
            indent = "        " if inner else "    "
            alone = sent and not inner and isinstance(command, Run)
            found = command.lines(True) if alone else command.lines()
            lines += [indent + line for line in found]
        return "\n".join(lines) + "\n"
