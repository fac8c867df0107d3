"""Where the state of a job is shown: a terminal, a notebook, or whatever takes lines."""

from __future__ import annotations

import html
import os
import sys
from typing import Any, Protocol, TextIO

from nnsight.remote.progress import Moment

_CSS = {"yellow": "#9a6700", "cyan": "#0969da", "green": "#1a7f37", "red": "#cf222e", "": "inherit"}
_SGR = {"yellow": "33", "cyan": "36", "green": "32", "red": "31"}
_BAR = 24  # characters


class Surface(Protocol):
    """One place to show things at."""

    live: bool
    """Whether what is shown can be replaced by what comes next."""

    def show(self, moment: Moment) -> None:
        """Show a moment; where it is live, in the place of the one before."""
        ...

    def hide(self) -> None:
        """Make room: text of the user is about to be written."""
        ...

    def keep(self, moment: Moment) -> None:
        """Show a moment on a line that stays."""
        ...

    def end(self, last: Moment) -> None:
        """Nothing more comes after `last`."""
        ...


def surface() -> Surface:
    """The one that this process has."""
    if (shell := notebook()) is not None:
        return Notebook(shell)
    err = sys.stderr
    if err is None:  # a program without a console
        return Nowhere()
    if err.isatty() and os.environ.get("TERM") != "dumb" and _understands_escapes():
        return Terminal(err)
    return Lines(err)


def notebook() -> Any:
    """The shell of the notebook that this runs in; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _understands_escapes() -> bool:
    """Whether a terminal takes the escapes for colours; an old console of Windows does not."""
    if sys.platform != "win32":
        return True
    from rich.console import Console

    return not Console(stderr=True).legacy_windows


class Nowhere:
    """Shows nothing."""

    live = False

    def show(self, moment: Moment) -> None: ...

    def hide(self) -> None: ...

    def keep(self, moment: Moment) -> None: ...

    def end(self, last: Moment) -> None: ...


_SOON = 1.0  # seconds in which a small job is done
_FIRST_AND_LAST = frozenset({"RECEIVED", "COMPLETED", "ERROR"})


class Lines:
    """A log file, a pipe: a line for each change, and no line twice.

    What a job passes through in its first second is left out: a loop of small jobs would fill the
    file. A state that lasts is told of when `show` is called for it again.
    """

    live = False

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._told: tuple[str, str] | None = None

    def show(self, moment: Moment) -> None:
        passing = moment.seconds < _SOON and moment.status not in _FIRST_AND_LAST
        if not passing or moment.transfer is not None:
            self.keep(moment)

    def keep(self, moment: Moment) -> None:
        told = moment.head, "" if moment.transfer else moment.detail
        if told == self._told:
            return
        self._told = told
        self._out.write(f"[nnsight] {moment.head}  {moment.rest()}".rstrip() + "\n")
        self._out.flush()

    def hide(self) -> None: ...

    def end(self, last: Moment) -> None: ...


class Terminal:
    """One line at the bottom that is written over, and gone when the job is done.

    Where a printed line has not ended, it stands below that line, and the cursor stays where the
    next text goes on.
    """

    live = True
    inside = False  # of a line that was printed and has not ended; there is one terminal

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_shown = False
        self._plain = "NO_COLOR" in os.environ

    def show(self, moment: Moment) -> None:
        width = _width(self._out) - 1  # the last column would wrap in some terminals
        head, rest = self._glyphs(moment)
        visible = f"{head}  {rest}"[:width]
        head, rest = visible[: len(head)], visible[len(head) :]
        code = _SGR.get(moment.colour)
        if code and not self._plain:
            head, rest = f"\x1b[1;{code}m{head}\x1b[0m", f"\x1b[2m{rest}\x1b[0m"
        self._put(f"{head}{rest}")
        self._is_shown = True

    def _put(self, text: str) -> None:
        line = f"\r\x1b[2K{text}"
        if Terminal.inside:  # make room below, by scrolling if need be; go there and come back
            line = f"\x1bD\x1b[A\x1b7\n{line}\x1b8"
        self._write(line)

    def _glyphs(self, moment: Moment) -> tuple[str, str]:
        rest = moment.rest()
        fraction = moment.transfer.fraction if moment.transfer else None
        if fraction is not None:
            full, empty = ("━", "─") if self._can_write("━─") else ("#", ".")
            done = round(fraction * _BAR)
            rest = f"{full * done}{empty * (_BAR - done)}  {rest}"
        mark = "●" if self._can_write("●") else "*"
        return f"{mark} {moment.head}", rest

    def _can_write(self, text: str) -> bool:
        try:
            text.encode(getattr(self._out, "encoding", None) or "ascii")
        except (UnicodeError, LookupError):
            return False
        return True

    def hide(self) -> None:
        if self._is_shown:
            self._is_shown = False
            self._put("")

    def keep(self, moment: Moment) -> None:
        if Terminal.inside:
            self.hide()
            self._write("\n")
            Terminal.inside = False
        self.show(moment)
        self._is_shown = False
        self._write("\n")

    def end(self, last: Moment) -> None:
        self.hide()

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def printed(out: TextIO, text: str) -> None:
    """Note whether a text that was printed ended with its line."""
    if text and out.isatty():
        Terminal.inside = not text.endswith("\n")


def _width(out: TextIO) -> int:
    try:
        return max(20, os.get_terminal_size(out.fileno()).columns)
    except (OSError, ValueError):  # no real terminal, or one that does not say
        return 80


class Notebook:
    """One line of the output of a cell; the jobs of a cell share it, one after the other."""

    live = True
    _last: tuple[Any, int, Any] | None = None  # shell, number of the cell, line: one that is free

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._cell = getattr(shell, "execution_count", 0)
        self._line: Any = None
        self._page: Page | None = None  # what stands there

    def show(self, moment: Moment) -> None:
        page = Page(moment)
        if self._line is None or self._page is None or page.html != self._page.html:
            self._put(page)

    def _put(self, page: Page) -> None:
        from IPython.display import display

        self._page = page
        if self._line is None:
            shell, cell, line = Notebook._last or (None, 0, None)
            if shell is self._shell and cell == self._cell:
                Notebook._last = None
                self._line = line
        if self._line is None:
            self._line = display(page, display_id=True)
        else:
            self._line.update(page)

    def hide(self) -> None:
        """Nothing is in the way: what is printed has a place of its own."""

    def keep(self, moment: Moment) -> None:
        self.show(moment)
        self._line = None

    def end(self, last: Moment) -> None:
        if self._line is not None:
            if last.head:  # of a result that is only fetched, no state is known
                self.show(last)
            Notebook._last = self._shell, self._cell, self._line
            self._line = None


class Page:
    """A moment as a notebook shows it."""

    def __init__(self, moment: Moment) -> None:
        self.text = f"{moment.head}  {moment.rest()}".rstrip()
        fraction = moment.transfer.fraction if moment.transfer else None
        bar = "" if fraction is None else f" <progress value='{fraction:.3f}' max='1'></progress>"
        head = f"<b style='color:{_CSS[moment.colour]}'>{html.escape(moment.head)}</b>"
        rest = html.escape(moment.rest())
        self.html = f"<div style='font-family:monospace'>{head}{bar} <span>{rest}</span></div>"

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html
