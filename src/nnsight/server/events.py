"""The states of a job, as the rows of its log and as the lines that a client reads."""

from __future__ import annotations

from typing import Any

import msgspec

RECEIVED, QUEUED, DEPLOYING = "RECEIVED", "QUEUED", "DEPLOYING"
DISPATCHED, RUNNING, LOG = "DISPATCHED", "RUNNING", "LOG"
COMPLETED, ERROR = "COMPLETED", "ERROR"

STARTED = (DISPATCHED, RUNNING)
"""States of a job that may have run some of its block: it is never run a second time."""
TERMINAL = (COMPLETED, ERROR)
"""A job has one event of these, the last of its log."""


class Event(msgspec.Struct, frozen=True):
    """One row of a job's log."""

    id: str  # the job
    seq: int  # 1, 2, 3, ... within the job: the cursor of who reads
    status: str
    description: str
    data: Any = None
    meta: Any = None
    ts: float = 0.0  # seconds since 1970

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


def line(event: Event) -> bytes:
    """The event as a line of an event stream."""
    return msgspec.json.encode(event) + b"\n"
