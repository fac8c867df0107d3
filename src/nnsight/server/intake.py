"""Reading a request into a file: ours as it is, NDIF 0.8's out of its form."""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import msgspec
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from nnsight.remote.wire import MEDIA_TYPE, PROTOCOL
from nnsight.server import errors
from nnsight.server.files import part_of, place
from nnsight.server.keys import Key
from nnsight.server.limits import Limits
from nnsight.server.serving import Serving
from nnsight.server.store import Job

OURS, NDIF = PROTOCOL, "ndif/8"
_DRAIN = 64 * 2**20
"""Bytes of a request that is too large that are read on, so that its sender reads the answer."""


async def take(request: Request, server: Serving, key: Key) -> Job:
    """The job of a POST, whole on the disk and queued.

    Raises:
        Refused: it is not taken, with the reason.
    """
    token = request.headers.get("idempotency-key")
    if token is not None:
        if len(token) > 200:
            raise errors.bad_token_name(token)
        if (earlier := server.store.sent_as(key.id, token)) is not None:
            await _drain(request.stream())
            return earlier
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    id = uuid.uuid4().hex
    part = part_of(server.folder.request(id))
    taken: Job | None = None
    try:
        if kind == MEDIA_TYPE:
            job = await _ours(request, server, key, id, part)
        elif kind == "multipart/form-data":
            job = await _ndif(request, server, key, id, part)
        else:
            raise errors.unknown_format(kind)
        taken = server.submit(job)
        return taken
    except HTTPException as error:  # of Starlette's reader of forms
        raise errors.bad_envelope(error.detail.rstrip(".")) from None
    except OSError as error:
        raise (errors.disk_full() if error.errno in _FULL else error) from error
    finally:
        part.unlink(missing_ok=True)
        if taken is None or taken.id != id:  # refused late, left by its sender, or sent before
            server.folder.request(id).unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _job(request: Request, key: Key, id: str, model: str, format: str, **rest: Any) -> Job:
    token = request.headers.get("idempotency-key")
    return Job(
        id=id,
        key=key.id,
        model=model,
        format=format,
        session=rest.get("session", ""),
        token=token,
        size=rest["size"],
        status="",
        created=time.time(),
        ended=None,
    )


async def _ours(request: Request, server: Serving, key: Key, id: str, part: Path) -> Job:
    named = request.headers.get("nnsight-model-key")
    limit = server.limits.body
    try:
        if named is None:
            raise errors.no_model_key()
        model = server.find(named).name
        server.admit(key.id, model)
        if int(request.headers.get("content-length") or 0) > limit:
            raise errors.body_too_large(limit)
    except errors.Refused:
        await _drain(request.stream())
        raise
    size = 0
    chunks = Request(request.scope, _at_most(request.receive, server.limits)).stream()
    with part.open("wb") as file:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                await _drain(chunks)
                raise errors.body_too_large(limit)
            file.write(chunk)
    if not size:
        raise errors.empty_body()
    await to_thread.run_sync(place, part, server.folder.request(id))
    return _job(request, key, id, model, OURS, size=size)


class _Envelope(msgspec.Struct):
    """The JSON beside the payload of NDIF 0.8."""

    model_key: str
    session_id: str = ""
    compress: bool = True


async def _ndif(request: Request, server: Serving, key: Key, id: str, part: Path) -> Job:
    limited = Request(request.scope, _at_most(request.receive, server.limits))
    async with limited.form(max_files=1, max_fields=8) as form:
        data, blob = form.get("data"), form.get("blob")
        if data is None or blob is None or isinstance(blob, str):
            raise errors.bad_envelope("it has no fields `data` and `blob`")
        text = data if isinstance(data, str) else await data.read()
        try:
            envelope = msgspec.json.decode(text, type=_Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise errors.bad_envelope(str(error)) from None
        model = server.find(envelope.model_key).name
        server.admit(key.id, model)
        size = _copy(blob.file, part)
    if not size:
        raise errors.empty_body()
    await to_thread.run_sync(place, part, server.folder.request(id))
    format = f"{NDIF}+zstd" if envelope.compress else NDIF
    return _job(request, key, id, model, format, size=size, session=envelope.session_id)


def _copy(source: BinaryIO, target: Path) -> int:
    with target.open("wb") as file:
        while piece := source.read(2**20):
            file.write(piece)
        return file.tell()


def _at_most(receive: Receive, limits: Limits) -> Receive:
    """The messages of a request, as long as its body is not too large, and goes on."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        try:
            with anyio.fail_after(limits.stall):
                message = await receive()
        except TimeoutError:
            raise errors.too_slow_a_sender(limits.stall) from None
        seen += len(message.get("body", b""))
        if seen > limits.body + 2**16:  # the form around the payload
            raise errors.body_too_large(limits.body)
        return message

    return counted


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read on, up to a limit: a client that still sends would not read the answer."""
    left = _DRAIN
    try:
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                return
    except (ClientDisconnect, RuntimeError):
        return
