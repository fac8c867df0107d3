"""The Python interpreters of this machine.

Looked for by name on PATH and in pyenv's folder of versions. NNSIGHT_TEST_PYTHONS, a list of paths
like PATH, is looked at first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

SUPPORTED = ((3, 10), (3, 11), (3, 12), (3, 13))
RUNNING = sys.version_info[:2]


def _candidates() -> Iterator[str]:
    yield sys.executable
    yield from filter(None, os.environ.get("NNSIGHT_TEST_PYTHONS", "").split(os.pathsep))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for major, minor in SUPPORTED:
        yield from map(str, sorted(pyenv.glob(f"{major}.{minor}.*/bin/python"), reverse=True))
        yield from filter(None, [shutil.which(f"python{major}.{minor}")])


def _version(python: str) -> tuple[int, int] | None:
    """The version of an interpreter; None if it does not start (pyenv's shims may not)."""
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-c", ask], capture_output=True, timeout=20)
        major, minor = map(int, done.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return major, minor


@lru_cache(maxsize=1)
def found() -> dict[tuple[int, int], str]:
    """One interpreter of each supported version, as far as there is one. This one always."""
    pythons = {RUNNING: sys.executable}
    for python in _candidates():
        if len(pythons) < len({*SUPPORTED, RUNNING}) and python not in pythons.values():
            version = _version(python)
            if version in SUPPORTED:
                pythons.setdefault(version, python)
    return pythons


def with_monitoring() -> str | None:
    """An interpreter that has `sys.monitoring`: 3.12 or newer."""
    return next((python for version, python in found().items() if version >= (3, 12)), None)
