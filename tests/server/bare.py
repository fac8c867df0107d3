"""A server or a worker without torch, which starts in a moment: `python bare.py serve|worker ...`.

The root package is left empty, so that only the room `server` is imported. Its models are those of
`fake.py`, whose requests are Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
empty = types.ModuleType("nnsight")
empty.__path__ = [str(ROOT / "src" / "nnsight")]
sys.modules["nnsight"] = empty


def serve(words: list[str]) -> None:
    from nnsight.server import cli
    from nnsight.server.engine import Plan
    from nnsight.server.limits import Limits

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", default="fake/model")
    parser.add_argument("--limits", default="{}")
    parser.add_argument("--largest-file", type=int, help="bytes; stands for a full disk")
    options = parser.parse_args(words)
    if options.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, options.largest_file))
    limits = dataclasses.replace(Limits(), **json.loads(options.limits))
    command = (str(Path(__file__).resolve()), "worker")
    plans = [
        Plan(name, {}, load="tests.server.fake:load", command=command)
        for name in options.models.split(",")
    ]
    cli.run(plans, limits, options.data, options.host, options.port)


def worker(words: list[str]) -> None:
    from nnsight.server import worker

    worker.start(int(words[0]))


if __name__ == "__main__":
    {"serve": serve, "worker": worker}[sys.argv[1]](sys.argv[2:])
