"""What a job may leave behind in its process beside the model, and putting it back."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_PYTHON: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (os.getcwd, os.chdir),
    (sys.path.copy, lambda was: sys.path.__setitem__(slice(None), was)),
    (os.environ.copy, lambda was: (os.environ.clear(), os.environ.update(was))),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: sys.stdout, lambda was: setattr(sys, "stdout", was)),
    (lambda: sys.stderr, lambda was: setattr(sys, "stderr", was)),
)
_TORCH: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)
_OURS = ("nnsight-block", "signs of life")
"""Names of threads that may be there."""


class Surroundings:
    """The process as it is now."""

    def __init__(self) -> None:
        self._was = [(set, get()) for get, set in (*_PYTHON, *_TORCH)]
        self._children = _children()
        self._threads = {thread.ident for thread in threading.enumerate()}

    def put_back(self) -> list[str]:
        """Put back what can be, with fresh random numbers; what is left of a job that cannot."""
        for set, was in self._was:
            set(was)
        torch.seed()
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        children = _children() - self._children
        return [*self._threads_left(), *(f"the process {pid}" for pid in sorted(children))]

    def _threads_left(self) -> list[str]:
        return [
            f"the thread {thread.name}"
            for thread in threading.enumerate()
            if thread.ident not in self._threads and not thread.name.startswith(_OURS)
        ]


def _children() -> set[str]:
    """The processes that this one has started and that are there (Linux)."""
    found: set[str] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(children.read_text().split())
        except OSError:  # that thread has ended
            continue
    return found
