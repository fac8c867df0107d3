"""`remote="local"`: the whole way through bytes, into a fresh process with an empty folder.

What does not run there would not run on a server: a name that was not sent, a file of the user's, a
module that is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from nnsight.capture.tracer import Tracer
from nnsight.remote import environment, errors, payload, pipe, results, wire
from nnsight.remote.code_values import CodeWriter
from nnsight.remote.deadline import Deadline
from nnsight.remote.display import Display
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.messages import Failure
from nnsight.remote.values import Writer
from nnsight.remote.warned import give_again

_MAIN = "nnsight.modeling.simulation"
_START = "import sys; sys.path.insert(0, {folder!r}); from {module} import main; main({descriptor})"
_DROPPED = ("PYTHONPATH", "PYTHONSTARTUP", "NDIF_API_KEY", "HF_TOKEN")


class LocalSimulationBackend:
    """Runs a block in a process of its own on this machine, as a server would.

    Args:
        model: what the block runs on.
        opening: how the other process opens it.
        timeout: seconds to wait at most; None waits for ever.
    """

    def __init__(
        self, model: Any, opening: Mapping[str, Any], timeout: float | None = None
    ) -> None:
        self.model, self.opening, self.timeout = model, opening, timeout

    def __call__(self, tracer: Tracer, function: Callable[[Any, Any], Any] | None = None) -> None:
        """Run the block there, and wait for what it saved.

        Args:
            tracer: of the block.
            function: what runs in place of a block.

        Raises:
            NotSendableError: it uses what cannot leave this process.
            RemoteError: it failed there; an error of the original type too.
        """
        tracer.received = {}
        request = payload.write(tracer, self.model, environment.is_local, True, function)
        failure, content = self._ask(request)
        result = results.Result({}, [])
        if content:
            result = results.read_result(content, request.sent, self.model, request.origin)
        result.give(tracer)
        give_again(result.warned)
        if failure is not None:
            raise_through(error_of(failure), failure.frames)

    def _ask(self, request: payload.Request) -> tuple[Failure | None, bytearray]:
        reading, writing = os.pipe()
        folder = str(Path(__file__).parents[2])
        code = _START.format(folder=folder, module=_MAIN, descriptor=writing)
        kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
        with (
            os.fdopen(reading, "rb", 0),
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty,
            tempfile.TemporaryFile() as asked,  # a pipe would be full before anybody reads it
        ):
            with os.fdopen(writing, "wb", 0):
                pipe.send(asked.fileno(), b"O", *_packed(self.opening))
                pipe.send(asked.fileno(), b"B", *request.pieces)
                asked.seek(0)
                process = subprocess.Popen(
                    [sys.executable, "-I", "-c", code],
                    cwd=empty,
                    env=kept,
                    stdin=asked,
                    pass_fds=[writing],
                )
            try:
                return self._answer(process, reading)
            finally:
                process.kill()
                process.wait()

    def _answer(
        self, process: subprocess.Popen[bytes], reading: int
    ) -> tuple[Failure | None, bytearray]:
        try:
            with Display() as display:
                for kind, content in pipe.receive(reading, Deadline.after(self.timeout)):
                    if kind == pipe.LOG:
                        display.print(content.decode())
                    elif kind == pipe.END:
                        size = int.from_bytes(content[:8], "little")
                        told = content[8 : 8 + size]
                        failure = msgspec.json.decode(told, type=Failure | None)
                        return failure, content[8 + size :]
        except TimeoutError:
            raise errors.timed_out("this machine", "") from None
        raise errors.process_ended(process.wait())


def _packed(opening: Mapping[str, Any]) -> list[Any]:
    """How a model is opened, as a message."""
    code = CodeWriter(environment.is_local)
    document = Writer(code).document(dict(opening))
    return wire.pack([document.root, document.nodes], document.buffers)
