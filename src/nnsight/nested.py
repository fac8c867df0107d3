"""Values as the field passes them around: tensors inside tuples, dicts, model outputs and caches.

`map_leaves` rebuilds a container around its tensors, and hands back the very same object when
nothing in it changed. `leaves` lists them in the same order.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Transform = Callable[[torch.Tensor], torch.Tensor]


def _is_cache(value: Any) -> bool:
    """Whether `value` is one of transformers' key/value caches, or a layer of one."""
    return any(
        base.__name__ in ("Cache", "CacheLayerMixin")
        and base.__module__.startswith("transformers.")
        for base in type(value).__mro__
    )


def parts(value: Any) -> dict[Any, Any] | None:
    """The members of a container by key, or None for anything else.

    Containers are lists, tuples, named tuples, mappings (also transformers' `ModelOutput`), slices,
    dataclasses and transformers' key/value caches.
    """
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if _is_cache(value):
        return dict(vars(value))
    return None


def rebuild(value: Any, members: dict[Any, Any]) -> Any:
    """A container like `value` with other members."""
    if isinstance(value, tuple):
        items = members.values()
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list):
        return type(value)(members.values())
    if isinstance(value, slice):
        return slice(*members.values())
    twin = copy.copy(value)
    for key, member in members.items():
        if isinstance(value, Mapping):
            twin[key] = member  # type: ignore[index]
        else:
            object.__setattr__(twin, key, member)
    return twin


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a nested value, in order."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    for member in (parts(value) or {}).values():
        yield from leaves(member)


def map_leaves(transform: Transform, value: Any) -> Any:
    """`value` with `transform` applied to every tensor in it; the same object if none changed."""
    if isinstance(value, torch.Tensor):
        return transform(value)
    members = parts(value)
    if not members:
        return value
    changed = {key: map_leaves(transform, member) for key, member in members.items()}
    if all(changed[key] is members[key] for key in members):
        return value
    return rebuild(value, changed)


_PLAIN = (str, bytes, int, float, complex, type(None), torch.device, torch.dtype, torch.nn.Module)


def unshared(value: Any) -> Any:
    """`value` with copies of the objects in it that a model writes into, such as its caches.

    A cache without a tensor is one too: the model puts the first ones in. Tensors that stand in
    plain containers, modules and functions are shared.
    """
    if isinstance(value, (torch.Tensor, *_PLAIN)) or callable(value):
        return value
    members = parts(value)
    if members is not None and not _is_cache(value):
        own = {key: unshared(member) for key, member in members.items()}
        return value if all(own[key] is members[key] for key in members) else rebuild(value, own)
    return copy.deepcopy(value, {id(leaf): leaf.detach().clone() for leaf in leaves(value)})


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor in a nested value."""
    return next(leaves(value), None)


def describe(value: Any) -> str:
    """What a value is, for messages: `tensor of shape [2, 5]`, `tuple of 2`, `str`."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    members = parts(value)
    name = type(value).__name__
    return name if members is None else f"{name} of {len(members)}"


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same shape and numbers; never so for tensors without numbers."""
    if one.shape != other.shape:
        return False
    try:
        return bool(((one == other) | ((one != one) & (other != other))).all())
    except (RuntimeError, NotImplementedError):  # in a scan
        return False
