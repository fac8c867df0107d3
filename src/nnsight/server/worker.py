"""The process of one model: `python -m nnsight.server.worker FD`, started by a server.

It loads the model, then runs the requests that come one by one. It can be killed at any time; the
server starts another. A thread of its own gives signs of life, so a stopped process is found.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nnsight.remote.messages import Failure
from nnsight.server import confine, errors
from nnsight.server.limits import Limits
from nnsight.server.messages import (
    Beat,
    Began,
    Broken,
    Check,
    Checked,
    Done,
    Ready,
    Run,
    Say,
    Start,
    ToServer,
    from_server,
    packed,
)
from nnsight.server.prints import Prints
from nnsight.server.surroundings import Surroundings

BEAT = 0.5
"""Seconds between signs of life."""


class Outcome(Protocol):
    """What running a request gave."""

    @property
    def result(self) -> bytes | bytearray | None: ...

    @property
    def failure(self) -> Failure | None: ...


class Loaded(Protocol):
    """A model that takes requests."""

    facts: dict[str, Any]

    def perform(self, format: str, body: memoryview, say: Callable[[str], None]) -> Outcome:
        """Run a request; errors of the block are in the outcome."""
        ...

    def perform_apart(self, format: str, body: memoryview, say: Callable[[str], None]) -> Outcome:
        """Run a request whose code may not run in this process."""
        ...

    def ready_apart(self) -> None:
        """Start what such requests run in, if it does not run yet."""
        ...

    def peak(self) -> int:
        """The most bytes that accelerators held since the last call."""
        ...

    def changed(self) -> list[str]:
        """Put back what is small; what else a job left otherwise than it was, at a glance."""
        ...

    def compare(self) -> list[str]:
        """The same, with every weight read."""
        ...


class Interrupts:
    """SIGINT, by which the server ends a task: it raises while a block runs, and only then."""

    def __init__(self) -> None:
        self._raises = False
        signal.signal(signal.SIGINT, self._heard)

    def _heard(self, number: int, frame: Any) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        self._raises = True
        try:
            yield
        finally:
            self._raises = False


class Pipe:
    """The way to the server, for the thread that works and the one that gives signs of life."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._one = threading.Lock()

    def send(self, message: ToServer) -> None:
        with self._one:
            self.end.sendall(packed(message))

    def beat(self) -> None:
        """Give signs of life until the server has ended, then end the process."""
        while True:
            try:
                self.send(Beat())
            except OSError:
                os._exit(1)
            time.sleep(BEAT)


@dataclass(frozen=True)
class Here:
    """What a task needs of this process."""

    pipe: Pipe
    interrupts: Interrupts
    surroundings: Surroundings

    def say(self, text: str, end: str) -> None:
        self.pipe.send(Say(text, end))


def main(end: socket.socket) -> None:
    """Load, then run what comes, until the server ends."""
    start, _ = from_server(end)
    assert isinstance(start, Start)
    pipe = Pipe(end)
    threading.Thread(target=pipe.beat, name="signs of life", daemon=True).start()
    try:
        loaded = load(start)
    except BaseException as error:
        failed = fault(error)
        pipe.send(Broken(f"{failed.type}: {failed.message}"[:2000]))
        return
    confine.confine(start.memory)
    here = Here(pipe, Interrupts(), Surroundings())
    pipe.send(Ready({**loaded.facts, "layers": confine.layers()}))
    while True:
        message, files = from_server(end)
        if isinstance(message, Check):
            pipe.send(Checked(loaded.compare()))
        elif isinstance(message, Run):
            pipe.send(Began())
            with os.fdopen(files[0], "rb") as request, os.fdopen(files[1], "wb") as result:
                pipe.send(run(message, loaded, request, result, start, here))


def load(start: Start) -> Loaded:
    """The model, with secrets in the environment for only as long as that takes."""
    os.environ.update(start.secrets)
    try:
        module, _, name = start.load.partition(":")
        return getattr(importlib.import_module(module), name)(start.model, start.options)
    finally:
        for name in start.secrets:
            os.environ.pop(name, None)


def run(run: Run, loaded: Loaded, request: Any, result: Any, start: Start, here: Here) -> Done:
    """Run one request and write its result."""
    rest = errors.prints_full(Limits(prints=start.prints, print_bytes=start.print_bytes))
    prints = Prints(start.prints, start.print_bytes, here.say, rest, run.lines)
    began = time.perf_counter()
    try:
        # a copy of its own, page by page as they are written to: tensors lie in it
        body = mmap.mmap(request.fileno(), 0, access=mmap.ACCESS_COPY)
        if not run.trusted:
            loaded.ready_apart()
            here.surroundings.know_children()
        perform = loaded.perform if run.trusted else loaded.perform_apart
        with here.interrupts.raised():
            outcome = perform(run.format, memoryview(body), prints.write)
        size, failure = written(outcome, result, start.result)
    except BaseException as error:
        size, failure = None, fault(error)
    changed = here.surroundings.put_back() + loaded.changed()
    prints.end()
    if changed:
        prints.note(errors.left_otherwise(changed))
    return Done(size, failure, time.perf_counter() - began, loaded.peak(), changed)


def fault(error: BaseException) -> Failure:
    """An error that is not of the block's making, with its traceback in the worker's log."""
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # of a class that the block made
        message = ""
    with contextlib.suppress(Exception):  # whatever became of `sys.stderr`
        os.write(2, "".join(traceback.format_exception(error)).encode(errors="replace"))
    return Failure(kind.__qualname__, message, kind.__module__, phase="server")


def written(outcome: Outcome, result: Any, limit: int) -> tuple[int | None, Failure | None]:
    """The size of the result, once it is in its file, and what failed."""
    if outcome.result is None:
        return None, outcome.failure
    size = len(outcome.result)
    if size > limit:
        return None, outcome.failure or errors.result_too_large(size, limit).failure
    try:
        result.write(outcome.result)
        result.flush()
    except OSError as error:
        return None, errors.result_not_written(str(error)).failure
    return size, outcome.failure


def start(number: int) -> None:
    """Be the worker at the other end of this open file; never returns."""
    confine.die_with_parent()
    with socket.socket(fileno=number) as end:
        try:
            main(end)
        except (EOFError, OSError):
            pass  # the server has ended
        os._exit(0)  # threads of a job may not have


if __name__ == "__main__":
    start(int(sys.argv[1]))
