"""Invokes of embeddings beside invokes of token ids: how they are laid out as one batch.

The batch goes in as ids, so that whatever a model does with ids (positions, types, images in the
text) is for these rows as it is alone. Rows of embeddings have a placeholder for each token; the
embeddings are put in their places where the model looks its ids up (`lookup.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from nnsight.modeling import embeds_errors, errors
from nnsight.modeling.format import Format
from nnsight.modeling.padding import Fields, widened

IDS, EMBEDS = "input_ids", "inputs_embeds"

_SHOWN_IDS = (
    "assistant_model", "bad_words_ids", "custom_generate", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "force_words_ids", "guidance_scale", "logits_processor",
    "no_repeat_ngram_size", "prefill_chunk_size", "prompt_lookup_num_tokens",
    "repetition_penalty", "sequence_bias", "stop_strings", "stopping_criteria",
    "token_healing", "watermarking_config",
)  # fmt: skip
"""Settings of `generate` whose work depends on the ids of the prompt."""

_NEUTRAL: dict[str, int] = {
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "repetition_penalty": 1,
}
"""The value with which a setting does nothing, where that is not 0 or nothing at all."""


class Embedded(NamedTuple):
    """The rows of a batch that go in as embeddings. (In a call they are a dict of this.)"""

    rows: list[list[int]]  # for each invoke of them its first row, and how many it has
    embeds: torch.Tensor  # of all these rows, `(rows, tokens, width)`, padded as the batch is
    placeholder: int  # the id that stands for each of their tokens


def with_placeholders(
    inputs: Sequence[Fields], seeing: Sequence[bool], format: Format
) -> tuple[Sequence[Fields], list[torch.Tensor | None]]:
    """The inputs with ids in place of embeddings, if others have ids; and what they replace.

    Inputs that all have the one or all have the other are handed back as they are, and so are
    those for a method that cannot be told both.

    Args:
        seeing: which inputs have images; their places in a text are marked by ids.

    Raises:
        ValueError: there are images beside embeddings that ids would replace.
    """
    only = [EMBEDS in fields and IDS not in fields for fields in inputs]
    mixed = any(only) and any(IDS in fields and EMBEDS not in fields for fields in inputs)
    if not mixed or not _takes_both(format):
        return inputs, []
    if any(alone and sees for alone, sees in zip(only, seeing, strict=True)):
        raise embeds_errors.beside_images()
    number = placeholder(format)
    replaced = [
        fields[EMBEDS] if alone else None for fields, alone in zip(inputs, only, strict=True)
    ]
    return [
        fields if embeds is None else {**_standing_in(embeds, number), **_rest(fields)}
        for fields, embeds in zip(inputs, replaced, strict=True)
    ], replaced


def _standing_in(embeds: torch.Tensor, number: int) -> Fields:
    return {IDS: torch.full(embeds.shape[:2], number, dtype=torch.long, device=embeds.device)}


def _rest(fields: Fields) -> Fields:
    return {name: tensor for name, tensor in fields.items() if name != EMBEDS}


def _takes_both(format: Format) -> bool:
    method = format.method == "__call__" or format.generates
    looks_up = hasattr(format.module, "get_input_embeddings")
    return method and looks_up and {IDS, EMBEDS} <= format.taken.names


def placeholder(format: Format) -> int:
    """An id that means nothing to the model: no padding, no end, no image."""
    special = {format.pad_id, *_special(getattr(format.module, "config", None))}
    return next(number for number in range(2, len(special) + 3) if number not in special)


def _special(config: Any) -> list[Any]:
    """The ids that a config and its part about text give a meaning."""
    parts = [config, getattr(config, "get_text_config", lambda: None)()]
    named = [item for part in parts if part is not None for item in vars(part).items()]
    told = [value for name, value in named if name.endswith(_OF_AN_ID)]
    return [n for value in told for n in (value if isinstance(value, (list, tuple)) else [value])]


_OF_AN_ID = ("_token_id", "_token_ids", "_token_index")


def beside(
    replaced: Sequence[torch.Tensor | None],
    inputs: Sequence[Fields],
    batch: Fields,
    params: Mapping[str, Any],
    format: Format,
) -> dict[str, Any]:
    """What goes into the call beside a `batch` of `inputs` in which embeddings are `replaced`.

    Raises:
        ValueError: the embeddings of two invokes do not go together, or a setting looks at ids.
    """
    _refuse_settings(params, format)
    given = [embeds for embeds in replaced if embeds is not None]
    if len({(embeds.shape[2:], embeds.dtype) for embeds in given}) > 1:
        raise errors.unequal_shapes(EMBEDS, "invoke", [embeds.shape for embeds in given])
    device, width = batch[IDS].device, batch[IDS].shape[1]
    wide = [widened(embeds.to(device), width, 0, format.side) for embeds in given]
    sizes = [len(fields[IDS]) for fields in inputs]
    rows = [
        [sum(sizes[:number]), sizes[number]]
        for number, embeds in enumerate(replaced)
        if embeds is not None
    ]
    found = Embedded(rows, torch.cat(wide), placeholder(format))
    # as `generate` does for embeddings: keys and values are kept, and the prompt is read once
    once = {"use_cache": True} if format.generates and not format.seq2seq else {}
    return {EMBEDS: found._asdict(), **once}


def _refuse_settings(params: Mapping[str, Any], format: Format) -> None:
    """Refuse what would take a placeholder for a word of the prompt."""
    if params.get("past_key_values") is not None:
        raise embeds_errors.beside_setting("past_key_values")
    for name in _SHOWN_IDS if format.generates else ():
        value = format.generation_setting(name, [params])
        if value and value != _NEUTRAL.get(name):
            raise embeds_errors.beside_setting(name)


def taken(kwargs: dict[str, Any]) -> Embedded | None:
    """Take what `beside` gave out of the keywords of a call; None for a call without."""
    found = kwargs.get(EMBEDS)
    return Embedded(**kwargs.pop(EMBEDS)) if isinstance(found, dict) else None
