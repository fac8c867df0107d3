"""What the blocks of a program share: names that they wait for, and barriers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from tests.behaviour.fuzz.blocks import Block

_UNBOUND = object()


class Shared:
    """The part of the oracle that knows of names and barriers."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.names: dict[tuple[int, str], Any] = {}
        self.initial: dict[str, Any] = {}
        self.sums: set[str] = set()  # names that blocks only add to
        self.arrived: Counter[int] = Counter()
        self.rounds: Counter[int] = Counter()
        self.sizes: list[int] = []  # of the barriers

    def _cell(self, block: Block, name: str) -> tuple[int, str]:
        return (-1 if name in self.sums else block.index), name

    def name(self, me: Block) -> Callable[[str], Generator[Any, Any, Any]]:
        """How a block reads a shared name."""

        def look(name: str) -> Generator[Any, Any, Any]:
            if name in self.sums and name not in me.binds:
                for other in self.blocks[: me.index]:  # a sum is read when it is complete
                    yield from self._wait(me, name, other, partial(bool, False))
            own = self.names.get(self._cell(me, name), _UNBOUND)
            if own is not _UNBOUND:
                return own
            found = yield from self._from(me, name, self.blocks[: me.index][::-1])
            if found is _UNBOUND:
                found = self.initial.get(name, _UNBOUND)
            if found is _UNBOUND:
                found = yield from self._from(me, name, self.blocks[me.index + 1 :])
            if found is _UNBOUND:
                raise NameError(name)
            return found

        return look

    def _from(self, me: Block, name: str, others: list[Block]) -> Generator[Any, Any, Any]:
        for other in others:
            bound = partial(self._binds, other, name)
            yield from self._wait(me, name, other, bound)
            if bound():
                return self.names[other.index, name]
        return _UNBOUND

    def _wait(
        self, me: Block, name: str, other: Block, bound: Callable[[], bool]
    ) -> Generator[Any, Any, None]:
        """Wait until `other`, if it binds a name, has done so, or has ended."""
        if name not in other.binds or bound() or other.ended:
            return
        chain: Block | None = other
        while chain is not None:
            if chain is me:
                raise NameError(name)
            chain = chain.waits_on
        me.waits_on = other
        try:
            yield "wait", lambda: bound() or other.ended, lambda: NameError(name)
        finally:
            me.waits_on = None

    def _binds(self, block: Block, name: str) -> bool:
        return (block.index, name) in self.names

    def barrier(self, index: int) -> Generator[Any, Any, None]:
        mine = self.rounds[index]
        self.arrived[index] += 1
        if self.arrived[index] == self.sizes[index]:
            self.arrived[index] = 0
            self.rounds[index] += 1
            return
        yield "wait", lambda: self.rounds[index] != mine, lambda: ValueError("barrier")
