"""Frames of the running program, and where each of them is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice
from types import FrameType

frame_at: Callable[[int], FrameType] = sys._getframe  # pyright: ignore[reportPrivateUsage] no other
"""`frame_at(0)` is the frame that asks, `frame_at(1)` its caller, and so on."""

Span = tuple[int, int, int, int]  # first line, last line, first column, last column


def span_of(frame: FrameType) -> Span:
    """Where `frame` is; its line alone, from column 0 to 0, if the interpreter keeps no more."""
    if sys.version_info >= (3, 11):
        first, last, start, end = next(
            islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)
        )
        if first is not None and last is not None and start is not None and end is not None:
            return first, last, start, end
    return frame.f_lineno, frame.f_lineno, 0, 0


def linetable(size: int, span: Span) -> bytes:
    """A `co_linetable` that puts `size` bytes of code at `span`, which starts at its first line.

    The formats are CPython's: Objects/lnotab_notes.txt (3.10), Objects/locations.md (3.11 on).
    """
    if sys.version_info < (3, 11):  # pairs: so many bytes, so many lines further
        return b"\xfe\0" * (size // 254) + bytes([size % 254, 0])
    first, last, start, end = span
    where = b"\0" + b"".join(map(_varint, (last - first, start + 1, end + 1)))
    units = [8] * (size // 16) + [size // 2 % 8]
    return b"".join(bytes([0x80 | 14 << 3 | n - 1]) + where for n in units if n)


def _varint(number: int) -> bytes:
    """Six bits a byte, the lowest first; a seventh says that more follow."""
    found = bytearray()
    while number > 63:
        found.append(number & 63 | 64)
        number >>= 6
    return bytes([*found, number])
