"""The function that was written, behind the decorators around it; and the same with another in it.

A decorator leaves a function that holds the one it decorates: in a cell, in a `partial`, in an
attribute. To run another body in the same decorators, the chain is copied with the new function in
the place of the old one. Nothing that is shared with other modules is changed.
"""

from __future__ import annotations

import copy
import functools
from types import CellType, FunctionType, MethodType
from typing import Any

from torch.nn import Module

_DEEPEST = 12  # decorators on one function


def cells(function: FunctionType) -> dict[str, Any]:
    """What is in the cells of a function, by name; an empty cell gives None."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            found[name] = None
    return found


def _under(function: FunctionType, name: str) -> FunctionType | None:
    """The function that a decorator without `functools.wraps` holds, if it can be told."""
    if function.__name__ == name:
        return None
    held = [
        c for c in cells(function).values() if isinstance(c, FunctionType) and c.__name__ == name
    ]
    return held[0] if len(held) == 1 else None


def innermost(called: Any, name: str = "") -> Any:
    """The function that was written, without its decorators; something else if there is none.

    Args:
        called: what is called.
        name: what the function is called, where that is known.
    """
    for _ in range(_DEEPEST):
        inner = getattr(called, "__wrapped__", None) if not isinstance(called, Module) else None
        if isinstance(called, MethodType):
            inner = called.__func__
        elif inner is None and isinstance(called, functools.partial):
            inner = called.func
        elif inner is None and isinstance(called, FunctionType):
            inner = _under(called, name)
        if inner is None:
            return called
        called = inner
    return called


def like(function: FunctionType, code: Any, closure: tuple[CellType, ...]) -> FunctionType:
    """`function` with another code and other cells."""
    twin = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
    twin.__annotations__ = function.__annotations__
    return twin


def with_inner(called: Any, old: FunctionType, new: FunctionType, depth: int = 0) -> Any:
    """`called`, with `new` where it holds `old`; None if it holds it out of reach."""
    if called is old:
        return new
    if depth > _DEEPEST or isinstance(called, (Module, type)) or not callable(called):
        return None

    def inside(held: Any) -> Any:
        return with_inner(held, old, new, depth + 1)

    if isinstance(called, MethodType):
        inner = inside(called.__func__)
        return None if inner is None else MethodType(inner, called.__self__)
    if isinstance(called, functools.partial):
        inner = inside(called.func)
        return None if inner is None else functools.partial(inner, *called.args, **called.keywords)
    if isinstance(called, FunctionType):
        held = list(cells(called).values())
        wrapped = getattr(called, "__wrapped__", None)
        straight = wrapped is not None and any(h is wrapped for h in held)
        changed = [inside(h) if h is wrapped or not straight else None for h in held]
        if not any(inner is not None for inner in changed):
            return None
        pairs = zip(called.__closure__ or (), changed, strict=True)
        closure = tuple(cell if inner is None else CellType(inner) for cell, inner in pairs)
        return like(called, called.__code__, closure)
    return _object_with(called, inside)


def _object_with(called: Any, inside: Any) -> Any:
    """An instance of a decorator's class, with the new function in an attribute."""
    held = {name: inside(value) for name, value in getattr(called, "__dict__", {}).items()}
    held = {name: inner for name, inner in held.items() if inner is not None}
    twin = copy.copy(called) if held.keys() - {"__wrapped__"} else called
    if twin is called:
        return None
    twin.__dict__.update(held)
    return twin
