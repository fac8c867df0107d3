"""Starting sandboxes: a process that holds the skeleton, and forks one guest for each request.

The parent of all guests has imported everything and built the skeleton; it has one thread, runs no
code of a request, and a fork of it is ready within milliseconds. A guest inherits one socket and
nothing else, is confined before it reads a byte, and ends with its request.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from nnsight.remote.messages import Failure
from nnsight.remote.perform import Outcome
from nnsight.remote.values import Writer
from nnsight.server.confine import clean_environment
from nnsight.server.sandbox.channel import Channel
from nnsight.server.sandbox.errors import Broken, Gone
from nnsight.server.sandbox.host import Host

MIB = 2**20


class Bounds(msgspec.Struct, frozen=True):
    """What one guest may use."""

    seconds: float = 24 * 3600.0
    memory: int = 8 * 1024 * MIB  # bytes of address space, beside what Python and torch take
    message: int = 2048 * MIB  # bytes of one message, and of one tensor


class Birth(msgspec.Struct, frozen=True):
    """What the parent of the guests is told first."""

    make: str  # "module:function" that builds the skeleton of the rest: a model on the meta device
    model: str
    options: dict[str, Any]
    bounds: Bounds
    path: list[str]  # of modules
    threads: int  # that torch computes with: sums depend on it, in their last digit


class Nursery:
    """The parent of the guests of one model.

    Args:
        make: "module:function" that builds the skeleton of `model` with `options`.
        model: its name.
        options: as it was loaded.
        bounds: of each guest.
    """

    def __init__(
        self, make: str, model: str, options: dict[str, Any], bounds: Bounds | None = None
    ) -> None:
        self.bounds = bounds or Bounds()
        self._birth = Birth(make, model, options, self.bounds, sys.path, torch.get_num_threads())
        self._end: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.layers: dict[str, str] = {}  # what keeps a guest from harm

    def open(self) -> None:
        """Start it, if it is not there.

        Raises:
            Gone: it could not build the skeleton.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "nnsight.server.sandbox.nursery", str(theirs.fileno())]
        environment = {**clean_environment(None), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
            )
        self._end = ours
        told = msgspec.msgpack.encode(self._birth)
        ours.sendall(len(told).to_bytes(8, "little") + told)
        answer = ours.recv(2**16)
        if not answer.startswith(b"{"):
            self.close()
            raise Gone(f"no sandbox can be made: {answer.decode(errors='replace')}")
        self.layers = msgspec.json.decode(answer, type=dict[str, str])

    def close(self) -> None:
        """End it, and the guests with it."""
        end, self._end = self._end, None
        process, self._process = self._process, None
        if end is not None:
            end.close()
        if process is not None:
            process.kill()
            process.wait()

    def perform(
        self, body: Any, model: Any, say: Callable[[str], None], format: str = "nnsight/1"
    ) -> Outcome:
        """Run the block of a message in a guest, beside `model`, as `remote.perform.perform` does.

        Args:
            body: the message.
            model: the model with its weights, in this process.
            say: is given what the block prints.
            format: how the message is written.
        """
        try:
            self.open()  # building the skeleton takes none of the block's time
        except Gone as error:
            return Outcome(None, _failure(str(error)))
        ours, theirs = socket.socketpair()
        channel = Channel(ours, self.bounds.message, time.monotonic() + self.bounds.seconds)
        guest = None
        try:
            with theirs:
                guest = self._fork(theirs)
            with _ended_by_interrupts(guest):
                writer = Writer()
                writer.attach(body)
                channel.send({"do": "perform", "format": format}, writer)
                return _outcome(Host(channel, model, say, self.bounds.message).serve())
        except Gone as error:
            return Outcome(None, _failure(_how(str(error), guest, self.bounds)))
        except Broken as error:
            return Outcome(None, _failure(f"the sandbox of this block sent nonsense: {error}."))
        except KeyboardInterrupt:
            return Outcome(None, _failure("the block was ended."))
        finally:
            channel.close()
            if guest is not None:
                guest.kill()

    def _fork(self, end: socket.socket) -> _Guest:
        assert self._end is not None, "it is open"
        try:
            socket.send_fds(self._end, [b"F"], [end.fileno()])
            told, files, *_ = socket.recv_fds(self._end, 64, 1)
        except OSError as error:
            raise Gone(f"no sandbox can be made: {error}") from None
        if not told:
            raise Gone("no sandbox can be made: their parent has ended")
        return _Guest(files[0] if files else None)


@dataclass
class _Guest:
    """A running guest, seen from the model's process. It is no child of this process."""

    handle: int | None  # an open file that stands for it; it ends with its socket too

    def kill(self) -> None:
        """End it now."""
        handle, self.handle = self.handle, None
        if handle is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)


@contextmanager
def _ended_by_interrupts(guest: _Guest) -> Iterator[None]:
    """A SIGINT ends the guest, so that nobody waits for it any more, and is raised as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)

    def end(number: int, frame: Any) -> None:
        guest.kill()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _how(error: str, guest: _Guest | None, bounds: Bounds) -> str:
    """Why a guest is gone, as a sentence."""
    if guest is None:
        return error
    if "time is over" in error:
        return f"the block ran longer than the {bounds.seconds:g} s that it may, and was ended."
    return (
        "the sandbox of this block ended before the block did: it left the process, used more than "
        f"{bounds.memory // MIB} MiB of memory, or did what a sandbox may not do."
    )


def _outcome(ended: dict[str, Any]) -> Outcome:
    failure, result = ended["failure"], ended["result"]
    if failure is not None:
        try:
            failure = msgspec.json.decode(failure, type=Failure)
        except (msgspec.DecodeError, TypeError) as error:
            raise Broken(str(error)) from None
    return Outcome(None if result is None else bytearray(result), failure)


def _failure(text: str) -> Failure:
    text = text[:1].upper() + text[1:]
    return Failure("RemoteError", text, "nnsight.remote.errors", phase="run")
