"""Inputs of different lengths, laid out as one rectangle.

An input here is a dict of tensors whose first dimension is its rows; what runs along the tokens
has them as its second. The padding is always masked out, and what an input lacks is filled in so
that its rows compute what they compute alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nnsight.modeling import errors
from nnsight.modeling.format import Format

Fields = dict[str, torch.Tensor]

_PADDING_ID = object()

FILLS: dict[str, object] = {
    "input_ids": _PADDING_ID,
    "inputs_embeds": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "position_ids": 0,
    "labels": -100,  # the target that a loss ignores
    "decoder_input_ids": _PADDING_ID,
    "decoder_attention_mask": 0,
}
"""The per-row inputs that can be padded, and with what."""


def tokens_of(fields: Fields) -> torch.Tensor | None:
    """What the model reads, `(rows, tokens)` or `(rows, tokens, width)`; None if it is no text."""
    return fields.get("input_ids", fields.get("inputs_embeds"))


def length_of(fields: Fields) -> int | None:
    """How many tokens long the rows are, padding included."""
    tokens = tokens_of(fields)
    return None if tokens is None else tokens.shape[1]


def mask_of(fields: Fields) -> torch.Tensor | None:
    """The mask `(rows, tokens)` that is in force: the one given, or else ones."""
    tokens = tokens_of(fields)
    if "attention_mask" in fields or tokens is None:
        return fields.get("attention_mask")
    return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)


def stack(name: str, rows: Sequence[Sequence[float]], format: Format) -> Fields:
    """Lists of numbers, one a row, as `name`; with `attention_mask` if they had to be padded."""
    width = max(map(len, rows))
    if all(len(row) == width for row in rows):
        return {name: torch.tensor(rows)}
    side, fill = format.side, _fill(name, format)
    padded = [_padded(row, width, fill, side) for row in rows]
    mask = [_padded([1] * len(row), width, 0, side) for row in rows]
    return {name: torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def _padded(row: Sequence[float], width: int, fill: float, side: str) -> list[float]:
    filler = [fill] * (width - len(row))
    return [*filler, *row] if side == "left" else [*row, *filler]


def join(inputs: Sequence[Fields], format: Format, noun: str = "invoke") -> Fields:
    """One input with the rows of all, in order; a lone one is handed back untouched.

    Raises:
        ValueError: a field that has no default is missing in some, or cannot be padded. The text
            counts inputs from 0 and calls them `noun`s.
    """
    if len(inputs) == 1:
        return inputs[0]
    inputs = _with_masks(inputs)
    device = next((t.device for i in inputs for t in i.values() if t.device.type != "cpu"), "cpu")
    together: Fields = {}
    for name in dict.fromkeys(name for fields in inputs for name in fields):
        blocks = _rectangle(name, _filled_in(name, inputs, format, noun), inputs, format)
        if len({block.shape[1:] for block in blocks}) > 1:
            raise errors.unequal_shapes(name, noun, [block.shape for block in blocks])
        together[name] = torch.cat([block.to(device) for block in blocks])
    return together


def _with_masks(inputs: Sequence[Fields]) -> Sequence[Fields]:
    """The inputs, each with a mask if one of them has one or will be padded."""
    ragged = len({length_of(fields) for fields in inputs}) > 1
    if not ragged and not any("attention_mask" in fields for fields in inputs):
        return inputs
    masks = [mask_of(fields) for fields in inputs]
    return [
        fields if mask is None else {**fields, "attention_mask": mask}
        for fields, mask in zip(inputs, masks, strict=True)
    ]


def _filled_in(
    name: str, inputs: Sequence[Fields], format: Format, noun: str
) -> list[torch.Tensor]:
    """`name` of each input, or what stands for it where it is missing."""
    have = [i for i, fields in enumerate(inputs) if name in fields]
    lack = [i for i, fields in enumerate(inputs) if name not in fields]
    blocks = {i: inputs[i][name] for i in have}
    for i in lack:
        default = _default(name, inputs[i], blocks[have[0]], format)
        if default is None:
            raise errors.missing_field(name, noun, have, lack)
        blocks[i] = default
    return [blocks[i] for i in range(len(inputs))]


def _default(
    name: str, fields: Fields, example: torch.Tensor, format: Format
) -> torch.Tensor | None:
    """What `name` amounts to in an input that leaves it out; `example` is another's."""
    mask = mask_of(fields)
    if mask is None or mask.ndim != 2:
        return None
    if name == "position_ids" and example.ndim == 2:
        return positions(mask, format.first_position)
    if name in ("token_type_ids", "mm_token_type_ids"):
        return torch.zeros_like(mask, dtype=torch.long)
    if name == "labels" and not example.is_floating_point():
        ignored = torch.full_like(mask, -100, dtype=torch.long)
        return ignored if example.ndim > 1 else ignored[:, 0]
    if name == "decoder_attention_mask" and "decoder_input_ids" in fields:
        return torch.ones_like(fields["decoder_input_ids"])
    return None


def _rectangle(
    name: str, blocks: Sequence[torch.Tensor], inputs: Sequence[Fields], format: Format
) -> Sequence[torch.Tensor]:
    """The blocks padded to one width, where `name` can be padded and needs to be."""
    dimensions = 3 if name == "inputs_embeds" else 2
    if name not in FILLS or any(block.ndim != dimensions for block in blocks):
        return blocks
    widths = [block.shape[1] for block in blocks]
    apart = runs_apart(name, format)
    if not apart and widths != [length_of(fields) for fields in inputs]:
        return blocks  # one value a row, such as the labels of a classifier
    side, fill, width = "right" if apart else format.side, _fill(name, format), max(widths)
    wide = [widened(block, width, fill, side) for block in blocks]
    if name != "labels":
        return wide
    starts = [0 if side == "right" else width - narrow for narrow in widths]
    return [
        unpredicted(block, torch.full((len(block),), start), format)
        for block, start in zip(wide, starts, strict=True)
    ]


def unpredicted(labels: torch.Tensor, starts: torch.Tensor, format: Format) -> torch.Tensor:
    """`labels` of `(rows, tokens)` without the first one of each row that starts after padding.

    A model that predicts the next token is never scored on the first, as nothing comes before it.
    With padding in front, the loss would have the padding predict it.

    Args:
        labels: of the padded rows.
        starts: the column in which each row starts, `(rows,)`; 0 where nothing is in front.
        format: of the model; one that predicts no next token has its labels as they are.
    """
    later = starts.nonzero().flatten().to(labels.device)
    if not format.predicts_next or not len(later):
        return labels
    labels = labels.clone()
    labels[later, starts.to(labels.device)[later]] = -100
    return labels


def runs_apart(name: str, format: Format) -> bool:
    """Whether `name` has a length of its own: the decoder's side of an encoder-decoder."""
    return name.startswith("decoder_") or (name == "labels" and format.seq2seq)


def _fill(name: str, format: Format) -> float:
    fill = FILLS.get(name, 0)
    return format.pad_id if fill is _PADDING_ID else fill  # type: ignore[return-value] # a number


def widened(block: torch.Tensor, width: int, fill: float, side: str) -> torch.Tensor:
    """`block` of shape `(rows, tokens, ...)` with `fill` added on `side` up to `width` tokens."""
    missing = width - block.shape[1]
    if missing == 0:
        return block
    filler = block.new_full((block.shape[0], missing, *block.shape[2:]), fill)
    return torch.cat([filler, block] if side == "left" else [block, filler], dim=1)


def leading_padding(mask: torch.Tensor) -> torch.Tensor:
    """How many columns each row of a mask `(rows, tokens)` leaves out at the start: `(rows,)`."""
    return (mask.cumsum(-1) == 0).sum(-1)


def lengths(mask: Any) -> tuple[int, list[int]] | None:
    """How long the rows of a mask are, and how much padding each begins with; None if unknown."""
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    try:
        return mask.shape[1], leading_padding(mask).tolist()
    except RuntimeError:  # in a scan, which has no numbers
        return None


def positions(mask: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Position ids `(rows, tokens)` that start at `first` where each row does.

    Only what is masked out at the start counts as padding. A hole further in is somebody's
    experiment, and the tokens after it keep their places.
    """
    columns = torch.arange(mask.shape[-1], device=mask.device)
    return (columns - leading_padding(mask)[:, None]).clamp(min=0) + first
