"""Blocks beside one call of the plain model: generators that are resumed when it comes by.

A block asks for visits of places; the model has a tap at everything it does (`subjects.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.behaviour.fuzz.verbs import program as p
from tests.behaviour.fuzz.verbs.subjects import Subject

from nnsight.interleave.errors import MissedProviderError, Stop

Key = tuple[str, str, str]  # path, operation, kind
BEGIN: Key = ("", "", "begin")  # of a step
RESULT: Key = ("", "", "result")
_RUN = object()


class Refused(Exception):
    """One of our errors, of which kind does not matter here."""


@dataclass
class Visit:
    key: Key
    step: int  # of the model: programs name nothing that runs twice in one
    value: Any


@dataclass
class Kept:
    """What a cache must hold, by path."""

    modules: tuple[str, ...] | None
    inputs: bool
    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def see(self, visit: Visit) -> None:
        path, op, kind = visit.key
        wanted = kind == "output" or (kind == "input" and self.inputs)
        if op or not wanted or (self.modules is not None and path not in self.modules):
            return
        entries = self.entries.setdefault(path, [])
        if kind == "input" or not self.inputs or "output" in (entries[-1] if entries else ()):
            entries.append({})
        if not entries:
            entries.append({})
        entries[-1][kind] = visit.value.detach().clone()


Request = tuple[Key, int | None]  # at which step; None is whenever it comes by first
Ask = Generator[Request, Any, None]


class Block:
    """One block as it runs beside one input."""

    def __init__(self, sim: Sim, body: Iterable[p.Statement], seen: list[Any] | None) -> None:
        self.sim, self.seen, self.edit = sim, seen, seen is None
        self.pin: int | None = None
        self.request: Request | None = None
        self.met: list[tuple[Key, int]] = []  # the visits that it was given
        self.late = False  # whether what it asked for was left out of the first step
        self.going = self.all(body)

    def note(self, value: Any) -> None:
        if self.seen is not None:
            self.seen.append(value.detach().clone() if torch.is_tensor(value) else value)

    def all(self, body: Iterable[p.Statement]) -> Ask:
        for statement in body:
            yield from getattr(self, f"_{type(statement).__name__}")(statement)

    def at(self, place: p.Place) -> Generator[Request, Any, Visit]:
        return (yield (place.path, place.op, place.kind), self.pin)

    def _Read(self, s: p.Read) -> Ask:
        visit = yield from self.at(s.place)
        self.sim.env[s.name] = visit.value.clone()
        self.note(visit.value)

    def _Change(self, s: p.Change) -> Ask:
        visit = yield from self.at(s.place)
        visit.value = (visit.value if s.name is None else self.sim.env[s.name]) * s.factor

    def _InPlace(self, s: p.InPlace) -> Ask:
        visit = yield from self.at(s.place)
        visit.value[:] *= s.factor

    def _Skip(self, s: p.Skip) -> Ask:
        value = (yield from self.at(s.place)).value * s.factor
        (yield (s.place.path, s.place.op, "skip"), self.pin).value = value

    def _Next(self, s: p.Next) -> Ask:
        self.pin = (self.pin or 0) + s.by
        yield from ()

    def _Stop(self, s: p.Stop) -> Ask:
        raise Stop
        yield

    def _Fail(self, s: p.Fail) -> Ask:
        raise ZeroDivisionError
        yield

    def _Result(self, s: p.Result) -> Ask:
        visit = yield RESULT, 0
        self.note(visit.value)
        if s.replace:
            visit.value = visit.value + 1
            self.note(visit.value)

    def _When(self, s: p.When) -> Ask:
        if self.pin == s.step:
            yield from self.all(s.body)

    def _Loop(self, s: p.Loop) -> Ask:
        outer = self.pin
        for step in s.steps:
            if not (yield BEGIN, step):
                break
            self.pin = step
            self.note(step)
            yield from self.all(s.body)
        self.pin = outer

    def _OpenCache(self, s: p.OpenCache) -> Ask:
        kept = Kept(s.modules, s.inputs)
        self.sim.caches.append(kept)
        self.note(kept)
        yield from ()

    def _Hold(self, s: p.Hold) -> Ask:
        self.sim.env[s.name] = (yield from self.at(s.place)).value

    def _Backward(self, s: p.Backward) -> Ask:
        env, noted = self.sim.env, []

        def hook(factor: float | None) -> Any:
            def see(grad: torch.Tensor) -> torch.Tensor:
                noted.append(grad.clone())
                return grad * (factor or 1.0)

            return see

        if not all(env[name].requires_grad for name in (s.loss, *dict(s.held))):
            raise Refused  # a skip or a factor cut what they were computed from
        handles = [env[name].register_hook(hook(factor)) for name, factor in s.held]
        env[s.loss].square().sum().backward(retain_graph=s.retain)
        for handle in handles:
            handle.remove()
        for grad in noted:
            self.note(grad)
        if len(noted) < len(s.held):
            raise MissedProviderError
        yield from ()


class Sim:
    """One call on one input, with blocks resumed where it comes by."""

    def __init__(self, subject: Subject, env: dict[str, Any]) -> None:
        self.subject, self.env = subject, env
        self.blocks: list[Block] = []
        self.caches: list[Kept] = []
        self.step = -1
        self.last: dict[Key, int] = {}  # the step at which each place came by last
        self.visit: Visit | None = None

    def run(self, x: torch.Tensor, steps: int | None) -> str:
        """How it ended: `ok`, `stop`, or the name of an error."""
        try:
            for block in self.blocks:
                self.resume(block, None)
            result = self.subject.run(x, steps, self.around)
            self.end_loops()
            self.offer(RESULT, result)
            self.refuse_waiting()
        except Stop:
            return "stop"
        except (MissedProviderError, Refused, ZeroDivisionError) as error:
            return type(error).__name__
        return "ok"

    def around(self, path: str, op: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        if not op and path == self.subject.modules[0]:
            self.step += 1
            self.offer(BEGIN, True)
        if args:
            args = (self.offer((path, op, "input"), args[0]), *args[1:])
        value = self.offer((path, op, "skip"), _RUN)
        if value is _RUN:
            value = function(*args, **kwargs)
        else:
            self.pass_over(path, f"{op}.source." if op else "")
        return self.offer((path, op, "output"), value)

    def pass_over(self, path: str, start: str) -> None:
        """A call that is skipped counts for the operations in it."""
        for place in self.subject.order:
            if place.path == path and place.op and place.op.startswith(start):
                self.last[path, place.op, place.kind] = self.step

    def offer(self, key: Key, value: Any) -> Any:
        visit = self.visit = Visit(key, 0 if key == RESULT else self.step, value)
        try:
            for block in self.blocks:
                if block.request is not None and self.meets(block.request, visit):
                    self.resume(block, visit)
        finally:  # a cache keeps what was met, whatever ends the run there
            for kept in self.caches:
                kept.see(visit)
        self.visit = None
        self.last[key] = visit.step
        return visit.value

    def resume(self, block: Block, answer: Any) -> None:
        """Let a block go on until it has to wait."""
        try:
            if isinstance(answer, Visit):
                block.met.append((answer.key, answer.step))
                waited = block.request is not None and block.request[1] is None
                block.late = block.late or (waited and answer.step > 0)
            block.request = block.going.send(answer)
            while (answer := self.answer(block.request)) is not None:
                block.request = block.going.send(answer)
        except StopIteration:
            block.request = None

    def meets(self, request: Request, visit: Visit) -> bool:
        key, step = request
        return visit.key == key and (step == visit.step or (step is None and key not in self.last))

    def answer(self, request: Request) -> Any:
        """What there is already; None where a block has to wait.

        Raises:
            MissedProviderError: the model has gone past it.
        """
        key, step = request
        if self.visit is not None and self.meets(request, self.visit):
            return self.visit
        if key in self.last and (step or 0) <= self.last[key]:
            if key == BEGIN:
                return True
            raise MissedProviderError
        return None

    def end_loops(self) -> None:
        """Loops end with the run, before its result is there."""
        for block in self.blocks:
            while block.request is not None and block.request[0] == BEGIN:
                self.resume(block, False)

    def refuse_waiting(self) -> None:
        """Blocks that wait for what did not come fail; an edit only warns.

        Raises:
            MissedProviderError: there is one.
        """
        if any(block.request is not None and not block.edit for block in self.blocks):
            raise MissedProviderError
