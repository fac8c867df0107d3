"""Whether what a call returns is entered by a `with`, told from the instruction after the call.

`model.generate(...)` generates at once, and `with model.generate(...) as tracer:` opens a trace.
No source is needed to tell them apart.
"""

from __future__ import annotations

import opcode
import sys
from types import CodeType, FrameType

from nnsight.capture import instructions, traceback
from nnsight.capture.frames import frame_at


def is_entered() -> bool:
    """Whether a `with` enters what the user's call that led here returns.

    The call may stand in a function that hands the value on: `return model.generate(...)`.
    """
    frame: FrameType | None = frame_at(1)
    while frame is not None and traceback.is_hidden(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is not None and is_entered_at(frame)


def is_entered_at(caller: FrameType) -> bool:
    """Whether a `with` enters what the call that `caller` is making returns."""
    frame: FrameType | None = caller
    while frame is not None:
        name = _next(frame.f_code, frame.f_lasti)
        if name != "RETURN_VALUE":
            return name in (*instructions.ENTERS, "LOAD_SPECIAL")
        frame = frame.f_back
    return False


def _next(code: CodeType, offset: int) -> str:
    """The instruction that takes what the call at `offset` returns."""
    raw, extended = code.co_code, 0
    offset += 2
    while offset < len(raw):
        name, argument = opcode.opname[raw[offset]], extended << 8 | raw[offset + 1]
        extended = argument if name == "EXTENDED_ARG" else 0
        offset += 2
        if name == "JUMP_FORWARD":  # of `with a if b else c:`
            offset += 2 * argument
        elif name == "COPY" and sys.version_info >= (3, 14):  # `with` keeps the manager
            continue
        elif name not in ("CACHE", "EXTENDED_ARG", "NOP", "<0>"):
            return name
    return ""
