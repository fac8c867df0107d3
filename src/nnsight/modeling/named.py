"""A node seen through a class that knows further names: the same node, the same children."""

from __future__ import annotations

import functools
from typing import Any

from torch.nn import Module

from nnsight.envoy.envoy import Envoy
from nnsight.interleave.location import Location
from nnsight.modeling import errors
from nnsight.modeling.points import Point, Spot, Value
from nnsight.modeling.stacks import Stack


def below(node: Any, path: str) -> Any:
    """The node at a path of modules' own names; a standard name would lead here again."""
    for name in path.split(".") if path else ():
        node = node._child(name)
    return node


def seen_as(node: Any, kind: type, stack: Stack, role: str = "") -> Any:
    """`node` as an object of class `kind`: it has the same state, and is equal to it."""
    other = object.__new__(_with(kind, type(node)))
    fields = node.__dict__
    fields["_stack"] = stack
    if role:
        fields["_role"] = role
    object.__setattr__(other, "__dict__", fields)
    return other


@functools.lru_cache(maxsize=256)
def _with(kind: type, own: type) -> type:
    """`kind`, with what the class that a user gave to the node adds."""
    if issubclass(kind, own):
        return kind
    return own if issubclass(own, kind) else type(kind.__name__, (kind, own), {})


class Named(Envoy):
    """An envoy with standard names."""

    _stack: Stack

    def _spot(self, name: str) -> Spot:
        raise NotImplementedError

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not self._lacks_standard(name)]

    def _lacks_standard(self, name: str) -> bool:
        """Whether `name` is a standard name that this part of this family does not have.

        Outside a trace its value cannot be asked for, so `hasattr` says nothing about it there.
        """
        found = getattr(type(self), name, None)
        try:
            if isinstance(found, Point):
                self._spot(name)
            elif isinstance(found, property) and not hasattr(Envoy, name):
                getattr(self, name)
        except AttributeError:
            return True
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        ours = isinstance(getattr(type(self), name, None), property)
        if ours and isinstance(value, Module | Envoy) and name not in self._module._modules:
            raise errors.not_replaced(self._called(name), self._path)
        super().__setattr__(name, value)

    def _value(self, name: str, path: str, kind: str, **options: Any) -> Value:
        return Value(self._called(name), Location(below(self, path), kind), **options)

    def _called(self, name: str) -> str:
        """How a value of this node is called by standard names."""
        stack = self._stack
        start = f"{self._path.partition('.')[0]}.{stack.path(stack.family.layers)}."
        index, _, _ = self._path.removeprefix(start).partition(".")
        return f"{stack.name}[{index}].{name}"
