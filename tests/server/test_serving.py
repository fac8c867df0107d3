"""A server with an engine that does what the test says: what cannot be seen from outside."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnsight.remote.messages import Event
from nnsight.server import serving
from nnsight.server.engine import Ended, Hearer, State, Task
from nnsight.server.errors import End
from nnsight.server.files import Folder
from nnsight.server.limits import Limits
from nnsight.server.naming import Served
from nnsight.server.serving import Serving
from nnsight.server.store import Job, Store


class Double:
    """An engine whose tasks are functions of the test."""

    def __init__(self, act: Callable[[Task, Hearer], Any]) -> None:
        self.act, self.ran = act, []

    def open(self) -> None: ...

    async def ready(self, model: str, key: str) -> bool:
        return True

    async def run(self, task: Task, hear: Hearer) -> Ended:
        self.ran.append(task.job)
        hear.began()
        return self.act(task, hear) or Ended()

    def stop(self, job: str, why: End) -> None: ...

    def state(self, model: str) -> State:
        return State("ready")

    async def close(self) -> None: ...


def play(path: Path, engine: Double, scene: Callable[[Serving], Any]) -> dict[str, list[Event]]:
    """Run a scene with a server; the events of each job."""

    async def living() -> dict[str, list[Event]]:
        folder = Folder(path)
        server = Serving(folder, Store(folder.database), engine, [Served("m")], Limits())
        server.open()
        await asyncio.wait_for(scene(server), 20)
        await server.close()
        events = {id: server.store.events(id) for id in server.store.all_ids()}
        server.store.close()
        return events

    return asyncio.run(living())


JOB = Job("", "k", "m", "nnsight/1", "", None, 1, "", time.time(), None)


def job(server: Serving, id: str, key: str = "k") -> Job:
    server.folder.request(id).write_bytes(b"1")
    return server.submit(replace(JOB, id=id, key=key))


async def ended(server: Serving, *ids: str) -> None:
    while not all((found := server.store.job(id)) and found.ended for id in ids):
        await asyncio.sleep(0.01)


def test_an_end_is_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    append, refusals = Store.append, []

    def full(self: Store, job: str, status: str, *rest: Any) -> bool:
        if status in ("LOG", "COMPLETED") and len(refusals) < 3:
            refusals.append(status)
            raise sqlite3.OperationalError("database or disk is full")
        return append(self, job, status, *rest)

    monkeypatch.setattr(Store, "append", full)
    monkeypatch.setattr(serving, "PAUSE", 0.05)

    async def scene(server: Serving) -> None:
        job(server, "a")
        job(server, "b")
        await ended(server, "a", "b")

    events = play(tmp_path, Double(lambda task, hear: hear.said("lost", "\n")), scene)
    assert refusals == ["LOG", "COMPLETED", "COMPLETED"]
    assert [e.status for e in events["a"]][-1] == "COMPLETED"
    assert [e.status for e in events["b"]][-2:] == ["LOG", "COMPLETED"]


def test_a_database_that_may_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """SQLite's own refusal, in the middle of a job: its end is written when there is room again."""
    monkeypatch.setattr(serving, "PAUSE", 0.05)

    async def scene(server: Serving) -> None:
        execute = server.store.base.execute

        def fill(task: Task, hear: Hearer) -> None:
            execute(f"PRAGMA max_page_count = {execute('PRAGMA page_count').fetchone()[0]}")
            with pytest.raises(sqlite3.OperationalError, match="full"):
                while True:
                    server.store.append(task.job, "LOG", "x")
            hear.said("lost", "\n")
            with pytest.raises(sqlite3.OperationalError, match="full"):
                server.store.add(replace(JOB, id="b", session="s" * 10_000), "", "")

        engine.act = fill
        job(server, "a")
        await asyncio.sleep(0.3)
        found = server.store.job("a")
        assert found is not None and found.ended is None and server.store.job("b") is None
        execute("PRAGMA max_page_count = 1000000")
        await ended(server, "a")

    engine = Double(lambda task, hear: None)
    events = play(tmp_path, engine, scene)["a"]
    assert events[-1].status == "COMPLETED" and "lost" not in [e.description for e in events]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


def test_a_cancelled_job_stays_cancelled_however_it_ends(tmp_path: Path):
    async def scene(server: Serving) -> None:
        def cancel(task: Task, hear: Hearer) -> None:
            assert server.cancel(server.store.job(task.job))  # type: ignore[arg-type] # it is there
            hear.said("too late", "\n")

        engine.act = cancel
        job(server, "a")
        await ended(server, "a")
        engine.act = lambda task, hear: None
        job(server, "b")
        await ended(server, "b")

    engine = Double(lambda task, hear: None)
    events = play(tmp_path, engine, scene)
    assert [e.status for e in events["a"]][-1] == "ERROR" and engine.ran == ["a", "b"]
    assert "too late" not in [e.description for e in events["a"]]


def test_those_who_wait_hear_where_they_are(tmp_path: Path):
    async def scene(server: Serving) -> None:
        hold.clear()
        for id in "abc":
            job(server, id)
        await asyncio.sleep(0.5)
        hold.set()
        await ended(server, "a", "b", "c")

    class Slow(Double):
        async def run(self, task: Task, hear: Hearer) -> Ended:
            await hold.wait()
            return await super().run(task, hear)

    hold = asyncio.Event()
    events = play(tmp_path, Slow(lambda task, hear: None), scene)
    told = [e.description for e in events["c"] if e.status == "QUEUED"]
    assert told[:2] == ["Added to queue at position 3.", "Moved to position 2 in queue."]
