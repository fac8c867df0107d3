"""The lines of files that stand elsewhere, for the errors and warnings that name them.

Python looks the lines of a traceback up by the name of their file, whatever that name is.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from nnsight.remote.errors import damaged
from nnsight.remote.messages import Line

Show = Callable[[str, int, str], None]
"""Told the name of a file, the line that a text begins on, and the text."""

LAST_LINE = 1_000_000  # a text is padded up to its first line: a number alone must cost no memory
_LARGEST = 1 << 24  # bytes of a file that is looked up


def name_of(filename: str) -> str:
    """The name to give a file in a traceback or warning, when another side names it.

    It stays as it is, unless looking its lines up here could wait for ever or fill the memory (a
    device, a pipe, a file of the kernel's): then it is in angle brackets, and nothing is read.
    """
    if filename.startswith("<") and filename.endswith(">"):
        return filename
    try:
        found = os.stat(filename)
    except OSError:  # a relative name is looked for along `sys.path`, from other places
        return f"<{filename}>" if ".." in filename.split("/") else filename
    except ValueError:
        return f"<{filename!r}>"
    # a file of the kernel's claims to have no size, and then has no end or waits to be written
    safe = stat.S_ISREG(found.st_mode) and 0 < found.st_size <= _LARGEST
    return filename if safe else f"<{filename}>"


def know(line: Line) -> None:
    """Let a traceback show a line whose file is not here; of a file that is, nothing is changed."""
    known = linecache.cache.get(line.filename)
    if not line.text or os.path.exists(line.filename) or linecache.getline(*_place(line)):
        return
    lines = list(known[2]) if known is not None and len(known) == 4 else []
    lines += ["\n"] * (line.lineno - len(lines))
    lines[line.lineno - 1] = f"{line.text}\n"
    linecache.cache[line.filename] = _entry(lines, line.filename)


@contextlib.contextmanager
def shown_texts() -> Iterator[Show]:
    """Lets errors show the lines of texts that came over the wire; forgets them at the end."""
    before: dict[str, Any] = {}
    lines: dict[str, dict[int, str]] = {}

    def show(filename: str, lineno: int, text: str) -> None:
        if not 0 < lineno <= LAST_LINE:
            raise damaged(f"it has a text that begins on line {lineno}")
        before.setdefault(filename, linecache.cache.get(filename))
        known = lines.setdefault(filename, {})
        known.update(enumerate(text.splitlines(keepends=True), lineno))
        whole = [known.get(n, "\n") for n in range(1, max(known, default=0) + 1)]
        linecache.cache[filename] = _entry(whole, filename)

    try:
        yield show
    finally:
        for filename, entry in before.items():
            if entry is None:
                linecache.cache.pop(filename, None)
            else:
                linecache.cache[filename] = entry


def _place(line: Line) -> tuple[str, int]:
    return line.filename, line.lineno


def _entry(lines: list[str], filename: str) -> tuple[int, None, list[str], str]:
    """As `linecache` keeps the lines of what is no file: never looked for on the disk."""
    return sum(map(len, lines)), None, lines, filename
