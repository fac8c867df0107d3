"""A block on the whole way through bytes, without leaving this process; what came of it."""

from __future__ import annotations

import contextlib
import io
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from types import ModuleType
from typing import Any

import torch
from torch._subclasses import FakeTensor

from nnsight.remote import environment, payload, results, wire
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.perform import perform
from nnsight.remote.warned import give_again

ELSEWHERE = "changed it in the process where it ran"
"""In the warning of what a block changed and did not save."""


@dataclass
class ThroughBytes:
    """A backend that runs a block beside another model of this process.

    Attributes:
        model: the one that blocks name.
        other: the one that they run beside.
        is_local: whether a module travels by source.
        trips: how many blocks have gone.
    """

    model: Any
    other: Any
    is_local: Callable[[ModuleType], bool] = environment.is_local
    trips: int = 0

    def __call__(self, tracer: Any, function: Any = None) -> None:
        tracer.received = {}
        request = payload.write(tracer, self.model, self.is_local, True, function)
        said: list[str] = []
        outcome = perform(wire.join(request.pieces), self.other, said.append)
        self.trips += 1
        print("".join(said), end="")
        if outcome.result is not None:
            result = results.read_result(outcome.result, request.sent, self.model, request.origin)
            result.give(tracer)
            give_again(result.warned)
        if outcome.failure is not None:
            raise_through(error_of(outcome.failure), outcome.failure.frames)


@dataclass
class Outcome:
    """What came of code: what it gave, printed and warned of, or the error that ended it."""

    value: Any
    error: BaseException | None
    told: list[Any]  # of the error: its kinds, its text and the lines that it came through
    printed: str
    warned: list[Any]

    def differences(self, other: Outcome) -> list[str]:
        """What is not as in `other`; values are the same to the last bit."""
        found = {
            name: differs(getattr(self, name), getattr(other, name))
            for name in ("value", "told", "printed", "warned")
        }
        return [f"{name}{text}" for name, text in found.items() if text]


def outcome(code: Callable[[], Any], filename: str, first: int = 1) -> Outcome:
    """Run code of a file, from a line of it on, and take down what comes of it."""
    value = error = None
    told: list[Any] = []
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("default")  # once for each line, as a user sees them
        try:
            value = code()
        except Exception as raised:
            error = raised
            kinds = [c.__name__ for c in type(raised).__mro__ if c.__module__ == "builtins"]
            lines = traceback.extract_tb(raised.__traceback__)
            own = [(f.lineno, f.line) for f in lines if f.filename == filename]
            told = [kinds, str(raised), [line for line in own if (line[0] or 0) >= first]]
    said = [(str(w.message), w.category, w.lineno) for w in warned if w.filename == filename]
    said = [each for each in said if ELSEWHERE not in each[0]]  # it is only said where it is so
    return Outcome(value, error, told, printed.getvalue(), said)


def differs(one: Any, other: Any) -> str:
    """Where two values differ; nothing where they are the same to the last bit.

    Classes are the same that have the same name: those that came over the wire were made anew.
    """

    def unlike() -> str:
        return f": {one!r}\n    and {other!r}"

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):  # fake ones come as meta
        near = one.device == other.device or FakeTensor in (type(one), type(other))
        alike = near and one.dtype == other.dtype and one.shape == other.shape
        empty = one.is_meta or other.is_meta
        return "" if alike and (empty or torch.equal(_bits(one), _bits(other))) else unlike()
    if type(one).__name__ != type(other).__name__:
        return unlike()
    if not isinstance(one, type) and (is_dataclass(one) or type(one).__eq__ is object.__eq__):
        one, other = getattr(one, "__dict__", one), getattr(other, "__dict__", other)
    if isinstance(one, dict):
        if list(one) != list(other):
            return f": {list(one)}\n    and {list(other)}"
        one, other = one.items(), other.items()
    elif not isinstance(one, (list, tuple, deque)):
        return "" if one == other else unlike()
    if len(one) != len(other):
        return f": {len(one)} values and {len(other)}" + unlike()
    pairs = enumerate(zip(one, other, strict=True))
    found = ((n, differs(a, b)) for n, (a, b) in pairs)
    return next((f"[{n}]{text}" for n, text in found if text), "")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor as what can be compared, whatever is not a number among them."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    return plain.reshape(-1).view(torch.uint8) if plain.numel() else plain
