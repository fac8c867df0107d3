"""Another batch, whose values tell which of them are made of rows, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from nnsight import nested

_COMPARED = 6  # rows


@dataclass(frozen=True)
class Mirror:
    """Rows like those of a batch, rows to fill up, and the first ones in reverse.

    The first rows are all unlike each other, so that a router treats each of them otherwise: where
    the batch has fewer, its tokens are turned around.
    """

    total: int  # rows of the batch
    rows: int  # rows of the mirror

    @classmethod
    def of(cls, total: int, sizes: Collection[int]) -> Mirror:
        """As few rows as can be, as many as are no size of the model: so they mean the batch."""
        numbers = itertools.count(2 * _COMPARED)
        return cls(total, next(n for n in numbers if n not in sizes and n != total))

    def given(self, values: Any) -> Any:
        """`values` with the rows of the mirror."""

        def pick(leaf: torch.Tensor) -> torch.Tensor:
            if not leaf.ndim or leaf.shape[0] != self.total:
                return leaf
            forth = [
                _turned(leaf[number % self.total], number // self.total)
                for number in range(_COMPARED)
            ]
            fill = [forth[0]] * (self.rows - 2 * _COMPARED)
            return torch.stack([*forth, *fill, *reversed(forth)])

        return nested.map_leaves(pick, values)

    def holds(self, leaf: torch.Tensor) -> bool:
        """Whether the parts of `leaf` for the first rows come back in reverse."""
        if leaf.ndim == 0 or not leaf.shape[0] or leaf.shape[0] % self.rows or leaf.is_meta:
            return False
        first = leaf.reshape(self.rows, -1)[:_COMPARED]
        inputs = [dim for dim in range(1, leaf.ndim) if leaf.shape[dim] == self.rows]
        # where each input meets each other, as images and texts do, those come back in reverse too
        return any(
            _alike(first, back.reshape(self.rows, -1)[-_COMPARED:].flip(0))
            for back in ([leaf, leaf.flip(inputs)] if inputs else [leaf])
        )


def _turned(row: torch.Tensor, by: int) -> torch.Tensor:
    """A row of ids or of their embeddings that starts `by` tokens later; of others the row."""
    ids = row.ndim == 1 and not row.is_floating_point() and row.numel() > 0 and row.max() > 1
    embedded = row.ndim == 2 and row.is_floating_point()
    return row.roll(by, 0) if by and (ids or embedded) else row


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether nearly all numbers are nearly the same.

    Not all, as a token may go to another expert when rounding differs. What is 0 in both says
    nothing: most activations may be.
    """
    if left.dtype == torch.bool or left.is_complex():
        return bool(torch.equal(left, right))
    left, right = left.double(), right.double()
    size = torch.maximum(left.abs(), right.abs())
    told = size > 0
    if not told.any():
        return True
    size, off = size[told], (left - right).abs()[told]
    close = off <= 2e-2 * (size + size.median())
    return bool(close.double().mean() > 0.9)
