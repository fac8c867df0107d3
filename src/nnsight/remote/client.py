"""`RemoteBackend`: runs a captured block on a server, and binds what it saved."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from nnsight.capture.traceback import note
from nnsight.capture.tracer import Tracer
from nnsight.config import CONFIG, Secret
from nnsight.remote import asynchronous, changes, environment, errors, payload, results
from nnsight.remote.connection import Connection
from nnsight.remote.deadline import Deadline
from nnsight.remote.display import Display
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.messages import COMPLETED, ERROR, LOG, Event, Failure
from nnsight.remote.ndif08 import failure as ndif08_failure
from nnsight.remote.ndif08 import result as ndif08_result
from nnsight.remote.ndif08 import write as ndif08_write
from nnsight.remote.ndif08.connection import NdifConnection
from nnsight.remote.spoken import speaks_ndif
from nnsight.remote.warned import give_again

Function = Callable[[Any, Any], Any]


class AnyConnection(Protocol):
    """A server in its own format, and the job that is followed there."""

    deadline: Deadline
    job: str
    seen: int
    beat: Callable[[], None]

    def submit(self, key: str, pieces: Sequence[Any], stream: bool) -> Any: ...
    def receipt(self, answer: Any) -> Event: ...
    def events(self, answer: Any = None) -> Iterator[Event]: ...
    def latest(self) -> Event | None: ...
    def cancel(self) -> bool: ...
    def result(self, data: Any, progress: Callable[[int], None] | None = None) -> bytearray: ...


class RemoteBackend:
    """Where a block runs that is left under `remote=True`: on a server.

    With `blocking=False` the block is sent and this returns at once: `backend.job_id` says which
    job it is, `backend()` or `backend.poll()` gives None until it has ended and then the saved
    values by name, `backend.wait()` waits for them.

    Args:
        model: the model that the block runs on, or its key (to ask for the result of a job).
        host: the server's address; `CONFIG.API.HOST` if left out.
        api_key: the user's key; `CONFIG.API.APIKEY` if left out.
        env: told to a server of NDIF in the envelope of the request (`"env"`), for what it may do
            with it; a server of ours asks for nothing beside the block.
        blocking: whether to wait for the values.
        job_id: of a job that was sent before: its result is asked for, and nothing is sent.
        verbose: whether to show every state of the job, and not the last one only.
        timeout: seconds to wait at most; the job itself goes on. None waits for ever.
    """

    def __init__(
        self,
        model: Any = None,
        host: str | None = None,
        api_key: str | None = None,
        env: Mapping[str, Any] | None = None,
        blocking: bool = True,
        job_id: str | None = None,
        verbose: bool = False,
        timeout: float | None = None,
    ) -> None:
        self.model = None if isinstance(model, str) else model
        self.model_key = model if isinstance(model, str) else None
        self.host = (host or CONFIG.API.HOST).rstrip("/")
        self.api_key = None if api_key is None else Secret(api_key)
        self.env = dict(env or {})
        self.blocking = blocking
        self.verbose = verbose
        self.timeout = timeout
        self.job_id = job_id
        self.status: str | None = None  # the state that was last heard of
        self._sent: Mapping[int, Any] = {}
        self._origin: changes.Origin | None = None
        self._seen = 0
        self._abandoned = False
        self._ended: tuple[Event, results.Result] | None = None  # how the job did

    @property
    def job_status(self) -> str | None:
        """The same as `status` (an older name)."""
        return self.status

    # --- as a backend -----------------------------------------------------------------------------

    def __call__(self, tracer: Tracer | None = None, function: Function | None = None) -> Any:
        """Run a captured block; without one, ask for the values of the job.

        Args:
            tracer: of the block.
            function: what runs in place of a block.

        Raises:
            NotSendableError: the block uses what cannot leave this process; nothing was sent.
            RemoteError: the server cannot be reached, or the block failed there; then it is an
                error of the original type too, where that is one of Python's.
        """
        if tracer is None:
            return self.poll()
        tracer.received = {}
        if self.job_id is not None:
            _ = self.wait() if self.blocking else self.poll()
            self._give(tracer)
        elif self.blocking and tracer.awaited:
            self._submit(tracer, function)
            return self._later(tracer)
        elif self.blocking:
            self._run(tracer, function)
        else:
            self._submit(tracer, function)
        return None

    def _request(
        self, tracer: Tracer, function: Function | None, connection: AnyConnection
    ) -> payload.Request:
        """The block as data, seen to be what the server can take."""
        if self.model is None:
            raise errors.no_model()
        write = ndif08_write.write if isinstance(connection, NdifConnection) else payload.write
        request = write(tracer, self.model, environment.is_local, CONFIG.API.COMPRESS, function)
        with contextlib.suppress(environment.errors.ServiceError):
            about = environment.remote_env(self.host, deadline=connection.deadline)
            for lack in environment.lacking(request.imported, about):
                if lack.absent:
                    lacks = errors.lacking(str(lack), request.imported.get(lack.name, ""))
                    raise payload.with_line(lacks, tracer.scope, whole=True)
            limit = (about.get("limits") or {}).get("body")
            if isinstance(limit, int) and request.size > limit:
                large = errors.payload_too_large(request.size, limit)
                raise payload.with_line(large, tracer.scope, whole=True)
        self._sent, self._origin, self.model_key = request.sent, request.origin, request.key
        return request

    def _connection(self, deadline: Deadline, notice: Any = lambda text: None) -> AnyConnection:
        job = self.job_id or ""
        if speaks_ndif(self.host, deadline, notice):
            return NdifConnection(
                self.host, self.api_key, deadline, notice, job, self._seen, env=self.env
            )
        return Connection(self.host, self.api_key, deadline, notice, job, self._seen)

    def _run(self, tracer: Tracer, function: Function | None) -> None:
        with Display(self.verbose) as display:
            connection = self._connection(Deadline.after(self.timeout), display.notice)
            request = self._request(tracer, function, connection)
            if isinstance(connection, Connection):
                connection.upload = display.upload
            with self._cancelled_by_ctrl_c(connection):
                answer = connection.submit(request.key, request.pieces, stream=True)
                last = self._follow(connection.events(answer), connection, display)
                result = self._result(last, connection, display)
        self._finish(last, result, tracer)

    def _submit(self, tracer: Tracer, function: Function | None) -> None:
        with Display(self.verbose) as display:
            connection = self._connection(Deadline.after(self.timeout), display.notice)
            request = self._request(tracer, function, connection)
            if isinstance(connection, Connection):
                connection.upload = display.upload
            first = connection.receipt(connection.submit(request.key, request.pieces, stream=False))
        self.job_id, self.status = first.id, first.status

    async def _later(self, tracer: Tracer) -> None:
        """Wait for a block of `async with`, while the loop goes on."""
        await asynchronous.in_thread(self.wait, self._left_alone)
        self._give(tracer)

    def _give(self, tracer: Tracer) -> None:
        """Hand a tracer what came of the job, if it has ended."""
        if self._ended is not None:
            self._ended[1].give(tracer)

    def _left_alone(self) -> None:
        """Nobody waits any more: the next heartbeat ends the waiting."""
        self._abandoned = True

    @contextlib.contextmanager
    def _cancelled_by_ctrl_c(self, connection: AnyConnection) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as interrupt:
            if connection.job:
                note(interrupt, errors.cancelled(connection.job, connection.cancel()))
            raise

    # --- a job that was sent ----------------------------------------------------------------------

    def poll(self) -> dict[str, Any] | None:
        """The saved values by name; None while the job has not ended.

        Raises:
            RemoteError: the job failed, or is not known.
        """
        if self._ended is not None:
            return self._finish(*self._ended)
        connection = self._connection(Deadline.after(self.timeout))
        if not connection.job:
            raise errors.no_job()
        last = connection.latest()
        if last is None or not last.ends:
            self.status = None if last is None else last.status
            return None
        self.status = last.status
        with Display(self.verbose) as display:
            return self._finish(last, self._result(last, connection, display))

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """The saved values by name, when the job has ended. What it printed is printed.

        Args:
            timeout: seconds to wait at most.

        Raises:
            RemoteTimeoutError: the time is over; the job goes on.
            RemoteError: the job failed, or is not known.
        """
        if self._ended is not None:
            return self._finish(*self._ended)
        limit = self.timeout if timeout is None else timeout
        with Display(self.verbose) as display:
            connection = self._connection(Deadline.after(limit), display.notice)
            if not connection.job:
                raise errors.no_job()
            last = self._follow(connection.events(), connection, display)
            result = self._result(last, connection, display)
        return self._finish(last, result)

    def cancel(self) -> None:
        """End the job, wherever it is.

        Raises:
            RemoteError: that cannot be done; NDIF has no way to.
        """
        if self.job_id is None:
            raise errors.no_job()
        if not self._connection(Deadline()).cancel():
            raise errors.RemoteError(errors.cancelled(self.job_id, False))

    # --- what a server says -----------------------------------------------------------------------

    def _follow(
        self, events: Iterator[Event], connection: AnyConnection, display: Display
    ) -> Event:
        """See a job to its end: show its states, print what it prints."""

        def beat() -> None:
            if self._abandoned:
                raise asynchronous.Abandoned
            display.tick()

        connection.beat = beat
        for event in events:
            self.job_id, self._seen = connection.job or None, connection.seen
            if event.status == LOG:
                display.print(event.printed)
                continue
            self.status = event.status
            display.status(event)
            if event.ends:
                return event
        raise errors.lost(self.host, "its events end before the job does", connection.job)

    def _result(self, last: Event, connection: AnyConnection, display: Display) -> results.Result:
        """What the job saved; nothing where it failed before it saved."""
        if last.data is None and last.status != ERROR:
            raise errors.end_not_read(self.host, "The server tells of no result.", connection.job)
        if last.data is None:
            return results.Result({}, [])
        size = last.data.get("size") if isinstance(last.data, dict) else None
        size = size if type(size) is int and size > 0 else 0
        content = connection.result(last.data, display.download(size))
        if isinstance(connection, NdifConnection):
            names = ndif08_result.read(content, self.model, CONFIG.API.TRUST_SERVER)
            return results.Result(names, [])
        return results.read_result(content, self._sent, self.model, self._origin)

    def _finish(
        self, last: Event, result: results.Result, tracer: Tracer | None = None
    ) -> dict[str, Any]:
        """Hand over what came back, and raise what the block raised."""
        if self._ended is None:
            give_again(result.warned)
        self._ended, self._sent, self._origin = (last, result), {}, None
        if tracer is not None:
            result.give(tracer)
        if last.status == ERROR:
            failure = failure_in(last)
            error = error_of(failure, last.id or self.job_id or "")
            error.saved = result.names  # type: ignore[attr-defined]
            raise_through(error, failure.frames)
        assert last.status == COMPLETED
        return result.names


class AsyncRemoteBackend(RemoteBackend):
    """A `RemoteBackend` for code that awaits: the block is sent when it is left, and nothing waits.

        with model.trace(x, backend=AsyncRemoteBackend(model)) as tracer:
            hidden = model.layer.output.save()
        values = await tracer.backend  # {"hidden": ...}

    `async for` gives each event of the job as it comes (what the block prints among them), and the
    values by name at last.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "blocking": False})

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return asynchronous.in_thread(self.wait, self._left_alone).__await__()

    async def __aiter__(self) -> AsyncIterator[Event | dict[str, Any]]:
        connection = self._connection(Deadline.after(self.timeout))
        if not connection.job:
            raise errors.no_job()
        last: Event | None = None
        async for event in asynchronous.from_thread(connection.events):
            self.job_id, self._seen, self.status = connection.job, connection.seen, event.status
            last = event
            yield event
        assert last is not None
        result = await asynchronous.in_thread(lambda: self._result(last, connection, Display()))
        yield self._finish(last, result)


def failure_in(event: Event) -> Failure:
    """The error that a job ended with."""
    about = (event.meta or {}).get("error") if isinstance(event.meta, dict) else None
    try:
        return msgspec.convert(about, Failure)
    except msgspec.ValidationError:  # NDIF's: its text is all there is
        return ndif08_failure.failure_of(event.description)
