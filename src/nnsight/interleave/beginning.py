"""When a step begins, for a loop over steps that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import Location
from nnsight.interleave.worker import Worker


def beginning(
    run: Any, step: int, asked: Collection[Location], worker: Worker, first: bool
) -> Callable[[], bool]:
    """What tells whether `run` has begun `step`, or is over: for a loop that has `asked`.

    A loop that has asked for nothing yet waits for the modules that its block names. Operations
    are counted from when they are asked for, so if it names some, in one forward, its `first` body
    is entered at once and waits there.

    It is called again and again while the loop waits, so it looks at few places.
    """
    if not isinstance(run, Interleaver):  # one in another process, which knows
        return run.beginning(step, asked, worker, first)
    passage = run.passage
    if step == 0 or passage is None:
        return lambda: step == 0 or run.returned
    if first and not asked and worker.sources and not passage.stepwise:
        return lambda: True
    marks = list(passage.marks(asked, worker.names))
    for mark in marks:
        run.watch(mark)
    beat: Location | None = None

    def begun() -> bool:
        nonlocal beat
        if run.returned or passage.step() >= step:
            return True
        if beat is not passage.beat and (beat := passage.beat) is not None:
            run.watch(beat)
        return any(run.comes_by(mark) > step for mark in marks)

    return begun
