"""The rows of one block that do not lie side by side: with guidance, a prompt is in both halves.

One row from each half is a view, as any rows are. More are a copy; what a block changes in it in
place goes into the tensor that it was gathered from when the block's turn ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch

from nnsight.interleave.rows import Rows

Parts = Sequence[Rows]


class Gathered:
    """The copies that blocks of one run hold. Keeps none of them alive."""

    def __init__(self) -> None:
        self._given: list[tuple[ref[Any], ref[Any], Parts, int]] = []  # each with its version

    def take(self, full: torch.Tensor, parts: Parts) -> torch.Tensor:
        """The `parts` of `full`, one after the other."""
        starts = [part.start for part in parts]
        step = starts[1] - starts[0]
        if all(part.size == 1 for part in parts) and starts == list(
            range(starts[0], starts[-1] + 1, step)
        ):
            return full[starts[0] : starts[-1] + 1 : step]
        copy = torch.cat([full.narrow(0, part.start, part.size) for part in parts])
        self._given.append((ref(copy), ref(full), parts, _version(copy)))
        return copy

    def is_of(self, new: torch.Tensor, full: torch.Tensor, parts: Parts) -> bool:
        """Whether `new` is what a block was given of `full`: it says no more than `full` does."""
        self.settle()
        if any(copy() is new and whole() is full for copy, whole, _, _ in self._given):
            return True
        return new._base is full and new.data_ptr() == full[parts[0].start].data_ptr()

    def settle(self) -> None:
        """Put back what was changed in copies."""
        left: list[tuple[ref[Any], ref[Any], Parts, int]] = []
        for copy, full, parts, version in self._given:
            own, whole = copy(), full()
            if own is None or whole is None:
                continue
            if _version(own) != version or own.is_inference():
                with torch.no_grad():
                    sizes = [part.size for part in parts]
                    for part, piece in zip(parts, own.split(sizes), strict=True):
                        whole.narrow(0, part.start, part.size).copy_(piece)
            left.append((copy, full, parts, _version(own)))
        self._given = left


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
