"""What the oracle knows of a block that runs, and of one visit at one place of the model."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from nnsight.interleave.errors import MissedProviderError

Key = tuple[Any, str]  # a module (or None) and a kind


class Swallowed(MissedProviderError):
    """A block that caught the news of its end every time."""


class Block:
    """One block as it runs."""

    def __init__(self, index: int, rows: slice | None, binds: set[str]) -> None:
        self.index, self.rows, self.binds = index, rows, binds
        self.generator: Generator[Any, Any, None]
        self.request: tuple[Any, ...] | None = None
        self.error: BaseException | None = None
        self.begun = self.ended = self.stopped = False
        self.refusals = 0
        self.waits_on: Block | None = None
        self.saved: dict[str, Any] = {}


class Visit:
    def __init__(self, key: Key, number: int, value: Any) -> None:
        self.key, self.number, self.value = key, number, value
        self.skips: dict[int, tuple[Block, Any]] = {}
        self.own: dict[int, tuple[Any, Any]] = {}  # containers made for one block
