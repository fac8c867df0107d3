"""Steps: `for step in tracer.iter[...]`, `tracer.all()` and `.next()`.

A model that generates runs once for each token, and a module may run several times in one forward.
Its n-th run is step n. While a block is at a step, everything that it asks for is of that step: a
value that has passed is an error, and never that of the next step.

The body of a loop is entered when the run begins the step, so a loop ends with the run, and the
code after it runs before the result is there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from nnsight.capture.saving import save
from nnsight.capture.traceback import warn
from nnsight.capture.tracer import Tracer
from nnsight.interleave import errors
from nnsight.interleave.beginning import beginning
from nnsight.interleave.gradients import GradientWorker
from nnsight.interleave.request import LEFT, Pin, here, wait
from nnsight.interleave.worker import Worker
from nnsight.traces.errors import no_steps_backward

T = TypeVar("T")


def worker_of(what: str) -> Worker:
    """The worker that runs this block.

    Raises:
        OutsideTraceError: this line is in no block that runs beside a model.
    """
    if here.worker is None or here.outside_invokes:
        raise errors.nothing_runs(what)
    if isinstance(here.worker, GradientWorker):
        raise no_steps_backward(what)
    return here.worker


class Steps(Tracer):
    """Some steps of a run: loop over them, with `for` or with `with`.

    A `with` over steps in a block is compiled as a loop (`capture/repeats.py`). In a function that
    a block calls it comes here: its body is captured like that of a trace, and run for each step.

    Args:
        chosen: the numbers of the steps, in ascending order; endless for an open end.
        name: how it was written, for messages.
        open: whether it goes on for as long as the run does.
    """

    still = True  # to go on with a loop over them does nothing to the model

    def __init__(self, chosen: Sequence[int], name: str, open: bool) -> None:
        super().__init__()
        self.chosen, self.name, self.open = chosen, name, open

    def __iter__(self) -> Iterator[int]:
        return self._loop(worker_of(self.name))

    def _loop(self, worker: Worker) -> Iterator[int]:
        outer, pin, first = worker.pin, Pin(0), True
        try:
            for step in self.chosen:
                pin.coming = step
                if not _reach(worker, step, pin, first):
                    self._warn_of_the_end(step, first, pin)
                    return
                worker.pin, pin.step, first = pin, step, False
                yield step
        finally:
            worker.pin, pin.coming = outer, LEFT
            if outer is not None:
                outer.asked |= pin.asked

    def _warn_of_the_end(self, step: int, first: bool, pin: Pin) -> None:
        """Tell of a loop that may not have done what was meant."""
        unsure = first and step > 0
        if self.open and not unsure:
            return
        text = f"`{self.name}` ended before step {step}, because the run did"
        if unsure:
            text += ": its body has not run at all"
        elif not self.open:
            text += ": it made fewer steps than were asked for"
        text += ". Write `tracer.iter[:]` for as many as there are."
        if not pin.asked:
            text += (
                " The loop had asked for nothing yet, so its steps were those of the model. What "
                f"runs more often than that, ask for at every step, and act `if step >= {step}:`."
            )
        warn(text)

    def execute(self) -> None:
        """Run the captured body once for each step, with the step for its `as` target."""
        assert self.scope is not None
        for step in self:
            self.scope.function(step, save, inside=True)()

    def targets(self, target: ast.expr | None) -> dict[str, Any]:
        """Nothing: the body has bound the target itself, at each step."""
        return {}


def _reach(worker: Worker, step: int, pin: Pin, first: bool) -> bool:
    """Wait until the run begins `step`; False if it ended before."""
    run = worker.run
    if run is None or run.returned:
        return False
    begun = beginning(run, step, pin.asked, worker, first)
    wait(begun, lambda: errors.InternalError("a loop over steps was left waiting"))
    return not run.returned


class Iter:
    """`tracer.iter`: choose steps by a slice, a number or a list of numbers; bare, all of them."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, chosen: slice | int | Sequence[int]) -> Steps:
        """The chosen steps, which count from 0.

        Raises:
            ValueError: a number is negative: how many steps there will be is not known before.
            TypeError: it is something else.
        """
        name = f"{self._name}[{_written(chosen)}]"
        if isinstance(chosen, slice):
            return Steps(_of_slice(chosen, name), name, chosen.stop is None)
        numbers = chosen if isinstance(chosen, (list, tuple, range)) else [chosen]
        return Steps(sorted({_number(n, name) for n in numbers}), name, False)

    def all(self, name: str) -> Steps:
        """Every step there is, under the name that it was asked for by."""
        return Steps(_of_slice(slice(None), name), name, True)

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __repr__(self) -> str:
        return f"{self._name}[...]"


def _of_slice(chosen: slice, name: str) -> Sequence[int]:
    given = (chosen.start, chosen.stop, chosen.step)
    start, stop, stride = (None if n is None else _number(n, name) for n in given)
    if stride == 0:
        raise ValueError(f"`{name}`: the stride of a slice cannot be zero")
    # as many as one process will ever live to see
    return range(start or 0, 2**62 if stop is None else stop, stride or 1)


def _number(given: Any, name: str) -> int:
    try:
        number = given.__index__()
    except AttributeError:
        raise TypeError(
            f"`{name}`: steps are chosen by a number, a slice or a list of numbers, not by "
            f"{given!r}"
        ) from None
    if number < 0:
        raise ValueError(
            f"`{name}`: steps count from 0, and how many there will be is not known before, so "
            "none can be counted from the end"
        )
    return number


def _written(chosen: Any) -> str:
    """A selection as it stands between the brackets."""
    if not isinstance(chosen, slice):
        return repr(chosen)
    start, stop, stride = ("" if n is None else repr(n) for n in _parts(chosen))
    return f"{start}:{stop}" + (f":{stride}" if stride else "")


def _parts(chosen: slice) -> tuple[Any, Any, Any]:
    return chosen.start, chosen.stop, chosen.step


def advance(given: T, steps: int, what: str) -> T:
    """Move the block on by `steps`: from here on it asks for values of that step.

    Returns:
        `given`, so that `module.next().output` reads on.

    Raises:
        ValueError: `steps` is less than one: a run does not go back.
    """
    worker = worker_of(what)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"`{what}` goes on by a whole number of steps from 1 on, not by {steps!r}: a run does "
            "not go back"
        )
    if worker.pin is None:
        worker.pin = Pin(0)
    worker.pin.step += steps
    worker.pin.coming = worker.pin.step
    return given
