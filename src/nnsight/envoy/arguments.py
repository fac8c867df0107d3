"""The arguments of a call, `(args, kwargs)`: the first of them, and all of them replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnsight import nested
from nnsight.interleave.location import Location


def first_input(location: Location, inputs: Any) -> Any:
    """The first positional argument, or the first keyword where there is none."""
    args, kwargs = inputs
    if args:
        return args[0]
    if kwargs:
        return next(iter(kwargs.values()))
    raise ValueError(
        f"`{location.owner.path}` was called without arguments, so it has no `.input`; `.inputs` "
        "is `((), {})` there."
    )


def with_first_input(location: Location, inputs: Any, value: Any) -> Any:
    """All arguments, with `value` as the first."""
    first_input(location, inputs)
    args, kwargs = inputs
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def checked_inputs(location: Location, inputs: Any, value: Any) -> Any:
    """What was assigned to all arguments, if it can be that."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not pair or not isinstance(value[0], (tuple, list)) or not isinstance(value[1], Mapping):
        raise TypeError(
            f"`{location.owner.path}.inputs` is `(args, kwargs)`, a tuple and a dict, so it cannot "
            f"be set to {nested.describe(value)}. To replace the first argument, assign `.input`."
        )
    return tuple(value[0]), dict(value[1])
