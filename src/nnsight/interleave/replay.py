"""`Replay`: a part of a forward that is computed again, without the blocks."""

from __future__ import annotations

from typing import Any

from nnsight.interleave.batching import Batch
from nnsight.interleave.checkpoint import Script
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import Location
from nnsight.interleave.rows import Rows


class Replay(Interleaver):
    """A run without blocks, in which the model gets what they gave it before."""

    def __init__(self, batch: Batch, script: Script) -> None:
        super().__init__(None, [], batch)
        self._script = script

    def offer(self, location: Location, value: Any) -> Any:
        """What the model goes on with at `location`."""
        kept = self._script.take(location)
        return value if kept is None else kept[0]

    def gate(self, location: Location, inputs: Any) -> dict[Rows | None, Any]:
        """What blocks gave as the output of a module that they skipped."""
        kept = self._script.take(location)
        return {} if kept is None else kept[1]
