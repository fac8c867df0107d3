"""Where jobs run. A server sees an `Engine`; here it is one process per model on this machine.

An engine of many machines has the same four methods, and its own way to hand over files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnsight.remote.messages import Failure
from nnsight.server.errors import End
from nnsight.server.limits import Limits


@dataclass(frozen=True)
class Task:
    """A job to run now."""

    job: str
    model: str
    key: str  # whose job it is
    format: str
    request: Path  # to read
    result: Path  # to write
    trusted: bool = True  # its code may run where the weights are


@dataclass(frozen=True)
class Ended:
    """How a task ended: by itself (`failure` is its block's) or by the engine (`end`)."""

    size: int | None = None  # bytes of the result; None: there is none
    failure: Failure | None = None
    seconds: float = 0.0
    memory: int = 0
    end: End | None = None


@dataclass
class State:
    """What is known of a model now."""

    state: str = "loading"  # loading, ready, busy, broken
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # of `broken`
    starts: int = 0  # of its process
    job: str | None = None  # that it runs


@dataclass(frozen=True)
class Hearer:
    """Who wants to know what a task does."""

    began: Callable[[], None]
    said: Callable[[str, str], None]  # what it printed, and what stands after it: "\n" or ""


class Engine(Protocol):
    """Runs tasks, one per model at a time."""

    def open(self) -> None:
        """Begin to load the models."""
        ...

    async def ready(self, model: str, key: str) -> bool:
        """Wait until the model takes a job of this key, as it was when it was loaded.

        False: it could not be loaded after several tries (`state(model).reason`); the engine
        goes on trying.
        """
        ...

    async def run(self, task: Task, hear: Hearer) -> Ended:
        """Run a task to its end; it never raises. Only after `ready`.

        A task that did not begin may be tried again; one that did is run once.
        """
        ...

    def stop(self, job: str, why: End) -> None:
        """End a task at once, if it runs."""
        ...

    def state(self, model: str) -> State: ...

    async def close(self) -> None:
        """End everything."""
        ...


@dataclass(frozen=True)
class Plan:
    """How the process of a model is started."""

    model: str
    options: dict[str, Any]
    load: str = "nnsight.server.models:load"
    command: tuple[str, ...] = ("-m", "nnsight.server.worker")


class LocalEngine:
    """One process per model, on this machine."""

    def __init__(self, plans: list[Plan], limits: Limits, log: Callable[[str], Path]) -> None:
        from nnsight.server.process import Process

        self._of = {plan.model: Process(plan, limits, log(plan.model)) for plan in plans}

    def open(self) -> None:
        for process in self._of.values():
            process.open()

    async def ready(self, model: str, key: str) -> bool:
        return await self._of[model].ready(key)

    async def run(self, task: Task, hear: Hearer) -> Ended:
        return await self._of[task.model].run(task, hear)

    def stop(self, job: str, why: End) -> None:
        for process in self._of.values():
            process.stop(job, why)

    def state(self, model: str) -> State:
        return self._of[model].state

    async def close(self) -> None:
        await asyncio.gather(*(process.close() for process in self._of.values()))
