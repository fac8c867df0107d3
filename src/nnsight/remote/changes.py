"""What a block changed of what was sent with it: said where it is not brought back.

A block runs on copies. What it saves of them comes back; of the rest it is said that it changed,
for in one process it would have.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnsight.remote.messages import Warned
from nnsight.remote.values import Node

Left = list[Any]  # the number of a node, and the name of a variable where the node is of a module
_CONTAINERS = (list, dict, set, deque)
_WATCHED = frozenset({"list", "dict", "set", "object", "tensor", "tensor and more"})


@dataclass(frozen=True)
class Origin:
    """Where a block that was sent stands, and what leads to the parts that went with it."""

    filename: str
    lineno: int
    place: Callable[[int], str]


class Watch:
    """What was sent and can be changed, as it is now.

    Args:
        nodes: the table that it came in.
        made: what was made of each node.
    """

    def __init__(self, nodes: Sequence[Node], made: Mapping[int, Any]) -> None:
        self._held: list[tuple[int, Any, Any]] = []
        self._names: list[tuple[int, dict[str, Any], dict[str, Any]]] = []
        for index, value in made.items():
            word = nodes[index][0]
            if word in _WATCHED:
                if (mark := _mark(value)) is not None:
                    self._held.append((index, value, mark))
            elif word == "namespace":
                now = {name: value[name] for name in nodes[index][2] if name in value}
                self._names.append((index, value, now))

    def changed(self) -> list[tuple[Left, Any]]:
        """What is not as it was: how to call it, and the thing itself."""
        found: list[tuple[Left, Any]] = []
        for index, value, mark in self._held:
            if not _alike(mark, _mark(value)):
                found.append(([index, ""], value))
        for index, value, names in self._names:
            for name, before in names.items():
                if value.get(name) is not before:
                    found.append(([index, name], value))
        return found


def _mark(value: Any) -> Any:
    """What tells whether a thing has changed: its members, a count of changes; None if nothing."""
    if isinstance(value, torch.Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, _CONTAINERS):
        return list(value)
    held = getattr(value, "__dict__", None)
    if type(held) is not dict or isinstance(value, type):
        return None
    kept = {n: v for n, v in held.items() if not _is_kept_for_later(value, n)}
    return [*kept.keys(), *kept.values()]


def _is_kept_for_later(value: Any, name: str) -> bool:
    """Whether an attribute is what an object has worked out, and would work out again."""
    return isinstance(getattr(type(value), name, None), functools.cached_property)


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, list) or not isinstance(other, list):
        return one == other
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


# --- where the block was written ------------------------------------------------------------------


def warning(left: Sequence[Left], origin: Origin) -> list[Warned]:
    """The warning of what changed elsewhere and is as it was here."""
    places = [name or origin.place(index).replace(": ", ".") for index, name in left]
    found: list[str] = []
    for place in sorted({place for place in places if place and not place.startswith("[")}):
        if not any(place.startswith(outer) for outer in found):  # what holds it is named
            found.append(place)
    if not found:
        return []
    names = ", ".join(f"`{place}`" for place in found[:5]) + (", ..." if len(found) > 5 else "")
    text = (
        f"{names}: this block changed it in the process where it ran, and here it is as it was. "
        "What the block saves comes back: `nnsight.save(...)` of it, or give a new value a name."
    )
    return [Warned(text, "UserWarning", origin.filename, origin.lineno)]
