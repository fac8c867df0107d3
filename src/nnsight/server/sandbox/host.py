"""The model's side of a sandbox: runs the model, with a proxy for each block over there.

To the engine a proxy is a block like any other: it asks, it gets its answer, it ends. What it asks
for is what its block asked for. So order, rows, steps, skips and all refusals are the engine's own.

Nothing that a sandbox names is looked up but places in the model and the methods that make its
steps, and nothing that it sends is called.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nnsight.envoy import handoff
from nnsight.envoy.places import Forward, Inside
from nnsight.interleave import errors
from nnsight.interleave.beginning import beginning
from nnsight.interleave.location import INPUT, OUTPUT, SKIP, Location
from nnsight.interleave.request import GATE, READ, WAIT, WRITE, Request, here
from nnsight.interleave.rows import Rows
from nnsight.interleave.worker import Worker
from nnsight.remote.errors import PayloadError, RemoteError
from nnsight.remote.reading import Reader
from nnsight.server.sandbox.channel import Channel
from nnsight.server.sandbox.errors import (
    Broken,
    Gone,
    InBlock,
    SandboxError,
    Unmet,
    no_option,
    no_such_run,
)
from nnsight.server.sandbox.given import Fixed, Given
from nnsight.traces.cache import Cache, Opening
from nnsight.traces.invoke import Invoke
from nnsight.traces.model import Inputs
from nnsight.traces.recording import Keeping, Store
from nnsight.traces.trace import Trace

_RUNS_CODE = ("custom_generate", "trust_remote_code", "streamer", "code_revision")
"""Options of `generate` that lead to code, or to what is no data."""


class Host:
    """Serves one sandbox.

    Args:
        channel: to it.
        model: with its weights.
        say: takes what the block prints.
        largest: bytes of a tensor that it may send.
    """

    def __init__(
        self, channel: Channel, model: Any, say: Callable[[str], None], largest: int
    ) -> None:
        self.channel, self.model, self.say = channel, model, say
        self.given = Given(largest)
        self.given.device = next((p.device for p in model._module.parameters()), None)
        self.places = {place for place, _ in model._module.named_modules(remove_duplicate=False)}
        self.ready: list[int] = []  # blocks that wait no more for other blocks
        self.run: _Run | None = None
        self._at: Any = None
        self._random = torch.get_rng_state()

    def serve(self) -> dict[str, Any]:
        """Do what the sandbox asks for until it has its result.

        Raises:
            Gone: it has ended before.
            Broken: it sent what makes no sense.
        """
        try:
            while True:
                message, reader = self.receive()
                if message["do"] == "end":
                    return message
                if message["do"] == "run":
                    self._run(message, reader)
                else:
                    self._at_once(message, reader)
        except (Gone, Broken):
            raise
        except Exception as error:  # of the block they are told: what is left is of the message
            raise Broken(f"{type(error).__name__}: {error}") from error

    # --- messages ---------------------------------------------------------------------------------

    def receive(self) -> tuple[dict[str, Any], Reader]:
        """The next message but for prints; what it says of changes is done."""
        while True:
            message, nodes, buffers, _ = self.channel.receive()
            with _parsed():
                if message["do"] == "say":
                    self.say(str(message["text"]))
                    continue
                if message["do"] == "end":
                    message["result"] = buffers[0] if message["result"] else None
                    return message, Reader([])
                reader = self.given.reader(nodes, buffers)
                if message.get("random") is not None:
                    state = torch.frombuffer(bytearray(message["random"]), dtype=torch.uint8)
                    torch.set_rng_state(state)
                    self._random = torch.get_rng_state()
                self.ready = list(message.get("ready", self.ready))
            message["trouble"] = self._take(message, reader)
            return message, reader

    def _take(self, message: dict[str, Any], reader: Reader) -> Exception | None:
        """Do what the block did in place; what is wrong with it, if it cannot be done."""
        told = (message.get(name, ()) for name in ("changed", "containers", "dropped"))
        try:
            self.given.take(reader, *told)
        except (RuntimeError, SandboxError) as error:
            return error
        except (PayloadError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Broken(str(error)) from None
        return None

    def send(self, root: dict[str, Any], value: Any = None, wanted: bool = False) -> None:
        """Send a message, with a value if it is `wanted`; what cannot be sent is said instead."""
        moved = False
        position = None
        if self.run is not None:
            position = self.run.position()
            moved, self._at = position[2:] != self._at, position[2:]
        if moved:
            self.given.forget_containers()
        writer = self.given.writer()
        changed = self.given.sync(writer)
        if wanted:
            try:
                root["value"] = writer.value(value)
            except RemoteError as error:
                writer = self.given.writer()
                root = {"do": "failed", "worker": root.get("worker"), "error": told(error)}
        state = torch.get_rng_state()
        drawn = not torch.equal(state, self._random)
        self._random = state
        root.update(moved=moved, changed=changed)
        if position is not None:
            root["position"] = position
        if drawn:
            root["random"] = state.numpy().tobytes()
        self.channel.send(root, writer)

    # --- what is answered at once -----------------------------------------------------------------

    def _at_once(self, message: dict[str, Any], reader: Reader) -> None:
        """Answer what needs no turn: a call, a weight, a cache."""
        acts = {"call": self._call, "fetch": self._fetch, "prepare": self._prepare}
        acts["cache"] = self._cache
        act = acts.get(message["do"])
        if act is None:
            raise Broken(f"it says {message['do']!r} where it may not")
        try:
            if message["trouble"] is not None:
                raise message["trouble"]
            value = act(message, reader)
        except (Gone, Broken):
            raise
        except Exception as error:
            self.send({"do": "failed", "error": told(error)})
            return
        self.send({"do": "value"}, value, wanted=True)

    def place(self, place: Any) -> Any:
        """The part of the model at a place that there is."""
        if place not in self.places:
            raise Broken("a place that the model does not have")
        return self.model._at(place)

    def _call(self, message: dict[str, Any], reader: Reader) -> Any:
        module = self.place(message["at"])._module
        with _parsed():
            args, kwargs = reader.read(message["given"])
            args, kwargs = tuple(args), {str(name): value for name, value in kwargs.items()}
        if not message["seen"] or here.worker is None:
            return module(*args, **kwargs)
        with here.worker.observed() as run:
            handoff.count_inside(module, run)
            return module(*args, **kwargs)

    def _fetch(self, message: dict[str, Any], reader: Reader) -> Any:
        place, _, name = str(message["at"]).rpartition(".")
        module = self.place(place)._module
        for held in (module._parameters, module._buffers):
            if isinstance(value := held.get(name), torch.Tensor):
                return Fixed(value, message["at"])
        raise Broken("a weight that the model does not have")

    def _prepare(self, message: dict[str, Any], reader: Reader) -> None:
        place, *names = message["at"]
        if here.worker is not None:
            where: Any = Forward(self.place(place))
            for name in names:
                where = Inside(_operation(where, name))
            where.probes(here.worker.run)

    def _cache(self, message: dict[str, Any], reader: Reader) -> None:
        if here.worker is None or self.run is None:
            raise Broken("a cache of no run")
        self.run.cache(message).begin(here.worker.run, here.worker)

    # --- a run ------------------------------------------------------------------------------------

    def _run(self, message: dict[str, Any], reader: Reader) -> None:
        ended: dict[str, Any] = {"do": "ended", "raised": None, "error": None, "steps": 0}
        value, texts = None, list[str]()
        try:
            if message["trouble"] is not None:
                raise message["trouble"]
            run = self.run = _Run(self, message, reader)
            with _warned(texts), _state(message["state"]):
                value = run.go()
            ended["steps"] = run.steps
        except InBlock as error:
            ended["raised"] = error.index
        except (Gone, Broken):
            raise
        except Exception as error:
            ended["error"] = told(error)
        caches = [] if self.run is None else [c.cache._store.visits for c in self.run.caches]
        self.run, self._at = None, None
        ended["caches"], ended["warned"] = len(caches), texts
        ended["position"] = [True, True, None, 0]
        self.given.forget_containers()
        try:
            self.send(ended, (value if message["wanted"] else None, caches), wanted=True)
        except Exception as error:
            raise Broken(str(error)) from error


class _Run:
    """One run of the model, for a trace of the sandbox."""

    def __init__(self, host: Host, message: dict[str, Any], reader: Reader) -> None:
        self.host = host
        self.caches: list[Opening] = []
        self.interleaver: Any = None
        self.steps = 0
        fn = message["fn"]
        with _parsed():
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
        self._given = tuple(args), dict(kwargs), total, split

    def go(self) -> Any:
        """Run the model, with the proxies beside it."""
        args, kwargs, total, split = self._given
        watcher = self.trace.openings
        self.trace.openings = [*watcher, _Watch(self)]  # type: ignore[list-item]
        return self.trace.run_workers(list(self.workers), args, kwargs, total, split)

    def begin(self, interleaver: Any) -> None:
        self.interleaver = interleaver
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
        with _parsed():
            device = None if told["device"] is None else torch.device("cpu")
            dtype = None if told["dtype"] is None else _dtype(told["dtype"])
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
            where = Inside(_operation(where, name))
        return Location(_operation(where, last), kind)


class _Watch:
    """Tells a run of the sandbox's of the engine that it has begun with."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def begin(self, interleaver: Any, worker: Any) -> None:
        self._run.begin(interleaver)


class Proxy(Worker):
    """A block over there, to the engine here."""

    def __init__(self, run: _Run, index: int, about: dict[str, Any]) -> None:
        rows = None if about["rows"] is None else Rows(*map(int, about["rows"]))
        unmet = _nothing if about["patient"] else None
        super().__init__(self._live_there, rows, str(about["where"]), unmet=unmet)
        self._of, self._index = run, index
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
        with _parsed():
            action, step = said["action"], said["step"]
            self.waited = str(said["waited"])
            told_line = int(said["line"])
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
            with _parsed():
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
        while True:
            said, reader = host.receive()
            if said["do"] in ("ask", "done", "raised", "stopped"):
                return said, reader
            host._at_once(said, reader)


def _operation(place: Any, name: Any) -> Any:
    from nnsight.envoy.operations import Operation

    listing = place.met() if isinstance(place, Forward) else place.found()
    if listing is None or not isinstance(name, str) or (op := listing.find(name)) is None:
        raise Broken("an operation that the model does not have")
    return Operation(place, op.name, listing)


def _seen(model: Any, path: str, tuples: bool) -> Any:
    """The model as the sandbox sees it: under its name, with its form of outputs, without edits."""
    settings = model._remote_settings()
    path = path if path.isidentifier() else "model"
    return model._with_remote_settings({**settings, "path": path, "tuples": tuples})


def told(error: BaseException) -> list[Any]:
    """An error as data."""
    kind = type(error)
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    return [kind.__module__, kind.__qualname__, str(error), notes]


def _dtype(name: str) -> torch.dtype:
    from nnsight.remote.tensors import dtype_of

    return dtype_of(name)


def _nothing(*_: Any) -> None:
    pass


@contextlib.contextmanager
def _parsed() -> Iterator[None]:
    """What is read under this `with` was sent by a sandbox: nothing in it is trusted."""
    try:
        yield
    except (Gone, Broken):
        raise
    except (RemoteError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None
    except (RecursionError, OverflowError, MemoryError, RuntimeError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _state(state: dict[str, Any]) -> Iterator[None]:
    """The torch state of the sandbox."""
    with contextlib.ExitStack() as stack:
        with _parsed():
            if state["inference"]:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.set_grad_enabled(bool(state["grad"])))
            for kind, name in state["autocast"]:
                if kind in ("cpu", "cuda"):
                    stack.enter_context(torch.autocast(kind, _dtype(name)))
        yield


@contextlib.contextmanager
def _warned(texts: list[str]) -> Iterator[None]:
    """Warnings are taken down, to be given where the block was written."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def take(message: Any, *more: Any) -> None:
            texts.append(str(message))

        warnings.showwarning = take
        yield
