"""What importing nnsight changes in the process: two methods of tensors. Nothing else.

Inside a block `x.save()` is compiled to `save(x)`, whatever `x` is. A helper function that a block
calls is not compiled by us, so tensors have the method too. For code of older releases it can be
mounted on every object, by a switch; and `value`, `token` and `t[...]` on tensors, by another.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from nnsight.capture.callsite import is_entered_at
from nnsight.capture.saving import save
from nnsight.config import CONFIG
from nnsight.interleave.gradients import shares_graph
from nnsight.interleave.token_index import TokenIndex
from nnsight.traces.backward import BackwardBlock


def _save(self: Any) -> Any:
    """Keep this object beyond the end of the trace (see `nnsight.save`)."""
    return save(self)


def mount_save_on_tensors() -> None:
    """Give `torch.Tensor` its `save()`, unless `NNSIGHT_TENSOR_SAVE=0` leaves torch as it is."""
    if CONFIG.APP.TENSOR_SAVE and "save" not in vars(torch.Tensor):
        torch.Tensor.save = _save  # type: ignore[attr-defined]


def mount_backward() -> None:
    """Let `with loss.backward():` open a block, unless `NNSIGHT_TENSOR_BACKWARD=0`.

    Every other call of `backward` runs as before. Only, beside other invokes it keeps the graph,
    which is theirs too.
    """
    plain = torch.Tensor.backward
    if not CONFIG.APP.TENSOR_BACKWARD or plain.__module__ == __name__:
        return

    @functools.wraps(plain)
    def backward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a compiler goes on into torch's own method
            return plain(self, *args, **kwargs)
        if len(args) < 2 and kwargs.get("retain_graph") is None and shares_graph():
            kwargs["retain_graph"] = True
        call = functools.partial(plain, self, *args, **kwargs)
        return BackwardBlock(self, call) if is_entered_at(_caller()) else call()

    backward.__module__ = __name__
    torch.Tensor.backward = backward


def _caller() -> FrameType:
    """Who calls `backward`: behind a subclass's own method of that name, if it goes on to ours."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "backward" and frame.f_back is not None:
        frame = frame.f_back
    return frame


_STRICT = ("anyio.abc", "anyio.streams.file", "anyio.streams.tls")
"""Modules whose classes cannot be made beside a public attribute that they did not declare.

(The Hugging Face hub needs them: no model could be opened.)
"""


def mount_save_on_objects() -> None:
    """Give `object` its `save()`, or take it away again, as `CONFIG.APP.PYMOUNT` says.

    `object` refuses new attributes, but the dictionary behind its `__dict__` does not; the
    interpreter is told that the type has changed.
    """
    wanted = CONFIG.APP.PYMOUNT or CONFIG.APP.LEGACY
    if wanted is ("save" in vars(object)):
        return
    namespace: Any = gc.get_referents(vars(object))[0]
    if wanted:
        for name in _STRICT:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        namespace["save"] = _save
    else:
        del namespace["save"]
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(object))


class _Oldest:
    """An attribute of tensors from the first releases. A tensor may have its own of that name."""

    def __init__(self, name: str, get: Callable[[torch.Tensor], Any]) -> None:
        self._name, self._get = name, get
        self._plain = getattr(torch.Tensor, name, self)  # what the class has otherwise

    def __get__(self, tensor: torch.Tensor | None, owner: type) -> Any:
        if tensor is None:
            return self._plain
        own = vars(tensor)
        return own[self._name] if self._name in own else self._get(tensor)

    def __set__(self, tensor: torch.Tensor, value: Any) -> None:
        vars(tensor)[self._name] = value


_OLDEST = {
    "value": _Oldest("value", lambda tensor: tensor),  # of a stand-in it was the tensor
    "token": _Oldest("token", functools.partial(TokenIndex, "token")),
    "t": _Oldest("t", functools.partial(TokenIndex, "t")),  # `x.t()` is what it is in PyTorch
}


def mount_oldest_on_tensors() -> None:
    """Give tensors the spellings of the first releases, or take them away, as `LEGACY` says."""
    for name, attribute in _OLDEST.items():
        mounted = vars(torch.Tensor).get(name) is attribute
        if CONFIG.APP.LEGACY and not mounted:
            setattr(torch.Tensor, name, attribute)
        elif mounted and not CONFIG.APP.LEGACY:
            delattr(torch.Tensor, name)


def watch_switches() -> None:
    """Follow the switches for objects and tensors from now on."""
    CONFIG.APP.watch(("PYMOUNT", "LEGACY"), mount_save_on_objects)
    CONFIG.APP.watch(("LEGACY",), mount_oldest_on_tensors)
