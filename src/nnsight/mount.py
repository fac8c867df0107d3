"""What importing nnsight changes in the process: one method, on tensors. Nothing else.

Inside a block `x.save()` is compiled to `save(x)`, whatever `x` is. A helper function that a block
calls is not compiled by us, so tensors have the method too. For code of older releases it can be
mounted on every object, by a switch.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch

from nnsight.capture.saving import save
from nnsight.config import CONFIG


def _save(self: Any) -> Any:
    """Keep this object beyond the end of the trace (see `nnsight.save`)."""
    return save(self)


def mount_save_on_tensors() -> None:
    """Give `torch.Tensor` its `save()`, unless `NNSIGHT_TENSOR_SAVE=0` leaves torch as it is."""
    if CONFIG.APP.TENSOR_SAVE and "save" not in vars(torch.Tensor):
        torch.Tensor.save = _save  # type: ignore[attr-defined]


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
        namespace["save"] = _save
    else:
        del namespace["save"]
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(object))


def watch_switches() -> None:
    """Follow the switch for `object` from now on."""
    CONFIG.APP.watch(("PYMOUNT", "LEGACY"), mount_save_on_objects)
