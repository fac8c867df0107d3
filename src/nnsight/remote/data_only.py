"""Which classes a document of values may name: those that hold data, and do nothing when made."""

from __future__ import annotations

import builtins
import copyreg
import importlib
from typing import Any

from nnsight.remote.errors import damaged

_NAMES = {
    "builtins": {"list", "dict", "set", "tuple", "frozenset", "int", "float", "str", "bool"}
    | {"bytes", "bytearray", "complex", "object", "type", "slice", "range"}
    | {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, Exception)},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter", "ChainMap"},
    "copyreg": {"__newobj__"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"},
    "types": {"SimpleNamespace"},
    "uuid": {"UUID", "SafeUUID"},
    "nnsight.traces.cache": {"Cache", "Entry"},
    "nnsight.traces.recording": {"Store", "_Attached"},
    "nnsight.traces.layout": {"Names", "Layout"},
    "nnsight.traces.report": {"Report"},
    "nnsight.traces.journal": {"Event"},
}
"""By module: names that may be read and called."""

_KINDS = {  # classes of transformers and torch whose instances are containers of values
    "transformers": (
        ("transformers.utils.generic", "ModelOutput"),
        ("transformers.cache_utils", "Cache"),
        ("transformers.cache_utils", "CacheLayerMixin"),
        ("transformers.tokenization_utils_base", "BatchEncoding"),
        ("transformers.feature_extraction_utils", "BatchFeature"),
    ),
    "diffusers": (("diffusers.utils.outputs", "BaseOutput"),),
}


def allowed(found: object) -> bool:
    """Whether a class holds data, and nothing happens when one of it is made."""
    if not isinstance(found, type):
        return found is copyreg.__newobj__  # type: ignore[attr-defined]
    if found.__qualname__ in _NAMES.get(found.__module__, ()):
        return True
    if found.__module__ == "torch.return_types":
        return True
    for module, name in _KINDS.get(found.__module__.partition(".")[0], ()):
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        if issubclass(found, kind):
            return True
    return False


def objects(module: str, qualname: str) -> Any:
    """The class of a name, if it is one of those.

    Raises:
        PayloadError: it is not.
    """
    top = module.partition(".")[0]
    if qualname in _NAMES.get(module, ()) or top in _KINDS or module == "torch.return_types":
        try:
            found = getattr(importlib.import_module(module), qualname, None)
        except ImportError:
            found = None
        if found is not None and allowed(found):
            return found
    raise damaged(f"it names `{module}.{qualname}`, which is not among what may come back")
