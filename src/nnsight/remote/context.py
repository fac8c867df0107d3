"""Whether this code runs for somebody else: then `remote=True` in a block means here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

RETURNED = "returned"
"""The name of what a function gives that ran elsewhere in place of a block."""

_serving: ContextVar[bool] = ContextVar("nnsight_serving", default=False)


def is_serving() -> bool:
    """Whether a block that came over the wire is running."""
    return _serving.get()


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Everything under this `with` is done for somebody else."""
    token = _serving.set(True)
    try:
        yield
    finally:
        _serving.reset(token)
