"""Modules whose parameters have a shape and a dtype but no memory: PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)


def on_meta(build: Callable[[], M], buffers: bool = True) -> M:
    """Build a module without memory for its parameters.

    Only what a module registers goes to meta. Numbers that a constructor computes along the way
    stay real, because some constructors look at theirs (`.item()`), which meta cannot answer.

    Args:
        build: makes the module.
        buffers: whether its buffers end on meta too.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = build()
    return module.to("meta") if buffers else module


def is_meta(module: torch.nn.Module) -> bool:
    """Whether some parameter of `module` still has no memory.

    What accelerate keeps on the disk or aside looks so between its calls, and is there.
    """
    if getattr(module, "hf_device_map", None):
        return False
    return any(parameter.is_meta for parameter in module.parameters())
