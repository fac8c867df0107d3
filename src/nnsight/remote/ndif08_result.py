"""What a block of NDIF 0.8 saved: a dict by name, as `torch.save` writes it."""

from __future__ import annotations

import io
import types
from collections.abc import Mapping
from typing import Any

import torch
import zstandard

from nnsight.remote import data_only
from nnsight.remote.errors import NotSendableError
from nnsight.remote.ndif08_pickle import Made, Name
from nnsight.remote.ndif08_pickler import pickler_with
from nnsight.traces.cache import Cache

_CACHE = "nnsight.intervention.cache"


def write(names: Mapping[str, Any], compress: bool = True) -> bytes:
    """What a block saved, as that client reads it.

    Raises:
        NotSendableError: a name holds what cannot come back; the error says which.
    """
    for name, value in names.items():
        _refuse(name, value, set())
    file = io.BytesIO()
    module = types.SimpleNamespace(__name__="pickle", Pickler=pickler_with(_stand_in))
    torch.save(dict(names), file, pickle_module=module)
    content = file.getbuffer()
    return zstandard.compress(content, 1) if compress else bytes(content)


def _stand_in(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        return value.cpu()
    if isinstance(value, Cache):
        return _cache(value)
    return value


def _cache(cache: Cache) -> Made:
    """A cache as that client has it: all of it, for a part of it as well."""
    store = cache._store
    entries: dict[str, list[Made]] = {}
    for path in store.recorded:
        visits = store.of_visits(path)
        entries[path] = [
            _object("Entry", {"output": visit.get("output"), "inputs": visit.get("input")})
            for visit in visits
        ]
    whole = _object(
        "Cache",
        {
            "model": None,
            "device": torch.device("cpu"),
            "dtype": None,
            "detach": True,
            "non_blocking": False,
            "include_output": "output" in store.kinds,
            "include_inputs": "input" in store.kinds,
            "targets": set(store.asked),
            "entries": entries,
            "_open": {},
        },
    )
    state = {"_cache": whole, "_envoy": None, "_path": cache._path or None}
    return _object("CacheView", state)


def _object(kind: str, state: dict[str, Any]) -> Made:
    return Made(Name(_CACHE, kind), (), new=True, state=state, has_state=True)


def _refuse(name: str, value: Any, seen: set[int]) -> None:
    """See that what is in a value is data."""
    pending = [value]
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            pending += [*found.keys(), *found.values()]
        elif isinstance(found, (list, tuple, set, frozenset)):
            pending += found
        elif not _is_data(found):
            raise NotSendableError(
                f"`{name}` holds a `{type(found).__name__}`, and only data comes back from a "
                "server. Save the tensors and numbers in it."
            )


def _is_data(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, torch.Tensor) or kind.__module__ in ("torch", "numpy", "builtins"):
        return not isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)) and (
            kind.__name__ not in ("generator", "coroutine", "module")
        )
    return data_only.allowed(kind)
