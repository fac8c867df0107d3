"""A printed line that has not ended, with the state of the job on the same terminal."""

from __future__ import annotations

import io
import re

import pytest

from nnsight.remote.display import Display
from nnsight.remote.messages import Event
from nnsight.remote.surfaces import Terminal
from tests.remote.test_display import use

_PARTS = re.compile(r"(\r|\n|\x1b\[[\d;]*[A-Za-z]|\x1b[78D])")


class Screen(io.StringIO):
    """A terminal of few rows: what is to be seen on it, whatever moved its cursor."""

    encoding = "utf-8"
    height = 3

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.row, self.column = [""], 0, 0
        self.gone: list[str] = []
        self.saved = (0, 0)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no file")

    def write(self, text: str) -> int:
        for part in _PARTS.split(text):
            self._take(part)
        return len(text)

    def _take(self, part: str) -> None:
        if part in ("\n", "\x1bD"):
            self.column = 0 if part == "\n" else self.column
            self.row += 1
            if self.row == self.height:
                self.gone.append(self.rows.pop(0))
                self.row -= 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
        elif part == "\r":
            self.column = 0
        elif part == "\x1b[A":
            self.row = max(0, self.row - 1)
        elif part == "\x1b[2K":
            self.rows[self.row] = ""
        elif part == "\x1b7":
            self.saved = self.row, self.column
        elif part == "\x1b8":
            self.row, self.column = self.saved
        elif part.startswith("\x1b"):
            assert part.endswith("m")
        else:
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + part + line[self.column + len(part) :]
            self.column += len(part)

    def lines(self) -> list[str]:
        return [*self.gone, *self.rows]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    one = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Terminal, "inside", False)
    use(monkeypatch, one, one)
    return one


def state(status: str) -> Event:
    return Event("j", status)


@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_the_state_stands_below_a_line_that_has_not_ended(screen: Screen, before: int):
    """Also where the terminal has to scroll for it."""
    screen.write("x\n" * before)
    above = ["x"] * before
    with Display() as display:
        display.status(state("RUNNING"))
        assert screen.lines() == [*above, "● RUNNING  job j"]
        display.print("epoch")
        assert screen.lines() == [*above, "epoch", "● RUNNING  job j"]
        display.tick()
        display.print(" 1")
        display.tick()
        assert screen.lines() == [*above, "epoch 1", "● RUNNING  job j"]
        display.print(": done\nepoch 2")
        assert screen.lines() == [*above, "epoch 1: done", "epoch 2", "● RUNNING  job j"]
        display.print(": done\n")
        assert screen.lines() == [*above, "epoch 1: done", "epoch 2: done", "● RUNNING  job j"]
        display.status(state("COMPLETED"))
    assert screen.lines() == [*above, "epoch 1: done", "epoch 2: done", ""]


def test_a_line_that_a_carriage_return_writes_over(screen: Screen):
    with Display() as display:
        display.status(state("RUNNING"))
        for text in ("\r 50 %", "\r100 %", "\r"):
            display.print(text)
            display.tick()
        assert screen.lines() == ["100 %", "● RUNNING  job j"]
        display.status(state("COMPLETED"))
    assert screen.lines() == ["100 %", ""]


def test_the_next_block_goes_on_with_the_line(screen: Screen):
    for _ in range(4):
        with Display() as display:
            display.status(state("RUNNING"))
            display.print(".")
            display.status(state("COMPLETED"))
    assert screen.lines() == ["....", ""] and (screen.row, screen.column) == (0, 4)


def test_a_state_that_stays_does_not_stand_in_the_line(screen: Screen):
    with Display(verbose=True) as display:
        display.status(state("RUNNING"))
        display.print("half")
        display.status(state("COMPLETED"))
    assert screen.lines() == ["● RUNNING  job j", "half", "● COMPLETED  job j", ""]


def test_prints_in_a_file_move_no_cursor(screen: Screen, monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    use(monkeypatch, out, screen)
    with Display() as display:
        display.status(state("RUNNING"))
        display.print("half")
        display.tick()
        assert screen.lines() == ["● RUNNING  job j"]
        display.status(state("COMPLETED"))
    assert screen.lines() == [""] and out.getvalue() == "half"
