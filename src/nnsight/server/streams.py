"""The ways in which a client follows a job: each only reads the log from a cursor."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from nnsight.remote.messages import COMPLETED, Event
from nnsight.remote.ndif08.result import write_end
from nnsight.server.events import line
from nnsight.server.intake import NDIF
from nnsight.server.keys import Key
from nnsight.server.serving import Serving


class EventStream(Response):
    """The log of a job past a cursor, as lines, up to its last event.

    An empty line from time to time shows that the server lives. A reader that does not read is
    dropped; it can come back with its cursor.
    """

    media_type = "application/x-ndjson"

    def __init__(self, server: Serving, job: str, after: int = 0) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._server, self._job, self._after = server, job, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)  # type: ignore[arg-type] # a message is a mapping

        async def pass_on(body: bytes) -> None:
            message = {"type": "http.response.body", "body": body, "more_body": True}
            with anyio.fail_after(self._server.limits.stall):
                await send(message)

        writing = asyncio.ensure_future(self._follow(pass_on))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and writing.exception() is None:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)

    async def _follow(self, pass_on: Callable[[bytes], Awaitable[None]]) -> None:
        server, after = self._server, self._after
        with server.listen(self._job) as bell:
            while not server.closing:
                bell.clear()
                events = server.store.events(self._job, after)
                if events:
                    after = events[-1].seq
                    await pass_on(b"".join(map(line, events)))
                elif _ended(server, self._job, after):
                    return
                elif not await _rung(bell, server.limits.heartbeat):
                    await pass_on(b"\n")
                if events and events[-1].ends:
                    return


def _ended(server: Serving, job: str, after: int) -> bool:
    """Whether nothing past the cursor will come: a cursor at the end, or a job that is gone."""
    found = server.store.job(job)
    return found is None or found.ended is not None


async def _rung(bell: asyncio.Event, seconds: float) -> bool:
    with anyio.move_on_after(seconds):
        await bell.wait()
    return bell.is_set()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- NDIF 0.8 ------------------------------------------------------------------------------------


def as_ndif(event: Event, job_format: str, link: Callable[[str], str]) -> dict[str, Any]:
    """An event in NDIF's form; the result of NDIF's own jobs is a link that needs no key."""
    data = event.data
    if job_format.startswith(NDIF):
        data = None if data is None else link(event.id)
    return {
        "id": event.id,
        "status": event.status,
        "description": event.description,
        "data": data,
        "meta": event.meta,
    }


async def subscribe(
    socket: WebSocket, server: Serving, key: Key, link: Callable[[str], str]
) -> None:
    """`/subscribe`: a session of its own, and all events of the jobs that are sent with it."""
    await socket.accept()
    session = secrets.token_hex(16)
    reading = asyncio.ensure_future(_leaves(socket))
    after = 0
    with server.listen(session) as bell:
        try:
            await socket.send_text(msgspec.json.encode({"session_id": session}).decode())
            while not reading.done() and not server.closing:
                bell.clear()
                events = server.store.session_events(session, key.id, after)
                for number, event in events:
                    job = server.store.job(event.id)
                    frame = _frame(event, job.format if job else NDIF, link)
                    with anyio.fail_after(server.limits.stall):
                        if isinstance(frame, bytes):
                            await socket.send_bytes(frame)
                        else:
                            await socket.send_text(frame)
                    after = number
                if not events:
                    ringing = asyncio.ensure_future(bell.wait())
                    await asyncio.wait((ringing, reading), return_when=asyncio.FIRST_COMPLETED)
                    ringing.cancel()
            await socket.close(1001)
        except (WebSocketDisconnect, TimeoutError, RuntimeError):
            return  # it has gone, or reads nothing
        finally:
            reading.cancel()


def _frame(event: Event, job_format: str, link: Callable[[str], str]) -> str | bytes:
    """An event for a socket of NDIF's; a small result comes in it, which spares a download."""
    if job_format.startswith(NDIF) and event.status == COMPLETED and "inline" in (event.data or ()):
        data = base64.b64decode(event.data["inline"])
        return write_end(event.id, event.description, data, event.meta)
    return msgspec.json.encode(as_ndif(event, job_format, link)).decode()


async def _leaves(socket: WebSocket) -> None:
    """Wait until the other side has gone; it has nothing to say."""
    try:
        while True:
            await socket.receive_text()
    except (WebSocketDisconnect, RuntimeError, KeyError):
        return
