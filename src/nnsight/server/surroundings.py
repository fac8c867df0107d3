"""What a job may leave behind in its process beside the model, and putting it back."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to get something that a job may have set, and how to set it."""

PYTHON: tuple[Setting, ...] = (
    (os.getcwd, os.chdir),
    (sys.path.copy, lambda was: sys.path.__setitem__(slice(None), was)),
    (os.environ.copy, lambda was: (os.environ.clear(), os.environ.update(was))),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: sys.stdout, lambda was: setattr(sys, "stdout", was)),
    (lambda: sys.stderr, lambda was: setattr(sys, "stderr", was)),
)
_OURS = ("nnsight-block", "signs of life")
"""Names of threads that may be there."""


def noted(settings: tuple[Setting, ...]) -> list[tuple[Callable[[Any], Any], Any]]:
    """The settings as they are now."""
    return [(set, get()) for get, set in settings]


def put_back(was: list[tuple[Callable[[Any], Any], Any]]) -> None:
    for set, value in was:
        set(value)


class Surroundings:
    """The process as it is now."""

    def __init__(self) -> None:
        self._was = noted(PYTHON)
        self._children = _children()
        self._threads = {thread.ident for thread in threading.enumerate()}

    def know_children(self) -> None:
        """The processes that are there now belong to this one."""
        self._children = _children()

    def put_back(self) -> list[str]:
        """Put back what can be, with fresh random numbers; what is left of a job that cannot."""
        put_back(self._was)
        random.seed()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        children = _children() - self._children
        return [*self._threads_left(), *(f"the process {pid}" for pid in sorted(children))]

    def _threads_left(self) -> list[str]:
        return [
            f"the thread {thread.name}"
            for thread in threading.enumerate()
            if thread.ident not in self._threads and not _is_known(thread)
        ]


def _is_known(thread: threading.Thread) -> bool:
    """Ours, or that with which tqdm looks after its bars."""
    return thread.name.startswith(_OURS) or type(thread).__module__.startswith("tqdm.")


def _children() -> set[str]:
    """The processes that this one has started and that are there (Linux)."""
    found: set[str] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        try:
            found.update(children.read_text().split())
        except OSError:  # that thread has ended
            continue
    return found
