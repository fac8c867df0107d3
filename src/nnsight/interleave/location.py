"""A location: one place in a model where a value can be met.

The only place that spells `"{path}.output"`. Two locations are the same if they have the same
owner, and an owner belongs to one tree: two models that name their layers alike share none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

OUTPUT, INPUT, SKIP, RESULT, GRAD = "output", "input", "skip", "result", "grad"


class Owner(Protocol):
    """What a location belongs to: a module of a wrapped model, or the tracer itself."""

    @property
    def path(self) -> str:
        """How the user reaches it: `model.transformer.h.0`."""
        ...

    @property
    def tree(self) -> Any:
        """The wrapped model it is part of."""
        ...

    def watch(self, kind: str, run: Any) -> None:
        """From now on in this run, offer the value at `kind` to the run whenever it comes by."""
        ...


class Passage(Protocol):
    """What the model knows of the modules that a run has passed."""

    def before(self, location: Location) -> int:
        """How often the run came by `location` before anyone asked for it, as far as is known."""
        ...

    def at(self, location: Location, visit: int) -> None:
        """The run itself comes by `location`, for the n-th time."""
        ...

    @property
    def beat(self) -> Location | None:
        """Where each step of the run begins, if there is such a place."""
        ...

    def step(self) -> int:
        """Which step the run is at: how often it has called the model, from 0."""
        ...

    def runs_often(self, location: Location) -> bool:
        """Whether a step comes by `location` more than once, as far as this run has seen."""
        ...

    @property
    def stepwise(self) -> bool:
        """Whether the run has steps of its own: calls of the model, one after the other."""
        ...

    def marks(
        self, asked: Collection[Location], named: Callable[[str], bool]
    ) -> Collection[Location]:
        """Further places that begin steps, for a loop that has `asked` for these."""
        ...

    def story(self, location: Location) -> str:
        """How the run met this place: `"passed"`, `"never"`, `"unreached"`, or `""` if unknown."""
        ...


class Location(NamedTuple):
    """One place of one owner: its `output`, its `input`, the gate where it may be skipped."""

    owner: Owner
    kind: str

    def __str__(self) -> str:
        path = self.owner.path
        return f"{path}.{self.kind}" if path else self.kind
