"""Start NDIF's own server (PyPI's `ndif` 0.1.2) here, and run our client against it.

    python -m tests.ndif.real --python VENV/bin/python [CASE...]

The Python that runs this has our package. VENV has NDIF, with a Python of 3.12:

    python3.12 -m venv VENV
    VENV/bin/pip install torch==2.13.0 nnsight==0.8.0 transformers==5.15.0
    VENV/bin/pip install "ndif[api,ray]==0.1.2" "moto[server]"
    apt-get install redis-server iproute2 util-linux

No GPU and no network are needed. All runs in namespaces of its own, with nothing but a loopback and
with process ids that end with this process, so nothing that it started can remain. It takes about
1 GB of memory for each of Ray, the model and the processes for blocks that are not trusted, and
some minutes. Not part of the suite, as VENV is large; the figures of its last run are in
`docs/ndif.md`.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INSIDE = "NNSIGHT_TESTS_NAMESPACE"
"""The folder of this run, for the process within the namespaces."""


def main(python: Path, names: list[str]) -> int:
    if inside := os.environ.pop(INSIDE, None):
        return run(python, Path(inside), names)
    for program in (python, python.with_name("ndif"), python.with_name("moto_server")):
        if not program.exists():
            raise SystemExit(f"{program} is not there. How to make that venv:\n{__doc__}")
    with tempfile.TemporaryDirectory(prefix="ndif-") as folder:
        words = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
        if os.geteuid():
            words += ["--user", "--map-root-user"]
        words += [sys.executable, "-m", "tests.ndif.real", "--python", str(python), *names]
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, INSIDE: folder})
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 130
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the namespaces of `unshare` and all that runs in them, and see that it has ended."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        firsts = [os.pidfd_open(int(child)) for child in children]
    except OSError:  # it has ended by itself
        firsts = []
    process.kill()
    process.wait()
    for first in firsts:  # the first process of a namespace is gone when all others are
        select.select([first], [], [], 60)
        os.close(first)


def run(python: Path, folder: Path, names: list[str]) -> int:
    """What is done within the namespaces."""
    from tests.conftest import make_gpt2_folder
    from tests.ndif.real import services

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=paths)
    model = make_gpt2_folder(folder / "gpt2", layers=2, width=16)
    try:
        services.start(python, folder)
        ours = services.start_ours(model, folder)
    except services.NotStarted as error:
        print(error)
        return 1
    words = ["-m", "tests.ndif.real.compare", str(model), services.URL, ours, *names]
    failed = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if failed:
        print(services.last_words(folder, lines=40))
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", required=True, type=Path, help="of the venv that has NDIF")
    parser.add_argument("cases", nargs="*", help="of cases.py and extra.py; all if none is named")
    given = parser.parse_args()
    sys.exit(main(given.python.absolute(), given.cases))
