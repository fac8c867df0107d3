"""Runs the constructs in all places, each place in a process of its own, two at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jobs

AT_ONCE = 2  # processes


class Reports:
    """What the constructs came to in every place that a file of tests asks for."""

    def __init__(self, wanted: list[str], folder: Callable[[str], Path]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._futures: dict[str, Future[dict[str, Any]]] = {
            name: self._pool.submit(jobs.JOBS[name], folder(name)) for name in wanted
        }

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._futures[name].result(timeout=170)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture(scope="module")
def reports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reports]:
    here = [item for item in request.session.items if item.path == request.path]
    specs = [getattr(item, "callspec", None) for item in here]
    wanted = [str(spec.params["job"]) for spec in specs if spec and "job" in spec.params]
    found = Reports(list(dict.fromkeys(wanted)), tmp_path_factory.mktemp)
    yield found
    found.close()


@pytest.fixture
def python_c(tmp_path: Path) -> Callable[..., Any]:
    """Run a text in a fresh interpreter without torch; what it calls `result` comes back."""
    here = Path(__file__).resolve().parent

    def run(text: str, python: str = sys.executable) -> Any:
        script = tmp_path / "script.py"
        head = f"import sys; sys.path.insert(0, {str(here)!r}); import record\n"
        tail = "\nimport json\nprint('RESULT' + json.dumps(result))\n"
        script.write_text(head + text + tail)
        done = subprocess.run(
            [python, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("RESULT")[2])

    return run
