"""Where code is written that is sent: cells, `python -c`, packages that go by source."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight
from nnsight.remote import environment
from tests.behaviour.fuzz.wire import Served
from tests.remote.through import ThroughBytes

ROOT = Path(__file__).resolve().parents[2]
START = """
import copy, torch, nnsight
from tests.behaviour.fuzz.wire import Served
from tests.remote.through import ThroughBytes
module = torch.nn.Sequential(torch.nn.Linear(2, 2))
model = Served(module)
backend = ThroughBytes(model, Served(copy.deepcopy(module)))
"""
HELPERS = """
SCALE = 3
def scaled(value, by=2):
    return value * by * SCALE
class Plain:
    by = 1
class Shift:
    def __init__(self, by):
        self.by = by * Plain.by
    def of(self, value):
        return scaled(value) + self.by
shift = Shift(1)
twice = lambda value: value * 2
"""
BLOCK = """
with model.trace(torch.ones(1, 2), backend=backend):
    print("there")
    found = twice(shift.of(model[0].output)).detach().save()
    kind = nnsight.save(type(shift) is Shift)
"""
WRONG = """
with model.trace(torch.ones(1, 2), backend=backend):
    model[0].output.save()
    1 // 0
"""
SHOWS = """
right = (module(torch.ones(1, 2)) * 6 + 1) * 2
result = [backend.trips, bool(torch.equal(found, right)), kind]
"""
TAIL = "\nimport json\nprint('RESULT' + json.dumps(result))\n"
IN_CELLS = """
import sys, linecache, traceback
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for text in {cells!r}:
    done = shell.run_cell(text, store_history=True)
    done.raise_error()
result = shell.user_ns["result"]
wrong = shell.run_cell({wrong!r}, store_history=True)
frames = traceback.extract_tb(wrong.error_in_exec.__traceback__)
result += [type(wrong.error_in_exec).__name__, [f.line for f in frames if f.line][-1]]
"""


def run(text: str, *words: str) -> Any:
    """What a program calls `result`."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, *words, text + TAIL],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "there\n" in done.stdout
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_python_c():
    assert run(START + HELPERS + BLOCK + SHOWS, "-c") == [1, True, True]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_cells_of_a_notebook():
    cells = [START, HELPERS, BLOCK, SHOWS]
    trips, right, kind, error, line = run(IN_CELLS.format(cells=cells, wrong=WRONG), "-c")
    assert (trips, right, kind) == (1, True, True)
    assert (error, line) == ("ZeroDivisionError", "1 // 0")


# --- modules ------------------------------------------------------------------------------------


@pytest.fixture
def sides() -> tuple[Any, dict[str, Any]]:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model = Served(module)
    return model, {"backend": ThroughBytes(model, Served(copy.deepcopy(module)))}


PACKAGE = {
    "__init__.py": "from installed_here.parts import half\nHOW = 'by source'\n",
    "parts.py": "from . import deep\ndef half(value):\n    return deep.part(value, 2)\n",
    "deep.py": "def part(value, count):\n    return value / count\n",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package that is installed on this side."""
    folder = tmp_path / "site-packages" / "installed_here"
    folder.mkdir(parents=True)
    for name, text in PACKAGE.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(environment, "_registered", set())
    import installed_here  # type: ignore[import-not-found]

    yield installed_here
    for name in [name for name in sys.modules if name.partition(".")[0] == "installed_here"]:
        del sys.modules[name]


def test_a_package_that_is_registered_goes_by_source(installed: Any, sides: Any):
    model, at = sides
    names: dict[str, Any] = {}

    def halved() -> Any:
        with model.trace(torch.ones(1, 2), **at):
            out = installed.half(model[0].output).detach().save()
            where = nnsight.save(installed.parts.deep.__file__)
        names["where"] = where
        return out

    right = model._module(torch.ones(1, 2)) / 2
    nnsight.register(installed)
    assert torch.equal(halved(), right)
    for part in ("", ".parts", ".deep"):  # what is here is as it was
        assert sys.modules[f"installed_here{part}"].__name__ == f"installed_here{part}"
    assert sys.modules["installed_here"] is installed
    assert names["where"].endswith("deep.py")


def test_a_package_that_is_not_registered_is_named_among_what_is_needed(
    installed: Any, sides: Any, monkeypatch: pytest.MonkeyPatch
):
    from nnsight.remote import payload

    model, at = sides
    found: dict[str, str] = {}
    write = payload.write

    def watched(*given: Any) -> Any:
        request = write(
            *given,
        )
        found.update(request.imported)
        return request

    monkeypatch.setattr(payload, "write", watched)
    monkeypatch.setattr(environment, "is_local", lambda module: False)
    at["backend"].is_local = lambda module: False
    with model.trace(torch.ones(1, 2), **at):
        installed.half(model[0].output).save()
    assert found["installed_here"] == "installed"
