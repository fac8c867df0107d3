"""The only functions that park a worker: read, write, skip, wait.

A block that asks for a value gives up its turn until the model has it. Everything else a block
does is ordinary Python, run while the model is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nnsight.interleave import errors
from nnsight.interleave.location import RESULT, SKIP, Location

LEFT = 2**63  # no step is that late
READ, WRITE, GATE, WAIT = "read", "write", "skip", "wait"


class Request(NamedTuple):
    """What a worker is parked for."""

    action: str  # READ, WRITE, GATE (skip the module) or WAIT (for another block)
    location: Location | None  # where; None for WAIT
    visit: int = 0  # the n-th time that the run comes by there
    pinned: bool = False  # a loop over steps, or `next()`, asks for exactly that visit
    value: Any = None  # the replacement, for WRITE and GATE
    ready: Callable[[], bool] | None = None  # whether a WAIT is over
    missed: Callable[[], BaseException] | None = None  # what it means if the answer never comes
    back: bool = False  # a WRITE of what was read before, as a view of it was changed in place


@dataclass
class Pin:
    """The step that a block is at: what it asks for meanwhile is of that step, and no other."""

    step: int
    coming: int = 0  # of a loop: the step that it is at, or waits for; `LEFT` once it is over
    asked: set[Location] = field(default_factory=set[Location])  # what was asked for while pinned


class Asker(Protocol):
    """Who can ask for values: the worker that a block runs on."""

    pin: Pin | None

    @property
    def tree(self) -> Any:
        """The model that it runs beside."""
        ...

    def ask(self, request: Request) -> Any:
        """Park for `request` and return the answer."""
        ...


class _Here(threading.local):
    """What this thread is running."""

    worker: Any = None  # an `Asker`, or None
    run: Any = None  # the run whose model runs on this thread, or None
    outside_invokes: bool = False  # in the body of a trace, between its invokes


here = _Here()


def current(what: object) -> Asker:
    """The worker that this thread runs.

    Raises:
        OutsideTraceError: this thread runs no block beside a model.
    """
    worker = here.worker
    if here.outside_invokes:
        raise errors.between_invokes(what)
    if worker is None:
        raise errors.outside(what)
    return worker


def request_of(
    worker: Asker, action: str, location: Location, value: Any = None, back: bool = False
) -> Request:
    """What asks for the visit that the block is at: the first one, or that of its step."""
    pin = worker.pin
    if pin is None or location.kind == RESULT:  # a run has one result, whatever the step
        return Request(action, location, value=value, back=back)
    pin.asked.add(location)
    return Request(action, location, pin.step, True, value, back=back)


def read(location: Location) -> Any:
    """The value at `location`, as soon as the model has it: this block's rows of it."""
    worker = current(location)
    return worker.ask(request_of(worker, READ, location))


def write(location: Location, value: Any, back: bool = False) -> None:
    """Replace the value at `location`, for the model and for whoever reads it afterwards.

    Args:
        back: it is made from a view of the value there, whether that has changed or not.
    """
    worker = current(location)
    if value is None:
        raise errors.none_value(location)
    worker.ask(request_of(worker, WRITE, location, value, back))


def skip(owner: Any, value: Any) -> None:
    """Do not run the module at `owner`: `value` is its output."""
    location = Location(owner, SKIP)
    worker = current(location)
    worker.ask(request_of(worker, GATE, location, value))


def wait(ready: Callable[[], bool], missed: Callable[[], BaseException]) -> None:
    """Wait until `ready()`, which only another block can bring about.

    Raises:
        BaseException: `missed()`, if the run ends first.
    """
    if not ready():
        current("this name").ask(Request(WAIT, None, ready=ready, missed=missed))
