"""What the blocks in a sandbox see of the run in the model's process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from nnsight.capture import traceback
from nnsight.interleave import errors
from nnsight.interleave.batching import Batch
from nnsight.interleave.due import Due
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.request import WAIT, Request
from nnsight.interleave.worker import Worker
from nnsight.remote.values import Writer
from nnsight.server.sandbox.errors import no_function_there, only_data
from nnsight.server.sandbox.reported import Told
from nnsight.traces.cache import Opening
from nnsight.traces.journal import users_line
from nnsight.traces.trace import Trace


class _Begun:
    """Tells whether a run has begun a step: only the model's process knows."""

    def __init__(self, step: int, asked: list[Any], first: bool) -> None:
        self.step, self.asked, self.first = step, asked, first

    def __call__(self) -> bool:
        return False


class GuestRun:
    """A run in the model's process, as the blocks here see it (`Run` of `interleave/worker.py`)."""

    passage = None

    def __init__(self, guest: Any, trace: Trace, workers: list[Worker], batch: Batch) -> None:
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
        self.journal: Told | None = None  # for a run whose report is asked for
        self.dues: dict[int, Due] = {}  # what blocks have gone on without
        self._count = 0

    @property
    def lone(self) -> bool:
        return len(self.workers) == 1

    @property
    def told(self) -> bool:
        return self.journal is not None

    def report(self) -> Any:
        """What was taken down of the run until now."""
        return self.guest.ask("report", lambda writer: {})

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
        location = request.location
        if location is None or worker.run is not self:
            return errors.ended(location)
        about = {"at": self.place(location), "visit": request.visit, "pinned": request.pinned}
        return error_of(self.guest.ask("missed", lambda writer: about))

    def ready(self) -> list[int]:
        """Blocks that wait no more for other blocks, or for what they have gone on without."""
        requests = [worker.request for worker in self.workers]
        return [n for n, r in enumerate(requests) if r is not None and r.ready and r.ready()]

    # Before a block parks: what it asks for is written down here, so that an error is raised there.

    def expect(self, worker: Worker, request: Request) -> tuple[bool, Any]:
        location = request.location
        if location is not None and location.owner.tree is not self.tree:
            raise errors.other_tree(location, self.tree)
        writer = self.guest.taken.writer()
        root = {
            "do": "ask",
            **self.guest.also(writer),
            "action": request.action,
            "at": None if location is None else self.place(location),
            "visit": request.visit,
            "pinned": request.pinned,
            "given": writer.value(request.value),
            "back": request.back,
            "step": None,
            "waited": worker.waited,
            "line": traceback.users_place()[1],
            "spot": "" if self.journal is None else users_line(),
        }
        if request.action == WAIT and isinstance(request.ready, _Begun):
            begun = request.ready
            root["step"] = [begun.step, begun.asked, begun.first]
        self.asked[worker] = root, writer
        return False, None

    def expect_ahead(self, due: Due) -> tuple[bool, Any]:
        request, worker = due.request, due.worker
        location = request.location
        assert location is not None
        if location.owner.tree is not self.tree:
            raise errors.other_tree(location, self.tree)
        self._count += 1
        about = {
            "at": self.place(location),
            "visit": request.visit,
            "pinned": request.pinned,
            "number": self._count,
            "line": worker.line,
        }
        answered, answer = self.guest.ask("ahead", lambda writer: about)
        if not answered:
            self.dues[self._count] = due
        return answered, answer

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
        for due in self.dues.values():
            due.drop()
        self.dues.clear()
        self.workers, self._caches, self.journal = [], [], None
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
    return getattr(sys.modules[module], name)
