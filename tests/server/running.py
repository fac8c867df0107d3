"""A server in a process of its own, and the small client of these tests: every wait ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

BARE = str(Path(__file__).with_name("bare.py"))
PATIENCE = 20.0
MODEL = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "fake/model"}'
SEND = {"Content-Type": "application/vnd.nnsight.request", "nnsight-model-key": MODEL}
SLEEP = "import time; say('on\\n'); time.sleep(1e9)"
"""A block that does not end by itself."""
TERMINAL = ("COMPLETED", "ERROR")


class Server:
    """`bare.py serve` on a folder; it can be killed and started again."""

    def __init__(self, data: Path, *words: str, **limits: Any) -> None:
        self.data, self.words, self.limits = data, words, limits
        self.headers: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        self.output = self.data.with_suffix(".output")
        words = ("--data", str(self.data), "--limits", json.dumps(self.limits), *self.words)
        with self.output.open("ab") as output:
            began = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, BARE, "serve", *words], stdout=output, stderr=output
            )
        text = until(lambda: self._listening(began), lambda: self.said()[-2000:])
        self.url = text

    def _listening(self, began: int) -> str | None:
        text = self.output.read_bytes()[began:].decode()
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {text}")
        found = re.search(r"listening on (http://\S+)", text)
        return None if found is None else found[1]

    def said(self) -> str:
        return self.output.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    # --- the client ------------------------------------------------------------------------------

    def call(self, method: str, path: str, **given: Any) -> requests.Response:
        headers = {**self.headers, **given.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=PATIENCE, **given)

    def get(self, path: str, **given: Any) -> requests.Response:
        return self.call("GET", path, **given)

    def post(self, code: str | bytes, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = code.encode() if isinstance(code, str) else code
        return self.call("POST", "/request", data=body, headers={**SEND, **named})

    def send(self, code: str | bytes, **headers: str) -> str:
        """The id of a new job."""
        answer = self.post(code, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def follow(self, job: str, after: int = 0) -> Iterator[dict[str, Any]]:
        with self.get(f"/events/{job}?after={after}", stream=True) as answer:
            assert answer.status_code == 200, answer.text
            for line in answer.iter_lines():
                if line:
                    yield json.loads(line)

    def events(self, job: str) -> list[dict[str, Any]]:
        """All events of a job, up to its end; there is exactly one end."""
        events = list(self.follow(job))
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert sum(event["status"] in TERMINAL for event in events) == 1, events
        assert events[-1]["status"] in TERMINAL
        return events

    def run(self, code: str | bytes, **headers: str) -> dict[str, Any]:
        """The last event of a new job."""
        return self.events(self.send(code, **headers))[-1]

    def reach(self, job: str, status: str) -> None:
        """Wait until a job is in a state."""
        until(lambda: self.status(job) == status, lambda: self.status(job))

    def status(self, job: str) -> str:
        return self.get(f"/response/{job}").json()["status"]

    def model(self) -> dict[str, Any]:
        return next(iter(self.get("/status").json()["deployments"].values()))

    def worker(self) -> int:
        """The process of the first model."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(until(lambda: children.read_text().split() or None)[0])


def until(found: Callable[[], Any], what: Callable[[], Any] = lambda: "", limit: float = PATIENCE):
    """What `found` gives as soon as that is something."""
    end = time.monotonic() + limit
    while not (value := found()):
        assert time.monotonic() < end, f"waited for {limit} s: {what()}"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def the_next_job_runs(server: Server) -> None:
    last = server.run("result = b'next'")
    assert last["status"] == "COMPLETED", last
