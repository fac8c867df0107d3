"""Names that the blocks of one trace share, without a barrier.

A name belongs first to the block that binds it. A block that reads a name which it has not bound
takes it from an invoke before it, waiting until that one has bound it; then from where the block
was written; then from an invoke after it. A name that the blocks only ever update (`total += x`)
is one variable for all of them.

A name that a loop over steps binds has a value for each step, and so has one that is bound anew
after a `.next()`. A block that is at a step itself waits for the value of that step; where the loop
does not bind it then, or is over, the last stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import CellType
from typing import Any

from nnsight.capture.scope import Scope
from nnsight.interleave import errors
from nnsight.interleave.request import Pin, wait
from nnsight.interleave.worker import Worker

_UNBOUND = object()


@dataclass
class Sibling:
    """One block of a trace with several."""

    scope: Scope
    worker: Worker | None = None  # set when it starts; a block that has none yet is still to come
    waits_for: str | None = None  # the name it is parked for
    waits_on: Sibling | None = None  # the block that is to bind it
    loops: dict[str, Bound] = field(default_factory=dict[str, "Bound"])  # names that a loop binds

    @property
    def alive(self) -> bool:
        return self.worker is None or not self.worker.ended

    def binds(self, name: str) -> bool:
        return name in self.scope.block.bound

    def value(self, name: str) -> Any:
        return self.scope.get(name, _UNBOUND)

    @property
    def pin(self) -> Pin | None:
        return None if self.worker is None else self.worker.pin

    def has(self, name: str, step: int | None) -> bool:
        """Whether `name` has its value; for a block at a step, that of the step."""
        if self.value(name) is _UNBOUND:
            return False
        bound = self.loops.get(name)
        if step is None or bound is None:
            return True
        pin = bound.pin or self.pin
        return bound.step >= step or (pin is not None and pin.coming > step)


@dataclass
class Bound:
    """At which step a name was last bound, by a loop or by a block that goes on by `.next()`."""

    pin: Pin | None  # of the loop; None without one: the pin of the block
    step: int = -1  # none yet


class Reader:
    """How one block reads the names that it shares, and tells of those that its loops bind."""

    def __init__(self, names: Names, index: int) -> None:
        self._names, self._me = names, names.siblings[index]
        self._index = index

    def __call__(self, name: str) -> Any:
        return self._names.read(self._index, name)

    def loops(self, *names: str) -> None:
        """A loop begins its body, which binds `names`."""
        pin = self._me.pin
        if pin is not None:
            for name in names:
                bound = self._me.loops.get(name)
                if bound is None or bound.pin is not pin:
                    self._me.loops[name] = Bound(pin)

    def bound(self, *names: str) -> None:
        """A loop has just bound `names`."""
        for name in names:
            if (bound := self._me.loops.get(name)) is not None and bound.pin is not None:
                bound.step = bound.pin.step

    def stepped(self, *names: str) -> None:
        """A block that goes on by `.next()` has just bound `names`, which it binds at each step."""
        step = 0 if self._me.pin is None else self._me.pin.step
        self._me.loops.update({name: Bound(None, step) for name in names})


class Names:
    """The shared names of the blocks of one trace, in the order in which they were written."""

    def __init__(self, scopes: list[Scope]) -> None:
        self.siblings = [Sibling(scope) for scope in scopes]
        self._initial: dict[tuple[int, str], Any] = {}
        shared = self._shared()
        if len(scopes) > 1:
            for index, sibling in enumerate(self.siblings):
                self._prepare(index, sibling, shared)

    def _shared(self) -> set[str]:
        """Names that at least one block binds and another block uses."""
        found: set[str] = set()
        for sibling in self.siblings:
            others = [s for s in self.siblings if s is not sibling]
            found |= {n for n in sibling.scope.cells if any(o.binds(n) for o in others)}
        return found

    def _accumulates(self, name: str) -> bool:
        """Whether every block that binds `name` only updates it."""
        binders = [s for s in self.siblings if s.binds(name)]
        return all(name in s.scope.block.names.updated for s in binders)

    def _prepare(self, index: int, sibling: Sibling, shared: set[str]) -> None:
        scope = sibling.scope
        names = frozenset(n for n in scope.cells if n in shared)
        scope.block = scope.block.sharing(names)
        for name in names:
            if self._accumulates(name):
                first = next(s for s in self.siblings if name in s.scope.cells)
                scope.cells[name] = first.scope.cells[name]
            elif sibling.binds(name):  # unbound until this block binds it itself
                self._initial[index, name] = sibling.value(name)
                scope.cells[name] = CellType()

    def reader(self, index: int) -> Callable[[str], Any]:
        """How the block at `index` reads a shared name."""
        return Reader(self, index)

    def read(self, index: int, name: str) -> Any:
        me = self.siblings[index]
        accumulated = self._accumulates(name)
        if accumulated and not me.binds(name):
            self._await_end(me, name, self.siblings[:index])
        own = me.value(name)
        if own is not _UNBOUND and (accumulated or me.binds(name)):
            return own
        if not accumulated:
            earlier = self.siblings[:index][::-1]
            value = self._first(me, name, earlier)
            if value is not _UNBOUND:
                return value
        initial = self._initial.get((index, name), _UNBOUND) if me.binds(name) else own
        if initial is not _UNBOUND:
            return initial
        value = self._first(me, name, self.siblings[index + 1 :])
        if value is not _UNBOUND:
            return value
        return self._outside(me, name)

    def _first(self, me: Sibling, name: str, others: list[Sibling]) -> Any:
        """The value of the first of `others` that has bound `name` or still will."""
        step = None if me.pin is None else me.pin.step
        for other in others:
            if other.binds(name):
                if not other.has(name, step) and other.alive:
                    self._wait(me, name, other)
                if other.value(name) is not _UNBOUND:
                    return other.value(name)
        return _UNBOUND

    def _await_end(self, me: Sibling, name: str, others: list[Sibling]) -> None:
        """A sum is read when the blocks before have added all they will."""
        for other in others:
            if other.binds(name) and other.alive:
                self._wait(me, name, other, until_end=True)

    def _wait(self, me: Sibling, name: str, other: Sibling, until_end: bool = False) -> None:
        chain: Sibling | None = other
        while chain is not None:
            if chain is me:
                raise errors.name_cycle(name, me.scope.block.where, other.scope.block.where)
            chain = chain.waits_on
        step = None if me.pin is None else me.pin.step
        me.waits_for, me.waits_on = name, other
        if me.worker is not None:
            me.worker.waited = f"the name {name!r} of the block at {other.scope.block.where}"
        try:
            wait(
                ready=lambda: not other.alive or (not until_end and other.has(name, step)),
                missed=lambda: errors.unbound(name, [other.scope.block.where]),
            )
        finally:
            me.waits_for = me.waits_on = None

    def _outside(self, me: Sibling, name: str) -> Any:
        """A name that no block has bound after all: a global, a builtin, or nothing."""
        scope = me.scope
        builtins = scope.globals.get("__builtins__", {})
        if name in scope.globals:
            return scope.globals[name]
        members = builtins if isinstance(builtins, dict) else vars(builtins)
        if name in members:
            return members[name]
        where = [s.scope.block.where for s in self.siblings if s is not me and s.binds(name)]
        raise errors.unbound(name, where)
