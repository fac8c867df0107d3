"""What a block prints, as the events of its log: line by line, and not more than the limit."""

from __future__ import annotations

from collections.abc import Callable

LONGEST = 8192
"""Characters of a line that wait for its end, once it may not be told of before."""


class Prints:
    """Takes text as soon as it is to be shown, and hands it on in order.

    A line that has not ended is handed on as far as it has come, as often as there may be lines.
    After that it waits for its end, so a log does not grow by one event for each character.

    Args:
        lines: that may come.
        bytes: of them.
        say: takes a text and what stands after it, a newline or nothing.
        rest: said once, in place of what is past the limit.
        whole: whether each line waits for its end, for who ends each text that comes.
    """

    def __init__(
        self, lines: int, bytes: int, say: Callable[[str, str], None], rest: str, whole: bool
    ) -> None:
        self._lines, self._bytes = lines, bytes  # that may still come
        self._parts = 0 if whole else lines  # of lines, the same
        self._say, self._rest, self._whole = say, rest, whole
        self._open: list[str] = []  # of a line that has not ended, what is not handed on
        self._size = 0  # characters of it
        self._inside = False  # of a line, some of which is handed on
        self._full = False

    def write(self, text: str) -> None:
        head, newline, tail = text.rpartition("\n")
        if newline:
            lines = "".join([*self._take(), head]).split("\n")
            for line in lines:
                self._hand_on(line, "\n")
        if not tail or self._full:
            return
        self._open.append(tail)
        self._size += len(tail)
        if self._parts > 0:
            self._parts -= 1
            self._part()
        elif self._size > (self._bytes if self._whole else LONGEST):
            self._part()

    def end(self) -> None:
        """The block has ended: a line without an end is told of too."""
        if self._open:
            self._part()

    def note(self, line: str) -> None:
        """Tell something that the block did not print, on a line of its own."""
        if self._inside:
            self._say("", "\n")
        self._inside = False
        self._say(line, "\n")

    def _take(self) -> list[str]:
        taken, self._open, self._size = self._open, [], 0
        return taken

    def _part(self) -> None:
        self._hand_on("".join(self._take()), "\n" if self._whole else "")

    def _hand_on(self, text: str, end: str) -> None:
        if self._full:
            return
        plain = text.encode(errors="replace")  # half a surrogate pair cannot be sent
        self._lines -= end == "\n"
        self._bytes -= len(plain)
        if self._lines < 0 or self._bytes < 0:
            self._full = True
            self.note(self._rest)
            return
        self._say(plain.decode(), end)
        self._inside = not end
