"""A model without torch: a script of places that a run comes by, for the engine's own tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnsight.interleave.batching import Batch
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import OUTPUT, RESULT, Location
from nnsight.interleave.rows import Rows
from nnsight.interleave.run import run
from nnsight.interleave.worker import Worker


class Place:
    """An owner of locations that notes who watches it."""

    def __init__(self, path: str, tree: Any) -> None:
        self.path, self.tree = path, tree
        self.watched: list[str] = []

    def watch(self, kind: str, run: Interleaver) -> None:
        self.watched.append(kind)

    def at(self, kind: str = OUTPUT) -> Location:
        return Location(self, kind)


class Script:
    """Places `a`, `b`, `c`, ... that a run comes by in this order, each with a value."""

    def __init__(self, **values: Any) -> None:
        self.values = values
        self.places = {name: Place(f"model.{name}", self) for name in values}
        self.result = Place("", self)
        self.passed: dict[str, Any] = {}  # what went on from each place
        self.interleaver: Interleaver | None = None

    def __getattr__(self, name: str) -> Location:
        try:
            return self.__dict__["places"][name].at()
        except KeyError:
            raise AttributeError(name) from None

    def forward(self) -> str:
        assert self.interleaver is not None
        for name, value in self.values.items():
            self.passed[name] = self.interleaver.offer(getattr(self, name), value)
        return "returned"

    def run(
        self,
        *blocks: Callable[[], Any],
        rows: list[Rows | None] | None = None,
        batch: Batch | None = None,
        enter: Callable[[Interleaver], None] | None = None,
        call: Callable[[], Any] | None = None,
    ) -> Any:
        """Run the script with `blocks` beside it."""
        given = rows or [None] * len(blocks)
        self.workers = [
            Worker(block, own, f"block {index}")
            for index, (block, own) in enumerate(zip(blocks, given, strict=True))
        ]

        def prepare(interleaver: Interleaver) -> None:
            self.interleaver = interleaver
            if enter is not None:
                enter(interleaver)

        result = self.result.at(RESULT)
        call = call or self.forward
        return run(self, self.workers, batch or Batch(), call, result, prepare)
