"""When waiting ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

PATIENCE = 120.0
"""Seconds of failures in a row after which a line, or a server that is starting, is given up."""


@dataclass(frozen=True)
class Deadline:
    """A moment; never, if no time was given."""

    at: float = float("inf")

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; None for never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """The seconds until then."""
        return self.at - time.monotonic()
