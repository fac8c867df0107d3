"""The HTTP of a server: which path does what. `GET /docs` shows these functions' first lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from nnsight.server import errors, facts, intake, pages
from nnsight.server.errors import Refused
from nnsight.server.events import line
from nnsight.server.gate import Gate, answer
from nnsight.server.keys import Key
from nnsight.server.serving import Serving
from nnsight.server.store import Job
from nnsight.server.streams import EventStream, as_ndif, subscribe
from nnsight.server.tokens import Tokens

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The handlers of one server."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.tokens = Tokens(server.folder.secret())

    # --- jobs ------------------------------------------------------------------------------------

    async def request(self, request: Request) -> Response:
        """Send a job: a body of nnsight/1, or a form of NDIF 0.8.

        With `nnsight-stream: 1` the answer is the job's events, else its first one.
        """
        job = await intake.take(request, self.server, _key(request))
        if request.headers.get("nnsight-stream") == "1":
            return EventStream(self.server, job.id)
        first = self.server.store.events(job.id, limit=1)[0]
        if job.format == intake.OURS:
            return Response(line(first), media_type="application/json")
        return JSONResponse(as_ndif(first, job.format, self._link(request)))

    async def events(self, request: Request) -> Response:
        """The events of a job past `?after=SEQ`, one JSON document per line, as they happen."""
        text = request.query_params.get("after", "0")
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise errors.bad_cursor(text)
        return EventStream(self.server, self._job(request).id, int(text))

    async def response(self, request: Request) -> Response:
        """The newest state of a job."""
        job = self._job(request)
        latest = self.server.store.latest(job.id)
        assert latest is not None, "a job has at least two events"
        return JSONResponse(as_ndif(latest, job.format, self._link(request)))

    async def result(self, request: Request) -> Response:
        """The bytes that a job saved; parts of them with `Range`."""
        id = request.path_params["id"]
        token = request.query_params.get("token")
        if token is not None:
            if not self.tokens.holds(id, token):
                raise errors.bad_token()
            job = self.server.store.job(id)
        else:
            job = self._job(request)
        latest = self.server.store.latest(id)
        if job is None or latest is None:
            raise errors.no_such_job(id)
        if latest.data is None:
            raise errors.no_result(id, latest.status)
        path = self.server.folder.result(id)
        if not path.exists():
            raise errors.result_gone(id)
        return Result(
            self.server.limits.stall,
            path,
            media_type="application/octet-stream",
            headers={"ETag": f'"{id}"', "Cache-Control": "private, no-transform"},
        )

    async def jobs(self, request: Request) -> Response:
        """The jobs of the key, newest first."""
        return JSONResponse([_shown(job) for job in self.server.store.jobs_of(_key(request).id)])

    async def cancel(self, request: Request) -> Response:
        """End a job now, whether it waits or runs."""
        job = self._job(request)
        cancelled = self.server.cancel(job)
        return JSONResponse({"id": job.id, "cancelled": cancelled})

    # --- the server ------------------------------------------------------------------------------

    async def env(self, request: Request) -> Response:
        """Python, packages, protocols and limits of this server."""
        return JSONResponse(await facts.environment(self.server.limits))

    async def status(self, request: Request) -> Response:
        """The models and what they do, as NDIF says it."""
        return JSONResponse(facts.status(self.server))

    async def ping(self, request: Request) -> Response:
        """ "pong"."""
        return JSONResponse("pong")

    async def connected(self, request: Request) -> Response:
        """Whether a model is there to take jobs."""
        states = [self.server.engine.state(one.name).state for one in self.server.served]
        if all(state == "broken" for state in states):
            return JSONResponse({"detail": "No model of this server can be loaded."}, 503)
        return JSONResponse({"status": "connected"})

    async def whoami(self, request: Request) -> Response:
        """Whose key this is."""
        key = _key(request)
        tags = ["trusted"] if key.trusted else []
        return JSONResponse({"email": None, "tags": tags, "id": key.id, "name": key.name})

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(facts.metrics(self.server), media_type="text/plain; version=0.0.4")

    async def docs(self, request: Request) -> Response:
        """This list."""
        return HTMLResponse(pages.docs(self.routes()))

    async def page(self, request: Request) -> Response:
        """A page with models, queue and the log of a job."""
        return HTMLResponse(pages.page(), headers=pages.POLICY)

    async def subscribe(self, socket: WebSocket) -> None:
        """The events of the jobs of a session, for clients of NDIF 0.8."""
        await subscribe(socket, self.server, socket.state.key, self._link(socket))

    # --- parts -----------------------------------------------------------------------------------

    def routes(self) -> list[Route | WebSocketRoute]:
        return [
            Route("/request", self.request, methods=["POST"]),
            Route("/events/{id}", self.events),
            Route("/response/{id}", self.response),
            Route("/result/{id}", self.result),
            Route("/jobs", self.jobs),
            Route("/job/{id}", self.cancel, methods=["DELETE"]),
            WebSocketRoute("/subscribe", self.subscribe),
            Route("/status", self.status),
            Route("/env", self.env),
            Route("/whoami", self.whoami),
            Route("/metrics", self.metrics),
            Route("/ping", self.ping),
            Route("/connected", self.connected),
            Route("/docs", self.docs),
            Route("/", self.page),
        ]

    def _job(self, request: Request) -> Job:
        """The job of the path, if it is of this key."""
        id = request.path_params["id"]
        job = self.server.store.job(id)
        if job is None or job.key != _key(request).id:
            raise errors.no_such_job(id)
        return job

    def _link(self, connection: Any) -> Callable[[str], str]:
        """Makes the address of a result for who asks without sending a key."""
        url = connection.base_url
        secure = url.scheme in ("https", "wss")
        base = f"{'https' if secure else 'http'}://{url.netloc}"
        return lambda job: f"{base}/result/{job}?token={self.tokens.make(job)}"


class Result(FileResponse):
    """A file, read in pieces that are worth the way to a thread, for who takes them in time."""

    chunk_size = 2**20

    def __init__(self, stall: float, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_time(message: Message) -> None:
            with anyio.fail_after(self._stall):
                await send(message)

        with suppress(TimeoutError):  # who does not read is hung up on, and can come back
            await super().__call__(scope, receive, in_time)


def app(server: Serving) -> Starlette:
    """The application of a server, which lives as long as the application does."""

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        server.open()
        try:
            yield
        finally:
            await server.close()

    return Starlette(
        routes=Api(server).routes(),
        middleware=[Middleware(Gate, server=server)],
        exception_handlers={
            Refused: _refused,
            HTTPException: _unknown,
            ClientDisconnect: _left,
            Exception: _fault,
        },
        lifespan=living,
    )


def _key(request: Request) -> Key:
    return request.state.key


def _shown(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "model": job.model,
        "status": job.status,
        "created": job.created,
        "ended": job.ended,
        "size": job.size,
    }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return answer(error)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return answer(errors.no_such_path(request.url.path))
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client has gone


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "Internal server error."}, 500)
