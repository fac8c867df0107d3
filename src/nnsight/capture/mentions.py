"""Which attributes and globals a block names: what it can ask for, read off its code once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any

from nnsight.capture.percode import PerCode

_kept: PerCode[set[str]] = PerCode(set)


def named_in(code: CodeType) -> set[str]:
    """What a code names, with the functions in it."""
    found = _kept[code]
    if not found:
        found.update(code.co_names, ("",))  # never empty, once it was looked through
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                found |= named_in(inner)
    return found


def functions_of(body: Callable[..., Any]) -> tuple[FunctionType, ...]:
    """A function, and those that it holds; helpers it calls are not seen."""
    if not isinstance(body, FunctionType):
        return ()
    found = [body]
    for cell in body.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        if type(held) is FunctionType:
            found.append(held)
    return tuple(found)


def codes_of(body: Callable[..., Any]) -> tuple[CodeType, ...]:
    """The code of these."""
    return tuple(function.__code__ for function in functions_of(body))


def mentions(codes: Iterable[CodeType], name: str) -> bool:
    """Whether one of these codes names `name`."""
    return any(name in named_in(code) for code in codes)
