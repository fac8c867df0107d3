"""One value over all rows of a batch, made from a value for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from nnsight import nested
from nnsight.interleave import errors
from nnsight.interleave.location import Location
from nnsight.interleave.rows import Rows

Lies = Callable[[Location, int, Sequence[int]], "int | None"]
"""Which dimension of a leaf of a shape, behind the first, counts the rows; None if none does."""


def _nowhere(location: Location, leaf: int, shape: Sequence[int]) -> None:
    return None


def assemble(parts: Iterable[tuple[Rows, Any]], location: Location, lies: Lies = _nowhere) -> Any:
    """One value over all rows from a value for each block: concatenated tensor by tensor.

    Args:
        lies: as for `Batch`.

    Raises:
        BatchError: a block's value has another number of rows or another structure.
    """
    return _Joining(location, lies).join(sorted(parts, key=lambda part: part[0].start))


class _Joining:
    """The values of all blocks becoming one."""

    def __init__(self, location: Location, lies: Lies) -> None:
        self.location, self.lies = location, lies
        self.leaf = -1

    def join(self, parts: list[tuple[Rows, Any]]) -> Any:
        _, first = parts[0]
        if isinstance(first, torch.Tensor):
            self.leaf += 1
            return self._join_tensors(parts, first)
        members = nested.parts(first)
        if not members:
            return first
        split = [(rows, nested.parts(value)) for rows, value in parts]
        for (_, value), (_, others) in zip(parts, split, strict=True):
            if others is None or others.keys() != members.keys():
                raise self._structure(value, first)
        return nested.rebuild(
            first,
            {key: self.join([(rows, own[key]) for rows, own in split if own]) for key in members},
        )

    def _join_tensors(self, parts: list[tuple[Rows, Any]], first: torch.Tensor) -> torch.Tensor:
        for _, value in parts:
            if not isinstance(value, torch.Tensor) or value.dtype != first.dtype:
                raise self._structure(value, first)
        if not first.ndim:
            return first
        dim = self._dim(parts, first)
        for rows, value in parts:
            if not _fits(value, rows, first, dim):
                if all(other is first for _, other in parts):  # everybody's: not one for each row
                    return first
                expected = f"this block has {rows.size} row(s)"
                raise errors.wrong_rows(self.location, nested.describe(value), expected)
        return torch.cat([value for _, value in parts], dim)

    def _dim(self, parts: list[tuple[Rows, Any]], first: torch.Tensor) -> int:
        """Along which dimension the values are joined: the first, where no other counts rows."""
        total = sum(rows.size for rows, _ in parts)
        for dim in range(1, first.ndim):
            if all(_fits(value, rows, first, dim) for rows, value in parts):
                shape = (*first.shape[:dim], total, *first.shape[dim + 1 :])
                if self.lies(self.location, self.leaf, shape) == dim:
                    return dim
        return 0

    def _structure(self, value: Any, first: Any) -> errors.BatchError:
        return errors.wrong_structure(self.location, nested.describe(value), nested.describe(first))


def _fits(value: torch.Tensor, rows: Rows, first: torch.Tensor, dim: int) -> bool:
    """Whether `value` has as many `rows` in a dimension, and else the shape of the `first`."""
    own, other = list(value.shape), list(first.shape)
    return (
        value.ndim == first.ndim
        and own.pop(dim) == rows.size
        and own == other[:dim] + other[dim + 1 :]
    )
