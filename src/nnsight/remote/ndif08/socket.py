"""The WebSocket that a server of NDIF tells of its jobs on."""

from __future__ import annotations

import threading
from contextlib import suppress
from socket import SHUT_RDWR
from typing import Any

import websocket

from nnsight.remote.answers import CONNECT
from nnsight.remote.deadline import Deadline

_LONGEST = 1 << 30  # bytes of a frame, and of those before it that say nothing


class Socket(websocket.WebSocket):
    """A WebSocket whose frames come in time, whatever pieces they come in."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__(enable_multithread=True)
        self._deadline = deadline
        self._silence, self._came = CONNECT, 0
        self.settimeout(min(CONNECT, max(deadline.left, 0.001)))

    def open(self, address: str, headers: dict[str, str]) -> str | bytes:
        """Connect, and hear the first word.

        Raises:
            WebSocketException: nobody greets, or sends elsewhere: the key would go there too.
        """
        # a server that gives a byte at a time would be greeted for ever
        end = threading.Timer(min(2 * CONNECT, max(self._deadline.left, 0.0)), self._cut)
        end.daemon = True
        end.start()
        try:
            self.connect(address, header=headers, redirect_limit=0)
            return self.recv()
        finally:
            end.cancel()

    def _cut(self) -> None:
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(SHUT_RDWR)

    def next(self, seconds: float) -> tuple[int, Any]:
        """The kind and the content of the next frame, where no wait for a byte is longer."""
        self._silence, self._came = seconds, 0
        return self.recv_data(control_frame=True)

    def _recv(self, bufsize: int) -> bytes:
        left = self._deadline.left
        if left <= 0:
            raise websocket.WebSocketTimeoutException("timed out")
        if self._came > _LONGEST:
            raise websocket.WebSocketPayloadException("a frame without an end")
        self.settimeout(min(self._silence, left))
        found = super()._recv(bufsize)
        self._came += len(found)
        return found
