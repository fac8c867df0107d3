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
from nnsight.envoy.batch_axis import BatchAxis, Told, measure, recorder_of
from nnsight.envoy.operations import Operation
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
    # what was measured of each invoke: of all modules (None), and of operations by their path
    told: dict[str | None, list[Told[Shape]]] = field(default_factory=dict, compare=False)

    def share(self, value: torch.Tensor, location: Location, leaf: int) -> Share | None:
        if not value.ndim or not value.shape[0]:
            return None
        axis = self.varies
        assert isinstance(axis, BatchAxis)
        if getattr(type(location.owner), "between_steps", False):
            return Even()
        path = location.owner.path[len(self.path) + 1 :]
        text = self._is_text(path)
        if text and value.shape[0] == self.total and not axis.doubtful:
            return Even()
        later = axis.step() > 0
        told = [self._alone(location, leaf, visit) for visit in (later, not later)]
        if text and (each := self._of_each_row(value.shape, told)):
            return Even(each)
        return self._measured(value.shape, told)

    def _is_text(self, path: str) -> bool:
        return any(path == text or path.startswith(f"{text}.") for text in self.texts)

    def _of_each_row(self, shape: torch.Size, told: Sequence[Sequence[Shape]]) -> int:
        """How much of the first dimension is a row's, where rows are padded; 0 if that is open.

        It is as much as the longest row has alone. The mask of the padding no invoke has alone
        (in its place may be another value, of other dimensions): it has a row for each.
        """
        each, rest = divmod(shape[0], self.total)
        if rest:
            return 0
        for shapes in told:
            alone = [
                (own, rows) for own, (rows, _) in zip(shapes, self.invokes, strict=True) if own
            ]
            alike = all(own[1:] == shape[1:] for own, _ in alone)
            if alone and alike and max(own[0] / rows.size for own, rows in alone) == each:
                return each
        like = any(len(own) == len(shape) for shapes in told for own in shapes)
        return int(each == 1 and not like)

    def _measured(self, shape: torch.Size, told: Sequence[Sequence[Shape]]) -> Share | None:
        """Whose is what, by the dimension in which the invokes alone have as much together.

        That is the first, or else one besides which all are as they are alone: a model may have its
        queries in front, and run a module more than once with values of unlike shapes.
        """
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

    def _alone(self, location: Location, leaf: int, later: bool) -> list[Shape]:
        """The shape of a leaf in each invoke alone; empty where it has none, as without images."""
        assert isinstance(self.varies, BatchAxis)
        at = (*self.varies.key(location), later)
        known = (shapes.get(at, []) for shapes in self._shapes(location.owner))
        return [shapes[leaf] if leaf < len(shapes) else () for shapes in known]

    def _end_to_end(self, shapes: Sequence[Shape], dim: int, length: int) -> Share | None:
        own: dict[Rows, Rows] = {}
        start = 0
        for (rows, _), shape in zip(self.invokes, shapes, strict=True):
            size = shape[dim] if shape else 0
            own[rows] = Rows(start, size)
            start += size
        return Uneven(own, dim) if start == length else None

    def _shapes(self, owner: Any) -> list[Told[Shape]]:
        """Of each invoke alone, the shapes of the values of modules, or of an operation."""
        operation = owner if isinstance(owner, Operation) else None
        key = None if operation is None else operation.path
        if key not in self.told:
            self.told[key] = self._measure_alone(operation)
        return self.told[key]

    def _measure_alone(self, operation: Operation | None) -> list[Told[Shape]]:
        more = () if operation is None else (recorder_of(operation, self.path),)
        try:
            return [measure(self.module, call(), _shape_of, *more) for _, call in self.invokes]
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
