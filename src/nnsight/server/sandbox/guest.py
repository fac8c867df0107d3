"""The process of a sandbox: runs the block of one request, and asks the model for values.

What a trace does here: it tells the model's process what to run, and with which blocks beside it;
then gives each block its turn whenever it is told to, and answers with what the block asks for.
The engine itself, with all its rules, runs over there.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import msgspec
import torch

from nnsight.capture import traceback
from nnsight.capture.mentions import named_in
from nnsight.config import CONFIG
from nnsight.interleave import ambient, errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import WAIT, Request
from nnsight.interleave.worker import Worker
from nnsight.remote.perform import Outcome, failure_of, perform
from nnsight.remote.values import Writer
from nnsight.server.formats import format_of
from nnsight.server.sandbox.channel import Channel, Memory
from nnsight.server.sandbox.errors import (
    Gone,
    SandboxError,
    no_function_there,
    no_report,
    only_data,
)
from nnsight.server.sandbox.skeleton import Skeleton
from nnsight.server.sandbox.taken import Taken
from nnsight.traces import edits
from nnsight.traces.cache import Opening
from nnsight.traces.trace import Trace


class _Begun:
    """Tells whether a run has begun a step: only the model's process knows."""

    def __init__(self, step: int, asked: list[Any], first: bool) -> None:
        self.step, self.asked, self.first = step, asked, first

    def __call__(self) -> bool:
        return False


class Guest:
    """One request, in this process.

    Args:
        channel: to the model's process.
        skeleton: of the model.
    """

    def __init__(self, channel: Channel, skeleton: Skeleton) -> None:
        self.channel, self.skeleton, self.model = channel, skeleton, skeleton.model
        self.taken = Taken()
        self.run: GuestRun | None = None
        self._one = threading.RLock()
        self._random = torch.get_rng_state()

    # --- the request ------------------------------------------------------------------------------

    def perform(self, body: Any, format: str) -> Outcome:
        """Run the block of a message, as `remote.perform.perform` does."""
        guest = self.skeleton.elsewhere = self

        def apart(trace: Trace, *given: Any) -> Any:
            return guest.trace(trace, *given)

        Trace.apart = apart
        outcome = perform(body, self.model, self._say, format_of(format, compress=False))
        if outcome.failure is None:
            try:
                self.skeleton.refuse_changed()
            except SandboxError as error:
                return Outcome(None, failure_of(error, "run"))
        return outcome

    def _say(self, text: str) -> None:
        with self._one:
            self.channel.send({"do": "say", "text": text}, Writer())

    # --- asking -----------------------------------------------------------------------------------

    def ask(self, do: str, write: Callable[[Writer], dict[str, Any]]) -> Any:
        """Ask the model's process for something that is there at once."""
        with self._one:
            writer = self.taken.writer()
            root = {"do": do, **self._also(writer), **write(writer)}
            self.channel.send(root, writer)
            answer, value = self.receive()
            if answer["do"] == "failed":
                raise error_of(answer["error"])
            return value

    def _also(self, writer: Writer) -> dict[str, Any]:
        """What goes with every message: what was done in place, and the random numbers."""
        changed, containers, dropped = self.taken.changes(writer)
        state = torch.get_rng_state()
        drawn = not torch.equal(state, self._random)
        self._random = state
        return {
            "changed": changed,
            "containers": containers,
            "dropped": dropped,
            "random": state.numpy().tobytes() if drawn else None,
        }

    def receive(self) -> tuple[dict[str, Any], Any]:
        """The next message of the model's process, and the value in it."""
        answer, nodes, buffers, memory = self.channel.receive()
        return answer, self._read(answer, nodes, buffers, memory)

    def _read(self, answer: Any, nodes: Any, buffers: Any, memory: Memory) -> Any:
        run = self.run
        if answer.get("moved"):
            self.taken.moved()
        reader = self.taken.reader(nodes, buffers, memory)
        self.taken.sync(reader, answer.get("changed", ()))
        if answer.get("random") is not None:
            state = torch.frombuffer(bytearray(answer["random"]), dtype=torch.uint8)
            torch.set_rng_state(state)
            self._random = torch.get_rng_state()
        if run is not None:
            run.note(answer)
        value = reader.read(answer["value"]) if "value" in answer else None
        self.taken.answered()
        return value

    def call(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module on values of the block's own."""
        run = self.run
        seen = run is not None and threading.get_ident() in run.threads
        return self.ask(
            "call",
            lambda writer: {"at": place, "seen": seen, "given": writer.value((args, kwargs))},
        )

    def fetch(self, place: str) -> torch.Tensor:
        return self.ask("fetch", lambda writer: {"at": place})

    # --- a trace ----------------------------------------------------------------------------------

    def trace(
        self,
        trace: Trace,
        workers: list[Worker],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        total: int,
        split: bool,
    ) -> Any:
        """As `Trace.run_workers`, with the model over there."""
        if trace._wants_report():
            raise no_report()
        if callable(trace.fn):
            raise only_data("a function to run in place of the model")
        model, wanted = trace.model, not workers
        stored = edits.workers(trace) if model._edits() else []
        workers = [*stored, *workers]
        run = self.run = GuestRun(self, trace, workers, Batch(total, split))
        try:
            self._send_run(trace, run, args, kwargs, wanted)
            ended, value = self._take_turns(run)
            run.fill_caches(ended["caches"], value[1])
            for text in ended["warned"]:
                traceback.warn(text)
            if ended["steps"] > 1:
                for edit in edits.in_force(model):
                    edit.tell_steps(ended["steps"])
            self._raise(ended, run)
            return value[0]
        finally:
            self.run = None
            run.close()

    def _send_run(self, trace: Trace, run: GuestRun, args: Any, kwargs: Any, wanted: bool) -> None:
        model, writer = trace.model, self.taken.writer()
        tuples = model._tree.tuple_outputs  # type: ignore[attr-defined]
        root = {
            "do": "run",
            **self._also(writer),
            "at": model._place_of(model),
            "path": model.path.partition(".")[0],
            "tuples": CONFIG.APP.LEGACY if tuples is None else tuples,
            "fn": trace.fn,
            "given": writer.value((args, kwargs)),
            "inputs": [writer.value((i.given.args, i.given.kwargs)) for i in trace.invokes],
            "total": run.batch.total,
            "split": run.batch.split,
            "workers": [_about(worker) for worker in run.workers],
            "state": _state(),
            "wanted": wanted,
            "caches": [run.cache(opening) for opening in trace.openings],
        }
        self.channel.send(root, writer)

    def _take_turns(self, run: GuestRun) -> tuple[dict[str, Any], Any]:
        """Give blocks their turns, as the model's process says, until its run is over."""
        while True:
            order, value = self.receive()
            if order["do"] == "ended":
                return order, value
            worker = run.workers[order["worker"]]
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
            self._reply(worker, run)

    def _reply(self, worker: Worker, run: GuestRun) -> None:
        """Say what a block has done with its turn."""
        ready = [n for n, w in enumerate(run.workers) if _is_ready(w)]
        written = run.asked.pop(worker, None)
        if worker.alive:
            assert written is not None, "it has asked"
            root, writer = written
            root["ready"] = ready
            self.channel.send(root, writer)
            return
        writer = self.taken.writer()
        error, worker.error = worker.error, None
        try:
            also = self._also(writer)
        except SandboxError as refused:
            writer, also, error = self.taken.writer(), {}, error or refused
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
        self.channel.send({"do": do, **also, "ready": ready}, writer)

    def _raise(self, ended: dict[str, Any], run: GuestRun) -> None:
        """Raise what the run ended with, if it was an error."""
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


def _is_ready(worker: Worker) -> bool:
    request = worker.request
    return request is not None and request.ready is not None and bool(request.ready())


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


def _state() -> dict[str, Any]:
    """The torch state that the model runs in."""
    now = ambient.current()
    autocast = [[kind, str(dtype).removeprefix("torch.")] for kind, dtype in now.autocast]
    return {"grad": now.grad, "inference": now.inference, "autocast": autocast}


# --- what a block sees of the run -----------------------------------------------------------------


class GuestRun:
    """A run in the model's process, as the blocks here see it (`Run` of `interleave/worker.py`)."""

    told = True  # every request is said at once
    passage = journal = None

    def __init__(self, guest: Guest, trace: Trace, workers: list[Worker], batch: Batch) -> None:
        self.guest, self.workers, self.batch = guest, workers, batch
        self.tree = trace.model.tree
        self.result: Location | None = Location(trace, RESULT)
        self.threads: set[int] = set()
        self.typical, self.returned, self.over = True, False, False
        self.at: Location | None = None
        self._at: Any = None
        self._visits = 0
        self.asked: dict[Worker, tuple[dict[str, Any], Writer]] = {}
        self.failures: dict[int, tuple[BaseException, Any]] = {}
        self._caches: list[Opening] = []

    @property
    def lone(self) -> bool:
        return len(self.workers) == 1

    def note(self, answer: dict[str, Any]) -> None:
        """Take note of where the run is."""
        if "position" in answer:
            self.returned, self.over, at, self._visits = answer["position"]
            if at != self._at:
                self._at = at
                self.at = None if at is None else self._location(at)

    def _location(self, at: list[Any]) -> Location | None:
        if at[0] == "result":
            return self.result
        if at[0] == "module":
            return Location(self.guest.model._at(at[1]), at[2])
        return None

    def comes_by(self, location: Location) -> int:
        return self._visits if location == self.at else 0

    def missed(self, worker: Worker, request: Request) -> BaseException:
        return errors.ended(request.location)

    # Before a block parks: what it asks for is written down here, so that an error is raised there.

    def expect(self, worker: Worker, request: Request) -> tuple[bool, Any]:
        location = request.location
        if location is not None and location.owner.tree is not self.tree:
            raise errors.other_tree(location, self.tree)
        writer = self.guest.taken.writer()
        root = {
            "do": "ask",
            **self.guest._also(writer),
            "action": request.action,
            "at": None if location is None else self.place(location),
            "visit": request.visit,
            "pinned": request.pinned,
            "given": writer.value(request.value),
            "back": request.back,
            "step": None,
            "waited": worker.waited,
            "line": traceback.users_line(),
        }
        if request.action == WAIT and isinstance(request.ready, _Begun):
            begun = request.ready
            root["step"] = [begun.step, begun.asked, begun.first]
        self.asked[worker] = root, writer
        return False, None

    def expect_ahead(self, due: Any) -> tuple[bool, Any]:
        raise errors.InternalError("a block in a sandbox asked ahead")

    def place(self, location: Location) -> list[Any]:
        """A location as data."""
        owner: Any = location.owner
        if isinstance(owner, Trace):
            return ["result", "", location.kind]
        place = self.guest.model._place_of(owner)
        if place is not None:
            return ["module", place, location.kind]
        if location.kind not in ("output", "input", "skip"):
            raise no_function_there(owner.path)
        return ["operation", self.way(owner), location.kind]

    def way(self, operation: Any) -> list[str]:
        """The place of the module, and the operations that lead to this one."""
        names = [operation.name]
        while (outer := getattr(operation.place, "operation", None)) is not None:
            operation = outer
            names.insert(0, operation.name)
        place = self.guest.model._place_of(operation.place.envoy)
        if place is None:
            raise only_data(f"`{operation.path}`")
        return [place, *names]

    # What is asked of it beside values.

    def beginning(
        self, step: int, asked: Collection[Location], worker: Worker, first: bool
    ) -> Callable[[], bool]:
        if step == 0:
            return lambda: True
        return _Begun(step, [self.place(location) for location in asked], first)

    def prepare(self, place: Any) -> None:
        """Operations of a function may be asked for next."""
        operation = getattr(place, "operation", None)
        if operation is None:
            way = [self.guest.model._place_of(place.envoy)]
        else:
            way = self.way(operation)
        self.guest.ask("prepare", lambda writer: {"at": way})

    def cache(self, opening: Opening) -> dict[str, Any]:
        """A cache as data; its values come when the run is over."""
        self._caches.append(opening)
        store, keeping = opening.cache._store, opening.keeping
        return {
            "at": opening.model._place_of(opening.model),
            "paths": sorted(store.asked),
            "kinds": list(store.kinds),
            "device": None if keeping.device is None else str(keeping.device),
            "dtype": None if keeping.dtype is None else str(keeping.dtype).removeprefix("torch."),
            "detach": keeping.detach,
        }

    def open_cache(self, opening: Opening, worker: Worker | None) -> None:
        about = self.cache(opening)
        self.guest.ask("cache", lambda writer: about)

    def fill_caches(self, number: int, values: list[Any]) -> None:
        for opening, visits in zip(self._caches, values, strict=True):
            opening.cache._store.visits.update(visits)

    def close(self) -> None:
        """The run is over: end what has not."""
        for worker in self.workers:
            while worker.alive:
                worker.refuse(errors.Cancelled())
        self.workers, self._caches = [], []
        self.tree = self.result = self.at = None


def error_of(told: list[Any]) -> BaseException:
    """An error of the model's process."""
    module, name, text, notes = told
    kind: Any = None
    with suppress(Exception):
        kind = _kind(module, name)
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        kind = RuntimeError
    error = kind.__new__(kind)
    error.args = (text,) if text else ()
    for note in notes:
        traceback.note(error, note)
    return error


def _kind(module: str, name: str) -> Any:
    import sys

    return getattr(sys.modules[module], name)


# --- the process ----------------------------------------------------------------------------------


def main(channel: Channel, skeleton: Skeleton) -> None:
    """Run one request that comes over `channel`, and end this process."""
    try:
        random.seed()
        torch.seed()
        order, _, buffers, _ = channel.receive()
        assert order["do"] == "perform"
        guest = Guest(channel, skeleton)
        outcome = guest.perform(buffers[0], order["format"])
        writer = Writer()
        failure = None if outcome.failure is None else msgspec.json.encode(outcome.failure)
        root = {"do": "end", "failure": failure, "result": outcome.result is not None}
        writer.attach(outcome.result or b"")
        channel.send(root, writer)
    except Gone:
        pass
    finally:
        os._exit(0)
