"""Whether a batch is one that the model can take, and what it needs beside: positions, no mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch._subclasses.fake_tensor import FakeTensor

from nnsight.capture.traceback import warn
from nnsight.modeling import errors, generation_errors
from nnsight.modeling.format import Format
from nnsight.modeling.padding import Fields, leading_padding, length_of, positions

PAST = "past_key_values"
"""The cache of keys and values of earlier tokens, in a call."""


def past_length(params: Mapping[str, Any]) -> int | None:
    """How many tokens a cache that goes along holds; 0 without one, None if it does not say."""
    past = params.get(PAST)
    if past is None:
        return 0
    length: Any = getattr(past, "get_seq_length", lambda: None)()
    if length is None or (isinstance(length, torch.Tensor) and not has_values(length)):
        return None
    return int(length)


def put_behind_past(fields: Fields, past: int | None, format: Format) -> None:
    """Let tokens see the `past` of them that a cache holds.

    A decoder wants a mask over both. One that is as long as the tokens, as a tokenizer makes it,
    would hide the cache.
    """
    mask = fields.get("attention_mask")
    if not past or mask is None or not format.causal or format.generates:
        return
    if mask.ndim != 2 or mask.shape[1] != length_of(fields) or not has_values(mask):
        return
    if not mask[:, 0].all():
        if format.takes_positions and "position_ids" not in fields:
            fields["position_ids"] = positions(mask, format.first_position + past)
        if format.window is not None:
            padded = leading_padding(mask).nonzero().flatten().tolist()
            warn(errors.padding_in_window(type(format.module).__name__, format.window, padded))
    fields["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], past), mask], dim=1)


def put_positions_right(fields: Fields, format: Format) -> None:
    """Add `position_ids` where padding at the start would shift the positions of a decoder."""
    mask = fields.get("attention_mask")
    wanted = format.causal and format.takes_positions and not format.generates
    if mask is None or not wanted or "position_ids" in fields:
        return
    beside_tokens = mask.ndim == 2 and mask.shape[1] == length_of(fields)
    if beside_tokens and has_values(mask) and not mask[:, 0].all():
        fields["position_ids"] = positions(mask, format.first_position)


def put_types_right(fields: Fields, format: Format) -> None:
    """Add the types of tokens where without them a padded prompt would be read another way.

    PaliGemma reads a prompt both ways. That of transformers 5 reads a padded one forwards only, if
    it is not told that all of it is a prompt.
    """
    mask = fields.get("attention_mask")
    config = getattr(format.module, "config", None)
    if getattr(config, "model_type", "") != "paligemma" or "token_type_ids" in fields:
        return
    if mask is not None and mask.ndim == 2 and has_values(mask) and not mask.all():
        fields["token_type_ids"] = torch.zeros_like(mask)


def check_ids(fields: Fields, format: Format) -> None:
    """On an accelerator an id out of range ends the process; here it is an error that names it."""
    ids, size = fields.get("input_ids"), format.vocab_size
    if ids is None or size is None or not has_values(ids):
        return
    low, high = ids.aminmax()
    if low < 0 or high >= size:
        row, column = ((ids < 0) | (ids >= size)).nonzero()[0].tolist()
        raise errors.unknown_token(int(ids[row, column]), row, size)


def check_length(fields: Fields, params: Mapping[str, Any], format: Format) -> None:
    """A table of positions ends somewhere; running over it says nothing about why."""
    length, limit = length_of(fields), format.position_limit
    new = params.get("max_new_tokens")
    grows = format.generates and not format.seq2seq and isinstance(new, int)
    read = (new or 1) - 1 if grows else 0  # the last token is not read
    if length is None or limit is None or length + read <= limit:
        return
    mask, given = fields.get("attention_mask"), fields.get("position_ids")
    if given is not None:
        length = int(given.max()) + 1 - format.first_position
    elif mask is not None and mask.ndim == 2 and format.generates:
        length -= int(leading_padding(mask).min())
    if length > limit:
        raise errors.too_long(length, limit)
    if length + read > limit:
        warn(generation_errors.may_outgrow(length, read + 1, limit))


def drop_needless_mask(fields: Fields, format: Format) -> None:
    """Leave out a mask that the method does not take, if it masks nothing out."""
    mask = fields.get("attention_mask")
    if mask is None or not format.taken.names or format.taken.takes("attention_mask"):
        return
    if not has_values(mask) or not mask.all():
        raise errors.no_mask(format.method_name)
    del fields["attention_mask"]


def drop_needless_types(fields: Fields, format: Format) -> None:
    """Leave out types of tokens that say nothing, where the model knows none.

    A tokenizer that was not told otherwise adds them in transformers 4, and nobody asked for them.
    """
    types, names = fields.get("token_type_ids"), format.taken.names
    if types is None or not names or "token_type_ids" in names:
        return
    if has_values(types) and not types.any():
        del fields["token_type_ids"]


def has_values(tensor: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether the numbers can be looked at: not on meta, nor while only shapes are computed."""
    return tensor is not None and not tensor.is_meta and not isinstance(tensor, FakeTensor)
