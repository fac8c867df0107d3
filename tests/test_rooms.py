"""The house: order of the rooms, lint, format and types, as configured in `pyproject.toml`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
    "room order": [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS.keys())
def test_the_house_is_in_order(command: list[str]):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
