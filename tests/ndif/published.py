"""Start our server, and let the published nnsight 0.8.1 run the blocks of `cases.py` on it.

    python tests/ndif/published.py PYTHON [CASE...]

PYTHON is that of a venv with `nnsight==0.8.1` and `transformers==5.15.0`, apart from this package.
With the Python that has this package, our client speaks NDIF 0.8 to our server.
Not part of the suite: that venv is not there everywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(python: str, names: list[str]) -> int:
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.conftest import make_gpt2_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_gpt2_folder(folder / "gpt2", layers=2, width=16)
        output = folder / "server.txt"
        os.environ["OMP_NUM_THREADS"] = "1"  # or sums differ in their last bit
        words = ("-m", "nnsight", "serve", str(folder / "gpt2"), "--port", "0")
        with output.open("wb") as file:
            options = ("--data", str(folder / "data"))
            server = subprocess.Popen([sys.executable, *words, *options], stdout=file, stderr=file)
        try:
            url = None
            while url is None and server.poll() is None:
                url = re.search(r"(http://127\.0\.0\.1:\d+)", output.read_text())
            assert url is not None, output.read_text()
            env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            if python == sys.executable:
                env = dict(os.environ)
            client = [python, str(HERE / "client.py"), "gpt2", url[1], *names]
            return subprocess.run(client, cwd=folder, env=env).returncode
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
