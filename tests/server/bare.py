"""A server or a worker without torch, which starts in a moment: `python bare.py serve|worker ...`.

The root package is left empty, so that only the room `server` is imported. Its models are those of
`fake.py`, whose requests are Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    parser.add_argument("--strike", help="WHO:WHEN:STATUS, as `server:before:COMPLETED`; once")
    parser.add_argument("--load", default="load", help="how `fake.py` loads a model")
    options = parser.parse_args(words)
    if options.strike is not None:
        strike(*options.strike.split(":"), options.data)
    if options.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, options.largest_file))
    limits = dataclasses.replace(Limits(), **json.loads(options.limits))
    command = (str(Path(__file__).resolve()), "worker")
    plans = [
        Plan(name, {}, load=f"tests.server.fake:{options.load}", command=command)
        for name in options.models.split(",")
    ]
    cli.run(plans, limits, options.data, options.host, options.port)


def strike(who: str, when: str, status: str, data: Path) -> None:
    """Kill the server or its workers, or stop these, as a job's first event of a status is written.

    It is done once: a file beside the server's folder says so to the server that is started next.
    """
    from nnsight.server.store import Store

    done = data.with_suffix(".struck")

    def hit() -> None:
        if done.exists():
            return
        done.touch()
        if who == "server":
            os.kill(os.getpid(), signal.SIGKILL)
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL if who == "worker" else signal.SIGSTOP)

    def struck(method: Any, statuses: Callable[..., tuple[str, ...]]) -> Any:
        def call(self: Store, *given: Any) -> Any:
            at = status in statuses(*given)
            if at and when == "before":
                hit()
            result = method(self, *given)
            if at and when == "after":
                hit()
            return result

        return call

    Store.add = struck(Store.add, lambda *_: ("RECEIVED", "QUEUED"))
    Store.append = struck(Store.append, lambda job, status, *_: (status,))


def worker(words: list[str]) -> None:
    from nnsight.server import worker

    worker.start(int(words[0]))


if __name__ == "__main__":
    {"serve": serve, "worker": worker}[sys.argv[1]](sys.argv[2:])
