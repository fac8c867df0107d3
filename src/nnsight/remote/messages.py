"""What a server and a client tell each other, beside the blocks and values themselves."""

from __future__ import annotations

from typing import Any

import msgspec

RECEIVED, QUEUED, RUNNING, LOG = "RECEIVED", "QUEUED", "RUNNING", "LOG"
COMPLETED, ERROR = "COMPLETED", "ERROR"
ENDS = frozenset({COMPLETED, ERROR})


class Event(msgspec.Struct, omit_defaults=True):
    """One line of a job's log: a state that it is in, or something that its block printed."""

    id: str = ""
    status: str = ""
    description: str = ""
    data: Any = None
    meta: Any = None
    seq: int = 0
    ts: float = 0.0

    @property
    def ends(self) -> bool:
        """Whether nothing comes after it."""
        return self.status in ENDS

    @property
    def printed(self) -> str:
        """What a LOG stands for: its text, and a newline unless it says that there is none."""
        end = self.meta.get("end") if isinstance(self.meta, dict) else None
        if not isinstance(end, str):  # NDIF's format has no way to say it
            end = "" if self.description.endswith("\n") else "\n"
        return self.description + end


class Line(msgspec.Struct, array_like=True):
    """A line of the user's that an error came through."""

    filename: str
    lineno: int
    function: str
    text: str = ""


class Failure(msgspec.Struct, omit_defaults=True):
    """An error, as data."""

    type: str
    message: str
    module: str = "builtins"
    frames: list[Line] = []
    notes: list[str] = []
    phase: str = "run"  # `read`, `run`, `send` or `server`
    cause: Failure | None = None
    base: str = ""  # the class of Python's that an error of another class is one of

    def as_text(self) -> str:
        """What a terminal shows of it."""
        lines = [
            f'  File "{line.filename}", line {line.lineno}, in {line.function}\n    {line.text}'
            for line in self.frames
        ]
        head = ["Traceback (most recent call last):"] if lines else []
        return "\n".join([*head, *lines, f"{self.type}: {self.message}", *self.notes])


class Warned(msgspec.Struct, array_like=True):
    """A warning that was given while a block ran."""

    message: str
    category: str
    filename: str
    lineno: int
