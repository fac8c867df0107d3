"""Whose part of a value is whose, where prompts have unlike many images.

In the part of a model that reads text the first dimension counts the rows. In the part that looks
at images it counts images, or the patches of all of them. How much of it is an invoke's is what a
value has when that invoke runs alone: the model's twin (see `envoy/batch_axis.py`) is run once for
each invoke when a block first asks for such a value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight.capture.traceback import warn
from nnsight.envoy.batch_axis import BatchAxis, Lengths, length_of, measure
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import Location
from nnsight.interleave.rows import Even, Rows, Share, Uneven

Call = Callable[[], "functools.partial[Any]"]


@dataclass(frozen=True)
class Seeing(Batch):
    """The batch of invokes that have images."""

    module: torch.nn.Module = field(kw_only=True)
    path: str = field(kw_only=True)  # of the module, in its tree
    texts: tuple[str, ...] = field(kw_only=True)  # paths of modules below that see text only
    invokes: Sequence[tuple[Rows, Call]] = field(kw_only=True)  # each with its call if it is alone

    def share(self, value: torch.Tensor, location: Location, leaf: int) -> Share | None:
        if not value.ndim or not value.shape[0]:
            return None
        axis, length = self.varies, value.shape[0]
        assert isinstance(axis, BatchAxis)
        if getattr(type(location.owner), "between_steps", False):
            return Even()
        path = location.owner.path[len(self.path) + 1 :]
        if length == self.total and self._is_text(path) and not axis.doubtful:
            return Even()
        return self._measured(axis.key(location), leaf, length, axis.step() > 0)

    def _is_text(self, path: str) -> bool:
        return any(path == text or path.startswith(f"{text}.") for text in self.texts)

    def _measured(self, at: tuple[str, str], leaf: int, length: int, later: bool) -> Share | None:
        own: dict[Rows, Rows] = {}
        start = 0
        for (rows, _), lengths in zip(self.invokes, self._lengths, strict=True):
            known = lengths.get((*at, True)) if later else None
            known = lengths.get((*at, False), []) if known is None else known
            size = known[leaf] if leaf < len(known) else 0  # an invoke without images
            own[rows] = Rows(start, size)
            start += size
        return Uneven(own) if start == length else None

    @functools.cached_property
    def _lengths(self) -> list[Lengths]:
        """Of each invoke, how long the values are when it runs alone."""
        try:
            return [measure(self.module, call(), length_of) for _, call in self.invokes]
        except Exception as error:
            warn(
                "these invokes have images, and to tell whose values are whose the model must be "
                f"run once for each alone, which failed ({error}). Blocks see values of images "
                "whole; use a trace for each prompt if that is wrong."
            )
            return [{} for _ in self.invokes]
