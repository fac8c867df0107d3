"""Bytes on the wire, in our own format: one msgpack document and raw buffers after it.

    "nns1" | length of the head, 4 bytes | head (msgpack) | document (zstd) | buffers

The head lists what follows it with lengths, so that a reader knows every size before it reads, and
nothing grows beyond what it was told. Buffers begin at multiples of 64 bytes; those that were not
compressed are used where they lie, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard

from nnsight.remote.errors import PayloadError, damaged, too_large

MAGIC = b"nns1"
PROTOCOL = "nnsight/1"
MEDIA_TYPE = "application/vnd.nnsight.request"
_ALIGN = 64
_SAMPLE = 64 * 1024  # bytes of a buffer that tell whether compressing it is worth the time
_WORTH = 0.8  # of its size
_UNFOLDS = 1 << 30  # bytes that any message may unfold to, where nobody says less
_TIMES = 32  # its own size that a larger one may: numbers and text shrink less, endless zeros more

Buffer = "bytes | bytearray | memoryview"


class _Part(msgspec.Struct, array_like=True):
    stored: int  # bytes on the wire
    raw: int  # bytes of content
    packed: bool  # with zstd


class _Head(msgspec.Struct, array_like=True):
    document: _Part
    buffers: list[_Part]


@dataclass(frozen=True)
class Message:
    """A document and the buffers that it refers to by their number."""

    document: Any
    buffers: Sequence[memoryview]


def _padding(length: int) -> int:
    return -length % _ALIGN


def _compressed(content: memoryview, level: int = 1) -> bytes | None:
    """`content` with zstd, where that is worth it."""
    if content.nbytes < 512:
        return None
    sample = content[:_SAMPLE]
    packed = zstandard.compress(sample, level)
    if len(packed) > _WORTH * sample.nbytes:
        return None
    return packed if sample.nbytes == content.nbytes else zstandard.compress(content, level)


def pack(document: Any, buffers: Iterable[Any] = (), compress: bool = True) -> list[Any]:
    """The pieces of a message, to be written one after the other."""
    pieces: list[Any] = []
    parts: list[_Part] = []
    for content in (msgspec.msgpack.encode(document), *buffers):
        view = memoryview(content).cast("B") if memoryview(content).nbytes else memoryview(b"")
        packed = _compressed(view) if compress else None
        stored = view if packed is None else memoryview(packed)
        parts.append(_Part(stored.nbytes, view.nbytes, packed is not None))
        pieces += [stored, b"\0" * _padding(stored.nbytes)]
    head = msgspec.msgpack.encode(_Head(parts[0], parts[1:]))
    start = MAGIC + len(head).to_bytes(4, "little") + head
    return [start + b"\0" * _padding(len(start)), *pieces]


def join(pieces: Iterable[Any]) -> bytearray:
    """The pieces of a message as one."""
    whole = bytearray()
    for piece in pieces:
        whole += piece
    return whole


def unpack(content: Any, largest: int | None = None) -> Message:
    """A message from its bytes.

    Args:
        content: bytes, or what holds them; the buffers of the message lie in it, and can be
            written to if it can.
        largest: how many bytes the message may unfold to; 1 GiB if left out, or 32 times its size:
            how large a message may be is for whoever takes it to say, and what it unfolds to
            follows from that.

    Raises:
        PayloadError: it is cut off, damaged or too large.
    """
    view = memoryview(content).cast("B")
    if bytes(view[:4]) != MAGIC or view.nbytes < 8:
        raise damaged("it does not begin as a message of nnsight does")
    end = 8 + int.from_bytes(view[4:8], "little")
    head = _decoded(view[8:end], _Head)
    parts = (head.document, *head.buffers)
    if any(part.raw < 0 or part.stored < 0 for part in parts):
        raise damaged("its lengths contradict each other")
    largest = max(_UNFOLDS, _TIMES * view.nbytes) if largest is None else largest
    if sum(part.raw for part in parts) > largest:
        raise too_large(largest)
    at = end + _padding(end)
    found: list[memoryview] = []
    for part in parts:
        if at + part.stored > view.nbytes:
            raise damaged("it is cut off")
        found.append(_content(view[at : at + part.stored], part))
        at += part.stored + _padding(part.stored)
    return Message(_decoded(found[0], Any), found[1:])


def _content(stored: memoryview, part: _Part) -> memoryview:
    if not part.packed:
        if part.raw != part.stored:
            raise damaged("its lengths contradict each other")
        return stored
    try:
        if _declared(stored) != part.raw:
            raise damaged("its lengths contradict each other")
        unfolded = bytearray(part.raw)
        source, at = zstandard.ZstdDecompressor().stream_reader(stored), 0
        while count := source.readinto(memoryview(unfolded)[at:]):
            at += count
    except zstandard.ZstdError as error:
        raise damaged("a part of it does not unpack") from error
    if at != part.raw:
        raise damaged("its lengths contradict each other")
    return memoryview(unfolded)


def _declared(stored: memoryview) -> int:
    """How long a frame of zstd says that its content is: no more than that is ever unfolded."""
    return zstandard.get_frame_parameters(stored).content_size


def _decoded(content: memoryview, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise damaged("a part of it cannot be read") from error


__all__ = ["MEDIA_TYPE", "Message", "PayloadError", "join", "pack", "unpack"]
