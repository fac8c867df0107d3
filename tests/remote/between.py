"""`python -m tests.remote.between CLIENT SERVER`: blocks from one Python beside a model in another.

CLIENT and SERVER are interpreters with torch and the extras `server` and `test`, for instance of
Python 3.10 and 3.13. What each block of `test_law.py` and some random programs do there is held to
what they do in CLIENT alone: values to the last bit, prints, warnings, errors.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nnsight.remote.environment import remote_env
from tests.benchmarks.remote import serving

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = 100
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    "OMP_NUM_THREADS": "1",  # with more of them, sums differ in their last digits
    "MKL_NUM_THREADS": "1",
    "NNSIGHT_REMOTE_LOGGING": "0",
    "HF_HUB_OFFLINE": "1",
}


def main(client: str, server: str) -> int:
    os.environ.update(ENVIRONMENT)
    word = [client, "-m", "tests.remote.between"]
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([*word, "--make", place], check=True, cwd=ROOT)
        law, random = Path(place) / "law", Path(place) / "random"
        with serving(law, server) as one, serving(random, server) as other:
            return subprocess.run([*word, "--run", place, one, other], cwd=ROOT).returncode


# --- in the client's Python -----------------------------------------------------------------------


def make(place: Path) -> None:
    """The models, as folders."""
    from tests.behaviour.fuzz.verbs.subjects import gpt2
    from tests.conftest import make_gpt2_folder

    make_gpt2_folder(place / "law", layers=3)
    gpt2().envoy._module.float().save_pretrained(place / "random")


def run(place: Path, law: str, random: str) -> int:
    import torch

    torch.set_num_threads(1)
    count = wrong = 0
    for name, found in (*of_the_law(place / "law", law), *of_programs(place / "random", random)):
        count += 1
        if found:
            wrong += 1
            print("\n".join([name, *found]))
    server = remote_env(law)["python_version"].split()[0]
    print(f"from Python {platform.python_version()} to {server}: {count} programs, {wrong} wrong")
    return 1 if wrong else 0


def of_the_law(folder: Path, host: str) -> Iterator[tuple[str, list[str]]]:
    """What each block of the law does there that it does not do here."""
    from nnsight import LanguageModel
    from tests.remote import test_law
    from tests.remote.through import outcome

    model = LanguageModel(folder, dispatch=True)
    for block in test_law.BLOCKS:
        code = block.__code__  # type: ignore[attr-defined]
        at = code.co_filename, code.co_firstlineno
        here = outcome(lambda b=block: b(model, {}), *at)
        there = outcome(lambda b=block: b(model, {"remote": host}), *at)
        yield block.__name__, there.differences(here)  # type: ignore[attr-defined]


def of_programs(folder: Path, host: str) -> Iterator[tuple[str, list[str]]]:
    """The same of random programs."""
    from nnsight import LanguageModel
    from tests.remote.test_random import differences

    model = LanguageModel(folder, dispatch=True)
    for seed in range(PROGRAMS):
        yield f"seed {seed}", differences(seed, model, {"remote": host})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.remote.between")
    parser.add_argument("pythons", nargs="*", metavar="CLIENT SERVER")
    parser.add_argument("--make", metavar="FOLDER")
    parser.add_argument("--run", nargs=3, metavar=("FOLDER", "LAW", "RANDOM"))
    given = parser.parse_args()
    if given.make:
        make(Path(given.make))
    elif given.run:
        sys.exit(run(Path(given.run[0]), *given.run[1:]))
    else:
        sys.exit(main(*given.pythons))
