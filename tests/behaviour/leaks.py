"""What is alive, so that a test can tell that nothing more is than before."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from tests.conftest import hooks_on

RUNS = 200


def alive() -> Counter[str]:
    """How many tensors there are, and how many objects of each of our own classes."""
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor):
            found["tensors"] += 1
        elif str(kind.__module__).startswith("nnsight"):
            found[f"{kind.__module__}.{kind.__name__}"] += 1
    return found


def keeps_nothing(run: Callable[[], Any], module: torch.nn.Module, runs: int = RUNS) -> None:
    """See that with the garbage collector off, `run` leaves nothing alive, time after time."""
    for _ in range(3):  # the first runs learn the model, and start the threads
        run()
    gc.collect()
    gc.disable()
    try:
        before, threads = alive(), threading.active_count()
        for _ in range(runs):
            run()
        kept = alive() - before
        assert not kept, f"{runs} runs kept {kept}"
        assert threading.active_count() <= threads
        assert hooks_on(module) == []
    finally:
        gc.enable()
