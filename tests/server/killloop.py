"""Kills at random: `python -m tests.server.killloop [JOBS] [SECONDS] [SEED]`.

Clients send jobs while the server, or the process of the model, is killed or stopped at random
moments. In the end each job has exactly one end, each that completed has its own result, each that
had not begun has run, and no job ran twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.server.running import Server, until

KINDS = ("worker", "worker", "worker", "server", "stop")


def loop(jobs: int = 200, seconds: float = 60.0, seed: int = 0) -> dict[str, int]:
    """How many jobs ended how, and how many processes were killed.

    Raises:
        AssertionError: a job was lost, ended twice, ran twice, or has the result of another.
    """
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        runs.mkdir()
        stopped: list[int] = []
        server = Server(Path(folder) / "data", silence=1.5, jobs_per_key=10**6, queue=10**6)
        try:
            with ThreadPoolExecutor(8) as pool:
                sent = [pool.submit(_send, server, runs, i, dice.random()) for i in range(jobs)]
                done = lambda: all(one.done() for one in sent)  # noqa: E731 # said where it is used
                kills = _kill(server, dice, seconds, done, stopped)
                if server.process.poll() is not None:  # killed, and not started again in time
                    server.start()
                ids = [one.result(seconds) for one in sent]
            return {"kills": kills, **_count(server, runs, ids, seconds)}
        finally:
            server.kill()
            for pid in stopped:  # one that was stopped before it could ask to die with its server
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _send(server: Server, runs: Path, number: int, chance: float) -> str:
    """The id of the job that got through, however often it was sent."""
    token = str(uuid.uuid4())
    mine = runs / str(number)
    code = (
        f"import time; open({str(mine)!r}, 'a').write('x'); say('line\\n');"
        f"time.sleep({chance * 0.1}); result = b'{number}'"
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(requests.RequestException, KeyError, AssertionError):
            return server.send(code, Idempotency_Key=token)
        time.sleep(0.05)
    raise AssertionError(f"job {number} did not get through")


def _kill(
    server: Server,
    dice: random.Random,
    seconds: float,
    done: Callable[[], bool],
    stopped: list[int],
) -> int:
    """Kill something every now and then, until all is sent and for some more jobs."""
    end, kills = time.monotonic() + seconds, 0
    while time.monotonic() < end and not (done() and kills >= 12):
        time.sleep(dice.random() * 0.6)
        kind = dice.choice(KINDS)
        with contextlib.suppress(AssertionError, ProcessLookupError, FileNotFoundError):
            if kind == "server":
                server.kill()
                server.start()
            else:
                children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
                for pid in children.read_text().split():
                    os.kill(int(pid), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
                    stopped += [int(pid)] if kind == "stop" else []
            kills += 1
    return kills


def _count(server: Server, runs: Path, ids: list[str], seconds: float) -> dict[str, int]:
    assert len(set(ids)) == len(ids), "two requests became one job"
    until(lambda: not any(_open(server)), lambda: _open(server), seconds)
    count = {"COMPLETED": 0, "ERROR": 0}
    for number, job in enumerate(ids):
        events = server.events(job)  # one end, and no number missing
        last = events[-1]
        count[last["status"]] += 1
        mine = runs / str(number)
        ran = len(mine.read_text()) if mine.exists() else 0
        assert ran <= 1, f"job {number} ran {ran} times"
        if last["status"] == "COMPLETED":
            assert ran == 1 and server.get(last["data"]["url"]).content == str(number).encode()
        else:
            assert last["meta"]["error"]["type"] == "Interrupted", last
            assert "DISPATCHED" in [event["status"] for event in events]
    assert server.run("result = b'last'")["status"] == "COMPLETED"
    assert not list((server.data / "requests").iterdir()), "a request was left"
    return count


def _open(server: Server) -> list[str]:
    return [job["id"] for job in server.get("/jobs").json() if job["ended"] is None]


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    print(loop(*given))
    assert threading.active_count() == 1
