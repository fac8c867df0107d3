"""Whose rows are whose while a pipeline denoises.

The text encoders read a row for each prompt. The denoiser has a row for each image, and with
guidance all of them twice: first those without their prompt, then those with it. A block has the
rows of its own images from both halves, in that order, as its prompts have alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import nested
from nnsight.envoy.batch_axis import BatchAxis
from nnsight.interleave import errors
from nnsight.interleave.assembly import assemble
from nnsight.interleave.batching import Batch, combine
from nnsight.interleave.location import Location
from nnsight.interleave.rows import Even, Rows, Share


@dataclass(frozen=True)
class Halves:
    """So many to each row, in each of several copies of the batch."""

    total: int  # rows of the batch
    each: int
    copies: int
    dim: int = 0

    def parts(self, rows: Rows) -> tuple[Rows, ...]:
        length = self.total * self.each
        start, size = rows.start * self.each, rows.size * self.each
        return tuple(Rows(copy * length + start, size) for copy in range(self.copies))


@dataclass
class Denoising:
    """What is known of the denoiser since it was first called in a run."""

    path: str
    copies: int = 1  # how often each image is in its batch
    axis: BatchAxis | None = None


@dataclass(frozen=True)
class Guided(Batch):
    """The batch of a pipeline that several blocks share."""

    path: str = field(kw_only=True)  # of the pipeline, in its tree
    images: int = field(kw_only=True)  # for each prompt
    denoising: Denoising = field(kw_only=True)

    def share(self, value: torch.Tensor, location: Location, leaf: int) -> Share | None:
        length = value.shape[0] if value.ndim else 0
        if not self._is_denoising(location):
            each = length // self.total
            return (
                Even(each) if length and each * self.total == length and self._own(each) else None
            )
        copies, axis = self.denoising.copies, self.denoising.axis
        if length != self.total * self.images * copies:
            return None
        if axis is not None and axis(location, leaf, value.shape) is False:
            return None
        if copies == 1:
            return Even(self.images)
        return Halves(self.total, self.images, copies)

    def _own(self, each: int) -> bool:
        return each in (1, self.images)

    def _is_denoising(self, location: Location) -> bool:
        path, at = self.denoising.path, location.owner.path
        return at == path or at.startswith(f"{path}.")

    def narrow(self, value: Any, rows: Rows | None, location: Location, note: Any = None) -> Any:
        if rows is None or not self.split or location.owner.path not in ("", self.path):
            return super().narrow(value, rows, location, note)
        return self._made(value, rows)

    def widen(
        self, full: Any, rows: Rows | None, new: Any, location: Location, cuts: Any = None
    ) -> Any:
        if rows is None or not self.split or location.owner.path not in ("", self.path):
            return super().widen(full, rows, new, location, cuts)
        return self._put(full, rows, new, location)

    def _made(self, value: Any, rows: Rows) -> Any:
        """The images of `rows` in what the pipeline returns: in lists, arrays and tensors."""
        if self._has_images(value):
            return value[rows.start * self.images : rows.stop * self.images]
        members = None if _is_sequence(value) else nested.parts(value)
        if members is None:
            return value
        return nested.rebuild(value, {key: self._made(v, rows) for key, v in members.items()})

    def _put(self, full: Any, rows: Rows, new: Any, location: Location) -> Any:
        """What the pipeline returns, with other images for `rows`."""
        if self._has_images(full):
            start, stop = rows.start * self.images, rows.stop * self.images
            if not hasattr(new, "__len__") or len(new) != stop - start:
                expected = f"this block has {stop - start} image(s)"
                raise errors.wrong_rows(location, nested.describe(new), expected)
            if isinstance(full, torch.Tensor):
                same = new.data_ptr() == full[start:stop].data_ptr()
                return full if same else torch.cat([full[:start], new, full[stop:]])
            if isinstance(full, list):
                return [*full[:start], *new, *full[stop:]]
            full = full.copy()
            full[start:stop] = new
            return full
        members, others = nested.parts(full), nested.parts(new)
        if _is_sequence(full) or members is None:
            return new
        if others is None or others.keys() != members.keys():
            raise errors.wrong_structure(location, nested.describe(new), nested.describe(full))
        put = {key: self._put(v, rows, others[key], location) for key, v in members.items()}
        return full if all(put[key] is members[key] for key in put) else nested.rebuild(full, put)

    def _has_images(self, value: Any) -> bool:
        return _is_sequence(value) and len(value) == self.total * self.images

    def assemble(self, parts: Iterable[tuple[Rows, Any]], location: Location) -> Any:
        parts = list(parts)
        copies = self.denoising.copies if self._is_denoising(location) else 1
        wholes = []
        for copy in range(copies):
            own = [
                (self._in_images(rows, value), _copy_of(value, copy, copies))
                for rows, value in parts
            ]
            wholes.append(((assemble(own, location),), {}))
        return combine(wholes)[0][0]

    def _in_images(self, rows: Rows, value: Any) -> Rows:
        first = nested.first_tensor(value)
        each = 1 if first is None or first.shape[:1] == (rows.size,) else self.images
        return Rows(rows.start * each, rows.size * each)


def _is_sequence(value: Any) -> bool:
    """Whether `value` may hold a thing for each image: a list, an array or a tensor."""
    if isinstance(value, torch.Tensor):
        return value.ndim > 0
    return isinstance(value, list) or (hasattr(value, "__array__") and hasattr(value, "__len__"))


def _copy_of(value: Any, copy: int, copies: int) -> Any:
    def part(leaf: torch.Tensor) -> torch.Tensor:
        if not leaf.ndim or copies == 1 or leaf.shape[0] % copies:
            return leaf
        return leaf.chunk(copies)[copy]

    return nested.map_leaves(part, value)
