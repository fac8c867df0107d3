"""A trace in a sandbox: tells the model's process what to run, and gives blocks their turns."""

from __future__ import annotations

from typing import Any

from nnsight.capture import traceback
from nnsight.capture.mentions import named_in
from nnsight.config import CONFIG
from nnsight.interleave import ambient, errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.worker import Worker
from nnsight.server.sandbox.errors import SandboxError, only_data
from nnsight.server.sandbox.reported import Told
from nnsight.server.sandbox.seen import GuestRun, error_of
from nnsight.traces import edits
from nnsight.traces.trace import Trace


def converse(
    guest: Any,
    trace: Trace,
    workers: list[Worker],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    total: int,
    split: bool,
) -> Any:
    """As `Trace.run_workers`, with the model over there."""
    if callable(trace.fn):
        raise only_data("a function to run in place of the model")
    model, wanted = trace.model, not workers
    stored = edits.workers(trace) if model._edits() else []
    blocks = ["edit"] * len(stored) + [str(n) for n in range(len(workers))]
    workers = [*stored, *workers]
    run = guest.run = GuestRun(guest, trace, workers, Batch(total, split))
    if trace.wants_report():
        trace.journal = run.journal = Told(blocks, workers, run.report)
    try:
        _send_run(guest, trace, run, args, kwargs, wanted)
        ended, value = _take_turns(guest, run)
        run.fill_caches(ended["caches"], value[1])
        if run.journal is not None:
            run.journal.take(value[2])
            run.journal.stopped = ended["stopped"]
        for text in ended["warned"]:
            traceback.warn(text)
        if ended["steps"] > 1:
            for edit in edits.in_force(model):
                edit.tell_steps(ended["steps"])
        _raise(ended, run)
        return value[0]
    except BaseException as error:
        if run.journal is not None:
            run.journal.error = type(error).__name__
        raise
    finally:
        guest.run = None
        run.close()


def _send_run(
    guest: Any, trace: Trace, run: GuestRun, args: Any, kwargs: Any, wanted: bool
) -> None:
    model, writer = trace.model, guest.taken.writer()
    guest.graph.begin()
    tuples = model._tree.tuple_outputs  # type: ignore[attr-defined]
    root = {
        "do": "run",
        **guest.also(writer),
        "at": model._place_of(model),
        "path": model.path.partition(".")[0],
        "tuples": CONFIG.APP.LEGACY if tuples is None else tuples,
        "fn": trace.fn,
        "given": writer.value((args, kwargs)),
        "inputs": [writer.value((i.given.args, i.given.kwargs)) for i in trace.invokes],
        "total": run.batch.total,
        "split": run.batch.split,
        "workers": [_about(worker) for worker in run.workers],
        "state": state_now(),
        "wanted": wanted,
        "blocks": None if run.journal is None else list(run.journal.blocks),
        "caches": [run.cache(opening) for opening in trace.openings],
    }
    guest.send(root, writer)


def _take_turns(guest: Any, run: GuestRun) -> tuple[dict[str, Any], Any]:
    """Give blocks their turns, as the model's process says, until its run is over."""
    while True:
        order, value = guest.receive()
        if order["do"] == "ended":
            return order, value
        take_turn(guest, run, order, value)


TURNS = frozenset({"start", "resume", "refuse", "missed", "fill", "unfilled"})


def take_turn(guest: Any, run: GuestRun, order: dict[str, Any], value: Any) -> None:
    """Give one block its turn, or what it has gone on without."""
    worker = run.workers[order["worker"]]
    if order["do"] in ("fill", "unfilled"):
        _fill(guest, run, order, value)
        return
    if order["do"] == "start":
        worker.start(run, worker.state or ambient.current())
    elif order["do"] == "resume":
        worker.resume(value)
    elif order["do"] == "missed" and worker.request is not None:
        missed = worker.request.missed
        assert missed is not None
        worker.refuse(missed())
    else:
        worker.refuse(error_of(order["error"]))
    _reply(guest, worker, run)


def _fill(guest: Any, run: GuestRun, order: dict[str, Any], value: Any) -> None:
    due = run.dues[order["number"]]
    if order["do"] == "fill":
        due.fill(value)
    else:
        error = error_of(order["error"])
        due.fail(error if isinstance(error, Exception) else RuntimeError(str(error)))
    if due.error is None:
        del run.dues[order["number"]]
    writer = guest.taken.writer()
    also = guest.also(writer)
    ready = run.ready()
    guest.send({"do": "filled", **also, "failed": due.error is not None, "ready": ready}, writer)


def _reply(guest: Any, worker: Worker, run: GuestRun) -> None:
    """Say what a block has done with its turn."""
    ready = run.ready()
    written = run.asked.pop(worker, None)
    if worker.alive:
        assert written is not None, "it has asked"
        root, writer = written
        root["ready"] = ready
        guest.send(root, writer)
        return
    writer = guest.taken.writer()
    error, worker.error = worker.error, None
    try:
        also = guest.also(writer)
    except SandboxError as refused:
        writer, also, error = guest.taken.writer(), {}, error or refused
    if error is not None and run.over and worker.unmet:
        if isinstance(error, errors.MissedProviderError):
            worker.unmet(error)
            error = None
    do = "done"
    if error is not None:
        run.failures[run.workers.index(worker)] = error, error.__traceback__
        do = "raised"
    elif worker.stopped:
        do = "stopped"
    guest.send({"do": do, **also, "ready": ready}, writer)


def _raise(ended: dict[str, Any], run: GuestRun) -> None:
    """Raise what the run ended with, if it was an error."""
    if ended["due"] is not None:
        due = run.dues.pop(ended["due"])
        due.raise_there(due.error or error_of(ended["error"]))
    if ended["raised"] is not None:
        error, where = run.failures[ended["raised"]]
        error = error.with_traceback(where)
    elif ended["error"] is not None:
        error = error_of(ended["error"])
    else:
        return
    run.failures.clear()
    if (text := errors.advice(error)) is not None:
        traceback.note(error, text)
    try:
        raise error
    finally:
        del error


def _about(worker: Worker) -> dict[str, Any]:
    rows = worker.rows
    names: set[str] = set()
    for code in worker._codes:
        names |= named_in(code)
    return {
        "rows": None if rows is None else [rows.start, rows.size],
        "where": worker.where,
        "names": sorted(names),
        "sources": worker.sources,
        "patient": worker.unmet is not None,
    }


def state_now() -> dict[str, Any]:
    """The torch state that the model runs in."""
    now = ambient.current()
    autocast = [[kind, str(dtype).removeprefix("torch.")] for kind, dtype in now.autocast]
    return {"grad": now.grad, "inference": now.inference, "autocast": autocast}
