"""An error that happened elsewhere, raised here: of its own type, at the user's own lines."""

from __future__ import annotations

import builtins
import functools
import linecache
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from nnsight.capture.entrance import call_at
from nnsight.capture.traceback import note
from nnsight.remote.errors import RemoteError
from nnsight.remote.messages import Failure, Line
from nnsight.remote.shown import LAST_LINE, know, name_of


def error_of(failure: Failure, job: str = "") -> RemoteError:
    """The error that a failure tells of.

    It is a `RemoteError`, and an error of the original type too where that is one of Python's or of
    this library's. A class of the user's own is named in a note: which it is here, nobody knows.
    """
    kind = _kind(failure.module, failure.type)
    if kind is RemoteError and failure.base not in ("", "Exception"):
        kind = _kind("builtins", failure.base)
    error = kind(failure.message)
    error.job_id, error.type = job or None, failure.type
    if type(error).__name__ != failure.type and failure.phase == "run":
        note(error, f"(there it is a `{failure.type}`)")
    for text in failure.notes:
        note(error, text)
    if failure.cause is not None:
        error.__cause__ = error_of(failure.cause)
    if job:
        note(error, f"(job {job})")
    return error


@functools.lru_cache(maxsize=256)
def _kind(module: str, name: str) -> type[RemoteError]:
    own = vars(builtins).get(name) if module == "builtins" else None
    if module.partition(".")[0] == "nnsight":  # what is loaded; nothing is imported on its word
        own = getattr(sys.modules.get(module), name, None)
    if not isinstance(own, type) or not issubclass(own, Exception):
        return RemoteError
    if issubclass(own, RemoteError):
        return own
    try:
        kind = type(own.__name__, (RemoteError, own), {"__module__": "nnsight.remote"})
        kind("")
    except TypeError:  # its layout is its own, or it is made from more than a text
        return RemoteError
    return kind


def raise_through(error: BaseException, lines: Sequence[Line]) -> NoReturn:
    """Raise `error` through frames that stand at the user's lines."""
    lines = [
        msgspec.structs.replace(line, filename=name_of(line.filename))
        for line in lines[-20:]
        if 0 < line.lineno <= LAST_LINE
    ]
    for line in lines:
        know(line)
    held = [error]
    del error  # its traceback will hold this frame
    _raise(held, lines)
    raise AssertionError("it was raised")


def _raise(held: list[BaseException], lines: list[Line]) -> Any:
    if not lines:
        raise held.pop()
    line, rest = lines[0], lines[1:]
    text = linecache.getline(line.filename, line.lineno).rstrip()
    span = (line.lineno, line.lineno, len(text) - len(text.lstrip()), len(text))
    call_at(line.filename, line.function, span, lambda: _raise(held, rest))
