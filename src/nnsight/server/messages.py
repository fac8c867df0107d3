"""What a server and the process of a model say to each other: msgpack, never pickle.

A message is its length, four bytes, and a document. With `Run` come two open files: the request to
read and the result to write, so the process needs no way to the server's folder.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, TypeVar

import msgspec

from nnsight.remote.messages import Failure

LONGEST = 16 * 2**20
"""Bytes of a message; a longer one is a fault of who sends it."""
_LENGTH = struct.Struct("<I")


class Start(msgspec.Struct, tag="start", frozen=True):
    """The first message of a server: what to load, and under which limits to work."""

    model: str
    options: dict[str, Any]  # keywords of the model class
    load: str  # "module:function" that makes a `Loaded` (worker.py) of the two
    secrets: dict[str, str]  # environment for loading only
    result: int  # limits, as in `limits.py`
    prints: int
    print_bytes: int
    memory: int | None


class Run(msgspec.Struct, tag="run", frozen=True):
    """Run a request; its files come with the message."""

    job: str
    format: str
    trusted: bool  # its code may run in this process
    lines: bool  # who sent it is told of whole lines only


class Check(msgspec.Struct, tag="check", frozen=True):
    """Compare all weights with what was loaded."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded."""

    facts: dict[str, Any]


class Broken(msgspec.Struct, tag="broken", frozen=True):
    """The model cannot be loaded."""

    text: str


class Checked(msgspec.Struct, tag="checked", frozen=True):
    """The names of weights that are not as they were."""

    changed: list[str]


class Began(msgspec.Struct, tag="began", frozen=True):
    """The request is here; from now on some of it may have run."""


class Say(msgspec.Struct, tag="say", frozen=True):
    """What the block printed."""

    text: str
    end: str  # what stands after it: a newline, or nothing yet


class Done(msgspec.Struct, tag="done", frozen=True):
    """A request has run."""

    size: int | None  # bytes of the result; None: there is none
    failure: Failure | None  # the block's, or of reading the request or writing the result
    seconds: float
    memory: int  # bytes, the most on accelerators while it ran
    changed: list[str]  # what it left otherwise than it was


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """A sign of life."""


ToWorker = Start | Run | Check
ToServer = Ready | Broken | Checked | Began | Say | Done | Beat
_T = TypeVar("_T")
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_to_server = msgspec.msgpack.Decoder(ToServer)


def packed(message: ToWorker | ToServer) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


# --- the server's side ---------------------------------------------------------------------------


async def from_worker(reader: asyncio.StreamReader) -> ToServer:
    """The next message of a worker.

    Raises:
        EOFError: the worker has ended.
        ValueError: what came is no message.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > LONGEST:
        raise ValueError(f"a message of {length} bytes")
    return _to_server.decode(await reader.readexactly(length))


# --- the worker's side ---------------------------------------------------------------------------


def from_server(pipe: socket.socket) -> tuple[ToWorker, list[int]]:
    """The next message of the server, with the files that came with it.

    Raises:
        EOFError: the server has ended.
    """
    head, files, *_ = socket.recv_fds(pipe, _LENGTH.size, 2)
    if len(head) < _LENGTH.size:
        head += _exactly(pipe, _LENGTH.size - len(head))
    return _to_worker.decode(_exactly(pipe, _LENGTH.unpack(head)[0])), files


def _exactly(pipe: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        piece = pipe.recv(length - len(found))
        if not piece:
            raise EOFError("the server has ended")
        found += piece
    return bytes(found)
