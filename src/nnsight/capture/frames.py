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
