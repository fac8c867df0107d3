"""Where a model looks its ids up, in a batch in which some rows are embeddings already.

The lookup runs as a part of the model, with every hook and for the rows of ids alone: their blocks
read, edit and skip it as they do in a batch of ids. To the blocks of the other rows it is never
called, as it is not when they run alone. Behind it the embeddings take their places.

Whether a model does more with ids than look them up is measured before the first such batch: what
it returns for a row of embeddings must be what it returns for the row with placeholders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Embedding, Module

from nnsight import nested
from nnsight.envoy.batch_axis import measure
from nnsight.envoy.handoff import Hook, LastHook, new_key
from nnsight.interleave.batching import Batch, Note
from nnsight.interleave.interleaver import Interleaver
from nnsight.interleave.location import RESULT, Location
from nnsight.interleave.rows import Rows, Share
from nnsight.modeling import embeds_errors as errors
from nnsight.modeling.embeds import EMBEDS, IDS, Embedded
from nnsight.modeling.fitting import has_values
from nnsight.modeling.padding import FILLS


class Lookup:
    """How far one run is: whether its prompts are looked up yet, or just now.

    Args:
        ids: of all rows, `(rows, tokens)`, with placeholders for embeddings.
        found: the rows of embeddings.
        name: of the model's class, for messages.
    """

    def __init__(self, ids: torch.Tensor, found: Embedded, name: str) -> None:
        self.ids, self.embeds, self.placeholder = ids, found.embeds, found.placeholder
        self.rows = tuple(Rows(start, size) for start, size in found.rows)
        self.name = name
        ours = {number for rows in self.rows for number in range(rows.start, rows.stop)}
        self.ours = sorted(ours)
        self.others = [number for number in range(len(ids)) if number not in ours]
        self.at: Module | None = None  # the table that the rows of ids are looked up in just now
        self.copies = 1  # how many rows there are of each, such as beams
        self.done = False

    def begin(self, away: list[Rows], table: Module, args: tuple[Any, ...]) -> Any:
        """A table is given `args`: leave it the rows of ids, if these are the prompts.

        Raises:
            ValueError: a block replaced placeholders, or the model reads the prompts twice.
        """
        ids: Any = args[0] if args else None
        if self.at is not None or not self._may_be_prompts(ids) or not self._stand_in(ids):
            return None
        if self.done:
            if ids.shape[1] > 1:  # one token may look like a prompt of one
                raise errors.read_again(self.name)
            return None
        self.at, self.copies = table, len(ids) // len(self.ids)
        away.extend(self.rows)
        return (ids[self._numbers(self.others)], *args[1:])

    def end(self, away: list[Rows], table: Module, args: Any, found: Any) -> Any:
        """A table has looked up the rows of ids: put the embeddings between them."""
        if self.at is not table:
            return None
        self.at, self.done = None, True
        del away[len(away) - len(self.rows) :]
        if not isinstance(found, torch.Tensor) or len(found) != len(self.others) * self.copies:
            raise errors.unlike_lookup(nested.describe(found), len(self.others) * self.copies)
        return self._whole(found)

    def _may_be_prompts(self, ids: Any) -> bool:
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.is_floating_point():
            return False
        return len(ids) % len(self.ids) == 0 and ids.shape[1] >= self.ids.shape[1]

    def _stand_in(self, ids: torch.Tensor) -> bool:
        """Whether rows of embeddings have their placeholders in `ids`."""
        length = self.ids.shape[1]
        if not has_values(ids):
            return not self.done and ids.shape[1] == length
        copies = len(ids) // len(self.ids)
        rows = [n * copies + copy for n in self.ours for copy in range(copies)]
        wanted = self.ids[self.ours].repeat_interleave(copies, 0) == self.placeholder
        there = ids[rows, :length] == self.placeholder
        if bool((there | ~wanted.to(there.device)).all()):
            return True
        if not self.done and ids.shape[1] == length:
            raise errors.ids_replaced()
        return False

    def _numbers(self, rows: Sequence[int]) -> list[int]:
        return [number * self.copies + copy for number in rows for copy in range(self.copies)]

    def _whole(self, found: torch.Tensor) -> torch.Tensor:
        """What was looked up, `(rows of ids, tokens, width)`, with the embeddings in between."""
        each, embeds = self.copies, self.embeds.to(found.device)
        if (embeds.shape[1:], embeds.dtype) != (found.shape[1:], found.dtype):
            raise errors.unlike_embeddings(embeds, found)
        pieces: list[torch.Tensor] = []
        end = own = 0
        for rows in self.rows:
            pieces.append(found[(end - own) * each : (rows.start - own) * each])
            pieces.append(embeds[own : own + rows.size].repeat_interleave(each, 0))
            end, own = rows.stop, own + rows.size
        return torch.cat([*pieces, found[(end - own) * each :]])


# --- whose rows are whose ------------------------------------------------------------------------


@dataclass(frozen=True)
class Among:
    """So many to each row that has ids, where there are no others."""

    absent: tuple[Rows, ...]  # rows that are not there
    each: int
    dim: int = 0

    def parts(self, rows: Rows) -> tuple[Rows, ...]:
        start = rows.start - sum(gone.size for gone in self.absent if gone.start < rows.start)
        return (Rows(start * self.each, rows.size * self.each),)


@dataclass(frozen=True)
class Mixed(Batch):
    """The batch of invokes some of which are embeddings."""

    within: Batch = field(kw_only=True)  # how values belong to rows elsewhere
    lookup: Lookup = field(kw_only=True)

    def share(self, value: torch.Tensor, location: Location, leaf: int) -> Share | None:
        lookup = self.lookup
        if lookup.at is None:
            return self.within.share(value, location, leaf)
        rows = len(lookup.others) * lookup.copies
        return Among(lookup.rows, lookup.copies) if value.shape[:1] == (rows,) else None

    def narrow(
        self, value: Any, rows: Rows | None, location: Location, note: Note | None = None
    ) -> Any:
        own = super().narrow(value, rows, location, note)
        if rows not in self.lookup.rows:
            return own
        return nested.map_leaves(functools.partial(self._without_ids, rows, location), own)

    def widen(
        self, full: Any, rows: Rows | None, new: Any, location: Location, cuts: Any = None
    ) -> Any:
        if rows in self.lookup.rows and _is_returned(location):
            new = self._with_ids(rows, super().narrow(full, rows, location), new)
        return super().widen(full, rows, new, location, cuts)

    def _without_ids(self, rows: Rows, location: Location, leaf: torch.Tensor) -> torch.Tensor:
        """A leaf for a block whose prompts have no ids: what `generate` returns is without them.

        Raises:
            ValueError: it is these ids.
        """
        if not self._begins_with_ids(rows, leaf):
            return leaf
        if not _is_returned(location):
            raise errors.placeholders(location)
        return leaf[:, self.lookup.ids.shape[1] :]

    def _with_ids(self, rows: Rows, own: Any, new: Any) -> Any:
        """`new` in the place of `own`, which the block has seen without ids, with them again."""
        if isinstance(own, torch.Tensor):
            if not isinstance(new, torch.Tensor) or not self._begins_with_ids(rows, own):
                return new
            ids, seen = own.tensor_split([self.lookup.ids.shape[1]], dim=1)
            untouched = new.shape == seen.shape and new.data_ptr() == seen.data_ptr()
            return own if untouched else torch.cat([ids, new.to(ids)], 1)
        members, others = nested.parts(own), nested.parts(new)
        if members is None or others is None or members.keys() != others.keys():
            return new
        put = {key: self._with_ids(rows, members[key], others[key]) for key in members}
        return new if all(put[key] is others[key] for key in put) else nested.rebuild(new, put)

    def _begins_with_ids(self, rows: Rows, leaf: torch.Tensor) -> bool:
        """Whether a leaf of rows without ids begins with those that stand in for them."""
        lookup, length = self.lookup, self.lookup.ids.shape[1]
        if leaf.is_floating_point() or leaf.ndim != 2 or leaf.shape[1] < length:
            return False
        if not has_values(leaf) or (lookup.done and leaf.shape[1] == 1):
            return False
        own = lookup.ids[rows.start : rows.stop].repeat_interleave(len(leaf) // rows.size, 0)
        stands = (own == lookup.placeholder).to(leaf.device)
        found = leaf[:, :length] == lookup.placeholder
        return len(found) == len(stands) and bool((found | ~stands).all())


def _is_returned(location: Location) -> bool:
    """Whether a value is what the call returns, or told between its steps."""
    return location.kind == RESULT or getattr(type(location.owner), "between_steps", False)


def _mixed(within: Batch, lookup: Lookup) -> Mixed:
    axes = within.varies, within.lies
    return Mixed(within.total, within.split, *axes, within=within, lookup=lookup)


# --- in a run --------------------------------------------------------------------------------


def mixed(
    module: Any, batch: Batch, found: Embedded, call: functools.partial[Any], memory: dict[Any, Any]
) -> Mixed:
    """The batch of a call that has placeholders among its ids.

    Args:
        memory: what earlier runs of the model found out, kept with it.

    Raises:
        ValueError: the model does more with ids than look them up.
    """
    lookup = Lookup(call.keywords[IDS], found, type(module).__name__)
    if has_values(lookup.ids):
        if "embeds" not in memory:  # what fails may be this input's fault, and is tried again
            memory["embeds"] = _why_not(module, lookup, call.keywords)
        if memory["embeds"]:
            raise errors.model_reads_ids(lookup.name, memory["embeds"])
    return _mixed(batch, lookup)


def enter(run: Interleaver, module: Any) -> None:
    """Have the rows of ids looked up alone in this run, and the embeddings put between them."""
    if isinstance(run.batch, Mixed):
        for table in _tables(module):
            key: Any = new_key()
            run.at_close(table._forward_pre_hooks.pop, key, None)
            run.at_close(table._forward_hooks.pop, key, None)
            _look_in(table, key, run.batch.lookup, run.holds, run.away)


def _look_in(
    table: Module, key: Any, lookup: Lookup, holds: Callable[[], bool], away: list[Rows]
) -> None:
    def begin(module: Module, args: tuple[Any, ...]) -> Any:
        return lookup.begin(away, module, args) if holds() else None

    def end(module: Module, args: Any, found: Any) -> Any:
        return lookup.end(away, module, args, found) if holds() else None

    before: Any = table._forward_pre_hooks
    before[key] = Hook(begin)
    before.move_to_end(key, last=False)  # what comes after it is told of the rows of ids only
    table._forward_hooks[key] = LastHook(end)


def _tables(module: Any) -> list[Module]:
    """The modules in which a model looks ids up: what it says it does, and what shares its weight.

    (BART has a table for all, and each of its halves looks ids up in one of its own.)
    """
    said = module.get_input_embeddings()
    weight = getattr(said, "weight", None)
    tables = (inner for inner in module.modules() if isinstance(inner, Embedding))
    return [said, *(table for table in tables if table is not said and table.weight is weight)]


# --- whether a model only looks ids up -----------------------------------------------------------

_BESIDE = frozenset(FILLS) - {IDS, EMBEDS, "labels"}
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-8}


def _why_not(module: Any, lookup: Lookup, kwargs: dict[str, Any]) -> str:
    """Why embeddings cannot go in where ids are looked up; empty if they can.

    The first row of embeddings is run alone: as embeddings, and as placeholders that they replace.

    Raises:
        ValueError: it cannot be run.
    """
    first, total = lookup.ours[0], len(lookup.ids)
    beside = {name: kwargs[name] for name in _BESIDE if torch.is_tensor(kwargs.get(name))}
    fields = {name: t[first : first + 1] for name, t in beside.items() if len(t) == total}
    fields |= {IDS: lookup.ids[first : first + 1], EMBEDS: lookup.embeds[:1]}
    fields = _unpadded(fields)
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        fields.setdefault("decoder_input_ids", fields[IDS][:, :1])
    ids, embeds = fields.pop(IDS), fields.pop(EMBEDS)
    own = Lookup(ids, Embedded([[0, 1]], embeds, lookup.placeholder), lookup.name)

    def look(twin: Any, keep: Any) -> Callable[[], None]:
        for table in _tables(twin):
            _look_in(table, new_key(), own, lambda: True, [])
        return _forget(twin, keep)

    form = "embeddings"
    try:  # CTRL scales in place what it is given
        alone = _scores(module, {EMBEDS: embeds.clone(), **fields}, _forget)
        form = "ids"
        put = _scores(module, {IDS: ids, **fields}, look)
    except Exception as error:
        raise errors.not_measured(lookup.name, form, error) from error
    if not own.done:
        return errors.NEVER_LOOKED_UP
    return _unlike(alone, put)


def _forget(twin: Any, keep: Any) -> Callable[[], None]:
    """Have a twin forget the images of an earlier prompt, by which Qwen-VL would place this one."""
    for inner in twin.modules():
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = None
    return lambda: None


def _unpadded(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One row without the padding before and behind it."""
    mask, length = fields.get("attention_mask"), fields[IDS].shape[1]
    if mask is None or mask.shape != (1, length):
        return fields
    real = mask[0].nonzero().flatten()
    start, stop = int(real[0]), int(real[-1]) + 1
    return {
        name: tensor if name.startswith("decoder_") else tensor[:, start:stop]
        for name, tensor in fields.items()
    }


def _scores(module: Any, kwargs: dict[str, Any], record: Any) -> list[torch.Tensor]:
    call = functools.partial(module, **kwargs)
    told = measure(module, call, torch.Tensor.clone, record)
    return [leaf for leaf in told["", RESULT, False] if leaf.is_floating_point()]


def _unlike(alone: list[torch.Tensor], put: list[torch.Tensor]) -> str:
    for one, other in zip(alone, put, strict=True):
        near = _TOLERANCE.get(one.dtype, 1e-2)
        if one.shape != other.shape or not torch.allclose(one, other, near, near, equal_nan=True):
            off = float((one - other).abs().max()) if one.shape == other.shape else float("nan")
            return errors.differs(off)
    return ""
