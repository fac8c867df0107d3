"""NDIF 0.8's format, for `perform`: its requests read, its results written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from nnsight.remote.messages import Warned
from nnsight.remote.model import Remotable
from nnsight.remote.ndif08 import read, result
from nnsight.remote.payload import Arrived

FORMAT = "ndif/8"


@dataclass(frozen=True)
class Ndif08:
    """The format; `compressed` says whether both ways are packed with zstd."""

    compressed: bool = True

    def arrived(self, body: Any, model: Remotable) -> AbstractContextManager[Arrived]:
        return read.arrived(body, model, compressed=self.compressed)

    def result(
        self,
        names: Mapping[str, Any],
        arrived: Arrived,
        model: Remotable,
        warned: Sequence[Warned],
    ) -> bytes:
        return result.write(names, self.compressed)
