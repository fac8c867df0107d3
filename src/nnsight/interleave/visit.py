"""`Visit`: one value on its way through the model, while blocks are being answered there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nnsight import nested
from nnsight.interleave import ambient, errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.checkpoint import Region
from nnsight.interleave.cuts import Cut
from nnsight.interleave.location import SKIP, Location
from nnsight.interleave.request import GATE, READ, WRITE, Request
from nnsight.interleave.row_gradients import Pieces
from nnsight.interleave.rows import Rows
from nnsight.interleave.worker import Worker


class Visit:
    """One visit of the run at one location.

    Args:
        location: where.
        number: which of the run's visits there, from 0.
        first: whether it is the first, whatever its number.
        value: what the model has there; replaced as blocks replace it.
        batch: how the rows of the value belong to the blocks.
        cuts: of the run; takes the tensors that blocks replace here.
        region: of activation checkpointing, that the model is in.
    """

    def __init__(
        self,
        location: Location,
        number: int,
        first: bool,
        value: Any,
        batch: Batch,
        cuts: list[Cut],
        region: Region | None,
    ) -> None:
        self.location, self.number, self.first, self.value = location, number, first, value
        self.batch, self.cuts, self.region = batch, cuts, region
        # of torch on the model's side, where values are cut
        self.state: tuple[Any, ...] | None = ambient.brief() if batch.split else None
        # rows that blocks were given, which gradients must reach
        self.pieces = Pieces() if self.state is not None and self.state[0] else None
        self.skips: dict[Rows | None, Any] = {}
        # containers made for one block, each with the value that it is a part of
        self.handed: dict[Worker, tuple[Any, Any]] = {}

    def is_for(self, request: Request) -> bool:
        """Whether this is the visit that a block waits for."""
        if request.location != self.location:
            return False
        return request.visit == self.number or (self.first and not request.pinned)

    def act(self, worker: Worker, request: Request) -> Any:
        """Do what a block asks for; the answer to a read is its rows.

        Raises:
            BatchError: a replacement does not fit.
            NotImplementedError: the value is inside a transform of torch.func.
        """
        if ambient.transforming():
            raise errors.transformed(self.location)
        if request.action == READ:
            return self._read(worker)
        if self.region is not None:
            self.region.refuse(self.location)
        if request.action == WRITE:
            self._replace(worker, request.value)
            self._hand(worker, request.value)
        elif request.action == GATE:
            self.batch.check_skip(self.value, worker.rows, request.value, self.location)
            self.skips.pop(worker.rows, None)  # the last one counts, and comes last
            self.skips[worker.rows] = request.value
        return None

    def _read(self, worker: Worker) -> Any:
        own, whole = self.handed.get(worker, (None, None))
        if whole is self.value and whole is not None:  # the very object that it has already
            return own
        note = None if self.pieces is None else partial(self.pieces.add, worker)
        own = self.batch.narrow(self.value, worker.rows, self.location, note)
        if own is not self.value:
            self._hand(worker, own)
        return own

    def _replace(self, worker: Worker, new: Any) -> None:
        cuts: list[Cut] = []
        self.value = self.batch.widen(self.value, worker.rows, new, self.location, cuts)
        for cut in cuts:
            chained = [both for earlier in self.cuts if (both := earlier.then(cut)) is not None]
            self.cuts += [cut, *chained]

    def _hand(self, worker: Worker, own: Any) -> None:
        """Remember a container that only one block has: its changes are put back."""
        if self.batch.split and worker.rows is not None and nested.parts(own):
            self.handed[worker] = own, self.value

    def take_changes(self, worker: Worker) -> None:
        """Put back what a block changed in a list or a dict that was made for it alone.

        Raises:
            BatchError: what it is now does not fit; it is forgotten.
        """
        own, whole = self.handed.get(worker, (None, None))
        if whole is not self.value or whole is None:
            return
        del self.handed[worker]
        self._replace(worker, own)
        self.handed[worker] = own, self.value


def outcome(
    batch: Batch,
    location: Location,
    skips: dict[Rows | None, Any],
    away: list[Rows],
    call: Callable[[], Any],
) -> Any:
    """What a module gives when blocks skip it: their values, and for the other rows its own.

    Args:
        skips: the values by rows, in the order in which they were given: a later one has the say.
        away: holds the rows that skip it while it is called for the others.
    """
    given = list(skips.items())
    whole = [n for n, (rows, _) in enumerate(given) if rows is None or not batch.split]
    parts = [
        (rows, value) for rows, value in given[max(whole, default=-1) + 1 :] if rows is not None
    ]
    if not whole and sum(rows.size for rows, _ in parts) == batch.total:
        return batch.assemble(parts, location)
    result = given[whole[-1]][1] if whole else _for_the_others(parts, away, call)
    for rows, value in parts:
        result = batch.widen(result, rows, value, Location(location.owner, SKIP))
    return result


def _for_the_others(
    parts: list[tuple[Rows, Any]], away: list[Rows], call: Callable[[], Any]
) -> Any:
    away += (rows for rows, _ in parts)
    try:
        return call()
    finally:
        del away[len(away) - len(parts) :]
