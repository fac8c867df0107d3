"""The process of a sandbox: runs the block of one request, and asks the model for values.

What a trace does here: it tells the model's process what to run, and with which blocks beside it;
then gives each block its turn whenever it is told to, and answers with what the block asks for.
The engine itself, with all its rules, runs over there.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import torch

from nnsight.interleave.request import here
from nnsight.remote.perform import Outcome, failure_of, perform
from nnsight.remote.values import Writer
from nnsight.server.formats import format_of
from nnsight.server.sandbox.channel import Channel, Memory, raw
from nnsight.server.sandbox.conversation import TURNS, converse, state_now, take_turn
from nnsight.server.sandbox.errors import Gone, SandboxError
from nnsight.server.sandbox.graph import Graph
from nnsight.server.sandbox.passes import Passes
from nnsight.server.sandbox.seen import GuestRun, error_of
from nnsight.server.sandbox.skeleton import Skeleton
from nnsight.server.sandbox.taken import Taken
from nnsight.traces.trace import Trace


class Guest:
    """One request, in this process.

    Args:
        channel: to the model's process.
        skeleton: of the model.
    """

    def __init__(self, channel: Channel, skeleton: Skeleton) -> None:
        self.channel, self.skeleton, self.model = channel, skeleton, skeleton.model
        self.graph = Graph()
        self.taken = Taken(self.graph)
        self.run: GuestRun | None = None
        self._one, self._sends = threading.RLock(), threading.RLock()
        self._random = torch.get_rng_state()

    # --- the request ------------------------------------------------------------------------------

    def perform(self, body: Any, format: str) -> Outcome:
        """Run the block of a message, as `remote.perform.perform` does."""
        guest = self.skeleton.elsewhere = self

        def apart(trace: Trace, *given: Any) -> Any:
            return converse(guest, trace, *given)

        Trace.apart = apart
        Passes(self.graph, self.go_backward, self.ask).install()
        outcome = perform(body, self.model, self._say, format_of(format, compress=False))
        if outcome.failure is None:
            try:
                self.skeleton.refuse_changed()
            except SandboxError as error:
                return Outcome(None, failure_of(error, "run"))
        return outcome

    def _say(self, text: str) -> None:
        with self._sends:
            self.channel.send({"do": "say", "text": text}, Writer())

    # --- asking -----------------------------------------------------------------------------------

    def ask(self, do: str, write: Callable[[Writer], dict[str, Any]]) -> Any:
        """Ask the model's process for something that is there at once."""
        with self._one if here.worker is None else nullcontext():  # blocks take turns
            writer = self.taken.writer()
            root = {"do": do, **self.also(writer), **write(writer)}
            self.send(root, writer)
            answer, value = self.heard()
            if answer["do"] == "failed":
                raise error_of(answer["error"])
            return value

    def heard(self) -> tuple[dict[str, Any], Any]:
        """The next message that is for who asked; blocks get the turns that come meanwhile."""
        while True:
            answer, value = self.receive()
            if answer["do"] not in TURNS or self.run is None:
                return answer, value
            take_turn(self, self.run, answer, value)

    def also(self, writer: Writer) -> dict[str, Any]:
        """What goes with every message: what was done in place, and the random numbers."""
        changes = self.taken.changes(writer)
        state = torch.get_rng_state()
        drawn = not torch.equal(state, self._random)
        self._random = state
        return {**changes, "random": state.numpy().tobytes() if drawn else None}

    def send(self, root: dict[str, Any], writer: Writer) -> None:
        """Send a message, with what autograd has made of the values in it."""
        root["nodes"] = self.graph.told()
        with self._sends:
            self.channel.send(root, writer)

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
        if "gradients" in answer:
            value = [None if one is None else reader.whole(one) for one in answer["gradients"]]
        self.taken.answered()
        return value

    def call(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module on values of the block's own."""
        run = self.run
        seen = run is not None and threading.get_ident() in run.threads
        about = {"at": place, "seen": seen, "state": state_now()}
        return self.ask("call", lambda writer: {**about, "given": writer.value((args, kwargs))})

    def fetch(self, place: str) -> torch.Tensor:
        """A parameter or a buffer, with the gradient that it has got in this job."""
        weight, gradient = self.ask("fetch", lambda writer: {"at": place})
        weight.grad = gradient
        return weight

    def forget_gradients(self) -> None:
        """`model.zero_grad()`"""
        self.ask("forget gradients", lambda writer: {})

    def go_backward(
        self, roots: list[Any], given: list[Any], retain: bool, wanted: list[Any] | None
    ) -> list[Any]:
        """Have the model's process go backward, and do this side's part of it."""
        graph, writer = self.graph, self.taken.writer()
        root = {
            "do": "backward",
            **self.also(writer),
            "roots": [graph.reference(tensor) for tensor in roots],
            "given": raw(writer, given),
            "retain": retain,
            "wanted": None if wanted is None else [graph.reference(tensor) for tensor in wanted],
            "shown": graph.all_looked_at(),
        }
        self.send(root, writer)
        failed: BaseException | None = None
        try:
            while True:
                order, gradients = self.heard()
                if order["do"] == "value":
                    return gradients
                if order["do"] == "failed":
                    raise error_of(order["error"]) if failed is None else failed
                try:
                    self._part(order, gradients)
                except BaseException as error:
                    failed = error
                    self.send({"do": "failed"}, self.taken.writer())
        finally:
            del failed

    def _part(self, order: dict[str, Any], gradients: list[Any]) -> None:
        """Answer what a backward pass asks for."""
        found = self.graph.answer(order, gradients)
        writer = self.taken.writer()
        also = self.also(writer)
        shown = self.graph.looked_at()
        self.send({"do": "answer", **also, "found": raw(writer, found), "shown": shown}, writer)


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
