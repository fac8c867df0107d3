"""Messages between a sandbox and the model: a length, and a message of the wire. Never a pickle."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any

import torch

from nnsight.remote import wire
from nnsight.remote.errors import PayloadError
from nnsight.remote.values import Node, Writer
from nnsight.server.sandbox.errors import Broken, Gone, passed_limit

_OVER = "its time is over"
_ALIGN = 64


class Memory(bytearray):
    """The bytes of one message. Tensors lie in it, and can be known to be gone when it is."""


class Channel:
    """One end.

    Args:
        end: the socket.
        largest: bytes of a message that is taken.
        until: when its time is over (`time.monotonic()`).
    """

    def __init__(
        self, end: socket.socket, largest: int = 1 << 40, until: float | None = None
    ) -> None:
        self._end, self._largest, self._until = end, largest, until

    def send(self, root: Any, writer: Writer) -> None:
        """Send what `writer` has written, under `root`.

        Raises:
            Gone: nobody reads it any more.
        """
        document = writer.finished()
        pieces = wire.pack([root, document.nodes], document.buffers, compress=False)
        size = sum(memoryview(piece).nbytes for piece in pieces)
        try:
            self._in_time()
            self._end.sendall(size.to_bytes(8, "little") + bytes(pieces[0]))
            for piece in pieces[1:]:
                if memoryview(piece).nbytes:
                    self._in_time()
                    self._end.sendall(piece)
        except TimeoutError:
            raise Gone(_OVER) from None
        except OSError as error:
            raise Gone(str(error)) from None

    def receive(self) -> tuple[Any, list[Any], list[memoryview], Memory]:
        """The next message: its root, its nodes, its buffers, and what these lie in.

        Raises:
            Gone: the other end has been closed, or the time is over.
            Broken: what came is no message.
        """
        size = int.from_bytes(self._read(8)[1], "little")
        if size > self._largest:
            raise passed_limit(size, self._largest)
        memory, content = self._read(size)
        try:
            message = wire.unpack(content, self._largest)
            root, nodes = message.document
        except (PayloadError, TypeError, ValueError) as error:
            raise Broken(str(error)) from None
        if not isinstance(root, dict) or not isinstance(nodes, list):
            raise Broken("a message without a root")
        return root, nodes, list(message.buffers), memory

    def _read(self, size: int) -> tuple[Memory, memoryview]:
        """So many bytes, where torch would put them: the last digit of a sum depends on that."""
        try:
            found = Memory(size + _ALIGN)
        except MemoryError:
            raise passed_limit(size, self._largest) from None
        start = -torch.frombuffer(found, dtype=torch.uint8).data_ptr() % _ALIGN
        view, at = memoryview(found)[start : start + size], 0
        while at < size:
            try:
                self._in_time()
                count = self._end.recv_into(view[at:])
            except TimeoutError:
                raise Gone(_OVER) from None
            except OSError as error:
                raise Gone(str(error)) from None
            if not count:
                raise Gone("its process has ended")
            at += count
        return found, view

    def _in_time(self) -> None:
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._end.settimeout(left)

    def close(self) -> None:
        self._end.close()


def raw(writer: Writer, gradients: Iterable[Any]) -> list[Node | None]:
    """Gradients as nodes. They are no values that the model knows."""
    return [
        None if g is None else [writer.reserve("", writer.memory.tensor(g.detach()))]
        for g in gradients
    ]
