"""The oracle's own idea of rows: which part of a value is a block's, and how it is put back."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from tests.behaviour.fuzz.models import Data, Pair

from nnsight.interleave.errors import BatchError


def members(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    if isinstance(value, dict):
        return dict(value)
    return dict(vars(value)) if isinstance(value, Data) else None


def rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(value, (dict, Data)):
        return dict(parts) if isinstance(value, dict) else Data(**parts)
    return Pair(*parts.values()) if isinstance(value, Pair) else type(value)(parts.values())


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for member in (members(value) or {}).values() for leaf in tensors(member)]


def narrow(value: Any, rows: Any, total: int) -> Any:
    """The rows of one block: views."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.shape[0] == total else value
    parts = members(value)
    if not parts:
        return value
    return rebuilt(value, {key: narrow(member, rows, total) for key, member in parts.items()})


def check_size(full: Any, new: Any, total: int) -> None:
    """Refuse another batch size for the whole batch."""
    for old, own in zip(tensors(full), tensors(new), strict=False):
        if old.shape[0] == total != own.shape[0]:
            raise BatchError


Cut = tuple[Any, Any, set[int]]  # a tensor, what took its place (weakly), and the rows replaced


def put(full: Any, rows: Any, new: Any, total: int, cuts: list[Cut]) -> Any:
    """`full` with `new` in place of `rows`."""
    if isinstance(full, torch.Tensor):
        merged = _put_tensor(full, rows, new, total)
        if full.shape[0] == total and merged is not full:
            replaced = set(range(rows.start, rows.stop))
            earlier = [(old, gone | replaced) for old, now, gone in cuts if now() is full]
            cuts += [(old, ref(merged), gone) for old, gone in [(ref(full), replaced), *earlier]]
        return merged
    parts = members(full)
    if parts is None:
        return new
    others = members(new)
    if others is None or others.keys() != parts.keys():
        raise BatchError
    merged = {key: put(own, rows, others[key], total, cuts) for key, own in parts.items()}
    return full if all(merged[k] is parts[k] for k in parts) else rebuilt(full, merged)


def _put_tensor(full: torch.Tensor, rows: Any, new: Any, total: int) -> torch.Tensor:
    if not isinstance(new, torch.Tensor):
        raise BatchError
    if full.shape[0] != total:
        return new
    own = full[rows]
    if new.shape != own.shape:
        raise BatchError
    same_place = new.data_ptr() == own.data_ptr() and new.stride() == own.stride()
    if same_place and new._base is own._base is not None:
        return full
    return torch.cat([full[: rows.start], new, full[rows.stop :]])


def changes(cuts: list[Cut]) -> list[tuple[Any, Any, set[int], tuple[int, int]]]:
    """The tensors of which both are still there, and how often they have been changed."""
    pairs = [(old(), new(), gone) for old, new, gone in cuts]
    return [
        (old, new, gone, (old._version, new._version))
        for old, new, gone in pairs
        if old is not None and new is not None
    ]


def agree(before: list[Any], seen: Any, total: int) -> None:
    """What a block that sees the rows `seen` changed in one tensor is changed in the other too."""
    for old, new, gone, (old_version, new_version) in before:
        if (old._version, new._version) == (old_version, new_version):
            continue
        source, target = (new, old) if new._version != new_version else (old, new)
        for row in range(*((seen or slice(0, total)).indices(total))):
            if row not in gone:
                target[row] = source[row]


def joined(values: list[Any]) -> Any:
    """One value over all rows, from each block's."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    parts = [members(value) or {} for value in values]
    return rebuilt(values[0], {key: joined([part[key] for part in parts]) for key in parts[0]})
