"""A server, or the process of a model, that dies or stands still at each state of a job."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.server.running import Server, the_next_job_runs

Serve = Callable[..., Server]
STATES = ("RECEIVED", "DEPLOYING", "DISPATCHED", "RUNNING", "LOG", "COMPLETED")
MOMENTS = [(when, status) for status in STATES for when in ("before", "after")]
"""In the order in which they come."""
TOLD = [("before", "RECEIVED"), ("before", "COMPLETED"), *(("after", one) for one in STATES)]
"""Those at which somebody is told something, and the two that nobody was told of."""


def send(server: Server, code: str, token: str) -> str | None:
    """The id of the job, if the server lives to say it."""
    with contextlib.suppress(requests.RequestException):
        return server.send(code, Idempotency_Key=token)
    return None


def one_job(server: Server, runs: Path) -> list[dict]:
    """How the one job of this server ended, sent again for as long as nobody answers."""
    code = (
        f"open({str(runs)!r}, 'a').write('x'); say('line\\n');"
        "import time; time.sleep(0.2); result = b'done'"
    )
    token = str(uuid.uuid4())
    job = send(server, code, token)
    if server.data.with_suffix(".struck").exists() or job is None:
        _start_again(server)
    if job is None:
        job = send(server, code, token)
    assert job is not None
    with contextlib.suppress(requests.RequestException, AssertionError):
        return server.events(job)
    _start_again(server)
    return server.events(job)


def _start_again(server: Server) -> None:
    """If it was killed."""
    with contextlib.suppress(Exception):
        server.process.wait(0.2)
    if server.process.poll() is not None:
        server.start()


def check(server: Server, runs: Path, whether: str) -> None:
    """One job, at most one run, one end, its files as its end says, and a clean next job."""
    events = one_job(server, runs)
    assert server.data.with_suffix(".struck").exists(), "the moment never came"
    assert len(server.get("/jobs").json()) == 1, "it is another job"
    last = events[-1]
    if last["status"] == "COMPLETED":
        assert server.get(last["data"]["url"]).content == b"done" and runs.read_text() == "x"
    else:
        assert last["meta"]["error"]["type"] == "Interrupted", last
        assert not runs.exists() or runs.read_text() == "x"
    assert whether in (last["status"], "either")
    assert not list((server.data / "requests").iterdir())
    the_next_job_runs(server)


@pytest.mark.parametrize("when, status", TOLD)
def test_the_server_is_killed(serve: Serve, tmp_path: Path, when: str, status: str):
    """What had been given to the model is interrupted, unless its end was noted; all else runs."""
    begun = MOMENTS.index(("after", "DISPATCHED"))
    ended = MOMENTS.index(("after", "COMPLETED"))
    ends = "ERROR" if begun <= MOMENTS.index((when, status)) < ended else "COMPLETED"
    server = serve("--strike", f"server:{when}:{status}", "--load", "load_slowly")
    check(server, tmp_path / "runs", ends)


@pytest.mark.parametrize(
    "who, when, status",
    [("worker", *moment) for moment in TOLD[1:]] + [("stopped", "after", "RUNNING")],
)
def test_the_process_of_the_model_is_lost(
    serve: Serve, tmp_path: Path, who: str, when: str, status: str
):
    """What it had begun is interrupted, as nobody knows what was done; all else runs next."""
    begun = MOMENTS.index(("before", "RUNNING"))
    ended = MOMENTS.index(("before", "COMPLETED"))
    ends = "ERROR" if begun <= MOMENTS.index((when, status)) < ended else "COMPLETED"
    server = serve("--strike", f"{who}:{when}:{status}", "--load", "load_slowly", silence=1.0)
    check(server, tmp_path / "runs", ends)
