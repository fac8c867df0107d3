"""Another batch, whose values tell which of them are made of rows, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from nnsight import nested

_OWN, _COMPARED = 3, 6  # rows of the batch at most; those, and rows made of them


@dataclass(frozen=True)
class Mirror:
    """Rows like those of a batch, rows to fill up, and the first ones in reverse.

    Only some are rows of the batch as they are. In the others half of the tokens are one token, so
    that a router, and a mask, treats them otherwise: that it treats the batch's rows alike is
    chance, and no answer for the next batch.
    """

    total: int  # rows of the batch
    rows: int  # rows of the mirror

    @classmethod
    def of(cls, total: int, sizes: Collection[int]) -> Mirror:
        """As few rows as can be, as many as are no size of the model: so they mean the batch."""
        numbers = itertools.count(2 * _COMPARED)
        return cls(total, next(n for n in numbers if n not in sizes and n != total))

    def given(self, values: Any, varied: bool = True) -> Any:
        """`values` with the rows of the mirror; without `varied` all are rows of the batch."""
        vary = _turned if _sees(values) else _varied

        def pick(leaf: torch.Tensor) -> torch.Tensor:
            if not leaf.ndim or leaf.shape[0] != self.total:
                return leaf
            forth = [leaf[number % self.total] for number in range(_COMPARED)]
            if varied:
                own = min(_OWN, self.total)
                forth[own:] = [vary(row, number) for number, row in enumerate(forth[own:])]
            fill = [forth[0]] * (self.rows - 2 * _COMPARED)
            return torch.stack([*forth, *fill, *reversed(forth)])

        return nested.map_leaves(pick, values)

    def holds(self, leaf: torch.Tensor) -> bool:
        """Whether the parts of `leaf` for the first rows come back in reverse."""
        if leaf.ndim == 0 or not leaf.shape[0] or leaf.shape[0] % self.rows or leaf.is_meta:
            return False
        if isinstance(leaf, FakeTensor):  # of a scan: its length is all that it has
            return True
        first = leaf.reshape(self.rows, -1)[:_COMPARED]
        inputs = [dim for dim in range(1, leaf.ndim) if leaf.shape[dim] == self.rows]
        # where each input meets each other, as images and texts do, those come back in reverse too
        return any(
            _alike(first, back.reshape(self.rows, -1)[-_COMPARED:].flip(0))
            for back in ([leaf, leaf.flip(inputs)] if inputs else [leaf])
        )

    def lies(self, leaf: torch.Tensor, drawn: bool) -> int | None:
        """The first dimension behind the first that is made of rows; where `drawn`, by length."""
        for dim in range(1, leaf.ndim):
            if leaf.shape[dim] == self.rows and (drawn or self.holds(leaf.movedim(dim, 0))):
                return dim
        return None


def _varied(row: torch.Tensor, number: int) -> torch.Tensor:
    """A row of ids or of their embeddings whose first half is one token; of others the row."""
    if isinstance(row, FakeTensor):
        return row
    embedded = row.ndim == 2 and row.is_floating_point() and len(row) > 0
    if not _are_ids(row) and not embedded:
        return row
    half, row = len(row) // 2, row.clone()
    row[:half] = row[(half + number) % len(row)].clone()
    return row


def _turned(row: torch.Tensor, number: int) -> torch.Tensor:
    """A row of ids in another order: an image keeps as many places in it as it needs."""
    return row.roll(number + 1) if _are_ids(row) else row


def _are_ids(row: torch.Tensor) -> bool:
    if isinstance(row, FakeTensor) or row.ndim != 1 or row.is_floating_point():
        return False
    return row.numel() > 0 and bool(row.max() > 1)


def _sees(values: Any) -> bool:
    """Whether there is something beside the ids, such as pixels."""
    leaves = list(nested.leaves(values))
    beside = any(leaf.ndim > 2 and leaf.is_floating_point() for leaf in leaves)
    return beside and any(leaf.ndim == 2 and not leaf.is_floating_point() for leaf in leaves)


def _alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether nearly all numbers are nearly the same.

    Not all, as a token may go to another expert when rounding differs. What is 0 in both says
    nothing: most activations may be.
    """
    if left.dtype == torch.bool or left.is_complex():
        return bool(torch.equal(left, right))
    left, right = left.double(), right.double()
    size = torch.maximum(left.abs(), right.abs())
    told = size.isnan() | (size > 0)
    if not told.any():
        return True
    left, right, size = left[told], right[told], size[told]
    usual = size[size.isfinite()].median() if size.isfinite().any() else 0.0
    equal = (left == right) | (left.isnan() & right.isnan())  # what is masked may be -inf
    close = equal | ((left - right).abs() <= 2e-2 * (size + usual)) & size.isfinite()
    return bool(close.double().mean() > 0.9)
