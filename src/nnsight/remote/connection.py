"""Talking to a server: a request goes out once, whatever the line does, and its events come back.

A job's events are a log with numbers. A stream that breaks is taken up again after the last number
that was seen, so nothing is missed and nothing is seen twice. A second POST with the same
idempotency key is no second job.
"""

from __future__ import annotations

import base64
import io
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import requests

from nnsight.remote import errors, line
from nnsight.remote.answers import (
    BUSY,
    CONNECT,
    begin_of,
    cancelled,
    detail_of,
    retry_after,
    see_that_it_can_be_asked,
)
from nnsight.remote.ask import key_header, reason
from nnsight.remote.deadline import PATIENCE, Deadline
from nnsight.remote.line import BROKEN, TooMuch
from nnsight.remote.messages import Event
from nnsight.remote.wire import MEDIA_TYPE
from nnsight.version import __version__

SILENCE = 35.0  # seconds without a heartbeat after which a line is taken for dead
_PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0)
_AT_ONCE = 0.2  # seconds to wait for the end of an answer that has told all
Progress = Callable[[int], None]


class _Body(io.RawIOBase):
    """The pieces of a message as a file, so that no copy of the whole is made.

    Args:
        pieces: of the message.
        progress: told how many bytes of it are taken, each time.
    """

    def __init__(self, pieces: Sequence[Any], progress: Progress | None = None) -> None:
        self._progress = progress
        self._views = [memoryview(piece).cast("B") for piece in pieces if memoryview(piece).nbytes]
        self._size = sum(view.nbytes for view in self._views)
        self._index = self._at = 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._index >= len(self._views):
            return b""
        view = self._views[self._index]
        end = view.nbytes if size < 0 else min(view.nbytes, self._at + max(size, 1 << 20))
        part = bytes(view[self._at : end])
        self._at = end
        if end == view.nbytes:
            self._index, self._at = self._index + 1, 0
        if self._progress is not None:
            self._progress(len(part))
        return part


@dataclass
class Connection:
    """A server, and the job that is followed there.

    Args:
        host: its address.
        api_key: the user's key.
        deadline: when to stop waiting.
        notice: told what is waited for, when it is not the job itself.
        beat: called when the server says that the job goes on.
        upload: given the size of a large block, takes what is told of its way there.
    """

    host: str
    api_key: str | None = field(default=None, repr=False)
    deadline: Deadline = field(default_factory=Deadline)
    notice: Callable[[str], None] = lambda text: None
    job: str = ""
    seen: int = 0
    beat: Callable[[], None] = lambda: None
    upload: Callable[[int], Progress] | None = None
    _again: Callable[[], requests.Response] | None = None  # sends the block once more
    _over: Deadline = field(default_factory=Deadline)  # when an answer that has told all is left

    # --- one exchange -----------------------------------------------------------------------------

    def __post_init__(self) -> None:
        see_that_it_can_be_asked(self.host, self.api_key)

    def _headers(self) -> dict[str, str]:
        versions = {"nnsight-version": __version__, "python-version": sys.version.split()[0]}
        return {**versions, **key_header(self.api_key)}

    def _send(
        self, method: str, path: str, data: Any = None, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """One exchange; the body of the answer is yet to be read."""
        self._over = Deadline()
        return line.exchange(
            *(self.host, method, self.host + path),
            lambda: min(self.deadline.left, self._over.left),
            connect=CONNECT,
            silence=SILENCE,
            data=data,
            headers={**self._headers(), **(headers or {})},
        )

    def _left(self) -> float:
        left = self.deadline.left
        if left <= 0:
            raise errors.timed_out(self.host, self.job)
        return left

    def _until_answered(
        self,
        method: str,
        path: str,
        data: Callable[[], Any] = lambda: None,
        headers: Mapping[str, str] | None = None,
        take: Callable[[requests.Response], Any] = lambda answer: answer,
    ) -> Any:
        """The answer to a request that may be sent again: it is, while the line or server fails.

        Args:
            take: what to read of it; all is asked for again if the line breaks meanwhile.
        """
        failing = Deadline.after(PATIENCE)
        for attempt in range(1_000_000):
            why, wait = None, 0.0
            self._left()  # not in the `try`: this end of waiting is no broken line
            try:
                answer = self._send(method, path, data(), headers)
                if answer.status_code < 300:
                    return take(answer)
            except TooMuch:
                raise errors.not_understood(self.host) from None
            except BROKEN as error:
                why = reason(error)
            else:
                detail = detail_of(answer)
                if answer.status_code not in (*BUSY, 502, 504):
                    raise errors.refused(self.host, answer.status_code, detail, self.job)
                wait = retry_after(answer)
                if answer.status_code in BUSY:
                    failing = Deadline.after(PATIENCE + wait)  # it asks for patience
                why = detail
            self._pause(attempt, wait, why, failing)
        raise AssertionError("the deadline comes first")

    def _pause(self, attempt: int, wait: float, why: str | None, failing: Deadline) -> None:
        if failing.left <= 0:
            raise errors.lost(self.host, why or "", self.job)
        if self.deadline.left <= 0:
            raise errors.timed_out(self.host, self.job, why)
        seconds = max(_PAUSES[min(attempt, len(_PAUSES) - 1)], wait)
        if attempt:
            self.notice(f"{why or 'no answer'}; trying again in {seconds:g} s")
        time.sleep(max(0.0, min(seconds, self.deadline.left)))
        if self.deadline.left <= 0:
            raise errors.timed_out(self.host, self.job, why)

    # --- a job ------------------------------------------------------------------------------------

    def submit(self, key: str, pieces: Sequence[Any], stream: bool) -> Any:
        """Send a block; what answers is for `events`, or for `receipt`.

        Args:
            key: of the model.
            pieces: of the message.
            stream: whether the answer is the events of the job, or the first of them only.

        Raises:
            RemoteError: the server does not take it, or cannot be reached.
        """
        headers = {
            "Content-Type": MEDIA_TYPE,
            "nnsight-model-key": key,
            "Idempotency-Key": str(uuid.uuid4()),
        }
        if stream:
            headers["nnsight-stream"] = "1"
        size = sum(memoryview(piece).nbytes for piece in pieces)
        whole = b"".join(pieces) if size < 1 << 20 else None

        def body() -> Any:
            if whole is not None:
                return whole
            return _Body(pieces, None if self.upload is None else self.upload(size))

        self._again = partial(
            self._until_answered,
            "POST",
            "/request",
            body,
            headers,
            (lambda answer: answer) if stream else line.whole,
        )
        return self._again()

    def receipt(self, answer: bytes) -> Event:
        """What the server said at once of a block that was sent.

        Raises:
            RemoteError: it says nothing that can be understood.
        """
        try:
            first = _event(answer)
        except EOFError:
            raise errors.not_understood(self.host) from None
        if not first.id:
            raise errors.not_understood(self.host)
        return first

    def events(self, answer: requests.Response | None = None) -> Iterator[Event]:
        """The events of the job, to the one that ends it.

        Args:
            answer: what carries them; asked for if left out.

        Raises:
            RemoteError: the line is lost, or the deadline has come. The job goes on.
        """
        failing = Deadline.after(PATIENCE)
        attempt = 0
        while True:
            why: str | None = "the server hung up"
            try:
                if answer is None:
                    answer = self._listen_again()
                for event in self._lines(answer):
                    failing, attempt = Deadline.after(PATIENCE), 0
                    if event is None:
                        self.beat()
                    elif event.seq > self.seen:
                        self.job, self.seen = event.id or self.job, event.seq
                        if event.ends:
                            self._leave(answer)
                        yield event
                        if event.ends:
                            return
            except errors.RemoteTimeoutError:
                raise
            except BROKEN as error:  # a job that says nothing until the deadline is no fault
                why = reason(error) if self.deadline.left > 0 else None
            finally:
                if answer is not None:
                    answer.close()
            answer = None
            self._pause(attempt, 0.0, why, failing)
            attempt += 1

    def _listen_again(self) -> requests.Response:
        if not self.job and self._again is not None:
            return self._again()  # with its key: it is the same job
        return self._until_answered("GET", f"/events/{self.job}?after={self.seen}")

    def _lines(self, answer: requests.Response) -> Iterator[Event | None]:
        """The events of a stream as they come; None for a heartbeat."""
        rest = bytearray()
        for part in line.parts(answer):
            self._left()
            rest += part
            if b"\n" in part:
                *said, rest = rest.split(b"\n")
                for each in said:
                    yield _event(each) if each.strip() else None
            elif len(rest) > line.LARGEST:
                raise errors.not_understood(self.host)

    def _leave(self, answer: requests.Response) -> None:
        """Read the end of an answer that has told all: then its connection serves the next."""
        self._over = Deadline.after(_AT_ONCE)
        with suppress(*BROKEN):
            if any(line.parts(answer)):
                answer.close()

    def latest(self) -> Event | None:
        """The state that the job is in; None while the server does not know the job yet."""
        try:
            return _event(self._until_answered("GET", f"/response/{self.job}", take=line.whole))
        except errors.RefusedError as error:
            if error.status == 404:
                raise errors.unknown_job(self.host, self.job) from None
            raise
        except EOFError:
            raise errors.not_understood(self.host) from None

    def cancel(self) -> bool:
        """End the job, wherever it is; False if that cannot be done."""
        return cancelled(self.host, self.job, self._headers())

    def result(self, data: Any, progress: Callable[[int], None] | None = None) -> bytearray:
        """The bytes that an event refers to.

        Args:
            data: of the event that ended the job.
            progress: told how many more bytes are there.

        Raises:
            RemoteError: they are there no longer, or the line is lost.
        """
        size = data.get("size") if isinstance(data, dict) else None
        if type(size) is not int or size < 0:
            raise errors.not_understood(self.host)
        try:
            if isinstance(data.get("inline"), str):
                return bytearray(base64.b64decode(data["inline"]))
            found = bytearray(size)
        except ValueError:
            raise errors.not_understood(self.host) from None
        except (MemoryError, OverflowError):
            raise errors.no_room(size, self.job) from None
        path = str(data.get("url"))
        if not path.startswith("/"):
            raise errors.not_understood(self.host)
        view, at, furthest, attempt = memoryview(found), 0, 0, 0
        failing = Deadline.after(PATIENCE)
        while at < size:
            headers = {"Range": f"bytes={at}-"} if at else {}
            answer = self._until_answered("GET", path, headers=headers)
            begin, why = begin_of(answer), "the download was cut off"
            if begin is None or begin not in (0, at):  # what follows is of another place
                answer.close()
                raise errors.not_understood(self.host)
            at = begin
            try:
                for chunk in answer.iter_content(1 << 20):
                    self._left()
                    view[at : at + len(chunk)] = chunk
                    at += len(chunk)
                    if progress is not None:
                        progress(len(chunk))
            except errors.RemoteTimeoutError:
                raise
            except BROKEN as error:
                why = reason(error)
            except ValueError:
                raise errors.not_understood(self.host) from None
            finally:
                answer.close()
            if at < size:
                if at > furthest:
                    failing, attempt, furthest = Deadline.after(PATIENCE), 0, at
                self._pause(attempt, 0.0, why, failing)
                attempt += 1
        return found


def _event(text: bytes | bytearray) -> Event:
    try:
        return msgspec.json.decode(text, type=Event)
    except (msgspec.DecodeError, RecursionError):
        raise EOFError("a line that is no event") from None
