"""A block that one Python took up runs in another: a client on 3.10 and a server on 3.13 agree.

Without torch, on the Pythons of this machine, as `test_all_pythons.py`. The whole way, with a model
and a server, is `python -m tests.remote.between`, for machines that have torch for two of them.
"""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import pythons

BETWEEN = str(Path(__file__).with_name("between.py"))
OLDEST, NEWEST = pythons.SUPPORTED[0], pythons.SUPPORTED[-1]
PAIRS = [(OLDEST, NEWEST), (NEWEST, OLDEST), (pythons.RUNNING, NEWEST), (OLDEST, pythons.RUNNING)]


def _run(version: tuple[int, int], word: str, given: str = "") -> dict[str, Any]:
    done = subprocess.run(
        [pythons.found()[version], BETWEEN, word],
        input=given,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@lru_cache
def _written(version: tuple[int, int]) -> dict[str, Any]:
    return _run(version, "write")


def _pair(one: tuple[int, int], other: tuple[int, int]) -> Any:
    name = "-".join(".".join(map(str, version)) for version in (one, other))
    absent = {one, other} - pythons.found().keys()
    marks = pytest.mark.skipif(bool(absent), reason=f"no Python {absent} here")
    return pytest.param(one, other, marks=marks, id=name)


@pytest.mark.parametrize(("one", "other"), [_pair(*pair) for pair in dict.fromkeys(PAIRS)])
def test_what_one_python_writes_does_the_same_in_another(
    one: tuple[int, int], other: tuple[int, int]
):
    sent = _written(one)
    there = _run(other, "read", json.dumps(sent))
    assert len(there["gives"]) == 5
    assert there["gives"] == sent["gives"]
    assert there["code"] == [code["gives"] for code in sent["code"]]
