"""nnsight: read and change anything inside a running PyTorch model, in plain Python.

from nnsight import LanguageModel

model = LanguageModel("openai-community/gpt2")
with model.trace("The Eiffel Tower is in the city of"):
    hidden = model.transformer.h[-1].output.save()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nnsight.capture.errors import WithBlockNotFoundError
from nnsight.capture.saving import save
from nnsight.config import CONFIG
from nnsight.envoy.envoy import Envoy
from nnsight.envoy.errors import SourceNotAvailable
from nnsight.envoy.wrapper import WrapperModule
from nnsight.interleave.eproperty import eproperty
from nnsight.interleave.errors import (
    BatchError,
    MissedProviderError,
    NeverCalledError,
    OutOfOrderError,
    OutsideTraceError,
)
from nnsight.modeling.base import NNsight
from nnsight.mount import mount_backward, mount_save_on_tensors, watch_switches
from nnsight.traces.cache import Cache
from nnsight.traces.session import session
from nnsight.traces.trace import Trace
from nnsight.version import __version__

if TYPE_CHECKING:
    from nnsight.modeling.diffusion import DiffusionModel
    from nnsight.modeling.language import LanguageModel
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.modeling.vlm import VisionLanguageModel
    from nnsight.remote.environment import register
    from nnsight.remote.service import compare, is_model_running, login, status, whoami

_LAZY = {  # imported when first asked for
    "DiffusionModel": "nnsight.modeling.diffusion",
    "ExceptionWrapper": "nnsight.intervention.tracing.util",
    "LanguageModel": "nnsight.modeling.language",
    "NotSendableError": "nnsight.remote.errors",
    "RemoteError": "nnsight.remote.errors",
    "RemoteException": "nnsight.remote.errors",
    "RemoteTimeoutError": "nnsight.remote.errors",
    "Object": "nnsight.hint",
    "Tracer": "nnsight.capture.tracer",
    "TransformersModel": "nnsight.modeling.transformers",
    "VisionLanguageModel": "nnsight.modeling.vlm",
    **dict.fromkeys(("get_local_env", "get_remote_env", "register"), "nnsight.remote.environment"),
    **dict.fromkeys(
        ("compare", "is_model_running", "login", "ndif_status", "status", "whoami"),
        "nnsight.remote.service",
    ),
}
_OLD_ADDRESSES = (
    "intervention",
    "ndif",
    "schema",
    "tracing",
    "util",
)  # `nnsight.util.apply` as it stands
_PLAIN = {  # what the releases before 0.5 had words of their own for
    "apply": "a call of the function",
    "cond": "`if`",
    "iter": "`for`",
    "local": "nothing: a block that runs here, runs here",
    "log": "`print`",
    "stop": "`tracer.stop()`",
    "trace": "`with model.trace(...):`",
    **{kind: f"`{kind}`" for kind in ("bool", "bytes", "dict", "float", "int", "list", "set")},
    **{kind: f"`{kind}`" for kind in ("str", "tuple")},
}

mount_save_on_tensors()
mount_backward()
watch_switches()

__all__ = [
    "CONFIG",
    "BatchError",
    "Cache",
    "DiffusionModel",
    "Envoy",
    "LanguageModel",
    "MissedProviderError",
    "NNsight",
    "NeverCalledError",
    "OutOfOrderError",
    "OutsideTraceError",
    "SourceNotAvailable",
    "Trace",
    "TransformersModel",
    "VisionLanguageModel",
    "WithBlockNotFoundError",
    "WrapperModule",
    "__version__",
    "compare",
    "eproperty",
    "is_model_running",
    "login",
    "register",
    "save",
    "session",
    "status",
    "whoami",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _OLD_ADDRESSES:
        return importlib.import_module(f"nnsight.{name}")
    instead = f": a block is plain Python, so write {_PLAIN[name]}" if name in _PLAIN else ""
    raise AttributeError(f"module 'nnsight' has no attribute {name!r}{instead}")


def __dir__() -> list[str]:
    return sorted(__all__)
