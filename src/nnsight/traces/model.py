"""What a trace needs to know of a model: the part of `Envoy` that this room sees."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import Location
from nnsight.traces.layout import Layout


@dataclass(frozen=True)
class Inputs:
    """What one invoke (or a trace without invokes) was given."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Model(Protocol):
    """A wrapped module that can be traced."""

    @property
    def path(self) -> str: ...

    @property
    def tree(self) -> Any: ...

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        """How many rows inputs contribute; 0 for parameters without data."""
        ...

    def _batch(self, inputs: list[Inputs], fn: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One call from the inputs of all invokes that contribute rows."""
        ...

    def _combined(
        self, inputs: list[Inputs], shared: list[dict[str, Any]], fn: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One call from the inputs of all invokes and the settings of the trace and the others."""
        ...

    def _before_run(self) -> None:
        """Get ready to run: load weights that are not there yet."""
        ...

    def _before_scan(self) -> None:
        """Get ready to run without numbers: nothing is loaded."""
        ...

    def _whole(self) -> Any:
        """The module at the root."""
        ...

    def _place(self, value: Any) -> Any:
        """Move the tensors of a nested value to where the model expects its inputs."""
        ...

    def _callable(self, fn: str | Callable[..., Any] | None) -> Callable[..., Any]:
        """What a trace runs: the module itself, a method of it, or the callable given."""
        ...

    def _enter(self, run: Interleaver, fn: str, call: functools.partial[Any]) -> None:
        """Prepare the module, and the call it is to run; undo it when the run closes."""
        ...

    def _layout(self) -> Layout:
        """Every module of the wrapped model that this one is part of."""
        ...

    def _observe(
        self,
        run: Interleaver,
        outputs: Mapping[Any, Location],
        inputs: Mapping[Any, Location],
        see: Callable[[Location, Any], None],
    ) -> None:
        """From now on in `run`, show `see` the values of these modules whenever it comes by."""
        ...

    def _batch_of(self, total: int, split: bool, call: Any, given: list[Inputs]) -> Batch:
        """How the rows of a combined input belong to the invokes that were `given` its parts."""
        ...

    def _edits(self) -> list[Any]:
        """The edits of the whole model, as it is seen through this view: a list to change."""
        ...

    def _twin(self) -> Any:
        """The same module in another view, with edits of its own."""
        ...

    def _place_of(self, value: object) -> str | None:
        """Where below the root `value` stands, if it is a part of the model; "" is the root."""
        ...

    def _at(self, place: str) -> Any:
        """The part of the model at `place`."""
        ...

    def _holds(self, place: str) -> bool:
        """Whether the module at `place` is in this one, by whatever path."""
        ...
