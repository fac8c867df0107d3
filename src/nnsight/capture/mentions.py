"""Which attributes and globals a block names: what it can ask for, read off its code once."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from nnsight.capture.percode import PerCode

_kept: PerCode[set[str]] = PerCode(set)


def _named_in(code: CodeType) -> set[str]:
    """What a code names, with the functions in it."""
    found = _kept[code]
    if not found:
        found.update(code.co_names, ("",))  # never empty, once it was looked through
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                found |= _named_in(inner)
    return found


def mentions(body: Callable[..., Any], name: str) -> bool:
    """Whether a function, or one that it holds, names `name`; helpers it calls are not seen."""
    if not isinstance(body, FunctionType):
        return False
    return name in _named_in(body.__code__) or any(
        isinstance(held, FunctionType) and name in _named_in(held.__code__)
        for held in map(_held, body.__closure__ or ())
    )


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None
