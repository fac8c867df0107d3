"""Attention masks of transformers 4 in a scan, where their numbers cannot be looked at.

A mask that leaves nothing out is left out itself, and to know that its numbers are looked at,
unless the model is being compiled. transformers 5 counts tensors without numbers as that too; for 4
it is done here. Nothing changes outside of a scan.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from torch.utils import _python_dispatch

from nnsight.modeling.options import transformers_version
from nnsight.traces.fakes import Fakes

_ASKS = "is_torchdynamo_compiling"


@functools.cache
def know_scans() -> None:
    """Have the functions that make masks take a scan for compilation. The first call does it."""
    if transformers_version() >= (5, 0):
        return
    for name in ("masking_utils", "modeling_attn_mask_utils"):
        module = importlib.import_module(f"transformers.{name}")
        if (asks := getattr(module, _ASKS, None)) is not None:
            setattr(module, _ASKS, functools.partial(_compiles_or_scans, asks))


def _compiles_or_scans(compiles: Callable[[], bool]) -> bool:
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return compiles() or any(isinstance(mode, Fakes) for mode in modes)
