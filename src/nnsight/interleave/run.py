"""A whole run, on one page: start the workers, make the call, offer its result, end who waits.

This is the file to read first. Everything that a trace does happens between the first and the
last line of `run`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from nnsight.capture.rewrite import AHEAD, provided
from nnsight.capture.traceback import hide, note, warn
from nnsight.interleave import errors
from nnsight.interleave.ahead import Ahead
from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import Location
from nnsight.interleave.replay import Replay
from nnsight.interleave.request import here
from nnsight.interleave.worker import Worker

hide(os.path.dirname(torch.__file__))
provided[AHEAD] = Ahead


def run(
    tree: Any,
    workers: list[Worker],
    batch: Batch,
    call: Callable[[], Any],
    result: Location,
    enter: Callable[[Interleaver], None],
) -> Any:
    """Run `call` with `workers` beside it.

    Args:
        tree: the model; only its locations can be asked for.
        workers: one for each block, in the order in which they were written.
        batch: how the rows of the combined input belong to the workers.
        call: the forward (or any other callable that runs the model).
        result: where the value that `call` returns is offered.
        enter: prepares the model for the run; what it changes it undoes `at_close`.

    Returns:
        What `call` returned, with what a block did to it; None if a block stopped the run.

    Raises:
        BaseException: what a block or the model raised, after everything is taken off the model.
    """
    interleaver = Interleaver(tree, workers, batch, result)
    outer, here.run = here.run, interleaver
    interleaver.replay = Replay
    try:
        enter(interleaver)
        interleaver.start()
        if interleaver.stopping:
            raise errors.Stop
        value = call()
        interleaver.end_steps()
        value = interleaver.outcome = interleaver.offer(result, value)
        interleaver.finish()
        return value
    except errors.Stop:
        _warn_stopped(interleaver.cancel())
        return None
    except BaseException as error:
        interleaver.cancel()
        interleaver.blame(error)
        _tell_edits(error, interleaver)
        if (own := _hidden(error, interleaver)) is None:
            raise
    finally:
        here.run = outer
        interleaver.close()
    try:
        raise own
    finally:
        del own


def _hidden(error: BaseException, interleaver: Interleaver) -> BaseException | None:
    """The block's error that the model's code caught and made another one of, if it did."""
    if interleaver.failure is None or not isinstance(error, Exception):
        return None
    own, where = interleaver.failure
    return None if own is error else own.with_traceback(where)


def _warn_stopped(waiting: list[Worker]) -> None:
    """`tracer.stop()` ends the run for everyone: tell of the blocks that it cut short."""
    for where in [worker.where for worker in waiting if worker.unmet is None]:
        warn(f"tracer.stop() ended the run before the block at {where} had all its values.")


def _tell_edits(error: BaseException, interleaver: Interleaver) -> None:
    """Note on an error of the model which values the blocks had replaced before it."""
    written = list(dict.fromkeys(interleaver.written))[-5:]
    if written and interleaver.failure is None:
        places = ", ".join(f"`{location}`" for location in written)
        note(error, f"(values that blocks replaced before this error: {places})")
