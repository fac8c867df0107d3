"""The lines that a traceback shows of files that another side names."""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path

import pytest

from nnsight.remote.errors import PayloadError
from nnsight.remote.failure import error_of, raise_through
from nnsight.remote.messages import Failure, Line, Warned
from nnsight.remote.shown import LAST_LINE, name_of, shown_texts
from nnsight.remote.warned import give_again

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("linecache_restored")]


def raised(*lines: Line) -> str:
    """The traceback of an error that came through `lines`."""
    with pytest.raises(ValueError, match="from there") as caught:
        raise_through(error_of(Failure("ValueError", "from there")), lines)
    return "".join(traceback.format_exception(caught.value))


@pytest.fixture
def waiting(tmp_path: Path) -> str:
    """A pipe that nobody writes to: who opens it waits for ever."""
    path = tmp_path / "pipe.py"
    os.mkfifo(path)
    return str(path)


def test_a_file_that_is_here_shows_its_own_line(tmp_path: Path):
    file = tmp_path / "here.py"
    file.write_text("first()\nsecond()\n")
    text = raised(Line(str(file), 2, "f", "something else"))
    assert f'File "{file}", line 2, in f\n    second()' in text


def test_a_file_that_is_elsewhere_shows_the_line_that_came_along():
    text = raised(Line("/elsewhere/a.py", 3, "f", "a()"), Line("/elsewhere/a.py", 7, "g", "b()"))
    assert 'File "/elsewhere/a.py", line 3, in f\n    a()' in text
    assert 'File "/elsewhere/a.py", line 7, in g\n    b()' in text


def test_what_is_known_of_a_file_that_is_here_stays(tmp_path: Path):
    file = tmp_path / "here.py"
    file.write_text("first()\n")
    raised(Line(str(file), 40, "f", "planted()"))
    assert linecache.getlines(str(file)) == ["first()\n"]
    file.write_text("first()\nlater()\n")
    linecache.checkcache(str(file))
    assert linecache.getline(str(file), 2) == "later()\n"


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/environ", "../" * 40 + "dev/zero", "/"])
def test_what_is_no_file_of_text_is_not_read(name: str):
    assert f'File "<{name}>", line 3, in f\n    x()' in raised(Line(name, 3, "f", "x()"))
    assert not any("zero" in known and known[0] != "<" for known in linecache.cache)


def test_a_pipe_is_not_waited_for(waiting: str):
    assert f'File "<{waiting}>", line 3' in raised(Line(waiting, 3, "f", "x()"))
    with pytest.warns(UserWarning, match="look") as given:
        give_again([Warned("look", "UserWarning", waiting, 3)])
    assert given[0].filename == f"<{waiting}>"


def test_names_that_no_system_takes():
    assert name_of("a\0b") == "<'a\\x00b'>"
    assert name_of("<stdin>") == "<stdin>"
    assert name_of("../up.py") == "<../up.py>"  # it is looked for from other folders too
    assert "line 3" in raised(Line("a\0b", 3, "f", "x()"))


def test_a_large_file_is_not_read(tmp_path: Path):
    file = tmp_path / "large.py"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    assert name_of(str(file)) == f"<{file}>"


def test_shown_texts_are_forgotten():
    with shown_texts() as show:
        show("/elsewhere/b.py", 2, "one\ntwo\n")
        assert linecache.getline("/elsewhere/b.py", 3) == "two\n"
    assert linecache.getline("/elsewhere/b.py", 3) == ""


@pytest.mark.parametrize("line", [0, -1, LAST_LINE + 1, 10**15])
def test_a_text_that_begins_on_no_line(line: int):
    with shown_texts() as show, pytest.raises(PayloadError, match=f"begins on line {line}"):
        show("/elsewhere/c.py", line, "x")
