"""The text that code runs from, and the `with` statement that is being entered."""

from __future__ import annotations

import importlib
import linecache
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import pythons
from record import Captured as Trace

from nnsight.capture import source
from nnsight.capture.errors import WithBlockNotFoundError

VERSIONS = [
    pytest.param(
        f"finder {jobs.name_of(version)}",
        marks=pytest.mark.skipif(
            version not in pythons.found(), reason=f"no Python {jobs.name_of(version)} here"
        ),
    )
    for version in pythons.SUPPORTED
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("job", VERSIONS)
def test_exactly_the_statement_that_is_entered_is_found(reports: Any, job: str):
    """In files of the standard library and in odd layouts: all of them, and nothing else."""
    report = reports[job]["finder"]
    assert not report["wrong"], "\n".join(report["wrong"])
    assert report["entries"] > 1500
    assert report["files"] > 50


# --- lines ----------------------------------------------------------------------------------------

TEXTS = [
    "",
    "a",
    "a\n",
    "a\n\nb",
    "a\r\nb\r\n",
    "a\rb",
    "\n\n",
    "s = 'a\u2028b'\nx",
    "\x0ca\n\x0c\nb",
    "s = '\x1c\x85'\n\x0bz",
    "é😀\nb",
]


@pytest.mark.parametrize("text", TEXTS)
def test_lines_are_those_that_the_compiler_counts(text: str):
    lines = source.split(text)
    assert "".join(lines) == text
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    assert [line.rstrip("\r\n") for line in lines] == normal.removesuffix("\n").split("\n")[
        : len(lines)
    ]


COMMANDS = [
    ("python -c TEXT", "TEXT"),
    ("python -cTEXT", "TEXT"),
    ("python -Ic TEXT", "TEXT"),
    ("python -I -S -c TEXT a b", "TEXT"),
    ("python -X dev -c TEXT", "TEXT"),
    ("python -Xdev -c TEXT", "TEXT"),
    ("python -W error -c TEXT", "TEXT"),
    ("python -Wonce -c TEXT", "TEXT"),
    ("python -OOc TEXT -c other", "TEXT"),
    ("python --check-hash-based-pycs always -c TEXT", "TEXT"),
    ("python -X -c -c TEXT", "TEXT"),
    ("python script.py -c TEXT", ""),
    ("python -m module -c TEXT", ""),
    ("python -mpdb -c TEXT", ""),
    ("python - -c TEXT", ""),
    ("python -i", ""),
    ("python", ""),
    ("python -c", ""),
]


@pytest.mark.parametrize(("words", "text"), COMMANDS)
def test_the_text_of_a_command(words: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", words.split())
    assert source.command_line() == text


# --- a text that is not the one that runs ---------------------------------------------------------

FIRST = "def case(trace, save):\n    with trace():\n        x = save('first')\n    return x\n"
SECOND = FIRST.replace("first", "another")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that has been imported from a file with the text FIRST."""
    name = f"edited_{tmp_path.name}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / f"{name}.py").write_text(FIRST)
    yield importlib.import_module(name)
    del sys.modules[name]


def _edit(module: types.ModuleType, text: str) -> None:
    path = Path(str(module.__file__))
    path.write_text(text)
    ahead = os.stat(path).st_mtime + 5  # file systems keep whole seconds
    os.utime(path, (ahead, ahead))


def _call(function: Any) -> Any:
    from nnsight.capture.saving import save

    return function(Trace, save)


def test_a_reloaded_module_runs_its_new_code(module: types.ModuleType):
    assert _call(module.case) == "first"
    _edit(module, SECOND)
    importlib.reload(module)
    assert _call(module.case) == "another"


def test_a_function_whose_file_has_changed_says_so(module: types.ModuleType):
    old = module.case
    _edit(module, SECOND)
    with pytest.raises(WithBlockNotFoundError, match=r"line 2: the file has changed.*reload") as no:
        _call(old)
    assert "model.run(x, fn)" in str(no.value)
    importlib.reload(module)
    assert _call(module.case) == "another"
    with pytest.raises(WithBlockNotFoundError, match="the file has changed"):
        _call(old)


def test_a_function_that_has_run_before_goes_on_with_the_code_that_it_is(module: types.ModuleType):
    old = module.case
    assert _call(old) == "first"
    _edit(module, SECOND)
    assert _call(old) == "first"


@pytest.mark.parametrize(
    "text",
    [
        FIRST,
        FIRST + "\n\ndef more():\n    pass\n",
        FIRST.replace("def case", "def case"),
        "x = 1".replace("x = 1", "") + FIRST,
    ],
)
def test_a_change_elsewhere_in_the_file_is_none(module: types.ModuleType, text: str):
    _edit(module, text)
    assert _call(module.case) == "first"


@pytest.mark.parametrize(
    "text",
    [
        "\n" + FIRST,
        FIRST.replace("        x", "        y = 1\n        x"),
        FIRST.replace("'first'", "'fIrst'"),
        FIRST.replace("with trace()", "with (trace())"),
        "x = (\n" + FIRST,
        "",
    ],
)
def test_a_change_that_counts_is_told(module: types.ModuleType, text: str):
    _edit(module, text)
    with pytest.raises(WithBlockNotFoundError, match=r"the file has changed|is not available"):
        _call(module.case)


def test_a_file_that_is_gone_says_so(module: types.ModuleType):
    Path(str(module.__file__)).unlink()
    with pytest.raises(WithBlockNotFoundError, match=r"is not available.*model\.run\(x, fn\)"):
        _call(module.case)


# --- texts without a file -------------------------------------------------------------------------


def _execute(text: str, filename: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(text, filename, "exec"), namespace)
    return namespace["case"]


def test_a_text_that_linecache_knows():
    linecache.cache["<known>"] = (len(FIRST), None, FIRST.splitlines(True), "<known>")
    assert _call(_execute(FIRST, "<known>")) == "first"


@pytest.mark.parametrize("filename", ["<string>", "<stdin>", "<frozen x>", "nowhere.py"])
def test_a_text_that_nobody_knows(filename: str):
    with pytest.raises(WithBlockNotFoundError, match=r"is not available.*model\.run\(x, fn\)"):
        _call(_execute(FIRST, filename))


def test_the_text_of_another_string_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", SECOND])
    with pytest.raises(WithBlockNotFoundError, match="is not available"):
        _call(_execute(FIRST, "<string>"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", FIRST])
    assert _call(_execute(FIRST, "<string>")) == "first"


def test_a_loader_that_knows_the_text():
    class Loader:
        def get_source(self, name: str) -> str:
            return FIRST if name == "packed" else ""

    namespace: dict[str, Any] = {"__name__": "packed", "__loader__": Loader()}
    exec(compile(FIRST, "/packed.egg/packed.py", "exec"), namespace)
    assert _call(namespace["case"]) == "first"


# --- cells ----------------------------------------------------------------------------------------

SHELL = """
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell(config=config)
result = []

def cell(text):
    done = shell.run_cell(text, silent=True)
    done.raise_error()

with record.tracing(record.Captured, record.saving.save):
"""


@pytest.fixture
def cells(python_c: Callable[[str], Any]) -> Callable[..., Any]:
    """Run texts as cells of one notebook; what they put into the list `out` comes back."""
    pytest.importorskip("IPython")

    def run(*texts: str) -> Any:
        lines = [f"    cell({text!r})\n" for text in ("out = []", *texts)]
        return python_c(SHELL + "".join(lines) + "result = shell.user_ns['out']\n")

    return run


CELL = """
def case():
    with trace():
        x = {!r}
    return x
out.append(case())
old = case
"""


def test_a_cell_that_was_edited_and_run_again(cells: Callable[..., Any]):
    again = "out.append(old())\n"
    longer = "# a line more\n" + CELL.format("second")
    assert cells(CELL.format("first"), CELL.format("second"), longer, again) == [
        *("first", "second", "second", "second")
    ]


def test_an_old_function_keeps_its_code(cells: Callable[..., Any]):
    first = CELL.format("first") + "first = case\n"
    assert cells(first, CELL.format("second"), "out.append(first())") == [
        "first",
        "second",
        "first",
    ]


def test_the_same_cell_run_twice_reads_new_values(cells: Callable[..., Any]):
    cell = "with trace():\n    x = n\n    y = x\nout.append(y)\n"
    assert cells("n = 1", cell, "n = 2", cell, "del x", cell) == [1, 2, 2]


@pytest.mark.parametrize("ending", ["", "x\n", "out.append(x)\n"])
def test_a_timed_cell(cells: Callable[..., Any], ending: str):
    cell = "%%time\nwith trace():\n    x = [1]\n" + ending
    assert cells(cell, "out.append(x)")[-1] == [1]


def test_a_function_in_a_timed_cell(cells: Callable[..., Any]):
    first = "%%time\n" + CELL.format("first") + "kept = case\n"
    second = "%%time\nx = 1\n" + CELL.format("second") + "x\n"
    assert cells(first, second) == ["first", "second"]


def test_a_function_of_an_earlier_timed_cell_has_no_text(cells: Callable[..., Any]):
    first = "%%time\ndef early():\n    with trace():\n        x = 'first'\n    return x\n"
    second = (
        "%%time\ndef other():\n    with trace():\n        x = 'second'\n    return x\n"
        "try:\n    early()\nexcept Exception as error:\n    out.append(str(error))\n"
    )
    assert "is not available" in cells(first, second)[0]
