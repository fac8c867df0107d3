"""Talking to a server of NDIF 0.8: a form goes out, states come over a WebSocket, a result by URL.

Offers the client what `connection.Connection` offers. The socket carries no heartbeat of the
server's and cannot be taken up again, so we ping it; when it is lost, the state of the job is asked
for until it ends, and only what it printed meanwhile is not to be had.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec
import requests
import websocket

from nnsight.config import CONFIG
from nnsight.remote import errors, line
from nnsight.remote.answers import BUSY, CONNECT, cancelled, detail_of, see_that_it_can_be_asked
from nnsight.remote.ask import is_address, key_header, reason
from nnsight.remote.deadline import PATIENCE, Deadline
from nnsight.remote.line import BROKEN
from nnsight.remote.messages import Event
from nnsight.remote.ndif08 import link
from nnsight.remote.ndif08.link import pause
from nnsight.remote.ndif08.result import FILE, binary_event
from nnsight.remote.ndif08.socket import Socket
from nnsight.version import __version__

SILENCE = 60.0
"""Seconds for an answer."""
PING = 10.0
"""Seconds without a word after which the other side is asked whether it is there."""
UNKNOWN = 15.0
"""Seconds after which a job is given up that the server knows nothing of."""
SPEAKS = "0.8.1"
"""The release of the published package whose format this is; servers ask for one."""


@dataclass
class NdifConnection:
    """A server of NDIF 0.8, and the job that is followed there.

    Args:
        host: its address.
        api_key: the user's key.
        deadline: when to stop waiting.
        notice: told what is waited for, when it is not the job itself.
        job: its id, where it was sent before.
    """

    host: str
    api_key: str | None = field(default=None, repr=False)
    deadline: Deadline = field(default_factory=Deadline)
    notice: Callable[[str], None] = lambda text: None
    job: str = ""
    seen: int = 0
    beat: Callable[[], None] = lambda: None
    env: dict[str, Any] = field(default_factory=dict[str, Any])
    _socket: Any = None
    _kept: bool = True  # whether the server keeps the result, for whoever asks for it

    def __post_init__(self) -> None:
        see_that_it_can_be_asked(self.host, self.api_key)

    # --- one exchange -----------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        return {
            "nnsight-version": SPEAKS,
            "python-version": sys.version,
            "ndif-timestamp": repr(time.time()),
            "user-agent": f"nnsight/{__version__}",
            **key_header(self.api_key),
        }

    def _left(self) -> float:
        left = self.deadline.left
        if left <= 0:
            self.close()
            raise errors.timed_out(self.host, self.job, kept=self._kept)
        return left

    def _exchange(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        silence: float = SILENCE,
        **more: Any,
    ) -> requests.Response:
        self._left()
        return line.exchange(
            *(_origin(url), method, url, lambda: self.deadline.left),
            connect=CONNECT,
            silence=silence,
            headers=headers,
            **more,
        )

    # --- a job ------------------------------------------------------------------------------------

    def submit(self, key: str, pieces: Sequence[Any], stream: bool) -> Event:
        """Send a block.

        Args:
            key: of the model.
            pieces: of the payload.
            stream: whether its states are listened to.

        Raises:
            RemoteError: the server does not take it, or cannot be reached.
        """
        session = self._listen() if stream else ""
        self._kept = not stream
        files = {
            "data": (None, json.dumps(self._form(key, session))),
            "blob": ("request", b"".join(pieces), "application/octet-stream"),
        }
        failing, attempt = Deadline.after(PATIENCE), 0
        while True:
            try:
                # not sent again if the line fails: NDIF would run it twice
                answer = self._exchange(
                    "POST", f"{self.host}/request", self._headers(), silence=300.0, files=files
                )
                if answer.status_code < 300:
                    return self._received(line.whole(answer))
            except errors.RemoteError:
                raise  # the deadline, which is an OSError too
            except (line.TooMuch, *BROKEN) as error:
                self.close()
                self._left()
                raise errors.lost(self.host, reason(error), "") from None
            detail = detail_of(answer)
            if answer.status_code not in BUSY or failing.left <= 0:
                self.close()
                raise errors.refused(self.host, answer.status_code, detail)
            self.notice(detail)
            attempt += 1
            time.sleep(min(self._left(), pause(attempt, answer)))

    def _form(self, key: str, session: str) -> dict[str, Any]:
        """What the server is told of a block, beside the block."""
        return {
            "model_key": key,
            "session_id": session,
            "compress": CONFIG.API.COMPRESS,
            "env": self.env,
        }

    def _received(self, content: bytes) -> Event:
        first = _event(content)
        if first is None or not first.id:
            self.close()
            raise errors.not_understood(self.host)
        self.job = first.id
        return first

    def receipt(self, answer: Event) -> Event:
        """What the server said at once."""
        return answer

    def _listen(self) -> str:
        """Open the socket; the name of the session."""
        address = "ws" + self.host.removeprefix("http") + "/subscribe"
        self._socket = Socket(self.deadline)
        try:
            return str(json.loads(self._socket.open(address, self._headers()))["session_id"])
        except (*BROKEN, websocket.WebSocketException, *_NO_JSON) as error:
            self.close()
            self._left()
            raise errors.lost(self.host, reason(error), "") from None

    def events(self, answer: Event | None = None) -> Iterator[Event]:
        """The states of the job, to the one that ends it.

        Raises:
            RemoteError: the server is lost, or the deadline has come. The job goes on.
        """
        last = ""
        for event in (*([answer] if answer is not None else []),):
            last = event.status
            yield event
        try:
            for event in self._heard() if self._socket is not None else ():
                if event.id and event.id != self.job:
                    continue
                if event.status != last or event.status == "LOG" or event.description:
                    yield event
                last = event.status
                if event.ends:
                    return
        finally:
            self.close()
        yield from self._asked()

    def _heard(self) -> Iterator[Event]:
        """What the socket says, until it breaks or is silent to a ping."""
        asked = False  # whether it is there, and it has not answered yet
        while True:
            self._left()
            self.beat()
            try:
                kind, frame = self._socket.next(PING)
            except websocket.WebSocketTimeoutException:
                self._left()
                if asked:
                    self.notice("the server does not answer; its job is asked for instead")
                    return
                asked = self._ping()
                continue
            except (*BROKEN, websocket.WebSocketException) as error:
                self._left()
                self.notice(f"the line is lost ({reason(error)}); the job is asked for instead")
                return
            asked = False
            if kind == websocket.ABNF.OPCODE_CLOSE:
                return
            if kind not in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                continue
            try:
                event = _event(frame)
            except errors.PayloadError as error:
                raise errors.end_not_read(self.host, str(error), self.job) from None
            if event is not None:
                yield event

    def _ping(self) -> bool:
        """Ask whether the other side is there. What comes next need not be its answer."""
        with suppress(*BROKEN, websocket.WebSocketException):
            self._socket.ping()
        return True

    def _asked(self) -> Iterator[Event]:
        """The state of the job, asked for until it has ended."""
        failing, last, pause = Deadline.after(PATIENCE), "", 0.1
        unknown = Deadline.after(UNKNOWN)
        while True:
            why = ""
            try:
                event = self.latest()
            except errors.RemoteError as error:
                if self.deadline.left <= 0:
                    raise
                event, why = None, str(error)
            if not why:  # it answers
                failing = Deadline.after(PATIENCE)
            if event is not None:
                unknown = Deadline.after(PATIENCE)
                if event.status != last or event.ends:
                    yield event
                last = event.status
                if event.ends:
                    return
            if failing.left <= 0:
                raise errors.lost(self.host, why, self.job, self._kept)
            if unknown.left <= 0 and not why:
                raise self._unknown()
            self.beat()
            time.sleep(min(pause, self._left()))
            pause = min(pause * 1.5, 2.0)

    def _unknown(self) -> errors.RemoteError:
        if self._kept:
            return errors.unknown_job(self.host, self.job)
        return errors.lost(self.host, "the line broke while the job ran", self.job, kept=False)

    def latest(self) -> Event | None:
        """The state that the job is in; None while the server does not know the job yet."""
        try:
            answer = self._exchange("GET", f"{self.host}/response/{self.job}", self._headers())
            if answer.status_code == 404:
                answer.close()
                return None
            if answer.status_code >= 300:
                raise errors.refused(self.host, answer.status_code, detail_of(answer), self.job)
            event = _event(line.whole(answer))
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except line.TooMuch:
            raise errors.not_understood(self.host) from None
        except BROKEN as error:
            self._left()
            raise errors.lost(self.host, reason(error), self.job) from None
        if event is None:
            raise errors.not_understood(self.host)
        return event

    def cancel(self) -> bool:
        """End the job; False where the server cannot. NDIF has no way to do so, ours has."""
        return cancelled(self.host, self.job, self._headers())

    def close(self) -> None:
        """Hang up."""
        socket, self._socket = self._socket, None
        if socket is not None:
            try:
                socket.close(timeout=1)
            except BROKEN:
                pass
            socket.shutdown()  # where the other side had hung up first

    def result(self, data: Any, progress: Callable[[int], None] | None = None) -> bytearray:
        """The bytes that the last event holds or leads to.

        Raises:
            RemoteError: they are there no longer, or the line is lost.
        """
        if isinstance(data, (bytes, bytearray)):
            return bytearray(data)
        if isinstance(data, (list, tuple)) and data:  # with its size, in some releases
            data = data[0]
        if not isinstance(data, str) or not is_address(data):
            raise errors.not_understood(self.host)
        return link.fetched(data, self._linked, self._left, self.host, self.job, progress)

    def _linked(self, url: str, headers: dict[str, str]) -> requests.Response:
        """What a link leads to; it needs no key, and may be of another host: none is sent."""
        return self._exchange("GET", url, headers)


_NO_JSON = (ValueError, KeyError, TypeError, RecursionError)


def _origin(url: str) -> str:
    return "{0.scheme}://{0.netloc}".format(urlsplit(url))


def _event(frame: Any) -> Event | None:
    """A frame of the socket, or the body of an answer; None where it is no state of a job.

    Raises:
        PayloadError: it is the end of a job, and cannot be read.
    """
    content = frame.encode() if isinstance(frame, str) else bytes(frame)
    if content[:2] == FILE:
        return binary_event(content)
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("status"), str):
        return None
    id, text = (str(found.get(name) or "") for name in ("id", "description"))
    return Event(id, found["status"], text, found.get("data"), found.get("meta"))
