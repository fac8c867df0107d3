"""Names that the blocks of one trace share, without a barrier.

A name belongs first to the block that binds it. A block that reads a name which it has not bound
takes it from an invoke before it, waiting until that one has bound it; then from where the block
was written; then from an invoke after it. A name that the blocks only ever update (`total += x`)
is one variable for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CellType
from typing import Any

from nnsight.capture.scope import Scope
from nnsight.interleave import errors
from nnsight.interleave.request import wait
from nnsight.interleave.worker import Worker

_UNBOUND = object()


@dataclass
class Sibling:
    """One block of a trace with several."""

    scope: Scope
    worker: Worker | None = None  # set when it starts; a block that has none yet is still to come
    waits_for: str | None = None  # the name it is parked for
    waits_on: Sibling | None = None  # the block that is to bind it

    @property
    def alive(self) -> bool:
        return self.worker is None or not self.worker.ended

    def binds(self, name: str) -> bool:
        return name in self.scope.block.bound

    def value(self, name: str) -> Any:
        return self.scope.get(name, _UNBOUND)


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
        return lambda name: self._read(index, name)

    def _read(self, index: int, name: str) -> Any:
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
        for other in others:
            if other.binds(name):
                if other.value(name) is _UNBOUND and other.alive:
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
        me.waits_for, me.waits_on = name, other
        if me.worker is not None:
            me.worker.waited = f"the name {name!r} of the block at {other.scope.block.where}"
        try:
            wait(
                ready=lambda: (
                    not other.alive or (not until_end and other.value(name) is not _UNBOUND)
                ),
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
