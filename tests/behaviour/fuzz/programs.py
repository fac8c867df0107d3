"""Random blocks: what a user could write beside a random model, right and wrong."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from random import Random

from tests.behaviour.fuzz.forms import Block, Program, ask
from tests.behaviour.fuzz.models import OTHER, PICK, Model, Unit

WEIGHTS = {
    "read": 30, "write": 10, "change": 8, "member": 8, "skip": 4, "log": 10, "save": 6,
    "call": 4, "helper": 3, "loop": 2, "try": 6, "if": 3, "insist": 2, "nested": 1, "wrong": 2,
    "barrier": 3, "bind": 4, "use": 4, "add": 4, "raise": 0.3, "stop": 0.5,
}  # fmt: skip


class _NothingAheadError(Exception):
    """The model has no place left that this block could still ask for."""


class Writer:
    """Writes one random block."""

    def __init__(
        self, rng: Random, model: Model, order: list[tuple[str, str]], block: Block
    ) -> None:
        self.rng, self.block = rng, block
        self.units = {p: u for p, u in model.named_modules() if isinstance(u, Unit)}
        self.order = order  # every location in the order in which the model comes by
        self.at = -1
        self.values: list[str] = []  # names of tensors with the rows of this block
        self.depth = 0
        self.wild = rng.random() < 0.12  # asks out of order, or where nothing runs
        self.prefix = f"v{block.index}_" if rng.random() < 0.5 else "v"
        self.shared: list[str] = []
        self.accumulators: list[str] = []
        self.barriers = 0

    # Parts.

    def new(self) -> str:
        name = f"{self.prefix}{len(self.block.temps)}"
        self.block.temps.append(name)
        return name

    def line(self, text: str) -> None:
        self.block.lines.append("    " * self.depth + text)

    def place(self, *kinds: str) -> tuple[str, str]:
        """A location: most often one that is still to come."""
        if self.wild and self.rng.random() < 0.25:
            return self.rng.choice(list(self.units)), self.rng.choice(kinds)
        ahead = [i for i in range(self.at + 1, len(self.order)) if self.order[i][1] in kinds]
        if not ahead:
            raise _NothingAheadError
        self.at = min(self.rng.choice(ahead), self.rng.choice(ahead))
        if self.rng.random() < 0.3 and kinds == ("output",):  # the same place again
            self.at -= 1
            return self.order[self.at + 1]
        return self.order[self.at]

    def value(self) -> str:
        """An expression with the rows of this block."""
        if not self.values or self.rng.random() < 0.1:
            return f"(zero_{self.block.index} + {self.rng.randint(1, 9) / 10})"
        name = self.rng.choice(self.values)
        form = self.rng.choice(
            ["{}", "{} * 0.5", "({} + 0.25)", "torch.relu({})", "({} - {other})"]
        )
        return form.format(name, other=self.rng.choice(self.values))

    def packed(self, path: str) -> str:
        kind = self.units[path].kind
        return f"pack({kind!r}, {self.value()}, {self.value()})"

    def read(self, path: str, kind: str) -> str:
        if kind == "output":
            pick = PICK if self.rng.random() < 0.7 else {**PICK, **OTHER}
            return ask("read", path, "output") + pick[self.units[path].kind]
        if self.rng.random() < 0.3:
            keyword = self.units[path].keyword and path
            return ask("read", path, "inputs") + ("[1]['x']" if keyword else "[0][0]")
        return ask("read", path, "input")

    # Statements.

    def s_read(self) -> None:
        expression = self.read(*self.place("output", "input"))
        name = self.new()
        # statements that only keep values may ask in any order; a wild program must not be let
        ends = [" * 1.0"] if self.wild else ["", " * 1.0", ".clone()"]
        self.line(f"{name} = {expression}" + self.rng.choice(ends))
        self.values.append(name)

    def s_write(self) -> None:
        path, kind = self.place("output", "input")
        value = self.packed(path) if kind == "output" else self.value()
        self.line(ask("write", path, kind, value))

    def s_change(self) -> None:
        path, kind = self.place("output", "input")
        how = self.rng.choice([".mul_(0.5)", "[:, 1] = 0.3", "[:] = 0", ".add_(1)", "[:1] *= 2"])
        self.line(self.read(path, kind) + how)

    def s_member(self) -> None:
        path, _ = self.place("output")
        packing = self.units[path].kind
        if packing in ("dict", "list", "data"):
            member = self.rng.choice([PICK, OTHER])[packing]
            self.line(f"{ask('read', path, 'output')}{member} = {self.value()}")

    def s_skip(self) -> None:
        path, _ = self.place("input")
        self.line(ask("skip", path, "", self.packed(path)))
        if (path, "output") in self.order:  # what is inside it will not run
            self.at = self.order.index((path, "output")) - 1
        if self.rng.random() < 0.1:
            self.line(ask("skip", path, "", self.packed(path)))

    def s_log(self) -> None:
        what = f"note({self.rng.choice(self.values)})" if self.values else "None"
        self.line(f"log.append(({self.block.index}, {len(self.block.lines)}, {what}))")

    def s_save(self) -> None:
        self.line(f"@save saved_{self.block.index}_{len(self.block.lines)} = {self.value()}")

    def s_call(self) -> None:
        path = self.rng.choice(list(self.units))
        verb = "hooked" if self.rng.random() < 0.35 else "call"
        name = self.new()
        self.line(f"{name} = first({ask(verb, path, '', self.value())})")
        self.values.append(name)

    def s_helper(self) -> None:
        path, _ = self.place("output")
        name = self.new()
        self.line(f"{name} = {ask('helper', path)}")
        self.values.append(name)

    def s_loop(self) -> None:
        paths = [self.place("output")[0] for _ in range(self.rng.randint(1, 3))]
        self.line(f"sums_{self.block.index} = []")
        for path in dict.fromkeys(paths):
            read = ask("read", path, "output") + PICK[self.units[path].kind]
            self.line(f"sums_{self.block.index}.append({read}.sum(){' + 0' if self.wild else ''})")
        self.line(f"log.append(({self.block.index}, 'loop', note(sum(sums_{self.block.index}))))")

    def s_try(self) -> None:
        kind = self.rng.choice(["ValueError", "Exception", "BaseException", "Boom"])
        self.line("try:")
        self._body(self.rng.randint(1, 2))
        self.line(f"except {kind} as error_{self.block.index}:")
        self.line(f"    log.append(({self.block.index}, family(error_{self.block.index})))")
        if self.rng.random() < 0.2:
            self.line("finally:")
            self.line(f"    log.append(({self.block.index}, 'finally'))")

    def s_if(self) -> None:
        self.line(f"if bool(({self.value()}).sum() {self.rng.choice('<>')} 0):")
        self._body(1)

    def _body(self, count: int) -> None:
        self.depth += 1
        before = len(self.block.lines)
        for _ in range(count):
            self.statement()
        if len(self.block.lines) == before:
            self.line("pass")
        self.depth -= 1

    def s_insist(self) -> None:
        path, kind = self.place("output")
        read = ask("read", path, kind)
        name = f"n_{self.block.index}"
        often = "100000" if self.rng.random() < 0.02 else "5"
        self.line(f"for {name} in range({often}):")
        self.line("    try:")
        self.line(f"        first({read})")
        self.line("        break")
        self.line("    except BaseException:")
        self.line("        pass")

    def s_nested(self) -> None:
        if self.depth:
            return
        name = f"w_{self.block.index}"
        self.line(f"@nested {name} = None")
        self.line(f"log.append(({self.block.index}, 'nested', note({name})))")

    def s_wrong(self) -> None:
        path, _ = self.place("output")
        wrong = [
            ask("write", path, "output", "None"),
            ask(
                "write",
                path,
                "output",
                f"pack({self.units[path].kind!r}, torch.ones(17, 5), torch.ones(17, 5))",
            ),
            f"first({ask('foreign')})",
            "@again w = None",
            "@join w = None",
        ]
        self.line("try:")
        self.line("    " + self.rng.choice(wrong))
        self.line(f"except ValueError as error_{self.block.index}:")
        self.line(f"    log.append(({self.block.index}, family(error_{self.block.index})))")

    def s_raise(self) -> None:
        self.line("raise Boom('a block failed')")

    def s_stop(self) -> None:
        self.line(ask("stop"))

    def s_barrier(self) -> None:
        if self.barriers:
            self.line(ask("barrier", value=str(self.rng.randrange(self.barriers))))

    def s_bind(self) -> None:
        if self.shared:
            name = self.rng.choice(self.shared)
            self.line(f"@bind {name} = ({self.value()}).sum()")
            self.block.binds.add(name)

    def s_use(self) -> None:
        if names := self.shared + self.accumulators:
            name = self.rng.choice(names)
            self.line(
                f"log.append(({self.block.index}, {name!r}, note({ask('name', value=name)})))"
            )

    def s_add(self) -> None:
        if self.accumulators:
            name = self.rng.choice(self.accumulators)
            self.line(f"@{self.rng.choice(['add', 'plus'])} {name} = ({self.value()}).sum()")
            self.block.updates.add(name)

    def statement(self) -> None:
        verb = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if verb in ("try", "if") and self.depth > 1:
            verb = "read"
        with contextlib.suppress(_NothingAheadError):
            getattr(self, f"s_{verb}")()

    def write(self) -> None:
        for _ in range(self.rng.randint(0, 12)):
            self.statement()
        if self.rng.random() < 0.3:
            name = self.new()
            self.line(f"{name} = {ask('result')}")
            self.line(f"log.append(({self.block.index}, 'result', note({name})))")
            if self.rng.random() < 0.3:
                self.line(ask("set_result", value=f"{name} * 2"))


def random_program(rng: Random, model: Model, order: list[tuple[str, str]]) -> Program:
    """A program for `model`, which comes by `order`."""
    direct = rng.random() < 0.4
    count = 1 if direct else rng.randint(1, 4)
    blocks = [
        Block(i, rng.randint(1, 3) if not i or rng.random() < 0.8 else None) for i in range(count)
    ]
    barriers = (
        [] if direct else [rng.choice([count, count, 1, 2]) for _ in range(rng.randint(0, 2))]
    )
    shared = [f"s{i}" for i in range(rng.randint(0, 2))] if not direct else []
    accumulators = [f"t{i}" for i in range(rng.randint(0, 1))] if not direct else []
    initial = {name: 1.5 for name in shared if rng.random() < 0.5} | dict.fromkeys(
        accumulators, 0.5
    )
    for block in blocks:
        writer = Writer(rng, model, order, block)
        writer.shared, writer.accumulators, writer.barriers = shared, accumulators, len(barriers)
        writer.write()
    method = "run" if direct and rng.random() < 0.3 else "trace"
    loop = not direct and rng.random() < 0.25
    if loop:
        blocks = [replace(blocks[0], index=index) for index in range(count)]
    return Program(blocks, direct, barriers, initial, method, loop)
