"""Run a block that came over the wire, here: what a server's worker and `remote="local"` do."""

from __future__ import annotations

import contextlib
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from nnsight.capture.traceback import is_hidden
from nnsight.remote import payload, results, wire
from nnsight.remote.context import serving
from nnsight.remote.errors import NotSendableError, PayloadError, RemoteError
from nnsight.remote.messages import Failure, Line, Warned
from nnsight.remote.model import Remotable
from nnsight.remote.printing import Say, printing


@dataclass(frozen=True)
class Outcome:
    """How a block ended.

    `result` has the saved values, as a message of the wire; after an error those saved until then.
    """

    result: bytes | bytearray | None
    failure: Failure | None = None


class Format(Protocol):
    """How a request is read, and its result written."""

    def arrived(self, body: Any, model: Remotable) -> AbstractContextManager[payload.Arrived]: ...

    def result(
        self,
        names: Mapping[str, Any],
        arrived: payload.Arrived,
        model: Remotable,
        warned: Sequence[Warned],
    ) -> bytes | bytearray: ...


@dataclass(frozen=True)
class Ours:
    """nnsight/1; `compress` says whether to shrink the result."""

    compress: bool = True

    def arrived(self, body: Any, model: Remotable) -> AbstractContextManager[payload.Arrived]:
        return payload.arrived(body, model)

    def result(
        self,
        names: Mapping[str, Any],
        arrived: payload.Arrived,
        model: Remotable,
        warned: Sequence[Warned],
    ) -> bytearray:
        return wire.join(results.write_result(names, arrived, model, warned, self.compress))


def perform(body: Any, model: Remotable, say: Say, format: Format | None = None) -> Outcome:
    """Run the block of a message beside `model`.

    Whatever goes wrong in it is in the outcome. What may not be caught (the end of the process, an
    interrupt from outside) is not.

    Args:
        body: the message, as `payload.write` made it.
        model: the model that it is for, with its weights.
        say: is given what the block prints, as soon as it is to be shown.
        format: how the message is written; as nnsight/1 if left out.
    """
    format = format or Ours()
    warned: list[Warned] = []
    phase = "read"
    try:
        with printing(say), _warnings(warned), serving(), format.arrived(body, model) as arrived:
            phase = "run"
            names, failure = _run(arrived)
            phase = "send"
            return Outcome(format.result(names, arrived, model, warned), failure)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return Outcome(None, failure_of(error, phase))


def _run(arrived: payload.Arrived) -> tuple[dict[str, Any], Failure | None]:
    try:
        return arrived.run(), None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        saved = dict(getattr(error, "saved", {}))
        return saved, failure_of(error, "run")


def failure_of(error: BaseException, phase: str) -> Failure:
    """An error as data: its type, its text, and the user's lines that it came through."""
    kind = type(error)
    try:
        message = str(error)
    except Exception as broken:  # an error that cannot say what it is
        message = f"(its text cannot be had: {type(broken).__name__})"
    frames = [
        Line(f.filename, f.lineno or 0, f.name, f.line or "")
        for f in traceback.extract_tb(error.__traceback__)
        if not is_hidden(f.filename) and not _is_ours(f.filename) and phase == "run"
        if f.name != payload.HERE  # where it was written, the `with` itself stands there
    ]
    told = isinstance(error, (RemoteError, NotSendableError, PayloadError))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return Failure(
        kind.__qualname__,
        message,
        kind.__module__,
        frames if len(frames) <= 20 else frames[:10] + frames[-10:],
        [*_grouped(error), *(str(note) for note in getattr(error, "__notes__", ()))],
        phase,
        None if cause is None or told else failure_of_cause(cause, phase),
        next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"),
    )


def _grouped(error: BaseException) -> list[str]:
    """What the errors of a group are: one of them cannot be made from its text."""
    grouped = getattr(error, "exceptions", ()) if hasattr(error, "derive") else ()
    return [f"({type(each).__name__}: {each})" for each in grouped]


def failure_of_cause(error: BaseException, phase: str) -> Failure:
    """What led to an error, without what led to that."""
    whole = failure_of(error, phase)
    whole.cause = None
    return whole


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _is_ours(filename: str) -> bool:
    return filename.startswith((os.path.join(_HERE, ""), "<frozen"))


@contextlib.contextmanager
def _warnings(warned: list[Warned]) -> Iterator[None]:
    """Warnings are taken down, to be given where the block was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")

        def take(message: Any, category: Any, filename: str, lineno: int, *more: Any) -> None:
            warned.append(Warned(str(message), category.__name__, filename, lineno))

        warnings.showwarning = take
        yield
