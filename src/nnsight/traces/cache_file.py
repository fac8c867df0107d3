"""A cache as a safetensors file: tensors under names that tell where they were, and no code.

A tensor is called `model.transformer.h.0.output`, with its place behind it where a value has
several (`.output.0`, `.output.logits`) and `#2` before that for the third visit. How they belong
together is kept as JSON in the header, so other readers of safetensors see plain tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import torch

from nnsight import nested
from nnsight.traces.layout import Names
from nnsight.traces.recording import Store

_HEADER = "nnsight_cache"


class Fields(dict[Any, Any]):
    """A container that was of a class of its own: a dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def write(path: str | os.PathLike[str], store: Store, paths: Iterable[str]) -> None:
    """Write the values of the modules at `paths`."""
    from safetensors.torch import save_file

    writer = _Writer()
    visits = {
        where: [
            {
                kind: writer.form(value, f"{where}.{kind}" + (f"#{n}" if n else ""))
                for kind, value in visit.items()
            }
            for n, visit in enumerate(store.of_visits(where))
        ]
        for where in paths
    }
    names = store.names
    header = {
        "root": names.root,
        "aliases": {place: dict(found) for place, found in names.aliases.items()},
        "lengths": dict(names.lengths),
        "twins": dict(names.twins),
        "asked": sorted(store.asked),
        "kinds": list(store.kinds),
        "visits": visits,
    }
    save_file(writer.tensors, os.fspath(path), metadata={_HEADER: json.dumps(header)})


def read(path: str | os.PathLike[str], device: str) -> Store:
    """The store that was written."""
    from safetensors import safe_open

    with safe_open(os.fspath(path), framework="pt", device=device) as file:
        text = (file.metadata() or {}).get(_HEADER)
        if text is None:
            raise ValueError(
                f"{os.fspath(path)!r} holds no cache: it was not written by `cache.save(path)`. "
                "Plain tensors are read with `safetensors.torch.load_file(path)`."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = json.loads(text)
    visits = {
        where: [{kind: _value(form, tensors) for kind, form in visit.items()} for visit in found]
        for where, found in header["visits"].items()
    }
    names = Names(header["root"], header["aliases"], header["lengths"], header["twins"])
    return Store(names, frozenset(header["asked"]), tuple(header["kinds"]), visits)


class _Writer:
    """Turns values into JSON, and collects their tensors by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._memory: set[int] = set()

    def form(self, value: Any, name: str) -> Any:
        """`value` as JSON: plain values as they are, anything else as `[what it is, content]`."""
        if isinstance(value, torch.Tensor):
            self.tensors[name] = self._own(value)
            return ["tensor", name]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        members = nested.parts(value)
        if members is None:
            return None
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return [kind, [self.form(v, f"{name}.{n}") for n, v in members.items()]]
        plain = {k: v for k, v in members.items() if isinstance(k, (str, int))}
        pairs = [[key, self.form(v, f"{name}.{key}")] for key, v in plain.items()]
        return ["dict" if type(value) is dict else "fields", pairs]

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` in memory that no other tensor of the file has."""
        tensor = tensor.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._memory or tensor.untyped_storage().nbytes() != tensor.nbytes:
            return tensor.clone()
        self._memory.add(memory)
        return tensor


def _value(form: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(form, list):
        return form
    kind, content = form
    if kind == "tensor":
        return tensors[content]
    if kind in ("dict", "fields"):
        members = {key: _value(member, tensors) for key, member in content}
        return members if kind == "dict" else Fields(members)
    items = [_value(member, tensors) for member in content]
    return tuple(items) if kind == "tuple" else items
