"""`Rows`: which part of a batch belongs to one block."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """The rows of the combined batch that belong to one block."""

    start: int
    size: int

    @property
    def stop(self) -> int:
        return self.start + self.size
