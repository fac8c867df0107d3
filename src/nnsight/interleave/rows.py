"""`Rows`: which part of a batch belongs to one block, and where that is in a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Rows:
    """The rows of the combined batch that belong to one block."""

    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size


class Share(Protocol):
    """How a dimension of a tensor, the first almost everywhere, belongs to the rows of a batch."""

    @property
    def dim(self) -> int: ...

    def parts(self, rows: Rows) -> tuple[Rows, ...]:
        """Where in the tensor `rows` are: one part or more, in order."""
        ...


@dataclass(frozen=True)
class Even:
    """So many to each row."""

    each: int = 1
    dim: int = 0

    def parts(self, rows: Rows) -> tuple[Rows, ...]:
        return (Rows(rows.start * self.each, rows.size * self.each),)


@dataclass(frozen=True)
class Uneven:
    """To each block its own many: images, where one prompt has more of them than another."""

    own: Mapping[Rows, Rows]  # for the rows of each block, its part
    dim: int = 0

    def parts(self, rows: Rows) -> tuple[Rows, ...]:
        return (self.own[rows],)


def with_parts(
    full: torch.Tensor, parts: Iterable[Rows], new: torch.Tensor, dim: int = 0
) -> torch.Tensor:
    """`full` with `new` in place of its `parts` along `dim`, as a tensor of its own."""
    pieces: list[torch.Tensor] = []
    end = taken = 0
    for part in parts:
        pieces += full.narrow(dim, end, part.start - end), new.narrow(dim, taken, part.size)
        end, taken = part.stop, taken + part.size
    return torch.cat([*pieces, full.narrow(dim, end, full.shape[dim] - end)], dim)
