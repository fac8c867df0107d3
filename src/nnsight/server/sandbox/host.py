"""The model's side of a sandbox: answers what it asks for, and runs the model (`hosted.py`).

Nothing that a sandbox names is looked up but places in the model and the methods that make its
steps, and nothing that it sends is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from nnsight.envoy import handoff
from nnsight.envoy.places import Forward, Inside
from nnsight.interleave.request import here
from nnsight.remote.errors import RemoteError
from nnsight.remote.reading import Reader
from nnsight.server.sandbox.channel import Channel, raw
from nnsight.server.sandbox.errors import Broken, Gone, InBlock, InDue, SandboxError
from nnsight.server.sandbox.given import Fixed, Given
from nnsight.server.sandbox.hosted import Run, operation_of
from nnsight.server.sandbox.mirrored import Mirrored
from nnsight.server.sandbox.strict import gradients, in_state, parsed, told, warned

_CPU = torch.device("cpu")


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
        self.mirrored = Mirrored(model._module.parameters)
        self.mirrored.device = next((p.device for p in model._module.parameters()), _CPU)
        self.given = Given(largest, self.mirrored)
        self.places = {place for place, _ in model._module.named_modules(remove_duplicate=False)}
        self.ready: list[int] = []  # blocks that wait no more for other blocks
        self.run: Run | None = None
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
        finally:
            self.mirrored.clear()

    # --- messages ---------------------------------------------------------------------------------

    def receive(self) -> tuple[dict[str, Any], Reader]:
        """The next message but for prints; what it says of changes is done."""
        while True:
            message, nodes, buffers, _ = self.channel.receive()
            with parsed():
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
            if message["do"] == "run":
                self.mirrored.begin()
            message["trouble"] = self._take(message, reader)
            return message, reader

    def heard(self, words: Collection[str]) -> tuple[dict[str, Any], Reader]:
        """The next message of one of these kinds; others are answered meanwhile."""
        while True:
            said, reader = self.receive()
            if said["do"] in words:
                return said, reader
            self._at_once(said, reader)

    def _take(self, message: dict[str, Any], reader: Reader) -> Exception | None:
        """Do what the block did in place; what is wrong with it, if it cannot be done."""
        try:
            self.given.take(reader, message, self.show)
            self.mirrored.add(message.get("nodes", ()), self.show)
        except (RuntimeError, SandboxError) as error:
            return error
        except (RemoteError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise Broken(str(error)) from None
        return None

    def send(
        self,
        root: dict[str, Any],
        value: Any = None,
        wanted: bool = False,
        passed: Sequence[Any] | None = None,
    ) -> None:
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
        if passed is not None:
            root["gradients"] = raw(writer, passed)
        if wanted:
            try:
                root["value"] = writer.value(value)
            except RemoteError as error:
                writer = self.given.writer()
                do = "unfilled" if root["do"] == "fill" else "failed"
                told_of = {name: root[name] for name in ("worker", "number") if name in root}
                root = {"do": do, "error": told(error), **told_of}
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
        """Answer what needs no turn: a call, a weight, a cache, a backward pass."""
        acts = {"call": self._call, "fetch": self._fetch, "prepare": self._prepare}
        acts |= {"cache": self._cache, "backward": self._backward, "reaches": self._reaches}
        acts |= {"ahead": self._ahead, "missed": self._missed, "report": self._report}
        acts["forget gradients"] = lambda message, reader: self.mirrored.forget()
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
        if message["do"] == "backward":
            self.send({"do": "value"}, passed=value)
        else:
            self.send({"do": "value"}, value, wanted=True)

    def place(self, place: Any) -> Any:
        """The part of the model at a place that there is."""
        if place not in self.places:
            raise Broken("a place that the model does not have")
        return self.model._at(place)

    def _call(self, message: dict[str, Any], reader: Reader) -> Any:
        module = self.place(message["at"])._module
        with parsed():
            args, kwargs = reader.read(message["given"])
            args, kwargs = tuple(args), {str(name): value for name, value in kwargs.items()}
        with in_state(message["state"]):
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
                gradient = self.mirrored.gradient(value)
                return Fixed(value, message["at"]), gradient
        raise Broken("a weight that the model does not have")

    def _prepare(self, message: dict[str, Any], reader: Reader) -> None:
        place, *names = message["at"]
        if here.worker is not None:
            where: Any = Forward(self.place(place))
            for name in names:
                where = Inside(operation_of(where, name))
            where.probes(here.worker.run)

    def _cache(self, message: dict[str, Any], reader: Reader) -> None:
        if here.worker is None or self.run is None:
            raise Broken("a cache of no run")
        self.run.cache(message).begin(here.worker.run, here.worker)

    def _ahead(self, message: dict[str, Any], reader: Reader) -> tuple[bool, Any]:
        return self._proxy().goes_on_without(message)

    def _missed(self, message: dict[str, Any], reader: Reader) -> list[Any]:
        return told(self._proxy().why_missed(message))

    def _report(self, message: dict[str, Any], reader: Reader) -> tuple[Any, ...]:
        journal = None if self.run is None else self.run.journal
        if journal is None:
            raise Broken("a report of no run")
        if here.worker is not None:  # what this block did since its last read
            journal.turned(here.worker)
        return journal.rows()

    def _proxy(self) -> Any:
        if here.worker is None or self.run is None:
            raise Broken("a block asks outside of a run")
        return here.worker

    # --- a backward pass --------------------------------------------------------------------------

    def _backward(self, message: dict[str, Any], reader: Reader) -> list[Any]:
        with parsed():
            given = gradients(message["given"], reader)
            retain = bool(message["retain"])
            roots, wanted, shown = message["roots"], message["wanted"], message["shown"]
        try:
            return self.mirrored.run(roots, given, retain, wanted, shown, self.show)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from None

    def show(self, do: str, number: int, passed: Sequence[Any]) -> list[Any]:
        """Ask the sandbox for its part of a backward pass."""
        self.send({"do": do, "number": number}, passed=passed)
        said, reader = self.heard(("answer", "failed"))
        if said["trouble"] is not None:
            raise said["trouble"]
        if said["do"] == "failed":
            raise InBlock(-1)
        with parsed():
            self.mirrored.show(said["shown"])
            return gradients(said["found"], reader)

    def _reaches(self, message: dict[str, Any], reader: Reader) -> bool:
        with parsed():
            return self.mirrored.reaches(message["root"], message["edge"])

    # --- a run ------------------------------------------------------------------------------------

    def _run(self, message: dict[str, Any], reader: Reader) -> None:
        ended: dict[str, Any] = {"do": "ended", "raised": None, "error": None, "steps": 0}
        ended["due"] = None
        value, texts = None, list[str]()
        try:
            if message["trouble"] is not None:
                raise message["trouble"]
            run = self.run = Run(self, message, reader)
            with warned(texts), in_state(message["state"]):
                value = run.go()
            ended["steps"] = run.steps
        except InBlock as error:
            ended["raised"] = error.index
        except InDue as error:
            ended["due"], ended["error"] = error.number, told(error.__cause__ or error)
        except (Gone, Broken):
            raise
        except Exception as error:
            ended["error"] = told(error)
        journal = None if self.run is None else self.run.journal
        rows, stopped = (), False
        if journal is not None:
            rows, stopped = journal.rows(), journal.stopped
        caches = [] if self.run is None else [c.cache._store.visits for c in self.run.caches]
        self.run, self._at = None, None
        ended["caches"], ended["warned"], ended["stopped"] = len(caches), texts, stopped
        ended["position"] = [True, True, None, 0]
        self.given.forget_containers()
        try:
            self.send(ended, (value if message["wanted"] else None, caches, rows), wanted=True)
        except Exception as error:
            raise Broken(str(error)) from error
