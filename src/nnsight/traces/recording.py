"""What a cache does while the model runs: copy the values of its modules, inside the hooks.

No block is woken for it. A value is copied as the model goes on with it, after every block has done
its edits there, and no later change in place reaches the copy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from nnsight import nested
from nnsight.interleave import ambient, errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import OUTPUT, Location
from nnsight.interleave.row_gradients import Pieces
from nnsight.interleave.rows import Rows
from nnsight.traces.layout import Names


class _Attached(NamedTuple):
    """A tensor kept in its graph. Changed in place afterwards, a copy of what it was stands in."""

    tensor: torch.Tensor
    version: int
    copy: torch.Tensor


@dataclass
class Store:
    """The values of one cache. Holds no module, and nothing of the run once it is over."""

    names: Names
    asked: frozenset[str]  # paths of the modules that it was opened for
    kinds: tuple[str, ...]  # `output`, `input`
    visits: dict[str, list[dict[str, Any]]]  # of each module by path: its values by kind
    pending: set[torch.device] = field(default_factory=set)  # where copies may still be under way
    attached: bool = False  # whether some values are kept in their graph

    def of(self, kind: str, path: str) -> list[Any]:
        """The values of a module, one for each visit."""
        return [visit[kind] for visit in self.of_visits(path) if kind in visit]

    def of_visits(self, path: str) -> list[dict[str, Any]]:
        """The values of a module by kind, for each visit.

        A visit lacks the input that came before the cache was opened, and the output of a module
        that failed.
        """
        self.settle()
        visits = self.visits.get(path, [])
        return [_plain_visit(visit) for visit in visits] if self.attached else list(visits)

    def add(self, kind: str, path: str, value: Any) -> None:
        """Keep a value that came by: an output belongs to the visit that last lacks one."""
        visits = self.visits.setdefault(path, [])
        begun = next((v for v in reversed(visits) if OUTPUT not in v), None)
        if kind != OUTPUT or begun is None:
            visits.append({kind: value})
        else:
            begun[kind] = value

    @property
    def recorded(self) -> list[str]:
        """Paths of the modules that have values, in the order in which they first had one."""
        return list(self.visits)

    @functools.cached_property
    def walkable(self) -> frozenset[str]:
        """Paths that can be walked to: of the modules asked for, and of those above them."""
        return frozenset(
            ".".join(parts[:end])
            for parts in (path.split(".") for path in self.asked)
            for end in range(1, len(parts) + 1)
        )

    def settle(self) -> None:
        """Wait for copies that were started with `non_blocking=True`."""
        while self.pending:
            device = self.pending.pop()
            getattr(torch, device.type).synchronize(device)

    def finish(self) -> None:
        """The run is over: let go of what was kept for the case of a change in place."""
        self.settle()
        if self.attached:
            for visits in self.visits.values():
                visits[:] = map(_plain_visit, visits)
            self.attached = False


@dataclass(frozen=True)
class Keeping:
    """How a cache keeps a tensor."""

    device: torch.device | None  # None: where it is
    dtype: torch.dtype | None  # of floating point values; None: as it is
    detach: bool
    non_blocking: bool

    def keep(self, tensor: torch.Tensor, store: Store) -> Any:
        """A copy of `tensor` as it is now."""
        if tensor.requires_grad and self.detach:
            tensor = tensor.detach()
        moved = self._moved(tensor, store)
        if moved is not tensor:
            return moved
        if not tensor.requires_grad:
            return tensor.clone()
        store.attached = True
        return _Attached(tensor, tensor._version, tensor.clone())

    def _moved(self, tensor: torch.Tensor, store: Store) -> torch.Tensor:
        """`tensor` at the device and in the dtype asked for; itself where that changes nothing."""
        device = tensor.device
        moves = self.device is not None and device != self.device and not tensor.is_meta
        if not moves and self.dtype is None:
            return tensor
        floats = tensor.is_floating_point() or tensor.is_complex()
        dtype = self.dtype if floats else None
        if self.non_blocking and moves and device.type != "cpu":
            store.pending.add(device)
        return tensor.to(self.device if moves else device, dtype, non_blocking=self.non_blocking)


@dataclass(frozen=True)
class Recorder:
    """Fills a store with what its block sees of a run."""

    store: Store
    keeping: Keeping
    batch: Batch
    rows: Rows | None
    away: Sequence[Rows]  # of blocks that skip what is running: it is nothing to them
    worker: Any = None  # whose cache it is, if it is not that of the whole batch

    def see(self, location: Location, value: Any) -> None:
        """The run is at `location` and goes on with `value`."""
        if ambient.transforming():
            raise errors.transformed(location)
        if self.away and self.rows in self.away:
            return
        kept = self._copy(value) if self.rows is None else self._copy_rows(location, value)
        self.store.add(location.kind, location.owner.path, kept)

    def _copy_rows(self, location: Location, value: Any) -> Any:
        """The same of this block's rows; those kept in their graph are known to be rows of it."""
        if self.keeping.detach:
            return self._copy(self.batch.narrow(value, self.rows, location))
        pieces = Pieces()
        note = functools.partial(pieces.add, self.worker)
        kept = self._copy(self.batch.narrow(value, self.rows, location, note))
        pieces.bridge()
        return kept

    def _copy(self, value: Any) -> Any:
        """`value` with every tensor copied, in containers that nobody else has."""
        if isinstance(value, torch.Tensor):
            return self.keeping.keep(value, self.store)
        members = nested.parts(value)
        if members is None:
            return value
        return nested.rebuild(value, {key: self._copy(m) for key, m in members.items()})


def _plain_visit(visit: dict[str, Any]) -> dict[str, Any]:
    return {kind: _plain(value) for kind, value in visit.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, _Attached):
        return value.tensor if value.tensor._version == value.version else value.copy
    members = None if isinstance(value, torch.Tensor) else nested.parts(value)
    if not members:
        return value
    return nested.rebuild(value, {key: _plain(member) for key, member in members.items()})
