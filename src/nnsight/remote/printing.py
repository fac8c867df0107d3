"""`sys.stdout` while a block runs away from who wrote it: what it prints, as it would be shown."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

Say = Callable[[str], None]

_LONGEST = 8192  # bytes that wait for the end of their line, as with Python's own stdout


@contextlib.contextmanager
def printing(say: Say) -> Iterator[None]:
    """What is printed goes to `say`, as soon as a terminal would show it.

    That is at the end of a line, at a carriage return and at a flush; the rest comes at the end.
    What is printed later, by a thread that the block left behind, goes nowhere.
    """
    before, said = sys.stdout, _Said(say)
    # as Python makes its own; half a surrogate pair, which no terminal shows, ends no job
    sys.stdout = io.TextIOWrapper(
        said,  # type: ignore[type-var] # a raw file is enough where nothing is held back
        encoding="utf-8",
        errors="replace",
        newline="\n",
        line_buffering=True,
        write_through=True,
    )
    try:
        yield
    finally:
        sys.stdout = before
        said.end()


class _Said(io.RawIOBase):
    """The file below: hands text on when it is flushed. Any thread may write."""

    name = "<stdout>"

    def __init__(self, say: Say) -> None:
        self._say: Say | None = say
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._waits: list[str] = []
        self._size = 0
        # of one thread twice: what the garbage collector ends may print in the middle of a write
        self._one = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._one:
            self._waits.append(self._decode(data))
            self._size += len(data)
            if self._size >= _LONGEST:
                self._hand_on()
        return len(data)

    def flush(self) -> None:
        with self._one:
            self._hand_on()

    def end(self) -> None:
        """Nothing more is handed on after this."""
        with self._one:
            self._hand_on()
            self._say = None

    def _hand_on(self) -> None:
        text = "".join(self._waits)
        self._waits, self._size = [], 0
        if text and self._say is not None:
            self._say(text)
