"""Messages over a pipe between a process and one that it started: a kind, a length, bytes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Any

from nnsight.remote.deadline import Deadline
from nnsight.remote.errors import RemoteError

LOG, END = b"L", b"E"
_HEAD = 9


def send(descriptor: int, kind: bytes, *pieces: Any) -> None:
    """Write one message."""
    size = sum(memoryview(piece).nbytes for piece in pieces)
    for piece in (kind + size.to_bytes(8, "little"), *pieces):
        view = memoryview(piece).cast("B")
        while view.nbytes:
            view = view[os.write(descriptor, view) :]


def receive(descriptor: int, deadline: Deadline) -> Iterator[tuple[bytes, bytearray]]:
    """The messages of a pipe, to its end.

    Raises:
        TimeoutError: the deadline came first.
    """
    while head := _read(descriptor, _HEAD, deadline):
        if len(head) < _HEAD:
            raise RemoteError("the other process ended in the middle of a message")
        yield bytes(head[:1]), _read(descriptor, int.from_bytes(head[1:], "little"), deadline)


def _read(descriptor: int, size: int, deadline: Deadline) -> bytearray:
    """So many bytes; fewer where the pipe ends."""
    found = bytearray(size)
    view, at = memoryview(found), 0
    while at < size:
        left = None if deadline.at == float("inf") else max(0.0, deadline.left)
        if not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        count = os.readv(descriptor, [view[at:]])
        if not count:
            break
        at += count
    view.release()
    del found[at:]
    return found
