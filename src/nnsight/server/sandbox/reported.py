"""`tracer.report()` in a sandbox: the model's process takes a run down, and tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from itertools import pairwise
from typing import Any

from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.worker import Worker
from nnsight.traces.journal import Event, Journal

Rows = list[tuple[Any, ...]]


class Taken(Journal):
    """The model's side: takes a run down, with the lines that the sandbox tells."""

    def _line(self, worker: Worker) -> str:
        return str(getattr(worker, "spot", ""))

    def rows(self) -> tuple[tuple[Any, ...], ...]:
        """What there is until now, as data."""
        return tuple(astuple(event) for event in self.events)


class Told(Journal):
    """The sandbox's side: what it is told, and the backward passes that its blocks take down.

    Args:
        blocks: what to call each worker of the run, in their order.
        ask: asks the model's side for what there is until now.
    """

    def __init__(self, blocks: list[str], workers: list[Worker], ask: Callable[[], Rows]) -> None:
        super().__init__(blocks)
        self._names = dict(zip(workers, blocks, strict=True))
        self._ask = ask
        self._before: list[tuple[int, int]] = []  # own rows that began behind some of the others
        self._own = self.events

    def take(self, rows: Rows) -> None:
        """What the model's side has taken down, with what was taken down here between it."""
        found = [Event(*row) for row in rows]
        starts = [*self._before, (len(found), len(self._own))]
        for (place, start), (_, end) in reversed(list(pairwise(starts))):
            found[place:place] = self._own[start:end]
        self.events = found

    def turned(self, worker: Worker) -> None:
        if worker in self._backward:
            super().turned(worker)
        else:
            self.take(self._ask())

    def join(self, run: Interleaver, around: Worker) -> None:
        self._before.append((len(self._ask()), len(self._own)))
        self.events = self._own  # of the pass
        super().join(run, around)
