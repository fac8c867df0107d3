"""What is shown of a remote job at one moment, and how that reads as one line."""

from __future__ import annotations

import re
from dataclasses import dataclass

COLOURS = {
    "QUEUED": "yellow",
    "PROVISIONING": "yellow",
    "DEPLOYING": "yellow",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "ERROR": "red",
}
_QUIET = frozenset({"RECEIVED", "DISPATCHED", "RUNNING", "COMPLETED", "ERROR"})
# states whose description says no more than the state, or is told by who raises it


@dataclass(frozen=True)
class Transfer:
    """Bytes on their way."""

    verb: str  # "Downloading" or "Uploading"
    done: int
    total: int | None  # None: nobody knows
    seconds: float

    @property
    def fraction(self) -> float | None:
        """How much of it is done, 0 to 1; None if nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    def text(self) -> str:
        """Such as `12.3 of 40.0 MB, 8.1 MB/s`."""
        of = f" of {_size(self.total)}" if self.total else ""
        done = _size(self.done) if not self.total else _size(self.done, _unit(self.total))
        speed = f", {_size(int(self.done / self.seconds))}/s" if self.seconds > 0.5 else ""
        return f"{done}{of}{speed}"


@dataclass(frozen=True)
class Moment:
    """A job at one moment."""

    job: str
    status: str
    detail: str  # what the server says beside the status, in one line; may be empty
    seconds: float  # since the job was sent
    transfer: Transfer | None = None
    others: int = 0  # jobs beside it that are waited for

    @property
    def head(self) -> str:
        """The state in one word."""
        return self.transfer.verb if self.transfer else self.status

    @property
    def colour(self) -> str:
        """The colour of the state; empty for none."""
        return COLOURS.get(self.status, "") if self.transfer is None else "cyan"

    def rest(self) -> str:
        """What stands behind the state: detail, time, job."""
        parts = [self.transfer.text() if self.transfer else self.detail]
        if self.seconds >= 1:
            parts.append(clock(self.seconds))
        if self.job:
            parts.append(f"job {one_line(self.job)}")
        if self.others:
            parts.append(f"and {self.others} more")
        return "  ".join(filter(None, parts))


def detail_of(status: str, description: str) -> str:
    """What a description says beside its status, in few words."""
    if status == "QUEUED" and (place := re.search(r"position (\d+)", description)):
        return f"position {place.group(1)} in the queue"
    return "" if status in _QUIET else one_line(description)


def one_line(text: str) -> str:
    """Text from elsewhere, without line breaks and without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def clock(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


_UNITS = ("B", "kB", "MB", "GB", "TB")


def _unit(size: int) -> int:
    """The unit to write a size in: a power of 1000."""
    power = 0
    while size >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return power


def _size(size: int, like: int | None = None) -> str:
    """A size such as `1.2 MB`; a number alone where the unit is told behind it."""
    power = _unit(size) if like is None else like
    number = f"{size / 1000**power:.1f}" if power else str(size)
    return number if like is not None else f"{number} {_UNITS[power]}"
