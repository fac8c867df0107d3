"""Programs: blocks beside a model, as source text in three forms.

A program is a list of blocks; a block is a list of lines in which what is asked of the model is
left open. Written out as a `with model.trace(...)` it goes through nnsight; as a function it goes
through `model.run`; as a generator, which yields what it asks for, it goes through the oracle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ASK = re.compile(r"⟦(\w+)~([^⟦⟧~]*)~([^⟦⟧~]*)~([^⟦⟧~]*)⟧")  # one thing asked, in a line
_SPECIAL = re.compile(r"( *)@(\w+) (\w+) = (.*)")  # a statement that is written in another way


def _attribute(path: str) -> str:
    """`body.layers.0` as Python spells it from the model on."""
    parts = path.split(".") if path else []
    return "m" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


@dataclass(frozen=True)
class Form:
    """How a program is written out: what stands for each thing asked, and for some statements."""

    asked: dict[str, str]
    statements: dict[str, str]

    def line(self, line: str) -> str:
        """A line with everything asked in it written out, innermost first."""
        while (found := _ASK.search(line)) is not None:
            verb, path, kind, value = found.groups()
            text = self.asked[verb].format(m=_attribute(path), path=path, kind=kind, value=value)
            line = line[: found.start()] + text + line[found.end() :]
        if (special := _SPECIAL.fullmatch(line)) is None:
            return line
        indent, verb, name, value = special.groups()
        text = self.statements[verb].format(name=name, value=value)
        return "\n".join(indent + part for part in text.split("\n"))


TRACED = Form(
    {
        "read": "{m}.{kind}",
        "write": "{m}.{kind} = {value}",
        "skip": "{m}.skip({value})",
        "call": "{m}({value})",
        "hooked": "{m}({value}, hook=True)",
        "helper": "helper({m})",
        "result": "tracer.result",
        "set_result": "tracer.result = {value}",
        "stop": "tracer.stop()",
        "barrier": "barrier_{value}()",
        "name": "{value}",
        "foreign": "other.one.output",
    },
    {
        "nested": "with other.trace(extra):\n    {name} = other.one.output.sum()",
        "again": "with m.trace(extra):\n    pass",
        "join": "with tracer.invoke(extra):\n    pass",
        "save": "{name} = ({value}).clone().save()",
        "bind": "{name} = {value}",
        "add": "{name} += {value}",
        "plus": "{name} = {name} + {value}",
    },
)
_ADD = "operand = {value}\nyield ('bind', {name!r}, (yield from name({name!r})) + operand)"
ASKED = Form(
    {
        "read": "(yield from get({path!r}, {kind!r}))",
        "write": "yield from put({path!r}, {kind!r}, {value})",
        "skip": "yield ('skip', {path!r}, {value})",
        "call": "(yield ('call', {path!r}, {value}, False))",
        "hooked": "(yield ('call', {path!r}, {value}, True))",
        "helper": "first((yield from get({path!r}, 'output')))",
        "result": "(yield from get(None, 'result'))",
        "set_result": "yield from put(None, 'result', {value})",
        "stop": "yield ('stop',)",
        "barrier": "yield from barrier({value})",
        "name": "(yield from name({value!r}))",
        "foreign": "(yield ('foreign',))",
    },
    {
        "nested": "{name} = (yield ('nested',))",
        "again": "raise ValueError",
        "join": "raise ValueError",
        "save": "yield ('save', {name!r}, ({value}).clone())",
        "bind": "yield ('bind', {name!r}, {value})",
        "add": _ADD,
        "plus": _ADD,
    },
)


def ask(verb: str, path: str = "", kind: str = "", value: str = "") -> str:
    """Something asked of the model, for a line of a block."""
    return f"⟦{verb}~{path}~{kind}~{value}⟧"


@dataclass
class Block:
    """One block of a program."""

    index: int
    rows: int | None  # how many rows it brings; None sees the whole batch
    lines: list[str] = field(default_factory=list)
    temps: list[str] = field(default_factory=list)  # names that it binds first of all
    binds: set[str] = field(default_factory=set)  # shared names
    updates: set[str] = field(default_factory=set)

    def text(self, form: Form, indent: str) -> str:
        lines = [f"{name} = zero_{self.index}" for name in self.temps] + self.lines
        written = "\n".join(map(form.line, lines or ["pass"]))
        return "".join(f"{indent}{line}\n" for line in written.split("\n"))


@dataclass
class Program:
    """Blocks beside one forward of one model."""

    blocks: list[Block]
    direct: bool  # one block that has the input of the trace
    barriers: list[int]
    initial: dict[str, float]  # shared names that have a value before the trace
    method: str = "trace"
    loop: bool = False  # all blocks are one `with`, in a loop

    @property
    def total(self) -> int:
        return sum(block.rows or 0 for block in self.blocks)

    @property
    def split(self) -> bool:
        return sum(1 for block in self.blocks if block.rows) > 1

    def source(self, sent: bool = False) -> str:
        """As a function that traces; it returns what was saved.

        Args:
            sent: whether it takes `at` as well, which says where its trace runs.
        """
        at, saved = ("**at", "        save(log)\n") if sent else ("", "")
        lines = [f"def program(m, other, extra, log, xs, zeros{', at' if sent else ''}):\n"]
        lines += [f"    zero_{b.index} = zeros[{b.index}]\n" for b in self.blocks]
        lines += [f"    {name} = {value}\n" for name, value in self.initial.items()]
        if self.method == "run":
            lines += ["    def block(tracer, m):\n", self.blocks[0].text(TRACED, "        ")]
            lines += ["    m.run(xs[0], block)\n    return {}\n"]
            return "".join(lines)
        if self.direct:
            lines += [f"    with m.trace(xs[0]{', ' if at else ''}{at}) as tracer:\n", saved]
            lines += [self.blocks[0].text(TRACED, "        ")]
        else:
            lines += [f"    with m.trace({at}) as tracer:\n", saved]
            lines += [
                f"        barrier_{i} = tracer.barrier({n})\n" for i, n in enumerate(self.barriers)
            ]
            if self.loop:
                lines += ["        for x, zero_0 in zip(xs, zeros):\n"]
                lines += ["            with tracer.invoke(x):\n"]
                lines += [self.blocks[0].text(TRACED, "                ")]
            for block in [] if self.loop else self.blocks:
                given = f"xs[{block.index}]" if block.rows else ""
                lines += [f"        with tracer.invoke({given}):\n"]
                lines += [block.text(TRACED, "            ")]
        lines += ["    return {k: v for k, v in locals().items() if k.startswith('saved')}\n"]
        return "".join(lines)

    def generators(self) -> str:
        """As one generator for each block, for the oracle."""
        lines: list[str] = []
        for block in self.blocks:
            written = self.blocks[0] if self.loop else block
            zero = f"zero_{written.index}"
            lines += [f"def block_{block.index}(get, put, name, barrier, log, {zero}):\n"]
            lines += [written.text(ASKED, "    "), "    return\n    yield\n"]
        return "".join(lines)
