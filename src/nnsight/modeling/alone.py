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
from nnsight.envoy.batch_axis import BatchAxis, Told, measure
from nnsight.interleave.batching import Batch
from nnsight.interleave.location import Location
from nnsight.interleave.rows import Even, Rows, Share, Uneven

Call = Callable[[], "functools.partial[Any]"]
Shape = tuple[int, ...]


def _shape_of(leaf: torch.Tensor) -> Shape:
    return tuple(leaf.shape)


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
        axis = self.varies
        assert isinstance(axis, BatchAxis)
        if getattr(type(location.owner), "between_steps", False):
            return Even()
        path = location.owner.path[len(self.path) + 1 :]
        if value.shape[0] == self.total and self._is_text(path) and not axis.doubtful:
            return Even()
        return self._measured(axis.key(location), leaf, value.shape, axis.step() > 0)

    def _is_text(self, path: str) -> bool:
        return any(path == text or path.startswith(f"{text}.") for text in self.texts)

    def _measured(
        self, at: tuple[str, str], leaf: int, shape: torch.Size, later: bool
    ) -> Share | None:
        """Whose is what, by the dimension in which the invokes alone have as much together.

        That is the first, or else one besides which all are as they are alone: a model may have its
        queries in front, and run a module more than once with values of unlike shapes.
        """
        told = [self._alone(at, leaf, visit) for visit in (later, not later)]
        usual = [alone or other for alone, other in zip(*told, strict=True)]
        if not any(usual):
            return None
        if share := self._end_to_end(usual, 0, shape[0]):
            return share
        for shapes in told:
            for dim, size in enumerate(shape):
                others = {alone[:dim] + alone[dim + 1 :] for alone in shapes if alone}
                alike = others == {shape[:dim] + shape[dim + 1 :]}
                if alike and (share := self._end_to_end(shapes, dim, size)):
                    return share
        return None

    def _alone(self, at: tuple[str, str], leaf: int, later: bool) -> list[Shape]:
        """The shape of a leaf in each invoke alone; empty where it has none, as without images."""
        known = (shapes.get((*at, not later), []) for shapes in self._shapes)
        return [shapes[leaf] if leaf < len(shapes) else () for shapes in known]

    def _end_to_end(self, shapes: Sequence[Shape], dim: int, length: int) -> Share | None:
        own: dict[Rows, Rows] = {}
        start = 0
        for (rows, _), shape in zip(self.invokes, shapes, strict=True):
            size = shape[dim] if shape else 0
            own[rows] = Rows(start, size)
            start += size
        return Uneven(own, dim) if start == length else None

    @functools.cached_property
    def _shapes(self) -> list[Told[Shape]]:
        """Of each invoke, the shapes of the values when it runs alone."""
        try:
            return [measure(self.module, call(), _shape_of) for _, call in self.invokes]
        except Exception as error:
            warn(
                "these invokes have images, and to tell whose values are whose the model must be "
                f"run once for each alone, which failed ({error}). Blocks see values of images "
                "whole; use a trace for each prompt if that is wrong."
            )
            return [{} for _ in self.invokes]


def seeing(module: Any, path: str, batch: Batch, invokes: Sequence[tuple[Rows, Call]]) -> Batch:
    """The batch of invokes that have images, where `batch` is that of their prompts.

    Args:
        module: that is traced.
        path: where it is in its tree.
        invokes: the rows of each, and the call that it would be alone.
    """
    if not isinstance(batch.varies, BatchAxis):
        return batch
    return Seeing(
        batch.total,
        batch.split,
        batch.varies,
        batch.lies,
        module=module,
        path=path,
        texts=_text_parts(module),
        invokes=invokes,
    )


def _text_parts(module: Any) -> tuple[str, ...]:
    """The paths of the modules that read text only: those around the words, and the head."""
    paths = {id(inner): path for path, inner in module.named_modules()}
    try:
        words, head = module.get_input_embeddings(), module.get_output_embeddings()
    except (AttributeError, NotImplementedError):  # of two towers, such as CLIP
        return ()
    found = [paths.get(id(words), "").rpartition(".")[0], paths.get(id(head), "")]
    return tuple(path for path in found if path)
