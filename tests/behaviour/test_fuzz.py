"""Random programs beside random models: no hang, nothing left behind, every value as the oracle's.

`NNSIGHT_FUZZ=20000 pytest tests/behaviour/test_fuzz.py` runs more of them, and
`python -m tests.behaviour.fuzz --kind verbs --first SEED --seeds 1` one. The programs run in
processes of their own, which end themselves with the seed and every stack when a program takes too
long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = int(os.environ.get("NNSIGHT_FUZZ_FIRST", "0"))
ASKED = os.environ.get("NNSIGHT_FUZZ")
SEEDS = {kind: int(ASKED or few) for kind, few in {"blocks": 400, "verbs": 160, "wire": 60}.items()}
PROCESSES = 2
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


def _start(kind: str, first: int, count: int) -> subprocess.Popen[str]:
    given = ["--kind", kind, "--first", str(first), "--seeds", str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.behaviour.fuzz", *given],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(120 + max(SEEDS.values()) // 5)
@pytest.mark.parametrize("kind", SEEDS)
def test_random_programs_do_what_the_oracle_says(kind):
    share = SEEDS[kind] // PROCESSES
    running = [_start(kind, FIRST + n * share, share) for n in range(PROCESSES)]
    try:
        outputs = [process.communicate(timeout=100 + SEEDS[kind] // 5)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    ended = [process.returncode for process in running]
    assert ended == [0] * PROCESSES, "\n".join(outputs)
    assert all(f"{share} seeds" in output for output in outputs), outputs


def test_a_program_that_hangs_is_named():
    code = (
        "import time, tests.behaviour.fuzz.__main__ as fuzz\n"
        "fuzz.LIMIT, fuzz.CHECKS['verbs'] = 0.2, lambda seed: time.sleep(60)\n"
        "fuzz.main(7, 1, 'verbs')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 3
    assert "seed 7 hangs" in done.stderr
    assert "in <lambda>" in done.stderr
