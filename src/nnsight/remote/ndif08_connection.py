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
from dataclasses import dataclass, field
from typing import Any

import msgspec
import requests
import websocket

from nnsight.config import CONFIG
from nnsight.remote import errors
from nnsight.remote.ask import reason
from nnsight.remote.deadline import PATIENCE, Deadline
from nnsight.remote.messages import Event
from nnsight.remote.ndif08_result import FILE, binary_event
from nnsight.version import __version__

CONNECT, SILENCE = 10.0, 60.0
"""Seconds for a connection, and for an answer."""
PING = 10.0
"""Seconds without a word after which the other side is asked whether it is there."""
UNKNOWN = 15.0
"""Seconds after which a job is given up that the server knows nothing of."""
SPEAKS = "0.8.1"
"""The release of the published package whose format this is; servers ask for one."""
_BROKEN = (requests.RequestException, OSError, EOFError, websocket.WebSocketException)


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
    api_key: str | None = None
    deadline: Deadline = field(default_factory=Deadline)
    notice: Callable[[str], None] = lambda text: None
    job: str = ""
    seen: int = 0
    beat: Callable[[], None] = lambda: None
    env: dict[str, Any] = field(default_factory=dict[str, Any])
    _socket: Any = None
    _kept: bool = True  # whether the server keeps the result, for whoever asks for it

    # --- one exchange -----------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        key = CONFIG.API.APIKEY if self.api_key is None else self.api_key
        headers = {
            "nnsight-version": SPEAKS,
            "python-version": sys.version,
            "ndif-timestamp": repr(time.time()),
            "user-agent": f"nnsight/{__version__}",
        }
        if key:
            headers["ndif-api-key"] = str(key)
        return headers

    def _left(self) -> float:
        left = self.deadline.left
        if left <= 0:
            self.close()
            raise errors.timed_out(self.host, self.job, kept=self._kept)
        return left

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        return requests.get(
            url,
            headers=headers,
            stream=True,
            timeout=(min(CONNECT, self._left()), min(SILENCE, self._left())),
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
        try:
            # not sent again if it fails: NDIF would run it twice
            answer = requests.post(
                f"{self.host}/request",
                files=files,
                headers=self._headers(),
                allow_redirects=False,
                timeout=(min(CONNECT, self._left()), min(300.0, self._left())),
            )
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except _BROKEN as error:
            self.close()
            raise errors.lost(self.host, reason(error), "") from None
        if answer.status_code >= 300:
            self.close()
            raise errors.refused(self.host, answer.status_code, _detail(answer))
        return self._received(answer.content)

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
        try:
            self._socket = websocket.create_connection(
                address, timeout=min(CONNECT, self._left()), header=self._headers()
            )
            hello = json.loads(self._socket.recv())
            return str(hello["session_id"])
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except (*_BROKEN, ValueError, KeyError, TypeError) as error:
            self.close()
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
        asked = False
        while True:
            try:
                self._socket.settimeout(min(PING, self._left()))
                frame = self._socket.recv()
            except websocket.WebSocketTimeoutException:
                self._left()
                self.beat()
                if asked:
                    self.notice("the server does not answer; its job is asked for instead")
                    return
                asked = self._ping()
                continue
            except errors.RemoteError:
                raise  # the deadline, which is an OSError too
            except _BROKEN as error:
                self.notice(f"the line is lost ({reason(error)}); the job is asked for instead")
                return
            if not frame:
                return
            asked = False
            try:
                event = _event(frame)
            except errors.PayloadError as error:
                raise errors.end_not_read(self.host, str(error), self.job) from None
            if event is not None:
                yield event

    def _ping(self) -> bool:
        """Ask whether the other side is there; whether an answer is still to come."""
        try:
            self._socket.ping()
            self._socket.settimeout(min(PING, self._left()))
            opcode, _ = self._socket.recv_data(control_frame=True)
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except _BROKEN:
            return True
        return opcode != websocket.ABNF.OPCODE_PONG

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
            answer = self._get(f"{self.host}/response/{self.job}", self._headers())
            content = answer.content
        except errors.RemoteError:
            raise  # the deadline, which is an OSError too
        except _BROKEN as error:
            raise errors.lost(self.host, reason(error), self.job) from None
        if answer.status_code == 404:
            return None
        if answer.status_code >= 300:
            raise errors.refused(self.host, answer.status_code, _detail(answer), self.job)
        event = _event(content)
        if event is None:
            raise errors.not_understood(self.host)
        return event

    def cancel(self) -> bool:
        """End the job; False where the server cannot. NDIF has no way to do so, ours has."""
        try:
            url = f"{self.host}/job/{self.job}"
            return requests.delete(url, headers=self._headers(), timeout=5.0).ok
        except _BROKEN:
            return False

    def close(self) -> None:
        """Hang up."""
        socket, self._socket = self._socket, None
        if socket is not None:
            try:
                socket.close(timeout=1)
            except _BROKEN:
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
        if not isinstance(data, str) or not data.startswith(("http://", "https://")):
            raise errors.not_understood(self.host)
        found = bytearray()
        failing, attempt = Deadline.after(PATIENCE), 0
        while True:
            why = "the download was cut off"
            try:
                # the link needs no key, and may lead to another host: none is sent
                answer = self._get(data, {"Range": f"bytes={len(found)}-"} if found else {})
                if answer.status_code >= 300:
                    raise errors.refused(self.host, answer.status_code, _detail(answer), self.job)
                if found and answer.status_code != 206:
                    found.clear()
                for chunk in answer.iter_content(1 << 20):
                    self._left()
                    found += chunk
                    failing = Deadline.after(PATIENCE)
                    if progress is not None:
                        progress(len(chunk))
                size = answer.headers.get("Content-Range", "").rpartition("/")[2]
                size = size or answer.headers.get("Content-Length", "")
                if not size.isdigit() or len(found) >= int(size):
                    return found
            except errors.RemoteError:
                raise  # the deadline, which is an OSError too
            except _BROKEN as error:
                why = reason(error)
            if failing.left <= 0:
                raise errors.lost(self.host, why, self.job)
            attempt += 1
            time.sleep(min(0.2 * attempt, 2.0, self._left()))


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
    except msgspec.DecodeError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("status"), str):
        return None
    id, text = (str(found.get(name) or "") for name in ("id", "description"))
    return Event(id, found["status"], text, found.get("data"), found.get("meta"))


def _detail(answer: requests.Response) -> str:
    try:
        found = answer.json().get("detail")
    except (ValueError, AttributeError):
        found = None
    if isinstance(found, list):  # of a form that it does not understand
        found = "; ".join(str(one.get("msg", one)) for one in found if isinstance(one, dict))
    return found if isinstance(found, str) else (answer.reason or "no reason is given")
