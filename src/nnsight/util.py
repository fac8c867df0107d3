"""Old address of helpers that client code imports. Nothing in this library uses them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from nnsight import nested
from nnsight.envoy.wrapper import WrapperModule

__all__ = [
    "Patch",
    "Patcher",
    "WrapperModule",
    "apply",
    "fetch_attr",
    "from_import_path",
    "to_import_path",
]


def fetch_attr(thing: Any, path: str) -> Any:
    """What a dotted path leads to from `thing`; a name that is no attribute is a key or an index.

    Raises:
        AttributeError: a part of the path does not exist.
    """
    for name in path.split(".") if path else ():
        if name.lstrip("-").isdigit() and not hasattr(thing, name):
            thing = thing[int(name)]
        else:
            thing = getattr(thing, name)
    return thing


def apply(data: Any, fn: Callable[[Any], Any], cls: type, inplace: bool = False) -> Any:
    """`data` with `fn` applied to every instance of `cls` in it, however deep in containers.

    Args:
        inplace: change lists and dicts themselves, in place of copies.
    """
    if isinstance(data, cls):
        return fn(data)
    members = nested.parts(data)
    if not members:
        return data
    changed = {key: apply(member, fn, cls, inplace) for key, member in members.items()}
    if inplace and isinstance(data, (list, dict)):
        for key, member in changed.items():
            data[key] = member
        return data
    return nested.rebuild(data, changed)


def from_import_path(path: str) -> Any:
    """What `"package.module.Name"` names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def to_import_path(kind: type) -> str:
    """Where a class can be imported from: `"package.module.Name"`."""
    return f"{kind.__module__}.{kind.__qualname__}"


class Patch:
    """One attribute (or key) that has another value for a time.

    Args:
        parent: what has the attribute.
        replacement: the value to have meanwhile.
        key: the name of the attribute.
        as_dict: `key` is a key of `parent`, not an attribute.
    """

    def __init__(self, parent: Any, replacement: Any, key: Any, as_dict: bool = False) -> None:
        self.parent, self.replacement, self.key, self.as_dict = parent, replacement, key, as_dict
        self.orig = parent[key] if as_dict else getattr(parent, key)

    def _set(self, value: Any) -> None:
        if self.as_dict:
            self.parent[self.key] = value
        else:
            setattr(self.parent, self.key, value)

    def patch(self) -> None:
        """Put the replacement in."""
        self._set(self.replacement)

    def restore(self) -> None:
        """Put back what was there."""
        self._set(self.orig)


class Patcher:
    """A context in which patches are in force."""

    def __init__(self, patches: list[Patch] | None = None) -> None:
        self.patches = list(patches or ())
        self.entered = False

    def add(self, patch: Patch) -> None:
        """One more patch; in force at once where the context has been entered."""
        self.patches.append(patch)
        if self.entered:
            patch.patch()

    def __enter__(self) -> Patcher:
        self.entered = True
        for patch in self.patches:
            patch.patch()
        return self

    def __exit__(self, *exception: object) -> None:
        self.entered = False
        for patch in reversed(self.patches):
            patch.restore()
