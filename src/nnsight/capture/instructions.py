"""Where in a code object a `with` statement enters its managers, and binds their `as` targets."""

from __future__ import annotations

import dis
import opcode
import sys
from types import CodeType, FrameType

from nnsight.capture import errors


def current(frame: FrameType) -> int:
    """The offset of the instruction that `frame` is running.

    Python 3.10 tells that of its prefix, where the argument of the instruction is a long one: the
    end of the body, for a `with` over a long body.
    """
    raw, offset = frame.f_code.co_code, frame.f_lasti
    while raw[offset] == dis.EXTENDED_ARG:
        offset += 2
    return offset


def enters(code: CodeType, offset: int) -> bool:
    """Whether the instruction at `offset` calls `__enter__` or `__aenter__` of a manager."""
    return _enters(code.co_code, offset)


def _enters(raw: bytes, offset: int) -> bool:
    name = opcode.opname[raw[offset]]
    if sys.version_info >= (3, 14):  # `with` looks `__enter__` up and calls it: two instructions
        return name == "CALL" and opcode.opname[raw[offset - 2]] == "LOAD_SPECIAL"
    return name in ENTERS


ENTERS = ("BEFORE_WITH", "SETUP_WITH", "BEFORE_ASYNC_WITH")  # until 3.13


def after(code: CodeType, offset: int) -> int:
    """The offset of the instruction that comes when the one at `offset` has entered a manager.

    It binds the `as` target, or drops the value. An `async with` awaits what it is given first.
    """
    if awaits(code, offset):
        return _awaited(code, offset)
    if sys.version_info >= (3, 14):
        caches = opcode._inline_cache_entries["CALL"]  # pyright: ignore
        return offset + 2 + 2 * caches
    return offset + 2


def awaits(code: CodeType, offset: int) -> bool:
    """Whether the instruction at `offset`, which enters a manager, is of an `async with`."""
    raw = code.co_code
    if sys.version_info >= (3, 14):  # LOAD_SPECIAL counts `__enter__`, `__exit__`, `__aenter__`
        return raw[offset - 1] == 2
    return opcode.opname[raw[offset]] == "BEFORE_ASYNC_WITH"


def _awaited(code: CodeType, offset: int) -> int:
    """The offset behind the loop that awaits what `__aenter__` returned."""
    following = (i for i in dis.get_instructions(code) if i.offset > offset)
    for instruction in following:
        if instruction.opname == "SETUP_ASYNC_WITH":  # 3.10
            return instruction.offset + 2
        if instruction.opname == "SEND":
            end: int = instruction.argval
            return end + 2 if opcode.opname[code.co_code[end]] == "END_SEND" else end
    raise errors.branching_target(code.co_filename, code.co_firstlineno)


def entries(code: CodeType) -> list[int]:
    """The offsets of all instructions of `code` that enter a manager."""
    raw = code.co_code
    return [offset for offset in range(0, len(raw), 2) if _enters(raw, offset)]


def past_target(code: CodeType, offset: int) -> int:
    """The offset at which Python has bound the `as` target, whose binding starts at `offset`.

    The value that `__enter__` returned lies on the stack; the target is bound when it has gone.

    Raises:
        WithBlockNotFoundError: the target branches (`as d[a if b else c]`).
    """
    raw, depth, argument = code.co_code, 1, 0
    while depth > 0:
        instruction = raw[offset]
        argument = argument << 8 | raw[offset + 1]
        offset += 2
        if instruction == dis.EXTENDED_ARG:
            continue
        if instruction in dis.hasjrel or instruction in dis.hasjabs:
            raise errors.branching_target(code.co_filename, code.co_firstlineno)
        if depth == 1 and dis.opname[instruction] == "STORE_FAST_LOAD_FAST":  # and on to the body
            break
        given = argument if instruction >= dis.HAVE_ARGUMENT else None
        depth += dis.stack_effect(instruction, given)
        argument = 0
    while raw[offset] == 0:  # inline caches of the last instruction
        offset += 2
    return offset
