"""Connections that ask for nothing: whoever opens them, says nothing and stays, is hung up on.

Else anybody could hold as many as this process may have, and nobody else could come in.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST = 65_536  # more than a machine has use for


def patient(seconds: float) -> type[asyncio.Protocol]:
    """A protocol for uvicorn that waits for so long for a request to be whole, and no longer.

    Args:
        seconds: for the head of a request, and for the last bytes of an answer to be taken.
    """

    class Patient(HttpToolsProtocol):
        _watch: asyncio.TimerHandle | None = None
        _seen: Any = None  # the last request, when it was last looked

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look_later()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_looking()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self) -> None:
            self._stop_looking()  # another protocol has the connection now
            super().handle_websocket_upgrade()

        def _look_later(self) -> None:
            self._watch = self.loop.call_later(seconds, self._look)

        def _stop_looking(self) -> None:
            if self._watch is not None:
                self._watch.cancel()

        def _look(self) -> None:
            if self.transport.is_closing():  # and nobody takes what is still to be sent
                self.transport.abort()
                return
            cycle: Any = self.cycle
            answering = cycle is not None and not cycle.response_complete
            if cycle is self._seen and not answering:
                self.transport.close()
            self._seen = cycle
            self._look_later()

    return Patient


def as_many_as_may_be() -> None:
    """Let this process have as many open connections and files as its user may give it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
