"""The parts of a server on their own: the log, the queue, and the lines that a block prints."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from nnsight.server.events import STARTED
from nnsight.server.fair import FairQueue
from nnsight.server.prints import LONGEST, Prints
from nnsight.server.store import Job, Store


def job(id: str, key: str = "k", token: str | None = None) -> Job:
    return Job(id, key, "m", "nnsight/1", "", token, 1, "", time.time(), None)


@pytest.fixture
def store(tmp_path: Path):
    store = Store(tmp_path / "server.db")
    yield store
    store.close()


def test_a_job_ends_once(store: Store):
    assert store.add(job("a"), "received", "queued")
    assert store.append("a", "RUNNING", "") and store.append("a", "ERROR", "first")
    for status in ("COMPLETED", "ERROR", "LOG", "QUEUED"):
        assert not store.append("a", status, "second")
    assert [e.seq for e in store.events("a")] == [1, 2, 3, 4]
    assert store.events("a")[-1].description == "first"
    assert not store.append("b", "LOG", "there is no such job")


def test_the_database_itself_refuses_a_second_end(store: Store):
    store.add(job("a"), "received", "queued")
    store.append("a", "COMPLETED", "")
    row = "INSERT INTO events (job, seq, status, description, ts) VALUES ('a', 9, 'ERROR', '', 0)"
    with pytest.raises(sqlite3.IntegrityError):
        store.base.execute(row)


def test_a_token_is_one_job_of_a_key(store: Store):
    assert store.add(job("a", token="t"), "", "")
    assert not store.add(job("b", token="t"), "", "")
    assert store.add(job("c", key="other", token="t"), "", "")
    assert store.add(job("d"), "", "") and store.add(job("e"), "", "")
    assert store.sent_as("k", "t").id == "a"  # type: ignore[union-attr] # it is there
    assert store.job("b") is None and store.events("b") == []


def test_what_was_running_ends_and_what_waited_waits(store: Store):
    for id, status in (("a", "DISPATCHED"), ("b", "RUNNING"), ("c", "QUEUED"), ("d", "DEPLOYING")):
        store.add(job(id), "", "")
        store.append(id, status, "")
        store.append(id, "LOG", "")
    assert store.end_started(STARTED, "interrupted", None) == ["a", "b"]
    assert [one.id for one in store.open_jobs()] == ["c", "d"]
    assert store.end_started(STARTED, "interrupted", None) == []


def test_ended_jobs_are_forgotten_with_their_log(store: Store):
    for id in "ab":
        store.add(job(id), "", "")
    store.append("a", "COMPLETED", "")
    assert store.forget(time.time() + 1) == ["a"]
    assert store.all_ids() == {"b"} and store.events("a") == []


def test_keys_take_turns():
    queue = FairQueue()
    for key, id in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")):
        queue.add(key, id)
    told = list(queue)
    assert told == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [queue.take() for _ in range(len(queue))] == told


@settings(max_examples=60, deadline=None)
@given(some.lists(some.tuples(some.sampled_from("abc"), some.booleans()), max_size=40))
def test_a_queue_loses_nothing(steps: list[tuple[str, bool]]):
    queue, inside, number = FairQueue(), [], 0
    for key, adds in steps:
        if adds or not inside:
            queue.add(key, f"{key}{number}")
            inside.append(f"{key}{number}")
            number += 1
        elif key == "a":
            assert queue.remove(inside.pop(0))
        else:
            expected = next(iter(queue))
            assert queue.next_key() == expected[0] and queue.take() == expected
            inside.remove(expected)
        assert sorted(queue) == sorted(inside) and len(queue) == len(inside)
    assert not queue.remove("nothing")


@settings(max_examples=60, deadline=None)
@given(some.lists(some.text("ab\n", max_size=8)), some.integers(0, 10), some.booleans())
def test_what_is_printed_stays_the_same_however_it_is_written(
    pieces: list[str], lines: int, whole: bool
):
    told: list[tuple[str, str]] = []
    text = "".join(pieces)
    prints = Prints(
        lines + text.count("\n") + 1, 10**6, lambda *line: told.append(line), "rest", whole
    )
    for piece in pieces:
        prints.write(piece)
    prints.end()
    if whole and text and not text.endswith("\n"):
        text += "\n"
    assert "".join(said + end for said, end in told) == text
    assert not any("\n" in said or end not in ("\n", "") for said, end in told)
    assert not (whole and any(not end for _, end in told))


def test_a_line_is_not_told_of_endlessly_often():
    told: list[tuple[str, str]] = []
    prints = Prints(10, 10**6, lambda *line: told.append(line), "rest", whole=False)
    for _ in range(10 + 2 * LONGEST + 5):
        prints.write("x")
    prints.end()
    assert [len(said) for said, _ in told] == [1] * 10 + [LONGEST + 1] * 2 + [3]
    assert not any(end for _, end in told)


def test_what_the_server_says_stands_on_a_line_of_its_own():
    told: list[tuple[str, str]] = []
    prints = Prints(2, 10, lambda *line: told.append(line), "rest", whole=False)
    prints.write("12")
    prints.note("noted")
    prints.write("3\n")
    prints.write("a")
    prints.write("b\n1234567")
    prints.write("more\n")
    prints.end()
    assert told == [
        *(("12", ""), ("", "\n"), ("noted", "\n"), ("3", "\n"), ("a", ""), ("b", "\n")),
        *(("rest", "\n"),),
    ]
