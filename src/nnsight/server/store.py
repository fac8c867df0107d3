"""Jobs and their logs in SQLite: what a server knows, whatever is killed when.

A job is a row, and each of its states a row of an append-only log. The database itself refuses a
second terminal event of a job, and any event after it. All is done on one thread; a statement takes
some ten microseconds. The log is written ahead (WAL): killing the server loses nothing. A new job
and an end are on the disk when their methods return, and with them all that came before.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nnsight.remote.messages import ENDS, ERROR, LOG, QUEUED, RECEIVED, Event

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of arrival
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,                        -- the id of who sent it
    model TEXT NOT NULL,
    format TEXT NOT NULL,
    session TEXT NOT NULL,                    -- the WebSocket that hears of it, or ''
    token TEXT,                               -- the sender's Idempotency-Key
    size INTEGER NOT NULL,                    -- bytes of the request
    status TEXT NOT NULL,                     -- of the newest event that is no LOG
    created REAL NOT NULL,
    ended REAL,
    UNIQUE (key, token)
);
CREATE INDEX IF NOT EXISTS jobs_of_key ON jobs (key, ended);
CREATE INDEX IF NOT EXISTS jobs_of_session ON jobs (session);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    status TEXT NOT NULL,
    description TEXT NOT NULL,
    data TEXT, meta TEXT,                     -- JSON
    ts REAL NOT NULL,
    UNIQUE (job, seq)
);
CREATE UNIQUE INDEX IF NOT EXISTS one_end ON events (job) WHERE status IN ('COMPLETED', 'ERROR');
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    trusted INTEGER NOT NULL,
    created REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Job:
    """One request of a client."""

    id: str
    key: str
    model: str
    format: str
    session: str
    token: str | None
    size: int
    status: str
    created: float
    ended: float | None


_JOB = "id, key, model, format, session, token, size, status, created, ended"
_EVENT = "job, seq, status, description, data, meta, ts"


class Store:
    """The database of one server.

    Raises:
        sqlite3.Error: the disk is full, or the file is no database.
    """

    def __init__(self, path: Path) -> None:
        self.base = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        self.base.execute("PRAGMA journal_mode = WAL")
        self.base.execute("PRAGMA synchronous = NORMAL")
        self.base.execute("PRAGMA foreign_keys = ON")
        self.base.executescript(_SCHEMA)
        path.chmod(0o600)

    def close(self) -> None:
        self.base.close()

    @contextmanager
    def _all_or_nothing(self, lasting: bool = False) -> Iterator[None]:
        """A transaction; a lasting one outlives a power cut as soon as it ends."""
        if lasting:
            self.base.execute("PRAGMA synchronous = FULL")
        try:
            self.base.execute("BEGIN IMMEDIATE")
            yield
            self.base.execute("COMMIT")
        except BaseException:
            if self.base.in_transaction:
                self.base.execute("ROLLBACK")
            raise
        finally:
            if lasting:
                self.base.execute("PRAGMA synchronous = NORMAL")

    # --- writing ---------------------------------------------------------------------------------

    def add(self, job: Job, received: str, queued: str) -> bool:
        """A new job with its first two events; False if the sender's token has one already."""
        try:
            with self._all_or_nothing(lasting=True):
                self.base.execute(
                    f"INSERT INTO jobs ({_JOB}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                    (
                        *(job.id, job.key, job.model, job.format, job.session, job.token),
                        *(job.size, RECEIVED, job.created),
                    ),
                )
                self._append(job.id, RECEIVED, received)
                self._append(job.id, QUEUED, queued)
        except sqlite3.IntegrityError:
            return False
        return True

    def append(
        self, job: str, status: str, description: str, data: Any = None, meta: Any = None
    ) -> bool:
        """One more event of a job; False if the job has ended, or is not there."""
        with self._all_or_nothing(lasting=status in ENDS):
            return self._append(job, status, description, data, meta)

    def append_all(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Events of several jobs, each a job, a status and a description, at once."""
        with self._all_or_nothing():
            for job, status, description in rows:
                self._append(job, status, description)

    def _append(
        self, job: str, status: str, description: str, data: Any = None, meta: Any = None
    ) -> bool:
        now = time.time()
        added = self.base.execute(
            f"INSERT INTO events ({_EVENT})"
            " SELECT id, 1 + (SELECT COALESCE(MAX(seq), 0) FROM events WHERE job = id),"
            " ?, ?, ?, ?, ? FROM jobs WHERE id = ? AND ended IS NULL",
            (status, description, _written(data), _written(meta), now, job),
        )
        if not added.rowcount:
            return False
        if status != LOG:
            ended = now if status in ENDS else None
            self.base.execute(
                "UPDATE jobs SET status = ?, ended = ? WHERE id = ?", (status, ended, job)
            )
        return True

    def end_started(self, statuses: tuple[str, ...], description: str, meta: Any) -> list[str]:
        """End the jobs that a dead server left running, and say which."""
        marks = ", ".join("?" * len(statuses))
        with self._all_or_nothing(lasting=True):
            found = self.base.execute(
                f"SELECT id FROM jobs WHERE ended IS NULL AND status IN ({marks})", statuses
            ).fetchall()
            for (job,) in found:
                self._append(job, ERROR, description, meta=meta)
        return [job for (job,) in found]

    def forget(self, before: float) -> list[str]:
        """Drop the jobs that ended before then, and say which."""
        with self._all_or_nothing():
            found = self.base.execute("SELECT id FROM jobs WHERE ended < ?", (before,)).fetchall()
            self.base.executemany("DELETE FROM jobs WHERE id = ?", found)
        return [job for (job,) in found]

    # --- reading ---------------------------------------------------------------------------------

    def job(self, job: str) -> Job | None:
        found = self.base.execute(f"SELECT {_JOB} FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if found is None else Job(*found)

    def sent_as(self, key: str, token: str) -> Job | None:
        """The job that the key sent under this Idempotency-Key."""
        found = self.base.execute(
            f"SELECT {_JOB} FROM jobs WHERE key = ? AND token = ?", (key, token)
        ).fetchone()
        return None if found is None else Job(*found)

    def jobs_of(self, key: str, limit: int = 1000) -> list[Job]:
        """The newest jobs of a key, newest first."""
        found = self.base.execute(
            f"SELECT {_JOB} FROM jobs WHERE key = ? ORDER BY number DESC LIMIT ?", (key, limit)
        )
        return [Job(*row) for row in found]

    def open_jobs(self) -> list[Job]:
        """The jobs that have not ended, in the order of their arrival."""
        found = self.base.execute(f"SELECT {_JOB} FROM jobs WHERE ended IS NULL ORDER BY number")
        return [Job(*row) for row in found]

    def open_count(self, key: str) -> int:
        """How many jobs of a key have not ended."""
        return self.base.execute(
            "SELECT COUNT(*) FROM jobs WHERE key = ? AND ended IS NULL", (key,)
        ).fetchone()[0]

    def events(self, job: str, after: int = 0, limit: int = 256) -> list[Event]:
        """The next events of a job past a cursor."""
        found = self.base.execute(
            f"SELECT {_EVENT} FROM events WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?",
            (job, after, limit),
        )
        return [_event(row) for row in found]

    def session_events(
        self, session: str, key: str, after: int, limit: int = 256
    ) -> list[tuple[int, Event]]:
        """The next events of all jobs of a session past a cursor, each with its cursor."""
        found = self.base.execute(
            f"SELECT number, {_EVENT} FROM events WHERE number > ? AND job IN"
            " (SELECT id FROM jobs WHERE session = ? AND key = ?) ORDER BY number LIMIT ?",
            (after, session, key, limit),
        )
        return [(row[0], _event(row[1:])) for row in found]

    def latest(self, job: str) -> Event | None:
        """The newest event of a job that is no LOG."""
        found = self.base.execute(
            f"SELECT {_EVENT} FROM events WHERE job = ? AND status != ? ORDER BY seq DESC LIMIT 1",
            (job, LOG),
        ).fetchone()
        return None if found is None else _event(found)

    def counts(self) -> list[tuple[str, str, int]]:
        """How many jobs of each model are in each state."""
        return self.base.execute(
            "SELECT model, status, COUNT(*) FROM jobs GROUP BY model, status"
        ).fetchall()

    def all_ids(self) -> set[str]:
        return {job for (job,) in self.base.execute("SELECT id FROM jobs")}


def _written(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _event(row: tuple[Any, ...]) -> Event:
    job, seq, status, description, data, meta, ts = row
    data, meta = (None if text is None else msgspec.json.decode(text) for text in (data, meta))
    return Event(job, status, description, data, meta, seq, ts)
