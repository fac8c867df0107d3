"""What a user sees while a remote job is waited for: its state in one line, and its prints.

    with Display() as display:
        display.status(event)
        display.print("a line that the block printed\n")
        progress = display.download(total)
        progress(len(piece))

The state goes to stderr (to the cell, in a notebook) and the prints to stdout, in order. Nothing
here raises, whatever becomes of the terminal: a job is not lost for the sake of its display. An
interrupt by the user passes through.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec

from nnsight.config import CONFIG
from nnsight.remote.messages import LOG, Event
from nnsight.remote.progress import Moment, Transfer, detail_of, one_line
from nnsight.remote.surfaces import Nowhere, Surface, printed, surface

_OFTEN = 0.1  # seconds between two pictures of a transfer
_SMALL = 1_000_000  # bytes of a transfer that is not worth a picture before it has begun
_WORTH_A_LINE = 10_000_000  # bytes of a transfer that is told of where nothing can be replaced
_lock = threading.RLock()  # there is one terminal
_open: weakref.WeakSet[Display] = weakref.WeakSet()

P = ParamSpec("P")


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """A display that fails (a closed terminal, a full disk) is silent from then on."""

    @functools.wraps(method)
    def careful(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _lock:
                method(*args, **kwargs)
        except Exception:
            args[0]._surface = Nowhere()  # type: ignore[attr-defined] # a Display

    return careful


class Display:
    """The state and the prints of one job.

    `CONFIG.APP.REMOTE_LOGGING = False` leaves the state out; prints are shown either way.

    Args:
        verbose: show each state on a line of its own, that stays.
    """

    _surface: Surface

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._began = time.monotonic()
        self._event = Event()
        self._transfer: Transfer | None = None
        self._notice = ""
        self._surface = Nowhere()
        self._set_up()

    @_never_raises
    def _set_up(self) -> None:
        if CONFIG.APP.REMOTE_LOGGING:
            self._surface = surface()
            _open.add(self)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish(stays=error is None)

    @_never_raises
    def status(self, event: Event) -> None:
        """Show the state that an event tells of; the text of a LOG is printed."""
        if event.status == LOG:
            self.print(event.printed)
            return
        new = (event.status, event.description) != (self._event.status, self._event.description)
        self._event, self._transfer, self._notice = event, None, ""
        if not self._verbose:
            self._surface.show(self._moment())
        elif new:
            self._surface.keep(self._moment())

    @_never_raises
    def notice(self, text: str) -> None:
        """Show what is waited for where it is not the job: a server that does not answer."""
        self._notice = one_line(text)
        self._surface.show(self._moment())

    @_never_raises
    def tick(self) -> None:
        """The job is as it was: bring the time up to date, or tell of a state that lasts."""
        if self._event.status and not self._verbose:
            self._surface.show(self._moment())

    @_never_raises
    def print(self, text: str) -> None:
        """Print what the block printed, as it would be printed here."""
        for display in list(_open):
            display._make_room()
        _write(text)
        self._redraw()

    @_never_raises
    def _make_room(self) -> None:
        self._surface.hide()

    def _redraw(self) -> None:
        if self._surface.live and self._event.status and not self._verbose:
            self._surface.show(self._moment())

    def download(self, total: int | None = None) -> Callable[[int], None]:
        """Show a result as it comes.

        Args:
            total: its size in bytes, if that is known.

        Returns:
            What to call with the number of bytes of each piece.
        """
        return self._moving("Downloading", total)

    def upload(self, total: int | None = None) -> Callable[[int], None]:
        """Show a request as it is sent; otherwise as `download`."""
        return self._moving("Uploading", total)

    def _moving(self, verb: str, total: int | None) -> Callable[[int], None]:
        began = shown = time.monotonic()
        done = 0

        def progress(size: int) -> None:
            nonlocal done, shown
            done += size
            now = time.monotonic()
            if now - shown >= _OFTEN or done == total:
                shown = now
                self._show_transfer(Transfer(verb, done, total, now - began))

        if total is None or total >= _SMALL:
            self._show_transfer(Transfer(verb, 0, total, 0.0))
        return progress

    @_never_raises
    def _show_transfer(self, transfer: Transfer) -> None:
        if self._surface.live or (transfer.total or 0) >= _WORTH_A_LINE:
            self._transfer = transfer
            self._surface.show(self._moment())

    def close(self) -> None:
        """Take the state away; that of a job that goes on without being waited for stays."""
        self._finish(stays=True)

    @_never_raises
    def _finish(self, stays: bool) -> None:
        if self not in _open:
            return
        _open.discard(self)
        self._transfer = None
        goes_on = bool(self._event.status) and not self._event.ends
        if stays and goes_on and not self._verbose:
            self._surface.keep(self._moment())
        else:
            self._surface.end(self._moment())
        self._surface = Nowhere()

    def _moment(self) -> Moment:
        event = self._event
        short = detail_of(event.status, event.description)
        detail = self._notice or (one_line(event.description) if self._verbose else short)
        seconds = time.monotonic() - self._began
        others = len(_open) - (self in _open)
        status = event.status or ("WAITING" if self._notice else "")
        return Moment(event.id, status, detail, seconds, self._transfer, others)


def _write(text: str) -> None:
    out: Any = sys.stdout
    if out is None:
        return
    try:
        out.write(text)
    except UnicodeEncodeError:  # characters that this terminal has no bytes for
        out.write(text.encode(out.encoding, "replace").decode(out.encoding))
    out.flush()
    printed(out, text)
