"""One exchange with a server, which ends when it must and goes where it was meant to go.

The time limits of `requests` are for each wait by itself: a server that gives a byte a minute would
be listened to for ever. Here nothing is waited for when the time is over, an answer is read up to a
limit, and no redirect is followed: it would carry the user's key to who was not named.
"""

from __future__ import annotations

import http.client
import io
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

BROKEN = (requests.RequestException, HTTPError, http.client.HTTPException, OSError, EOFError)
"""What a line that fails raises."""
LARGEST = 64 * 2**20
"""Bytes of an answer, or of a line of one, that is read as a whole."""
SILENCE = 35.0
"""Seconds for which one part of a request may wait to be taken."""
_PIECE = 1 << 16  # bytes that are read at once
_SENT = 1 << 18  # bytes that are sent at once

Left = Callable[[], float]
"""Gives the seconds that are left."""


class TooMuch(Exception):
    """An answer is larger than any that a server of nnsight gives."""


_left: ContextVar[Left] = ContextVar("left", default=lambda: float("inf"))


class _Timed(io.RawIOBase):
    """What a socket says, until the time is over."""

    def __init__(self, raw: io.RawIOBase, sock: Any) -> None:
        self._raw, self._sock = raw, sock
        self._silence: float = sock.gettimeout() or SILENCE
        self._left = _left.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._left()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(min(self._silence, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp: Any = io.BufferedReader(_Timed(self.fp.detach(), sock))


class _InTime:
    """Of a connection: each part of a request has its own time, and all have what is left."""

    response_class = _Response
    sock: Any

    def send(self, data: Any) -> None:
        for piece in _pieces(data):
            if self.sock is not None:  # else it connects first, with the time for that
                left = _left.get()()
                if left <= 0:
                    raise TimeoutError("timed out")
                self.sock.settimeout(min(SILENCE, left))
            super().send(piece)  # type: ignore[misc]


class _Http(_InTime, HTTPConnection): ...


class _Https(_InTime, HTTPSConnection): ...


class _HttpPool(HTTPConnectionPool):
    ConnectionCls: Any = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls: Any = _Https


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager: Any = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: else `requests` reads the whole of a redirect, to make ready to follow it."""


_POOLS = {"http": _HttpPool, "https": _HttpsPool}
_sessions: dict[tuple[int, str], requests.Session] = {}


def session(host: str) -> requests.Session:
    """The connections of this process to a server."""
    key = os.getpid(), host
    found = _sessions.get(key)
    if found is None:
        found = _sessions[key] = _Session()
        for scheme in ("http://", "https://"):
            found.mount(scheme, _Adapter(pool_maxsize=64))
        told = found.merge_environment_settings(host, {}, None, None, None)
        found.proxies, found.verify = told["proxies"], told["verify"]
        found.trust_env = False  # it has been asked, and would be for each request
    return found


def exchange(
    host: str,
    method: str,
    url: str,
    left: Left,
    *,
    connect: float,
    silence: float,
    **request: Any,
) -> requests.Response:
    """Send a request; the body of the answer is yet to be read.

    Args:
        host: whose connections to use.
        method: of HTTP.
        url: whole.
        left: the seconds until all is over, the reading of the answer too.
        connect: seconds for a connection.
        silence: seconds without a word from the server.
        **request: the rest of what `requests` takes.
    """
    seconds = max(left(), 0.001)
    before = _left.set(left)
    try:
        return session(host).request(
            method,
            url,
            stream=True,
            allow_redirects=False,
            timeout=(min(connect, seconds), min(silence, seconds)),
            **request,
        )
    finally:
        _left.reset(before)


def parts(answer: requests.Response) -> Iterator[bytes]:
    """An answer, each part of it as soon as it is there."""
    while part := answer.raw.read1(_PIECE, decode_content=True):
        yield part


def whole(answer: requests.Response, largest: int = LARGEST) -> bytes:
    """All of an answer.

    Raises:
        TooMuch: it is larger than that.
        BROKEN: the line breaks.
    """
    found = bytearray()
    try:
        for part in parts(answer):
            found += part
            if len(found) > largest:
                raise TooMuch
    except BaseException:
        answer.close()
        raise
    return bytes(found)


def _pieces(data: Any) -> Iterator[Any]:
    """What is sent, in pieces that a slow line takes one by one: each has its own time."""
    if not isinstance(data, (bytes, bytearray, memoryview)) or len(data) <= _SENT:
        yield data
        return
    view = memoryview(data).cast("B")
    for at in range(0, view.nbytes, _SENT):
        yield view[at : at + _SENT]
