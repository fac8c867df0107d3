"""`tracer.barrier(n)`: a point at which the blocks of several invokes wait for one another."""

from __future__ import annotations

from nnsight.interleave import errors
from nnsight.interleave.request import here, wait


class Barrier:
    """Call it in `n` blocks: each waits until all have arrived. It can be used again and again.

    Values that another block binds need no barrier (a block waits for a name by itself); a barrier
    orders what has no name: changes in place, prints, lists that blocks fill.

    Raises:
        ValueError: `n` is less than one, or the run ended before `n` blocks had arrived, or it was
            called where no block runs.
    """

    def __init__(self, n: int) -> None:
        if not isinstance(n, int) or n < 1:
            raise ValueError(
                f"a barrier needs the number of blocks that take part, a whole number from 1 on, "
                f"not {n!r}. For two invokes, write `tracer.barrier(2)`."
            )
        self.n = n
        self._arrived = 0
        self._round = 0

    def __call__(self) -> None:
        if here.worker is None or here.outside_invokes:
            raise errors.nothing_runs("barrier()")
        mine = self._round
        self._arrived += 1
        if self._arrived == self.n:
            self._arrived = 0
            self._round += 1
            return
        wait(
            ready=lambda: self._round != mine,
            missed=lambda: errors.barrier_short(self._arrived, self.n),
        )
