"""Rows that one block replaced, while the model or another block may hold the tensor without them.

A replacement of some rows makes a new tensor of the whole batch. The model may hold the old one too
(a residual stream, a list of hidden states), and blocks may hold rows of either. For a prompt that
runs alone both are one tensor. So what a block changes in place in rows that nobody replaced is
changed in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import ref

import torch

from nnsight import nested
from nnsight.interleave.rows import Rows, Share

Versions = tuple[int, int]


class Cut:
    """A tensor, and the one that took its place with other `replaced` rows. Keeps neither alive.

    Args:
        old: the tensor before.
        new: what the model goes on with.
        share: how they belong to the rows.
        replaced: the rows that are not the same in both.
    """

    def __init__(
        self, old: torch.Tensor, new: torch.Tensor, share: Share, replaced: tuple[Rows, ...]
    ) -> None:
        self._old, self._new = ref(old), ref(new)
        self._share, self._replaced = share, replaced
        # what the rows hold in both; only where torch counts no changes, and so must be compared
        self._kept = old.detach().clone() if old.is_inference() or new.is_inference() else None

    @property
    def over(self) -> bool:
        """Whether one of the two is gone, so that there is nothing to do."""
        return self._old() is None or self._new() is None

    def then(self, later: Cut) -> Cut | None:
        """Both as one, where `later` replaced rows of what this one made; None if it did not."""
        old, middle, new = self._old(), self._new(), later._new()
        if old is None or new is None or middle is None or middle is not later._old():
            return None
        return Cut(old, new, self._share, self._replaced + later._replaced)

    def versions(self) -> Versions | None:
        """How often both were changed in place; None where torch does not count."""
        old, new = self._old(), self._new()
        if old is None or new is None or self._kept is not None:
            return None
        return old._version, new._version

    def mend(self, rows: Rows | None, before: Versions | None) -> None:
        """Take over in the one what a block has changed in its `rows` of the other.

        Args:
            rows: of the block; None sees all.
            before: the `versions` before the block ran.
        """
        old, new = self._old(), self._new()
        if old is None or new is None or (before is not None and before == self.versions()):
            return
        dim = self._share.dim
        for start, size in self._shared(rows, old.shape[dim]):
            ours, theirs = new.narrow(dim, start, size), old.narrow(dim, start, size)
            if self._kept is not None:
                kept = self._kept.narrow(dim, start, size)
                changed_new, changed_old = (
                    not nested.same(ours, kept),
                    not nested.same(theirs, kept),
                )
            else:
                changed_new = before is None or new._version != before[1]
                changed_old = before is None or old._version != before[0]
            if changed_new and not _overlaps(theirs):
                theirs.copy_(ours)
            elif changed_old:
                ours.copy_(theirs)
            if self._kept is not None and (changed_new or changed_old):
                self._kept.narrow(dim, start, size).copy_(ours)

    def _shared(self, rows: Rows | None, length: int) -> Iterator[tuple[int, int]]:
        """Where the rows that a block sees are the same in both: starts and sizes."""
        seen = (Rows(0, length),) if rows is None else self._share.parts(rows)
        replaced = [part for own in self._replaced for part in self._share.parts(own)]
        replaced.sort(key=lambda part: part.start)
        for part in seen:
            start = part.start
            for other in replaced:
                if other.stop <= start or other.start >= part.stop:
                    continue
                if other.start > start:
                    yield start, other.start - start
                start = other.stop
            if part.stop > start:
                yield start, part.stop - start


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements of `tensor` share memory, so that it cannot be written."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)
