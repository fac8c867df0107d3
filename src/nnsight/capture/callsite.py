"""What is done with a value at once, told from the instructions after the one that brings it.

`model.generate(...)` generates at once, and `with model.generate(...) as tracer:` opens a trace;
`layer.output[0]` takes a part of a value. No source is needed to tell.
"""

from __future__ import annotations

import opcode
import sys
from types import CodeType, FrameType

from nnsight.capture import instructions, traceback
from nnsight.capture.frames import frame_at
from nnsight.capture.percode import PerCode


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


def is_followed_by_zero(frame: FrameType) -> bool:
    """Whether `[0]` follows the attribute that `frame` is reading: `layer.output[0]`."""
    known, offset = _zeros[frame.f_code], frame.f_lasti
    if offset not in known:
        known[offset] = _is_followed_by_zero(frame.f_code, offset)
    return known[offset]


_zeros: PerCode[dict[int, bool]] = PerCode(dict)
_ITEMS = frozenset({"BINARY_SUBSCR", "STORE_SUBSCR", "DELETE_SUBSCR", "COPY", "DUP_TOP_TWO"})
_SUBSCRIPT = 26  # what `BINARY_OP` does for `[]`, from 3.14 on


def _is_followed_by_zero(code: CodeType, offset: int) -> bool:
    found: list[tuple[str, int]] = []
    raw, extended = code.co_code, 0
    for at in range(offset + 2, len(raw) - 1, 2):
        name, argument = opcode.opname[raw[at]], extended << 8 | raw[at + 1]
        extended = argument if name == "EXTENDED_ARG" else 0
        if name in ("CACHE", "EXTENDED_ARG", "NOP", "<0>"):
            continue
        found.append((name, argument))
        if len(found) == 2:
            break
    if len(found) < 2:
        return False
    (load, index), (use, argument) = found
    constant = code.co_consts[index] if load == "LOAD_CONST" else None
    zero = (type(constant) is int and constant == 0) or (load, index) == ("LOAD_SMALL_INT", 0)
    return zero and (use in _ITEMS or (use, argument) == ("BINARY_OP", _SUBSCRIPT))


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
