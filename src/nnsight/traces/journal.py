"""What happened in a run, written down while it runs, for a report.

Kept only for runs whose report is asked for. It compares values by itself, so what it says of a
change is what became of the tensors and not what a line of the block looks like.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nnsight import nested
from nnsight.capture.traceback import users_place
from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import RESULT, SKIP, Location
from nnsight.interleave.request import READ, WAIT, WRITE, Request
from nnsight.interleave.worker import Worker

IN_PLACE, UNMET = "in place", "not met"
REPLACED = "its replacement"  # in force where a change of a replaced value comes too late


@dataclass(frozen=True)
class Event:
    """One thing that a block did, or wanted to do."""

    action: str  # "read", "write", "skip", "in place", "not met"
    where: str  # the location: `model.layer.output`
    block: str  # which block: "0" for the first invoke, "edit"
    visit: int  # which visit of the location, or step of a loop
    line: str  # `file:line` of the user's code
    value: str = ""  # the shape of the value, or what else it is
    change: float | None = None  # norm of the change; None for an action that changes nothing
    size: float = 0.0  # norm of the value before it
    late: str = ""  # where the run was already, for a change after the model had gone on


@dataclass
class _Seen:
    """A value that a block has, and the tensors in it as they were."""

    event: Event
    worker: Worker
    tensors: list[torch.Tensor]
    versions: list[int | None]
    copies: list[torch.Tensor]
    passed: bool = False  # the model has gone on from there
    replaced: bool = False  # by another value


class Journal:
    """Takes down one run.

    Args:
        blocks: what to call each worker of the run, in their order.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        self.events: list[Event] = []
        self.stopped = False
        self.error: str = ""  # the kind of the error that ended the run
        self.blocks = blocks
        self._names: dict[Worker, str] = {}
        self._asked: dict[Worker, Event] = {}  # what each worker waits for
        self._seen: list[_Seen] = []
        self._backward: set[Worker] = set()  # of blocks of backward passes
        self._at = ""  # where the run is
        self._batch = Batch()

    def begin(self, run: Interleaver) -> None:
        """Take down `run` from now on."""
        self._names = dict(zip(run.workers, self.blocks, strict=True))
        self._batch = run.batch
        run.journal = self
        run.observers.append(self._left)

        def close() -> None:
            self.stopped = run.stopping
            self._close()

        run.at_close(close)

    def join(self, run: Interleaver, around: Worker) -> None:
        """Take down the backward pass `run` too, which a block that runs on `around` opens."""
        at = self._at
        for worker in run.workers:
            self._names[worker] = self._names[around]
            self._backward.add(worker)
        run.journal = self
        run.observers.append(self._left)

        def close() -> None:
            self._at = at
            for worker in run.workers:
                self.turned(worker)

        run.at_close(close)

    # --- what the run tells -----------------------------------------------------------------------

    def asked(self, worker: Worker, request: Request) -> None:
        """A block is about to ask for something. Called on its own thread."""
        self._compare(worker)
        self._unmet(worker)
        if request.action == WAIT or request.location is None:
            return
        action, where = request.action, _spelled(request.location)
        name = self._names[worker]
        line = self._line_of(worker, where) if request.back else self._line(worker)
        self._asked[worker] = Event(action, where, name, request.visit, line)

    def served(self, worker: Worker, request: Request, number: int, before: Any, own: Any) -> None:
        """A block got its answer: `own` of a read. `before` is the whole value until then."""
        event, location = self._asked.pop(worker, None), request.location
        if event is None or location is None:
            return
        visit = 0 if location.kind == RESULT else number  # a run has one result
        event, self._at = replace(event, visit=visit), event.where
        if request.action == READ:
            self._add(replace(event, value=_shape(own)), worker, own)
        elif request.action == WRITE:
            self._replaced(
                worker, event, request, self._batch.narrow(before, worker.rows, location)
            )
        else:
            self._add(replace(event, value=_shape(request.value)), worker, None)

    def turning(self, worker: Worker) -> None:
        """A block is about to run. What changed until now was not its doing."""
        for seen in self._of(worker):
            _refresh(seen)

    def turned(self, worker: Worker) -> None:
        """A block has run."""
        self._compare(worker)

    def _left(self, location: Location, value: Any) -> None:
        """The model goes on from a location."""
        self._at = where = _spelled(location)
        for seen in self._seen:
            seen.passed |= seen.event.where == where

    def _close(self) -> None:
        for worker in list(self._asked):
            self._unmet(worker)
        self._seen.clear()
        self._names.clear()
        self._backward.clear()
        self._batch = Batch()

    # --- changes ----------------------------------------------------------------------------------

    def _add(self, event: Event, worker: Worker, value: Any) -> None:
        self.events.append(event)
        self._watch(event, worker, value)

    def _watch(self, event: Event, worker: Worker, value: Any) -> None:
        """Tell from now on when a block changes a value that it has in place."""
        tensors = list(nested.leaves(value))
        if tensors:
            versions, copies = [*map(_version, tensors)], [t.detach().clone() for t in tensors]
            self._seen.append(_Seen(event, worker, tensors, versions, copies))

    def _line_of(self, worker: Worker, where: str) -> str:
        """The line at which a block last had the value there."""
        lines = [seen.event.line for seen in self._of(worker) if seen.event.where == where]
        return lines[-1] if lines else self._line(worker)

    def _line(self, worker: Worker) -> str:
        """Where the block of a worker is, which asks for something on this thread."""
        return users_line()

    def _replaced(self, worker: Worker, event: Event, request: Request, before: Any) -> None:
        last = self.events[-1] if self.events else None
        if not request.back and last == replace(event, action=READ, value=_shape(before)):
            self.events.pop()  # `x.output = x.output + 1` and `x.input = v` read before they write
        old, new = list(nested.leaves(before)), list(nested.leaves(request.value))
        for seen in self._seen:
            seen.replaced |= seen.event.where == event.where
        change, size = _difference(new, old), _norm(old)
        event = replace(event, value=_shape(request.value), change=change, size=size)
        if request.back:
            event = replace(event, action=IN_PLACE)
        if change or not request.back:  # a view that was only read is put back too
            self.events.append(event)
        self._watch(event, worker, request.value)

    def _compare(self, worker: Worker) -> None:
        """Write down what a block has changed in place since it began to run."""
        told: set[Any] = set()
        for seen in reversed(self._of(worker)):  # one tensor read at two places: at the last
            if not _is_changed(seen):
                continue
            memory = {(t.untyped_storage()._cdata, t.storage_offset()) for t in seen.tensors}
            if not memory <= told:
                self.events.append(self._changed(seen))
                told |= memory
            _refresh(seen)

    def _changed(self, seen: _Seen) -> Event:
        late = REPLACED if seen.replaced else self._at if seen.passed else ""
        change, size = _difference(seen.tensors, seen.copies), _norm(seen.copies)
        return replace(seen.event, action=IN_PLACE, change=change, size=size, late=late)

    def _of(self, worker: Worker) -> list[_Seen]:
        return [seen for seen in self._seen if seen.worker is worker]

    def _unmet(self, worker: Worker) -> None:
        event = self._asked.pop(worker, None)
        # the gradient of a parameter may be there already, and be taken from its `.grad`
        if event is not None and worker not in self._backward:
            self.events.append(replace(event, action=UNMET, value=f"({event.action})"))


def _spelled(location: Location) -> str:
    """A location as the user writes it: the module, for one that is skipped."""
    return location.owner.path if location.kind == SKIP else str(location)


def users_line() -> str:
    """`file:line` of the user's code that this thread is running."""
    filename, line = users_place()
    return f"{os.path.basename(filename)}:{line}"


def _shape(value: Any) -> str:
    shapes = [str(list(tensor.shape)) for tensor in nested.leaves(value)]
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    return shapes[0] + more if shapes else nested.describe(value)


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _is_changed(seen: _Seen) -> bool:
    told = zip(seen.tensors, seen.versions, seen.copies, strict=True)
    return any(
        (version is None or version != _version(tensor)) and not nested.same(tensor, copy)
        for tensor, version, copy in told  # another part of the same memory counts versions too
    )


def _refresh(seen: _Seen) -> None:
    versions = [_version(tensor) for tensor in seen.tensors]
    if None in versions or versions != seen.versions:
        seen.versions = versions
        seen.copies = [tensor.detach().clone() for tensor in seen.tensors]


def _norm(tensors: list[torch.Tensor]) -> float:
    """The norm of all numbers in `tensors` together; not a number, where they have no data."""
    try:
        return sum(float(_floats(tensor).norm()) ** 2 for tensor in tensors) ** 0.5
    except (RuntimeError, NotImplementedError):
        return math.nan


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor.float()


def _difference(new: list[torch.Tensor], old: list[torch.Tensor]) -> float:
    """The norm of the change from `old` to `new`, as far as they have the same shapes."""
    pairs = [(a, b) for a, b in zip(new, old, strict=False) if a.shape == b.shape]
    return _norm([_floats(a) - _floats(b).to(a.device) for a, b in pairs])
