"""Who may pass: every path needs a key as soon as there are keys, but for the few named here."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nnsight.server import errors, keys
from nnsight.server.errors import Refused
from nnsight.server.keys import Key
from nnsight.server.serving import Serving

OPEN = ("/", "/ping", "/connected", "/docs")
"""Paths that say nothing of any job or user."""
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


class Gate:
    """Puts the key of who asks into the scope, or answers in the application's place."""

    def __init__(self, app: ASGIApp, server: Serving) -> None:
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["key"] = self._who(scope)
        except Refused as refused:
            if scope["type"] == "websocket":  # before it is accepted: an HTTP answer of 403
                await receive()
                await send({"type": "websocket.close", "code": 4403, "reason": refused.detail})
                return
            await answer(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _who(self, scope: Scope) -> Key:
        headers, path = Headers(scope=scope), scope["path"]
        _from_no_foreign_page(headers)
        if path in OPEN:
            return keys.LOCAL
        if not self._server.needs_key():
            _asked_as_localhost(headers)
            return keys.LOCAL
        text = headers.get("ndif-api-key") or _bearer(headers.get("authorization", ""))
        if not text:
            if path.startswith("/result/") and b"token=" in scope["query_string"]:
                return keys.NOBODY  # the handler checks the token
            raise errors.no_key()
        key = keys.known(self._server.store, text)
        if key is None:
            raise errors.unknown_key()
        return key


def answer(refused: Refused) -> JSONResponse:
    """A refusal as a response."""
    return JSONResponse({"detail": refused.detail}, refused.status, refused.headers)


def _bearer(text: str) -> str:
    kind, _, key = text.partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _from_no_foreign_page(headers: Headers) -> None:
    """A page of another site that is open in a browser here must not send jobs."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise errors.foreign_page(origin)


def _asked_as_localhost(headers: Headers) -> None:
    """Nor one whose name was made to lead here."""
    host = headers.get("host", "localhost")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in LOOPBACK:
        raise errors.foreign_host(host)
