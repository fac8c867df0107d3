"""A run of the model for a sandbox, with a proxy for each of its blocks.

To the engine a proxy is a block like any other: it asks, it gets its answer, it ends. What it asks
for is what its block asked for. So order, rows, steps, skips and all refusals are the engine's own.
"""

from __future__ import annotations

from typing import Any

import torch

from nnsight.envoy.operations import Operation
from nnsight.envoy.places import Forward, Inside
from nnsight.interleave import errors
from nnsight.interleave.beginning import beginning
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.request import GATE, READ, WAIT, WRITE, Request
from nnsight.interleave.rows import Rows
from nnsight.interleave.worker import Worker
from nnsight.remote.reading import Reader
from nnsight.remote.tensors import dtype_of
from nnsight.server.sandbox.errors import (
    Broken,
    Gone,
    InBlock,
    InDue,
    Unmet,
    no_option,
    no_such_run,
)
from nnsight.server.sandbox.reported import Taken
from nnsight.server.sandbox.strict import parsed, told
from nnsight.traces.cache import Cache, Opening
from nnsight.traces.invoke import Invoke
from nnsight.traces.model import Inputs
from nnsight.traces.recording import Keeping, Store
from nnsight.traces.trace import Trace

_RUNS_CODE = ("custom_generate", "trust_remote_code", "streamer", "code_revision")
"""Options of `generate` that lead to code, or to what is no data."""


class Run:
    """One run of the model, for a trace of the sandbox."""

    def __init__(self, host: Any, message: dict[str, Any], reader: Reader) -> None:
        self.host = host
        self.caches: list[Opening] = []
        self.interleaver: Any = None
        self.steps = 0
        fn = message["fn"]
        with parsed():
            args, kwargs = reader.read(message["given"])
            inputs = [Inputs(*reader.read(value)) for value in message["inputs"]]
            root = _seen(host.model, str(message["path"]), bool(message["tuples"]))
            self.root = root
            model = root._at(message["at"]) if message["at"] in host.places else None
            self.workers = [Proxy(self, n, told) for n, told in enumerate(message["workers"])]
            total, split = int(message["total"]), bool(message["split"])
        if model is None:
            raise Broken("a place that the model does not have")
        if fn is not None and fn != "__call__" and fn not in model._stepwise:
            raise no_such_run(fn)
        for name in (fn, *kwargs) if fn in model._stepwise else ():
            if name in _RUNS_CODE:
                raise no_option(name)
        self.trace = Trace(model, Inputs(), fn)
        self.trace.invokes = [Invoke(_nothing, given) for given in inputs]
        self.trace.openings = [self.cache(told) for told in message["caches"]]
        self.journal: Taken | None = None
        if message["blocks"] is not None:
            self.journal = Taken([str(name) for name in message["blocks"]])
        self._given = tuple(args), dict(kwargs), total, split

    def go(self) -> Any:
        """Run the model, with the proxies beside it."""
        args, kwargs, total, split = self._given
        watcher = self.trace.openings
        self.trace.openings = [*watcher, _Watch(self)]  # type: ignore[list-item]
        return self.trace.run_workers(list(self.workers), args, kwargs, total, split)

    def begin(self, interleaver: Any) -> None:
        self.interleaver = interleaver
        if self.journal is not None:
            self.journal.begin(interleaver)
        interleaver.at_close(self._end)

    def _end(self) -> None:
        run = self.interleaver
        if run is not None and run.completed and run.passage is not None:
            self.steps = run.passage.step() + 1
        self.interleaver = None

    def position(self) -> list[Any]:
        """Where the model is, as the sandbox is told."""
        run = self.interleaver
        if run is None:
            return [False, False, None, 0]
        at = run.at
        told, visits = None, 0
        if at is not None:
            visits = run.comes_by(at)
            place = self.host.model._place_of(at.owner)
            told = ["operation"] if place is None else ["module", place, at.kind]
            if isinstance(at.owner, Trace):
                told = ["result"]
        return [run.returned, run.over, told, visits]

    def cache(self, told: dict[str, Any]) -> Opening:
        """A cache that the sandbox has opened."""
        with parsed():
            device = None if told["device"] is None else torch.device("cpu")
            dtype = None if told["dtype"] is None else dtype_of(told["dtype"])
            keeping = Keeping(device, dtype, bool(told["detach"]), False)
            model = self.root._at(told["at"]) if told["at"] in self.host.places else None
            kinds = tuple(kind for kind in (OUTPUT, INPUT) if kind in told["kinds"])
            if model is None:
                raise Broken("a place that the model does not have")
            layout = model._layout()
            paths = frozenset(str(path) for path in told["paths"])
            if not paths <= layout.modules.keys():
                raise Broken("a cache of what the model does not have")
        store = Store(layout.names, paths, kinds, {})
        opening = Opening(Cache(store), keeping, model, layout)
        self.caches.append(opening)
        return opening

    def location(self, told: Any) -> Location:
        """A location that a block asks for."""
        what, place, kind = told
        if what == "result":
            return Location(self.trace, "result")
        if what == "module":
            if place not in self.host.places:
                raise Broken("a place that the model does not have")
            return Location(self.root._at(place), str(kind))
        if what != "operation" or kind not in (OUTPUT, INPUT, SKIP):
            raise Broken("a location of no kind")
        place, *names, last = place
        if place not in self.host.places:
            raise Broken("a place that the model does not have")
        where: Any = Forward(self.root._at(place))
        for name in names:
            where = Inside(operation_of(where, name))
        return Location(operation_of(where, last), kind)


class _Watch:
    """Tells a run of the sandbox's of the engine that it has begun with."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def begin(self, interleaver: Any, worker: Any) -> None:
        self._run.begin(interleaver)


class Proxy(Worker):
    """A block over there, to the engine here."""

    def __init__(self, run: Run, index: int, about: dict[str, Any]) -> None:
        rows = None if about["rows"] is None else Rows(*map(int, about["rows"]))
        unmet = _nothing if about["patient"] else None
        super().__init__(self._live_there, rows, str(about["where"]), unmet=unmet)
        self._of, self._index = run, index
        self.spot = ""  # `file:line`, for a report
        self._names = frozenset(map(str, about["names"]))
        self.sources = bool(about["sources"])

    def names(self, name: str) -> bool:
        return name in self._names

    def _live_there(self) -> None:
        """What the engine takes for the block."""
        said, reader = self._tell({"do": "start"})
        while True:
            if said["trouble"] is not None:
                said, reader = self._tell({"do": "refuse", "error": told(said["trouble"])})
            elif said["do"] == "ask":
                said, reader = self._respond(said, reader)
            elif said["do"] == "done":
                return
            elif said["do"] == "stopped":
                raise errors.Stop
            elif said["do"] == "raised":
                raise InBlock(self._index)
            else:
                raise Broken(f"it says {said['do']!r} where it may not")

    def _respond(self, said: dict[str, Any], reader: Reader) -> Any:
        try:
            answer = self._asked(said, reader)
        except (Gone, Broken):
            raise
        except Unmet:
            return self._tell({"do": "missed"})
        except BaseException as error:
            return self._tell({"do": "refuse", "error": told(error)})
        return self._tell({"do": "resume"}, answer, True)

    def _asked(self, said: dict[str, Any], reader: Reader) -> Any:
        with parsed():
            action, step = said["action"], said["step"]
            self.waited = str(said["waited"])
            told_line, self.spot = int(said["line"]), str(said["spot"])
            if action not in (READ, WRITE, GATE, WAIT):
                raise Broken("an action of no kind")
            if action != WAIT:
                location = self._of.location(said["at"])
                value = reader.read(said["given"]) if action in (WRITE, GATE) else None
                visit, pinned = int(said["visit"]), bool(said["pinned"])
        self._told_line = told_line
        if action != WAIT:
            request = Request(action, location, visit, pinned, value, back=bool(said["back"]))
            return self.ask(request)
        ready = self._is_ready
        if step is not None:
            with parsed():
                number, asked, first = step
                places = [self._of.location(place) for place in asked]
            ready = beginning(self.run, int(number), places, self, bool(first))
            if ready():
                return None
        return self.ask(Request(WAIT, None, ready=ready, missed=Unmet))

    def _is_ready(self) -> bool:
        return self._index in self._of.host.ready

    @property
    def line(self) -> int:
        """Of the block, where it stands."""
        return self.__dict__.get("_told_line", 0)

    @line.setter
    def line(self, line: int) -> None:
        """What stands on this side is no line of the user's."""

    def _tell(self, root: dict[str, Any], value: Any = None, wanted: bool = False) -> Any:
        """Give the block its turn; what it says at the end of it."""
        host = self._of.host
        host.send({**root, "worker": self._index}, value, wanted)
        return host.heard(("ask", "done", "raised", "stopped"))

    def give(self, root: dict[str, Any], value: Any = None, wanted: bool = False) -> dict[str, Any]:
        """Give the block what it has gone on without, while it waits or after its end."""
        host = self._of.host
        host.send({**root, "worker": self._index}, value, wanted)
        return host.heard(("filled",))[0]

    def goes_on_without(self, message: dict[str, Any]) -> tuple[bool, Any]:
        """Ask without parking: whether the answer is at hand, and it."""
        with parsed():
            location = self._of.location(message["at"])
            visit, pinned = int(message["visit"]), bool(message["pinned"])
            number, self._told_line = int(message["number"]), int(message["line"])
        return self.ask_ahead(Promised(self, number, Request(READ, location, visit, pinned)))

    def why_missed(self, message: dict[str, Any]) -> BaseException:
        """What it means that the run has ended without what the block asked for."""
        with parsed():
            location = self._of.location(message["at"])
            visit, pinned = int(message["visit"]), bool(message["pinned"])
        return self.missed(Request(READ, location, visit, pinned))


class Promised:
    """What a block over there goes on without (`interleave/due.py`), to the engine here."""

    def __init__(self, worker: Proxy, number: int, request: Request) -> None:
        self.worker, self.number, self.request = worker, number, request
        self.error: Exception | None = None

    def fill(self, raw: Any) -> None:
        """The value is here: the block gets it now, as the model goes on with it."""
        self._give({"do": "fill"}, raw, True)

    def fail(self, error: Exception) -> None:
        """There is no value to come."""
        self._give({"do": "unfilled", "error": told(error)})

    def drop(self) -> None:
        """It will not come: the sandbox is told at the end of the run."""

    def raise_there(self, error: BaseException) -> None:
        """The block has ended: the sandbox raises it, at the line that asked."""
        raise InDue(self.number) from error

    def _give(self, root: dict[str, Any], value: Any = None, wanted: bool = False) -> None:
        said = self.worker.give({**root, "number": self.number}, value, wanted)
        if said["trouble"] is not None or said["failed"]:
            self.error = InDue(self.number)


def operation_of(place: Any, name: Any) -> Any:
    listing = place.met() if isinstance(place, Forward) else place.found()
    if listing is None or not isinstance(name, str) or (op := listing.find(name)) is None:
        raise Broken("an operation that the model does not have")
    return Operation(place, op.name, listing)


def _seen(model: Any, path: str, tuples: bool) -> Any:
    """The model as the sandbox sees it: under its name, with its form of outputs, without edits."""
    settings = model._remote_settings()
    path = path if path.isidentifier() else "model"
    return model._with_remote_settings({**settings, "path": path, "tuples": tuples})


def _nothing(*_: Any) -> None:
    pass
