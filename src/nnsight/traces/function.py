"""Traces without a block of their own: `model.run(x, fn)`, and a plain call beside edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnsight.capture import traceback
from nnsight.capture.saving import Saves, saves
from nnsight.interleave.worker import Worker
from nnsight.traces.errors import nothing_to_run
from nnsight.traces.trace import Trace, refuse_same_model


def run_function(trace: Trace, fn: Callable[[Any, Any], Any]) -> Any:
    """Run `fn(tracer, model)` beside the model: the callable form, which needs no source.

    Returns:
        What `fn` returned.

    Raises:
        ValueError: no input was given.
    """
    refuse_same_model(trace.model)
    returned: list[Any] = []
    worker = Worker(lambda: returned.append(fn(trace, trace.model)), where=_where(fn))
    trace.reporting = "report" in getattr(getattr(fn, "__code__", None), "co_names", ())
    run_now(trace, [worker])
    return returned[0] if returned else None


def result_of(tracer: Any, model: Any) -> Any:
    """What the model returns: as the function that `run_function` takes."""
    return tracer.result


def run_now(trace: Trace, workers: list[Worker]) -> Any:
    """Run a trace that has no block of its own, with `workers` beside it.

    Returns:
        What the model returned.

    Raises:
        ValueError: no input was given.
    """
    if not (size := trace._size()):
        raise nothing_to_run()
    args, kwargs = trace.model._batch([trace.given], trace._fn_name())
    token = saves.set(Saves()) if saves.get() is None else None
    try:
        return trace.run_workers(workers, args, kwargs, size, split=False)
    except BaseException as error:
        traceback.clean(error)
        raise
    finally:
        trace.release()
        if token is not None:
            saves.reset(token)


def _where(fn: Callable[..., Any]) -> str:
    """`file, line n` of a function, or what it is where it has no lines."""
    code = getattr(getattr(fn, "func", fn), "__code__", None)
    return repr(fn) if code is None else f"{code.co_filename}, line {code.co_firstlineno}"
