"""Random programs: what a user could write, mostly in the order in which the model comes by."""

from __future__ import annotations

from random import Random

from tests.behaviour.fuzz.verbs import program as p
from tests.behaviour.fuzz.verbs.subjects import Subject, gpt2, stack

WEIGHTS = {"read": 10, "change": 6, "in_place": 3, "skip": 2, "cache": 2}
FACTORS = p.FACTORS


class Writer:
    """Writes the block of one trace or one edit."""

    def __init__(self, rng: Random, subject: Subject, counter: list[int]) -> None:
        self.rng, self.subject, self.counter = rng, subject, counter
        self.order = subject.order
        self.at = -1  # how far the block is in the forward
        self.wild = rng.random() < 0.08  # asks out of order now and then
        self.grad = False
        self.notes = True  # an edit notes nothing
        self.known: list[str] = []  # names of earlier traces
        self.bound: list[str] = []  # names for later ones

    # --- parts ------------------------------------------------------------------------------------

    def name(self, letter: str) -> str:
        self.counter[0] += 1
        return f"{letter}{self.counter[0]}"

    def place(self, kind: str | None = None) -> p.Place | None:
        """A place that is still to come, or the last one again; None if there is none."""
        start = max(self.at, 0) if self.rng.random() < 0.2 else self.at + 1
        if self.wild and self.rng.random() < 0.3:
            start = 0
        ahead = [i for i in range(start, len(self.order)) if kind in (None, self.order[i].kind)]
        if not ahead:
            return None
        self.at = min(self.rng.choice(ahead), self.rng.choice(ahead))
        return self.order[self.at]

    # --- statements -------------------------------------------------------------------------------

    def read(self) -> p.Statement | None:
        if (place := self.place()) is None or not self.notes:
            return None
        name = self.name("v")
        self.bound.append(name)
        aloud = self.rng.choice(["print", "warnings.warn"]) if self.rng.random() < 0.2 else ""
        return p.Read(place, name, aloud)

    def word(self) -> str:
        """How a product is written."""
        return self.rng.choice(p.PRODUCTS) if self.rng.random() < 0.4 else p.PLAIN

    def change(self) -> p.Statement | None:
        if (place := self.place()) is None:
            return None
        name = None
        if self.known and self.subject.square and self.rng.random() < 0.5:
            name = self.rng.choice(self.known)
        return p.Change(place, self.rng.choice(FACTORS), name, self.word())

    def in_place(self) -> p.Statement | None:
        if self.grad or (place := self.place()) is None:
            return None
        return p.InPlace(place, self.rng.choice(FACTORS))

    def skip(self) -> p.Statement | None:
        place = self.place("input")
        # a layer that is skipped for some rows alone puts its keys into their cache all the same
        if place is None or (not self.subject.square and not place.path.endswith(("ln_1", "mlp"))):
            return None
        end = p.Place(place.path, place.op, "output")
        self.at = self.order.index(end) - 1  # what is inside will not run
        return p.Skip(place, self.rng.choice(FACTORS), self.word())

    def cache(self) -> p.Statement | None:
        if not self.notes:
            return None
        modules = _every(self.subject)
        if self.rng.random() < 0.6:
            paths = [path for path in self.subject.modules if path]
            modules = tuple(self.rng.sample(paths, self.rng.randint(1, 2)))
        return p.OpenCache(self.name("cache"), modules, self.rng.random() < 0.4)

    def statements(self, most: int) -> tuple[p.Statement, ...]:
        """Some statements within one step."""
        found: list[p.Statement | None] = []
        for _ in range(self.rng.randint(0, most)):
            verb = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            found.append(getattr(self, verb)())
        return tuple(statement for statement in found if statement is not None)

    # --- steps ------------------------------------------------------------------------------------

    def loop(self, first: int) -> p.Loop:
        """A loop over steps from `first` on, or later."""
        start, most = first + self.rng.randint(0, 1), 20
        stop = start + self.rng.randint(1, 3)
        chosen, steps = self.rng.choice([
            (f"iter[{start or ''}:]", range(start, most)),
            (f"iter[{start}:{stop}]", range(start, stop)),
            (f"iter[{start}::2]", range(start, most, 2)),
            (f"iter[{start}]", range(start, start + 1)),
            (f"iter[[{start}, {start + 2}]]", range(start, start + 3, 2)),
            *([("all()", range(most)), ("iter", range(most))] if not first else []),
        ])  # fmt: skip
        self.at = -1
        body = self.statements(3)
        if self.rng.random() < 0.4:
            body += (p.When(self.rng.randint(start, start + 2), self.statements(2)),)
        word = "for" if chosen == "iter" else self.rng.choice(["for", "with"])
        return p.Loop(chosen, tuple(steps), body, word)

    def next(self) -> p.Next:
        path = self.rng.choice(self.subject.modules)
        at = "tracer" if self.rng.random() < 0.5 else p.Place(path, "", "").of("{m}")
        self.at = -1
        return p.Next(self.rng.choice([1, 1, 2]), at)

    def block(self, stepping: bool, can_stop: bool) -> tuple[p.Statement, ...]:
        """A block of a trace."""
        body = self.statements(4)
        if self.grad:
            body += self.backward(retain=stepping)
        if stepping and self.rng.random() < 0.75:
            if self.rng.random() < 0.5:
                body += (self.loop(1 if body else 0),)
            else:
                for _ in range(self.rng.randint(1, 2)):
                    body += (self.next(), *self.statements(3))
                body += self.backward() if self.grad else ()
        if can_stop and self.rng.random() < 0.06:
            body += (p.Stop(),)
        elif can_stop and self.rng.random() < 0.04:
            body += (p.Fail(self.rng.choice(p.ENDS)),)
        if self.rng.random() < 0.4 and (self.subject.square or stepping):
            body += (p.Result(self.subject.square and self.rng.random() < 0.3),)
        return body

    # --- gradients --------------------------------------------------------------------------------

    def _differentiable(self) -> list[int]:
        """Where a value is a tensor of its own: not the same as what comes before or after."""
        inside = ("torch_tanh_0", "torch_sin_0")
        return [
            index
            for index, place in enumerate(self.order)
            if index > self.at and place.kind == "output" and place.path
            and (not place.op or place.op.endswith(inside))
        ]  # fmt: skip

    def backward(self, retain: bool = False) -> tuple[p.Statement, ...]:
        ahead = self._differentiable()
        if len(ahead) < 2:
            return ()
        chosen = sorted(self.rng.sample(ahead, min(len(ahead), self.rng.randint(2, 4))))
        holds, body = [], []
        for index in chosen:
            place = self.order[index]
            holds.append(self.name("h"))
            body.append(p.Hold(place, holds[-1]))
            if self.rng.random() < 0.3:
                body.append(p.Change(place, self.rng.choice(FACTORS[:3])))
        *held, loss = holds
        held = held[::-1]
        if len(body) > len(holds):
            loss = held[0] if len(held) > 1 else loss
        passes = self.rng.choice([1, 1, 2])
        for number in range(passes):
            some = tuple(
                (name, self.rng.choice([None, None, 2.0])) for name in held if name != loss
            )
            body.append(p.Backward(loss, some, retain or number + 1 < passes))
        self.at = chosen[-1]
        return tuple(body)


def _every(subject: Subject) -> tuple[str, ...] | None:
    """What a cache of every module that programs name is given."""
    return None if subject.square else subject.modules


# --- programs -------------------------------------------------------------------------------------


def random_program(rng: Random, subject: Subject | None = None) -> tuple[Subject, p.Program]:
    """A program, for a subject or for any."""
    if subject is None:
        subject = gpt2() if rng.random() < 0.12 else stack(rng.randint(1, 3))
    grad = subject.square and rng.random() < 0.3
    counter, inputs, index = [0], 0, 0
    models, commands, known = ["model"], [], []
    session = None
    for _ in range(rng.randint(1, 4)):
        roll = rng.random()
        if roll < 0.25 and session is None:
            commands.append(_edit(rng, subject, counter, models, grad))
            continue
        if roll < 0.3 and session is None:
            commands.append(p.ClearEdits(rng.choice(models)))
            continue
        if session is None and rng.random() < 0.4:
            session = len(commands)
        run, bound = _run(rng, subject, counter, models, (inputs, index), grad, known)
        commands.append(run)
        inputs += sum(block.given is not None for block in run.blocks)
        index += len(run.blocks) + (run.outer_cache is not None)
        if session is not None:
            known += bound
    if not any(isinstance(command, p.Run) for command in commands):
        commands.append(_run(rng, subject, counter, models, (inputs, index), grad, known)[0])
        inputs += sum(block.given is not None for block in commands[-1].blocks)
    return subject, p.Program(tuple(commands), session, grad, inputs)


def _edit(
    rng: Random, subject: Subject, counter: list[int], models: list[str], grad: bool
) -> p.MakeEdit:
    writer = Writer(rng, subject, counter)
    writer.grad = grad
    writer.notes = writer.wild = False
    model = rng.choice(models)
    edited = model
    if rng.random() < 0.6:
        edited = f"edited_{len(models)}"
        models.append(edited)
    return p.MakeEdit(model, edited, writer.statements(3), rng.random() < 0.4)


def _run(
    rng: Random,
    subject: Subject,
    counter: list[int],
    models: list[str],
    numbers: tuple[int, int],
    grad: bool,
    known: list[str],
) -> tuple[p.Run, list[str]]:
    """A trace, and the names that it binds."""
    verb, steps = "trace", None
    if rng.random() < 0.5:
        verb, steps = subject.stepped, rng.randint(1, 4)
    scan = verb == "trace" and subject.square and rng.random() < 0.12
    direct = rng.random() < 0.5
    given, index = numbers
    entries, bound = [], []
    for number in range(1 if direct else rng.randint(1, 3)):
        writer = Writer(rng, subject, counter)
        writer.grad = grad and not scan
        whole = number > 0 and not grad and rng.random() < 0.25
        writer.known = [] if scan or grad or whole else known
        body = writer.block(steps is not None, not whole)
        if not scan and not whole:
            straight = [s.name for s in body if isinstance(s, p.Read)]
            bound += straight
        entries.append(p.Entry(None if whole else given, body))
        given += not whole
    if any(isinstance(s, (p.Stop, p.Fail)) for entry in entries for s in entry.body):
        bound = []
    model = rng.choice(models)
    outer = None
    if not direct and rng.random() < 0.15:
        outer = p.OpenCache(f"whole{index}", _every(subject), False)
    spoken = rng.choice([model, "model"])
    return (
        p.Run(
            model,
            "scan" if scan else verb,
            tuple(entries),
            direct,
            index,
            steps,
            outer,
            spoken,
        ),
        bound,
    )
