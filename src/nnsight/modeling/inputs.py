"""Any way to write a prompt, made into the arguments of one padded call.

A researcher writes a string, token ids, a chat, a tokenizer's output or named tensors, one per
invoke or several; the model wants one rectangle of each. `batch` goes from one to the other, and
the rows of the result are the rows of the inputs, in order. A lone input that needs no padding
becomes exactly the call that `model(**tokenizer(prompt, return_tensors="pt"))` would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from nnsight import nested
from nnsight.envoy.keywords import without_retired
from nnsight.modeling import embeds, errors, limits, prompts, sights
from nnsight.modeling.fitting import (
    PAST,
    check_ids,
    check_length,
    drop_needless_mask,
    drop_needless_types,
    has_values,
    past_length,
    put_behind_past,
    put_positions_right,
    put_types_right,
)
from nnsight.modeling.format import Format
from nnsight.modeling.keywords import merged, refuse_misspelt, warn_swallowed
from nnsight.modeling.padding import (
    FILLS,
    Fields,
    join,
    leading_padding,
    length_of,
    mask_of,
    runs_apart,
    stack,
    unpredicted,
)
from nnsight.modeling.sights import is_sight
from nnsight.modeling.unmasked import warn_unmasked

_PROMPTS = ("inputs", "input_ids")
"""Names under which a prompt of any form may go in."""

_TEXTS = ("text", "prompt", "messages")
"""Names under which a text or a chat may go in."""

_OTHER_DATA = (
    "inputs_embeds", "input_features", "input_values", "pixel_values", "decoder_input_ids"
)  # fmt: skip
"""What a model can run on without a prompt; the first one there says how many rows there are."""

TOKENIZER_OPTIONS = ("add_special_tokens", "truncation", "max_length")
"""What the tokenizer may be told beside a text."""

FOR_READING = frozenset((*TOKENIZER_OPTIONS, *prompts.CHAT_OPTIONS))
"""What is for the tokenizer or for its template, and not for the model."""

_AS_LONG_AS_TOKENS = ("attention_mask", "token_type_ids", "position_ids")

_NEVER_ROWS = frozenset(
    "cache_position cross_attn_head_mask cu_seq_lens_k cu_seq_lens_q decoder_head_mask head_mask "
    "logits_to_keep".split()
)
"""Tensors without rows, whatever their first dimension happens to be."""


class Given(Protocol):
    """What one invoke was given."""

    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> Mapping[str, Any]: ...


def count_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many rows these inputs make, without tokenising them; 0 if they hold no data.

    Raises:
        ValueError: more than one unnamed input, an empty one, or one that is no prompt.
    """
    prompt, named = _split(args, kwargs)
    if prompt is not None:
        return prompts.count(prompt)
    name = _main_of(named)
    if name is None and args:
        raise errors.no_data(args[0])
    return 0 if name is None else sum(map(len, _main_tensors(name, named[name])))


def texts(args: tuple[Any, ...], kwargs: Mapping[str, Any], format: Format) -> list[str | None]:
    """For each row of one invoke's inputs the text that it is read from, or None."""
    prompt, _ = _split(args, kwargs)
    if prompt is None:
        return [None] * count_rows(args, kwargs)
    return prompts.texts(prompt, format, kwargs)


def batch(inputs: Sequence[Given], format: Format) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the one call that runs all `inputs`.

    Args:
        inputs: what each invoke was given, in order.
        format: how the model, and the method of it that is called, wants its inputs.

    Returns:
        `(args, kwargs)`. Token ids and masks are int64 `(rows, tokens)`, unless they were given
        as another integer type.

    Raises:
        ValueError: an input is empty, is not a prompt, does not fit the model or does not fit
            the others; the text says which.
    """
    read = [_read(given.args, given.kwargs, format) for given in inputs]
    seeing = [any(map(is_sight, (*fields, *own))) for fields, own in read]
    shown = [sights.take(*one) for one in read] if any(seeing) and sees(inputs, format) else []
    rows, replaced = embeds.with_placeholders([fields for fields, _ in read], seeing, format)
    fields = join(rows, format)
    if format.generates:
        beams = int(format.generation_setting("num_beams", [own for _, own in read]) or 1)
        limits.settle([own for _, own in read], [_rows(own) or 1 for own, _ in read], beams)
    params = merged([params for _, params in read])
    params |= sights.end_to_end(shown)
    if replaced:
        params |= embeds.beside(replaced, rows, fields, params, format)
    check_ids(fields, format)
    past = past_length(params)
    put_behind_past(fields, past, format)
    if past == 0:
        put_positions_right(fields, format)
        put_types_right(fields, format)
        check_length(fields, params, format)
    if has_values(fields.get("attention_mask")):
        warn_unmasked(fields, format)
    drop_needless_mask(fields, format)
    drop_needless_types(fields, format)
    return _call({**fields, **params}, format)


def sees(inputs: Sequence[Given], format: Format) -> bool:
    """Whether invokes are shown images that are no rows: of some more than of others."""
    named = [_split(given.args, given.kwargs)[1] for given in inputs]
    if not any(is_sight(name) for own in named for name in own):
        return False
    rows = [count_rows(given.args, given.kwargs) for given in inputs]
    return sights.apart(named, rows, format)


def _call(kwargs: dict[str, Any], format: Format) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if format.generates:
        refuse_misspelt(kwargs, format.taken)
    else:
        warn_swallowed(kwargs, format.taken, format.method_name)
    if "input_ids" in kwargs and format.taken.names and not format.taken.takes("input_ids"):
        return (kwargs.pop("input_ids"),), kwargs  # a plain module calls its input what it likes
    if format.generates and "generation_config" not in kwargs:
        kwargs = {**format.padding_setting, **kwargs}
    if format.generates and _looks_for_text(kwargs, format):
        kwargs.setdefault("tokenizer", format.tokenizer.get())
    return (), kwargs


def _looks_for_text(kwargs: Mapping[str, Any], format: Format) -> bool:
    """Whether `generate` needs the tokenizer: to end at a text, or to mend the prompt's end."""
    names = ("stop_strings", "token_healing")
    return any(format.generation_setting(name, [kwargs]) for name in names)


def spread(
    inputs: Sequence[Given], shared: Sequence[Mapping[str, Any]], format: Format
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Settings that stand beside the invokes, given to each that does not say otherwise.

    Args:
        inputs: what each invoke with an input was given.
        shared: the settings of the trace, and those of each invoke without an input.
        format: how the model, and the method of it that is called, wants its inputs.

    Returns:
        The keywords of each input, and those of the whole call.

    Raises:
        ValueError: one is given twice, with different values.
    """
    settings = merged(shared)
    told = [_options_of(given) for given in inputs]
    named = {name for given in inputs for name in given.kwargs}
    whole, each = {}, {}
    for name, value in settings.items():
        own = format.generates or name in named or any(name in names for names in told)
        by_row = name in FILLS or nested.first_tensor(value) is not None
        read = name == PAST  # each input goes behind it
        (each if read or (own and not by_row) else whole)[name] = value
    late = {name for others in shared[1:] for name in others}.union(FOR_READING)
    if not format.generates:
        dropped = {name: whole[name] for name in whole if name in late}
        warn_swallowed(dropped, format.taken, format.method_name)
    spread = []
    foreign = frozenset(prompts.CHAT_OPTIONS if format.generates else FOR_READING)
    for given, names in zip(inputs, told, strict=True):
        fitting = [n for n in each if n in names or n not in foreign]
        spread.append({**{name: each[name] for name in fitting}, **given.kwargs})
    return spread, whole


# --- one invoke ------------------------------------------------------------------------------


def _split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prompt, in whatever form, and what else was named."""
    unnamed = [arg for arg in args if arg is not None]
    if len(unnamed) > 1:
        raise errors.many_positional(len(unnamed))
    prompt: Any = next(iter(unnamed), None)
    named = dict(kwargs)
    if _is_encodings(prompt):
        prompt = {name: [item[name] for item in prompt] for name in prompt[0]}
    if prompts.is_encoding(prompt):
        for name in prompt:
            if named.get(name) is not None:
                raise errors.given_twice(name)
        prompt, named = None, {**prompt, **named}
    for name in (*_PROMPTS, *(n for n in _TEXTS if _is_text(named.get(n)))):
        value = named.pop(name, None)
        if value is not None and prompt is not None:
            raise errors.given_twice(name)
        prompt = value if prompt is None else prompt
    return prompt, named


def _is_encodings(value: Any) -> bool:
    """Whether `value` is a list of named inputs with the same names, such as rows of a dataset."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(prompts.is_encoding(item) and item.keys() == value[0].keys() for item in value)


def _read(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], format: Format
) -> tuple[Fields, dict[str, Any]]:
    """One invoke's inputs as tensors with a row for each prompt, and the keywords without rows."""
    prompt, named = _split(args, kwargs)
    named = without_retired(named, format.taken.names)
    options: dict[str, Any] = {}
    fields: Fields = {}
    if prompt is not None:
        options = _take_options(prompt, named, format)
        fields = prompts.read(prompt, format, options)
    elif (main := _main_of(named)) is not None:
        pieces = [{main: tensor} for tensor in _main_tensors(main, named.pop(main))]
        for piece in pieces:
            if not piece[main].numel():
                raise errors.empty_input(piece[main])
        fields = join(pieces, format, "item")
    beside = {name: _beside(name, value, fields, format, options) for name, value in named.items()}
    continued = named.get(PAST) is not None
    per_row = {
        name: _fitting(name, tensor, fields, continued, format)
        for name, tensor in beside.items()
        if tensor is not None
    }
    mask, labels = fields.get("attention_mask"), per_row.get("labels")
    if mask is not None and labels is not None and labels.shape == mask.shape:  # padded here
        per_row["labels"] = unpredicted(labels, leading_padding(mask), format)
    params = {name: value for name, value in named.items() if name not in per_row}
    return {**fields, **per_row}, params


def _take_options(prompt: Any, named: dict[str, Any], format: Format) -> dict[str, Any]:
    """Take out of `named` what is meant for the tokenizer; a prompt of ids needs none of it."""
    others = format.taken.names | ({"max_length"} if format.generates else set())
    names = [name for name in TOKENIZER_OPTIONS if name in named and name not in others]
    if names and not prompts.has_text(prompt):
        names = []
    chat = [name for name in prompts.CHAT_OPTIONS if name in named and name not in others]
    if chat and prompts.has_chat(prompt):
        names += chat
    return {name: named.pop(name) for name in names}


def _main_of(named: Mapping[str, Any]) -> str | None:
    """The name of what the model runs on in a call without a prompt."""
    return next((name for name in _OTHER_DATA if named.get(name) is not None), None)


def _main_tensors(name: str, value: Any) -> list[torch.Tensor]:
    """Data other than a prompt; a list holds a tensor for each row, which may differ in length."""
    if isinstance(value, (list, tuple)):
        return [part for row in value for part in _main_tensors(name, torch.as_tensor(row)[None])]
    tensor = torch.as_tensor(value)
    if name == "inputs_embeds" and tensor.ndim != 3:  # of one row, or a list of batches
        tensor = tensor[None] if tensor.ndim == 2 else tensor[0]
    return [tensor]


def _beside(
    name: str, value: Any, fields: Fields, format: Format, options: Mapping[str, Any]
) -> torch.Tensor | None:
    """What goes with the prompt, row for row, as a tensor; None if `value` has no rows."""
    rows = _rows(fields)
    if value is None or rows is None:
        return None
    if name == "labels" and _is_text(value):
        return _text_labels(value, fields, format, options)
    if isinstance(value, (list, tuple)) and len(value) > 0 and name in FILLS:
        return _from_lists(name, value, format)
    if not isinstance(value, torch.Tensor) and not hasattr(value, "__array__"):
        return None
    tensor = torch.as_tensor(value)
    if name in FILLS and tensor.ndim in (1, 2, 3 if name == "inputs_embeds" else 2):
        return tensor
    return tensor if tensor.shape[:1] == (rows,) and name not in _NEVER_ROWS else None


def _rows(fields: Fields) -> int | None:
    return next((tensor.shape[0] for tensor in fields.values()), None)


def _from_lists(name: str, value: Sequence[Any], format: Format) -> torch.Tensor:
    """Numbers, one or a list of them for each row; rows of unlike length are padded."""
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in value]
    try:
        if all(isinstance(row, (list, tuple)) for row in rows):
            return stack(name, rows, format)[name]
        return torch.tensor(rows)
    except (TypeError, ValueError):
        raise errors.ragged_values(name) from None


def _first(value: Any) -> Any:
    """What the first part of a prompt is, however deep in lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value


def _is_text(value: Any) -> bool:
    """Whether `value` is a text, a chat or a list of them."""
    first = _first(value)
    return isinstance(first, str) or (isinstance(first, Mapping) and "role" in first)


def _options_of(given: Given) -> frozenset[str]:
    """What may be told beside the prompt to what reads it, as far as its first part tells."""
    named = map(given.kwargs.get, (*_PROMPTS, *_TEXTS))
    read = [_first(value) for value in (*given.args, *named) if _is_text(value)]
    if not read:
        return frozenset()
    texts = all(isinstance(first, str) for first in read)
    return frozenset(TOKENIZER_OPTIONS if texts else FOR_READING)


def _text_labels(
    value: Any, fields: Fields, format: Format, options: Mapping[str, Any]
) -> torch.Tensor:
    """Target texts as ids; beside a decoder's or an encoder's tokens they must be as many."""
    named = prompts.tokenised(list(prompts.atoms(value)), format, options)
    labels = stack("labels", named["input_ids"], format)
    mask, expected = labels.get("attention_mask"), mask_of(fields)
    if mask is None:
        mask = torch.ones_like(labels["labels"])
    if not format.seq2seq and (expected is None or not torch.equal(mask, expected.cpu())):
        raise errors.unlike_labels()
    return labels["labels"]


def _fitting(
    name: str, tensor: torch.Tensor, fields: Fields, continued: bool, format: Format
) -> torch.Tensor:
    """`tensor` with the rows and the tokens of the prompt that it goes with.

    With `continued`, keys and values of earlier tokens are passed along, and a mask covers those
    as well.
    """
    rows, length = _rows(fields) or 0, length_of(fields)
    if tensor.ndim == 1 and rows == 1 and _is_a_row(name, tensor, length, format):
        tensor = tensor[None]
    as_long = name in _AS_LONG_AS_TOKENS and length is not None
    if as_long and tensor.ndim == 2 and tensor.shape[0] == 1 < rows:
        tensor = tensor.expand(rows, -1)
    if tensor.shape[0] != rows or (as_long and tensor.ndim == 1):
        raise errors.wrong_rows(name, tensor, rows)
    if as_long and tensor.ndim == 2 and tensor.shape[1] != length and not continued:
        raise errors.wrong_length(name, tensor, length or 0)
    return tensor


def _is_a_row(name: str, tensor: torch.Tensor, length: int | None, format: Format) -> bool:
    """Whether a flat tensor beside a lone row holds that row's tokens, not its one value."""
    if name != "labels" or runs_apart(name, format):
        return name in FILLS
    return len(tensor) == length and (len(tensor) > 1 or format.causal)
