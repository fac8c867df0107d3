"""Rows: which part of a batched value belongs to which block.

Several invokes run as one forward over one batch. A block reads its own rows (views of the batch,
so that changes in place write through) and what it assigns is put back into its rows.

A tensor is batched if its first dimension counts the rows of the batch, or a multiple of them (the
tokens of all rows one after the other, as mixtures of experts route them). A tensor whose first
dimension only happens to be as long (a sequence, the heads) is whole for everyone; where lengths
alone cannot tell, the model is asked what changes with the batch size (`Batch.varies`). Some models
have the tokens first and the rows behind them (`Batch.lies`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight import nested
from nnsight.interleave import errors
from nnsight.interleave.assembly import Lies, assemble
from nnsight.interleave.cuts import Cut
from nnsight.interleave.gathered import Gathered
from nnsight.interleave.location import OUTPUT, Location
from nnsight.interleave.row_gradients import Piece
from nnsight.interleave.rows import Even, Rows, Share, with_parts

Varies = Callable[[Location, int, Sequence[int]], "bool | None"]
Note = Callable[[torch.Tensor, Piece], None]


def _unknown(location: Location, leaf: int, shape: Sequence[int]) -> None:
    return None


@dataclass(frozen=True)
class Batch:
    """The combined batch of one run."""

    total: int = 0  # rows; 0 if unknown
    split: bool = False  # whether two or more blocks share it
    # whether the first dimension of a leaf, of a shape, follows the batch size, if known
    varies: Varies = _unknown
    # which other dimension of a leaf that the first does not count them in counts the rows
    lies: Lies = _unknown
    gathered: Gathered = field(default_factory=Gathered, compare=False)

    def per_row(self, value: torch.Tensor, location: Location, leaf: int) -> int:
        """How much of the first dimension of `value` belongs to each row of the batch.

        0 for a tensor that belongs to no row. More than 1 where the rows are flattened: tokens, one
        row's after the other's.
        """
        if value.ndim == 0 or not self.total or not value.shape[0]:
            return 0
        length = value.shape[0]
        if length == self.total:
            return int(self.varies(location, leaf, value.shape) is not False)
        if length % self.total:
            return 0
        return length // self.total if self.varies(location, leaf, value.shape) else 0

    def share(self, value: torch.Tensor, location: Location, leaf: int) -> Share | None:
        """How `value` belongs to the rows of the batch; None if it is whole for everyone."""
        each = self.per_row(value, location, leaf)
        if each:
            return Even(each)
        dim = self.lies(location, leaf, value.shape) if self.total in value.shape[1:] else None
        return None if dim is None else Even(dim=dim)

    def narrow(
        self, value: Any, rows: Rows | None, location: Location, note: Note | None = None
    ) -> Any:
        """The part of `value` that belongs to `rows`: views, in a container like the value's.

        Args:
            note: takes note of each view, so that gradients reach it.
        """
        if rows is None or not self.split:
            return value
        count = -1

        def own(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            share = self.share(tensor, location, count)
            if share is None:
                return tensor
            part, *others = share.parts(rows)
            if others:
                return self.gathered.take(tensor, (part, *others))
            piece = Piece(tensor, part.start, part.size, share.dim)
            view = piece.rows(tensor)
            if note is not None and (tensor.is_floating_point() or tensor.is_complex()):
                note(view, piece)
            return view

        return nested.map_leaves(own, value)

    def widen(
        self,
        full: Any,
        rows: Rows | None,
        new: Any,
        location: Location,
        cuts: list[Cut] | None = None,
    ) -> Any:
        """`full` with `new` in place of `rows`. The tensors that this replaces go to `cuts`.

        Raises:
            BatchError: `new` has another batch size or another structure.
        """
        if rows is None or not self.split:
            self._check_rows(full, new, location)
            return new
        return _Widening(self, rows, location, cuts).put(full, new)

    def assemble(self, parts: Iterable[tuple[Rows, Any]], location: Location) -> Any:
        """One value over all rows from a value for each block.

        Raises:
            BatchError: a block's value has another number of rows or another structure.
        """
        return assemble(parts, location, self.lies)

    def check_skip(self, inputs: Any, rows: Rows | None, instead: Any, location: Location) -> None:
        """Refuse what is to take the place of a whole module and has other rows than its input.

        Raises:
            BatchError: it is such a tensor as the module was given, but for the batch size.
        """
        given, own = nested.first_tensor(inputs), nested.first_tensor(instead)
        if given is None or own is None or (rows is not None and self.split):
            return
        if given.shape[:1] == (self.total,) != own.shape[:1] and own.shape[1:] == given.shape[1:]:
            expected = f"the module was given {nested.describe(given)}"
            raise errors.wrong_rows(location, nested.describe(own), expected)

    def _check_rows(self, full: Any, new: Any, location: Location) -> None:
        """Refuse a replacement of the whole value that has another batch size or structure."""
        held = nested.parts(new) is not None
        one_in_other = held if isinstance(full, torch.Tensor) else nested.parts(full) and not held
        if location.kind == OUTPUT and one_in_other:  # a tensor for a tuple is unpacked by rows
            raise errors.wrong_structure(location, nested.describe(new), nested.describe(full))
        pairs = zip(nested.leaves(full), nested.leaves(new), strict=False)  # may be another type
        for index, (old, own) in enumerate(pairs):
            differ = old.shape[:1] == (self.total,) != own.shape[:1]
            if differ and self.per_row(old, location, index):
                expected = f"the value there is {nested.describe(old)}"
                raise errors.wrong_rows(location, nested.describe(own), expected)
            if location.kind == OUTPUT and _spreads(own, old):
                raise errors.spreads(location, nested.describe(own), nested.describe(old))


def _spreads(own: torch.Tensor, old: torch.Tensor) -> bool:
    """Whether `own` would take the place of `old` by being spread over the last dimension.

    PyTorch does so wherever the model adds it to something: a mean over the wrong dimension would
    go on as if it were right. (Over the tokens it may be meant.)
    """
    if not old.ndim or old.shape[-1] == 1 or not old.is_floating_point():
        return False
    return own.ndim < old.ndim or own.shape[-1] == 1


class _Widening:
    """One replacement being put into its rows."""

    def __init__(
        self, batch: Batch, rows: Rows, location: Location, cuts: list[Cut] | None
    ) -> None:
        self.batch, self.rows, self.location, self.cuts = batch, rows, location, cuts
        self.leaf = -1

    def put(self, full: Any, new: Any) -> Any:
        if isinstance(full, torch.Tensor):
            self.leaf += 1
            return self._put_tensor(full, new)
        members = nested.parts(full)
        if members is None:
            return new
        others = nested.parts(new)
        if others is None or members.keys() != others.keys():
            raise self._structure(full, new)
        merged = {key: self.put(member, others[key]) for key, member in members.items()}
        if all(merged[key] is members[key] for key in members):
            return full
        return nested.rebuild(full, merged)

    def _put_tensor(self, full: torch.Tensor, new: Any) -> Any:
        if not isinstance(new, torch.Tensor):
            raise self._structure(full, new)
        rows = self.rows
        share = self.batch.share(full, self.location, self.leaf)
        if share is None:
            return new  # everybody's: replaced for the whole batch
        parts = share.parts(rows)
        own = full.narrow(share.dim, parts[0].start, sum(part.size for part in parts))
        if len(parts) > 1:
            if self.batch.gathered.is_of(new, full, parts):
                return full
        elif _same_view(new, own):
            return full
        if new.shape != own.shape:
            expected = f"this block's rows there are {nested.describe(own)}"
            raise errors.wrong_rows(self.location, nested.describe(new), expected)
        if new.dtype != full.dtype:
            raise errors.wrong_structure(self.location, str(new.dtype), str(full.dtype))
        merged = with_parts(full, parts, new.to(full.device), share.dim)
        if self.cuts is not None:
            self.cuts.append(Cut(full, merged, share, (rows,)))
        return merged

    def _structure(self, full: Any, new: Any) -> errors.BatchError:
        return errors.wrong_structure(self.location, nested.describe(new), nested.describe(full))


def _same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same part of one tensor, with the same gradient history."""
    if one.shape != other.shape or one.dtype != other.dtype or one.stride() != other.stride():
        return False
    if one.storage_offset() != other.storage_offset():
        return False
    if one.is_inference() and other.is_inference():  # views know no base there
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return one._base is not None and other._base is one._base


# --- combining inputs of plain modules ------------------------------------------------------------


def count_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many rows inputs contribute: the first dimension of their first tensor; 0 for no input.

    Inputs without a tensor count as one row.
    """
    if not args and not kwargs:
        return 0
    tensor = nested.first_tensor((args, kwargs))
    return tensor.shape[0] if tensor is not None and tensor.ndim else 1


def combine(inputs: list[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    """One call from several: tensors are concatenated along their first dimension.

    Raises:
        BatchError: the inputs differ in structure, in a trailing dimension or in a plain value.
    """
    if len(inputs) == 1:
        return inputs[0][0], dict(inputs[0][1])
    return _concatenate([args for args, _ in inputs], "input"), _concatenate(
        [dict(kwargs) for _, kwargs in inputs], "input"
    )


def _concatenate(values: list[Any], name: str) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _concatenate_tensors(values, name)
    members = nested.parts(first)
    if members is not None:
        split = [nested.parts(value) for value in values]
        if any(s is None or s.keys() != members.keys() for s in split):
            raise _cannot_combine(name, "they have different structures")
        keyed = {k: _concatenate([s[k] for s in split if s], f"{name} {k!r}") for k in members}
        return nested.rebuild(first, keyed)
    if any(value is not first and value != first for value in values):
        raise _cannot_combine(name, f"the values differ: {values}")
    return first


def _concatenate_tensors(values: list[Any], name: str) -> torch.Tensor:
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise _cannot_combine(name, "some are tensors and some are not")
    shapes = [list(value.shape) for value in values]
    if not values[0].ndim or len({tuple(shape[1:]) for shape in shapes}) > 1:
        raise _cannot_combine(name, f"their shapes are {shapes}")
    return torch.cat(values)


def _cannot_combine(name: str, why: str) -> errors.BatchError:
    return errors.BatchError(
        f"Can't batch these invokes: the {name} of the invokes cannot become one batch, because "
        f"{why}. Give inputs that agree in everything but their first dimension, or override "
        "`_batch(inputs, fn)` in a subclass of `NNsight`."
    )
