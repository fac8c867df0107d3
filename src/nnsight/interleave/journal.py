"""What takes down a run: the engine tells it, the report of a trace is one."""

from __future__ import annotations

from typing import Any, Protocol

from nnsight.interleave.request import Request
from nnsight.interleave.worker import Worker


class Journal(Protocol):
    """Takes down what blocks do."""

    def asked(self, worker: Worker, request: Request) -> None:
        """A block is about to ask for something. Called on its own thread."""
        ...

    def served(self, worker: Worker, request: Request, number: int, before: Any, own: Any) -> None:
        """A block got its answer: `own` of a read. `before` is the whole value until then."""
        ...

    def turning(self, worker: Worker) -> None:
        """A block is about to run."""
        ...

    def turned(self, worker: Worker) -> None:
        """A block has run."""
        ...
