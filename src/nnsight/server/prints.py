"""What a block prints, as the lines of its log: whole lines, and not more than the limit."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_LINE = 8192


class Prints:
    """Takes text as it is written and hands it on line by line, in order."""

    def __init__(self, lines: int, bytes: int, say: Callable[[str], None], rest: str) -> None:
        self._lines, self._bytes = lines, bytes  # that may still come
        self._say = say
        self._rest = rest  # said once, in place of what is past the limit
        self._open = ""  # a line that has not ended
        self._full = False

    def write(self, text: str) -> None:
        if self._full:
            return
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            self._line(line)
        while len(self._open) > LONGEST_LINE and not self._full:
            self._line(self._open[:LONGEST_LINE])
            self._open = self._open[LONGEST_LINE:]

    def end(self) -> None:
        """The block has ended: a line without an end is a line too."""
        if self._open and not self._full:
            self._line(self._open)
        self._open = ""

    def _line(self, line: str) -> None:
        if self._full:
            return
        plain = line.encode(errors="replace")  # half a surrogate pair cannot be sent
        line = plain.decode()
        self._lines -= 1
        self._bytes -= len(plain)
        if self._lines < 0 or self._bytes < 0:
            self._full = True
            self._open = ""
            line = self._rest
        self._say(line)
