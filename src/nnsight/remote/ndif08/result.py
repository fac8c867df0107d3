"""What a block of NDIF 0.8 saved: a dict by name, as `torch.save` writes it."""

from __future__ import annotations

import io
import re
import types
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
import zstandard

from nnsight.remote import data_only
from nnsight.remote.errors import NotSendableError, PayloadError, damaged
from nnsight.remote.messages import Event
from nnsight.remote.ndif08.pickle import Made, Name, graph_of
from nnsight.remote.ndif08.pickler import StandIn, pickler_with
from nnsight.remote.ndif08.read import unpacked
from nnsight.traces.cache import Cache
from nnsight.traces.recording import Store

_CACHE = "nnsight.intervention.cache"


def write(names: Mapping[str, Any], compress: bool = True) -> bytes:
    """What a block saved, as that client reads it.

    Raises:
        NotSendableError: a name holds what cannot come back; the error says which.
    """
    for name, value in names.items():
        _refuse(name, value, set())
    content = _file(dict(names), _stand_in)
    return zstandard.compress(content, 1) if compress else content


def _file(value: Any, stand_in: StandIn, **options: Any) -> bytes:
    """A value as a file of torch."""
    file = io.BytesIO()
    module = types.SimpleNamespace(__name__="pickle", Pickler=pickler_with(stand_in))
    torch.save(value, file, pickle_module=module, **options)
    return file.getvalue()


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


# --- reading, on the side of the client -----------------------------------------------------------


def _holder(module: str, name: str, *bases: type) -> type:
    return type(name, bases, {"__module__": module})


_View, _Whole, _Entry = (_holder(_CACHE, name) for name in ("CacheView", "Cache", "Entry"))
_PACKED = b"\x28\xb5\x2f\xfd"
FILE = b"PK"
"""What a file of torch begins with."""


def read(content: Any, model: Any = None, trust: bool = False) -> dict[str, Any]:
    """What a server of NDIF sends for a block: the saved values by name.

    Only data is read: tensors, numbers, texts, containers, and the outputs of transformers. Nothing
    that a server sends can run here.

    Args:
        content: the bytes.
        model: the model of this side.
        trust: whether the server may send anything that pickle knows, code among it.

    Raises:
        PayloadError: it is damaged, or holds what is no data.
    """
    plain = unpacked(content) if bytes(content[:4]) == _PACKED else bytes(content)
    found = _loaded(plain, trust)
    if not isinstance(found, dict):
        raise damaged("it holds no values")
    return {name: _ours(value, model) for name, value in found.items()}


def _loaded(content: bytes, trust: bool = False) -> Any:
    if trust:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    allowed: list[Any] = [_View, _Whole, _Entry]
    for _ in range(50):
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            if named is None:
                raise damaged(f"it is no file of torch ({type(error).__name__})") from None
            module, _, name = named[1].rpartition(".")
            try:
                allowed.append(data_only.objects(module, name))
            except PayloadError:
                raise PayloadError(
                    f"This result holds a `{named[1]}`, which is more than data, so it was not "
                    "read. Save the tensors and numbers in it; or, if you trust this server with "
                    "your own machine, set `CONFIG.API.TRUST_SERVER = True`."
                ) from None
    raise damaged("it names too many classes")


def _ours(value: Any, model: Any) -> Any:
    """A value with our own classes in the place of that client's."""
    if isinstance(value, _View):
        return _our_cache(vars(value), model)
    if type(value) is list:
        return [_ours(one, model) for one in value]
    if type(value) is dict:
        return {name: _ours(one, model) for name, one in value.items()}
    return value


def _our_cache(view: dict[str, Any], model: Any) -> Any:
    whole = vars(view["_cache"])
    visits = {
        str(path): [
            {kind: v for kind, v in _values(vars(entry)) if v is not None} for entry in entries
        ]
        for path, entries in whole["entries"].items()
    }
    kinds = ("output",) * bool(whole["include_output"]) + ("input",) * bool(whole["include_inputs"])
    asked = frozenset(whole.get("targets") or visits)
    if model is None:
        return visits
    return Cache(Store(model._layout().names, asked, kinds, visits), view.get("_path") or "")


def _values(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("output", entry.get("output")), ("input", entry.get("inputs"))]


def binary_event(frame: bytes) -> Event:
    """A state that came as a file of torch: the last one, with the result in it.

    It is read without torch, which takes no file that was written in this way as data only.

    Raises:
        PayloadError: it is none.
    """
    found = graph_of(_pickle_in(frame))
    if not isinstance(found, dict):
        raise damaged("it is no state of a job")
    status = found.get("status")
    if isinstance(status, Made) and len(status.args) == 1:  # a member of an enum
        status = status.args[0]
    data, meta = found.get("data"), found.get("meta")
    if not isinstance(status, str) or not isinstance(data, (bytes, str, type(None))):
        raise damaged("it is no state of a job")
    id, text = (str(found.get(name) or "") for name in ("id", "description"))
    return Event(id, status, text, data, meta)


def write_end(id: str, description: str, data: bytes, meta: Any) -> bytes:
    """The last state of a job with its result in it, as that client reads it."""
    status = Made(Name("nnsight.schema.response", "Status"), ("COMPLETED",))
    state = {"id": id, "status": status, "description": description, "data": data, "meta": meta}
    return _file(state, lambda value: value, pickle_protocol=4)


def _pickle_in(frame: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(frame)) as file:
            for part in file.infolist():
                # torch packs nothing: what is packed may unfold to any size
                if part.filename.endswith("/data.pkl") and part.compress_type == zipfile.ZIP_STORED:
                    return file.read(part)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError, EOFError):
        pass
    raise damaged("it is no file of torch")
