"""Which classes a document of values may name: those that hold data, and do nothing when made."""

from __future__ import annotations

import builtins
import copyreg
import importlib
import re
import sys
from collections.abc import Container, Sequence
from enum import Enum
from typing import Any

from nnsight.remote.errors import damaged

_NAMES = {
    "builtins": {"list", "dict", "set", "tuple", "frozenset", "int", "float", "str", "bool"}
    | {"bytes", "bytearray", "complex", "object", "type", "slice", "range"}
    | {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, Exception)},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter", "ChainMap"},
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
"""By module: names that may be read; those of `builtins` are called only if they are errors."""

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


_MODULES = re.compile(
    r"(transformers|diffusers)(\.\w+)*\.(\w+_outputs?|outputs|utils|generic|\w+_utils"
    r"|modeling_\w+|\w+_utils_base|pipeline_\w+)"
)


def allowed(found: object) -> bool:
    """Whether a class holds data, and nothing happens when one of it is made."""
    if not isinstance(found, type):
        return False
    if found.__qualname__ in _NAMES.get(found.__module__, ()):
        return True
    if found.__module__ == "torch.return_types":
        return True
    for module, name in _KINDS.get(found.__module__.partition(".")[0], ()):
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and issubclass(found, kind):
            return True
    return False


def may_be_called(function: Any, given: Sequence[Any], own: Container[int] = ()) -> bool:
    """Whether a call may be made to build an object.

    Args:
        function: what is called.
        given: its arguments.
        own: ids of classes of the reader's own: objects of them are made without their `__init__`.
    """
    if any(type(each) is range for each in given):  # a few bytes that would become any number
        return False
    if function is copyreg.__newobj__:  # type: ignore[attr-defined]
        return bool(given) and (id(given[0]) in own or _may_be_made(given[0]))
    if isinstance(function, type) and issubclass(function, Enum) and id(function) in own:
        return True
    return _may_be_made(function)


def _may_be_made(cls: object) -> bool:
    plain = getattr(cls, "__module__", "") == "builtins" and not _is_error(cls)
    return allowed(cls) and not plain


def _is_error(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Exception)


def objects(module: str, qualname: str) -> Any:
    """The class of a name, if it is one of those.

    Raises:
        PayloadError: it is not.
    """
    known = isinstance(module, str) and isinstance(qualname, str)
    if known and module == "copyreg" and qualname == "__newobj__":
        return copyreg.__newobj__  # type: ignore[attr-defined]
    if known and (qualname in _NAMES.get(module, ()) or _holds_outputs(module)):
        try:
            found = getattr(importlib.import_module(module), qualname, None)
        except Exception:  # a module that this side cannot import
            found = None
        if found is not None and allowed(found):
            return found
    raise damaged(
        f"it names `{str(module)[:60]}.{str(qualname)[:60]}`, which is not among what may come back"
    )


def _holds_outputs(module: str) -> bool:
    """Whether a module of a library defines what its models give."""
    if module == "torch.return_types" or _MODULES.fullmatch(module):
        return True
    return module.partition(".")[0] in _KINDS and module in sys.modules
