"""What a standard name does when it is read or assigned.

A point is a value of one module call, or a part of it seen in another shape: `attn.z` is what goes
into the output projection, by head. A view that shares memory with the value needs no more, as what
is changed in it is changed in the model. Where gradients flow the block gets a copy that the model
goes on with, so that the copy has a gradient and changing it breaks no backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Number
from typing import Any, Protocol
from weakref import ref

import torch

from nnsight.capture.traceback import note, warn
from nnsight.envoy.arguments import first_input, with_first_input
from nnsight.interleave import request
from nnsight.interleave.errors import MissedProviderError
from nnsight.interleave.location import INPUT, Location
from nnsight.interleave.request import Pin, here
from nnsight.interleave.value import View
from nnsight.modeling import errors

Look = Callable[[torch.Tensor], torch.Tensor]


class Spot(Protocol):
    """Where a standard name leads to."""

    @property
    def name(self) -> str: ...

    def read(self) -> torch.Tensor: ...

    def write(self, value: Any) -> None: ...


class Point:
    """A standard name: read and assigned like `.output`.

    Args:
        shape: of the value, in words.
        doc: what the value is.
    """

    def __init__(self, shape: str, doc: str) -> None:
        self.shape = shape
        self.__doc__ = f"{doc} `[{shape}]`."

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        spot = owner._spot(self.name)
        try:
            return spot.read()
        except MissedProviderError as error:  # it names a place inside the model
            note(error, errors.read_there(spot.name))
            raise

    def __set__(self, owner: Any, value: Any) -> None:
        spot = owner._spot(self.name)
        try:
            spot.write(value)
        except MissedProviderError as error:
            note(error, errors.written_there(spot.name))
            raise

    def asked(self, owner: Any) -> tuple[Location, View] | None:
        """Where a block that goes on without the value asks for it; None where it has to wait."""
        spot = owner._spot(self.name)
        return spot.plain() if isinstance(spot, Value) else None


@dataclass(frozen=True)
class Value:
    """A tensor that a module is given or returns, or a part of it in another shape.

    Args:
        name: of the point, for messages.
        location: where the value is; of a tuple it is the first element.
        look: makes the part of the tensor that is seen: a view into it.
        guarded: what computed it needs it for its backward, so it must not change in place.
        in_place: others hold the tensor too, so a replacement is written into it.
    """

    name: str
    location: Location
    look: Look | None = None
    guarded: bool = False
    in_place: bool = False

    def read(self) -> torch.Tensor:
        tensor = self._tensor(request.read(self.location))
        part = tensor if self.look is None else self.look(tensor)
        flows = tensor.requires_grad and torch.is_grad_enabled()
        if self.in_place:  # a copy: what the block keeps of it must outlive a replacement
            return held(self.location, part.clone(), self._put, always=flows)
        if flows and (self.guarded or self.look is not None):
            return held(self.location, _by_head(part).clone(), self._put, always=True)
        view = _by_head(part)
        return view if view is part else held(self.location, view, self._put, always=False)

    def plain(self) -> tuple[Location, View] | None:
        """Where the tensor is and how it is seen, if that is all there is to reading it."""
        if self.look is not None or self.guarded or self.in_place:
            return None
        return self.location, lambda _, raw: self._tensor(raw)

    def write(self, value: Any) -> None:
        self._put(value, back=False)

    def _put(self, value: Any, back: bool = True) -> None:
        raw = request.read(self.location)
        tensor = self._tensor(raw)
        part = tensor if self.look is None else self.look(tensor)
        value = fitting(self.name, value, _by_head(part))
        if self.in_place:
            part.copy_(value)
        elif self.look is None:
            request.write(self.location, self._raw(raw, value), back=back)
        else:
            new = tensor.clone()
            self.look(new).copy_(value.reshape(part.shape))
            request.write(self.location, self._raw(raw, new), back=back)

    def _tensor(self, raw: Any) -> torch.Tensor:
        if self.location.kind == INPUT:
            return first_input(self.location, raw)
        return raw if isinstance(raw, torch.Tensor) else raw[0]

    def _raw(self, raw: Any, tensor: torch.Tensor) -> Any:
        if self.location.kind == INPUT:
            return with_first_input(self.location, raw, tensor)
        return tensor if isinstance(raw, torch.Tensor) else (tensor, *raw[1:])


def fitting(name: str, value: Any, seen: torch.Tensor) -> torch.Tensor:
    """`value` as what takes the place of `seen`: a tensor of its shape, or a number for all of it.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Number) and not isinstance(value, complex):
        return torch.full_like(seen, value)  # type: ignore[arg-type] # a real number
    if not isinstance(value, torch.Tensor) or value.shape != seen.shape:
        raise errors.unfit(name, value, seen)
    return value


# --- in which shape -------------------------------------------------------------------------------


def by_row(tensor: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens, ...]` of a tensor in which a model flattens the two, or has them so."""
    return tensor if tensor.ndim > 2 else tensor.unflatten(0, (_rows(), -1))


def _rows() -> int:
    """How many rows the block sees, beams included."""
    run, own = here.worker.run, here.worker.rows
    return run.copies * (own.size if run.batch.split and own is not None else run.batch.total)


def heads(width: int, count: int = 0) -> Look:
    """`[rows, tokens, heads, width]` of `[rows, tokens, heads * width]`.

    Raises:
        NoSuchName: there are other than `count` heads in it, where that is given.
    """

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if count and tensor.shape[-1] != count * width:
            raise errors.other_heads(tensor.shape[-1], count, width)
        return by_row(tensor).unflatten(-1, (-1, width))

    return look


def first_of_two(width: int, count: int) -> Look:
    """The first half of what there is of each head, as by `heads`."""
    both = heads(2 * width, count)
    return lambda tensor: both(tensor)[..., :width]


def each_row(count: int) -> Look:
    """`[rows, heads, ...]` of a tensor in which a model flattens the two."""
    return lambda tensor: tensor.unflatten(0, (-1, count)) if tensor.ndim == 3 else tensor


def _by_head(part: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens, heads, width]`, also where groups of heads have a dimension of theirs."""
    return part.flatten(-3, -2) if part.ndim > 4 else part


def block(which: int, parts: int, count: int, width: int) -> Look:
    """One of q, k and v of a projection that has all of q, then all of k, then all of v.

    Args:
        which: of those that it has.
        parts: how many of them it has.
        count: of the heads of q; 0 where it has k and v only.
        width: of a head.
    """

    def look(tensor: torch.Tensor) -> torch.Tensor:
        by_head = heads(width)(tensor)
        queries = 1 if count else 0
        shared = (by_head.shape[-2] - count) // (parts - queries)
        if which < queries:
            return by_head.narrow(-2, 0, count)
        return by_head.narrow(-2, count + (which - queries) * shared, shared)

    return look


def of_each_head(which: int, parts: int, width: int) -> Look:
    """One of q, k and v of a projection that has those of a head side by side."""
    return lambda tensor: by_row(tensor).unflatten(-1, (-1, parts, width))[..., which, :]


def of_each_group(which: int, count: int, shared: int, width: int) -> Look:
    """q, k or v of one that has the queries of a group of heads, then their key and value."""

    def look(tensor: torch.Tensor) -> torch.Tensor:
        groups = by_row(tensor).unflatten(-1, (shared, count // shared + 2, width))
        return groups[..., -2 + which - 1, :] if which else groups[..., :-2, :]

    return look


# --- copies that the model goes on with -----------------------------------------------------------


class _Held:
    """A copy that a block has in hand, put in force when the block has done with it.

    What is changed in it after that comes too late: the block is warned when it has ended.
    """

    def __init__(
        self,
        location: Location,
        view: torch.Tensor,
        put: Callable[[torch.Tensor], None],
        due: bool,
    ) -> None:
        self.worker, self.location = here.worker, location
        pin = self.worker.pin
        self.step = None if pin is None else pin.step
        self.view, self.put, self.due = view, put, due
        self.seen = _state(view)

    def put_back(self, keeps: bool) -> None:
        if not keeps and not self.view.is_inference():
            self.worker.at_end.append(partial(_tell_late, ref(self.view), self))
        self._put_back()
        if not keeps:
            self.seen = _state(self.view)
            del self.view

    def _put_back(self) -> None:
        now = _state(self.view)
        if not self.due and _same(now, self.seen):
            return
        self.due, self.seen = False, now
        worker = self.worker
        pin, worker.pin = worker.pin, None if self.step is None else Pin(self.step)
        try:
            self.put(self.view)
        finally:
            worker.pin = pin


def held(
    location: Location, view: torch.Tensor, put: Callable[[torch.Tensor], None], always: bool
) -> torch.Tensor:
    """Give `view` to the block, and `put` it back before the block asks for the next value.

    Args:
        always: whether the block changes it or not, as its gradient may be asked for.
    """
    worker: Any = request.current(location)
    worker.unfinished.append(_Held(location, view, put, always).put_back)
    return view


def let_go(location: Location) -> None:
    """Put nothing back of what a block was given at `location`: it assigns something else there."""
    worker: Any = request.current(location)
    worker.unfinished = [
        each
        for each in worker.unfinished
        if not isinstance(of := each.__self__, _Held) or of.location != location
    ]


def _tell_late(view: ref[torch.Tensor], held: _Held) -> None:
    """Warn of a change that came after the model had gone on."""
    tensor = view()
    if tensor is not None and tensor._version != held.seen:
        text = errors.changed_late(str(held.location))
        filename, _, line = held.worker.where.rpartition(", line ")
        if line.isdigit():
            warnings.warn_explicit(text, UserWarning, filename, int(line))
        else:
            warn(text)


def _state(view: torch.Tensor) -> Any:
    """What tells whether a tensor has changed in place. (One of inference mode counts nothing.)"""
    return view.clone() if view.is_inference() else view._version


def _same(now: Any, before: Any) -> bool:
    return torch.equal(now, before) if isinstance(now, torch.Tensor) else now == before
