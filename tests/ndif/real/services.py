"""The parts of NDIF's server, started one after the other, each waited for until a deadline."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

URL = "http://127.0.0.1:8001"
DASHBOARD = "http://127.0.0.1:8265"
TRIES = 3
"""Ray gives its dashboard 20 s to come up, which a busy machine may not; NDIF needs it."""
RESOURCES = {
    "CPU": 2,
    "GPU": 1,  # there is none; NDIF puts models nowhere else
    "head": 10,
    "cuda_memory_bytes": 4_000_000_000,
    "cpu_memory_bytes": 4_000_000_000,
}


class NotStarted(Exception):
    """A part did not come up; says which, how long it was waited for, and where its words are."""


def start(python: Path, folder: Path) -> None:
    """Start Redis, an S3 stand-in, Ray with NDIF's controller, and NDIF's API.

    Args:
        python: of the venv with NDIF; the link itself, as it says which venv that is.
        folder: for its logs and other files.

    Raises:
        NotStarted: a part did not come up.
    """
    env = _environment(python, folder)
    ndif = str(python.with_name("ndif"))

    def run(*words: str, **more: str) -> None:
        with (folder / "ndif.log").open("ab") as log:
            options: Any = {"env": {**env, **more}, "cwd": folder, "stdout": log, "stderr": log}
            subprocess.run([ndif, *words], timeout=120, **options)

    with (folder / "moto.log").open("wb") as log:
        words = ["-H", "127.0.0.1", "-p", "9000"]
        subprocess.Popen(
            [str(python.with_name("moto_server")), *words], env=env, stdout=log, stderr=log
        )
    _wait("the S3 stand-in (moto_server)", 60, lambda: _listens(9000), folder)
    run("start", "redis")
    _wait("Redis", 30, lambda: _listens(6379), folder)
    settings = folder / "nnsight.yaml"
    settings.write_text("APP:\n  PYMOUNT: false\n")  # with it, no payload over 1 MiB is read
    for left in reversed(range(TRIES)):
        try:
            run("start", "ray")
            _wait("Ray (its client port)", 90, lambda: _listens(10001), folder)
            _wait("Ray's dashboard", 30, lambda: _answers("/api/v0/nodes", DASHBOARD), folder)
            run("start", "api", NNSIGHT_CONFIG=str(settings))
            _wait("NDIF's API", 90, lambda: _answers("/ping"), folder)
            _wait("NDIF's dispatcher", 120, lambda: _answers("/connected"), folder)
            _wait("NDIF's controller", 60, lambda: _answers("/status"), folder)
            return
        except NotStarted as error:
            if not left:
                raise
            print(f"  {str(error).splitlines()[0]} Once more.", flush=True)
            run("stop", "api")
            run("stop", "ray")


def start_ours(model: Path, folder: Path) -> str:
    """Start a server of ours for the same model; its address."""
    output = folder / "ours.log"
    words = ["-m", "nnsight", "serve", str(model), "--port", "0", "--data", str(folder / "ours")]
    with output.open("wb") as log:
        subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)

    def address() -> Any:
        return re.search(r"http://127\.0\.0\.1:\d+", output.read_text())

    _wait("our own server", 60, address, folder)
    return address()[0]


def _environment(python: Path, folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("LANG", "LC_ALL", "TMPDIR", "TZ")}
    return {
        **kept,
        "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parent),  # where `cpu_actor` is
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NDIF_HOME": str(folder / "ndif"),
        "NDIF_RAY_TEMP_DIR": str(folder / "ray"),
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "cpu_actor.CpuModelActor",
        "NDIF_DEFAULT_DTYPE": "float32",
        "NDIF_SANDBOX_POOL_SIZE": "2",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_OVERRIDE_RESOURCES": json.dumps(RESOURCES),
        "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.02",
    }


def _wait(what: str, seconds: float, ready: Callable[[], Any], folder: Path) -> None:
    """See that something is there within a time."""
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > seconds:
            raise NotStarted(f"{what} did not come up in {seconds:.0f} s.\n{last_words(folder)}")
        time.sleep(0.3)
    print(f"  {what}: up after {time.monotonic() - began:.1f} s", flush=True)


def last_words(folder: Path, lines: int = 15) -> str:
    """The ends of the logs."""
    logs = sorted({*folder.glob("*.log"), *folder.glob("ndif/logs/*.log")} - {folder / "ndif.log"})
    ends = (f"--- {log.name}\n" + "\n".join(_end(log, lines)) for log in logs)
    return "\n".join(ends)


def _end(log: Path, lines: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _answers(path: str, host: str = URL) -> bool:
    try:
        answer = requests.get(host + path, timeout=20)
        return answer.ok and bool(answer.json())
    except (OSError, ValueError):
        return False
