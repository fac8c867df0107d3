"""The states of a job, as the rows of its log and as the lines that a client reads."""

from __future__ import annotations

import msgspec

from nnsight.remote.messages import RUNNING, Event

DEPLOYING, DISPATCHED = "DEPLOYING", "DISPATCHED"  # beside those of `remote/messages.py`
STARTED = (DISPATCHED, RUNNING)
"""States of a job that may have run some of its block: it is never run a second time."""


def line(event: Event) -> bytes:
    """The event as a line of an event stream."""
    return msgspec.json.encode(event) + b"\n"
