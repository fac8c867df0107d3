"""Something remembered per code object, for as long as the code object lives.

Keyed by identity: a reloaded module or an edited notebook cell is a new code object and starts
anew, and hashing a code object walks all of it (0.08 µs a line).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import CodeType
from typing import Generic, TypeVar

T = TypeVar("T")


class PerCode(Generic[T]):
    """`memo[code]` is made once by `make()`, or set, and forgotten with the code object.

    What is kept must not hold the code object, or neither ever goes.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept: dict[int, tuple[weakref.ref[CodeType], T]] = {}

    def __getitem__(self, code: CodeType) -> T:
        entry = self._kept.get(id(code))
        if entry is None:
            return self._keep(code, self._make())
        return entry[1]

    def get(self, code: CodeType) -> T | None:
        """What is kept for `code`, if anything."""
        entry = self._kept.get(id(code))
        return None if entry is None else entry[1]

    def __setitem__(self, code: CodeType, value: T) -> None:
        self._kept.pop(id(code), None)
        self._keep(code, value)

    def _keep(self, code: CodeType, value: T) -> T:
        key = id(code)
        forget = weakref.ref(code, lambda _: self._kept.pop(key, None))
        return self._kept.setdefault(key, (forget, value))[1]  # another thread may be first

    def __contains__(self, code: CodeType) -> bool:
        return id(code) in self._kept

    def __len__(self) -> int:
        return len(self._kept)
