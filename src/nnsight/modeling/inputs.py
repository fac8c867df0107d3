"""Any way to write a prompt, made into the arguments of one padded call.

A researcher writes a string, token ids, a chat, a tokenizer's output or named tensors, one per
invoke or several; the model wants one rectangle of each. `batch` goes from one to the other, and
the rows of the result are the rows of the inputs, in order. A lone input that needs no padding
becomes exactly the call that `model(**tokenizer(prompt, return_tensors="pt"))` would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch._subclasses.fake_tensor import FakeTensor

from nnsight.envoy.keywords import without_retired
from nnsight.modeling import errors, prompts
from nnsight.modeling.format import Format
from nnsight.modeling.keywords import merged, warn_swallowed
from nnsight.modeling.padding import (
    FILLS,
    Fields,
    join,
    leading_padding,
    length_of,
    mask_of,
    positions,
    runs_apart,
    stack,
    unpredicted,
)
from nnsight.modeling.unmasked import warn_unmasked

_PROMPTS = ("inputs", "input_ids")
"""Names under which a prompt of any form may go in."""

_OTHER_DATA = (
    "inputs_embeds", "input_features", "input_values", "pixel_values", "decoder_input_ids"
)  # fmt: skip
"""What a model can run on without a prompt; the first one there says how many rows there are."""

_TOKENIZER_OPTIONS = ("add_special_tokens", "truncation", "max_length")

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
    return 0 if name is None else sum(map(len, _main_tensors(name, named[name])))


def texts(args: tuple[Any, ...], kwargs: Mapping[str, Any], format: Format) -> list[str | None]:
    """For each row of one invoke's inputs the text that it is read from, or None."""
    prompt, _ = _split(args, kwargs)
    if prompt is None:
        return [None] * count_rows(args, kwargs)
    return prompts.texts(prompt, format)


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
    fields = join([fields for fields, _ in read], format)
    params = merged([params for _, params in read])
    _check_ids(fields, format)
    if params.get("past_key_values") is None:
        _put_positions_right(fields, format)
        _check_length(fields, format)
    if _has_values(fields.get("attention_mask")):
        warn_unmasked(fields, format)
    _drop_needless_mask(fields, format)
    return _call({**fields, **params}, format)


def _call(kwargs: dict[str, Any], format: Format) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not format.generates:
        warn_swallowed(kwargs, format.taken, format.method_name)
    if "input_ids" in kwargs and format.taken.names and not format.taken.takes("input_ids"):
        return (kwargs.pop("input_ids"),), kwargs  # a plain module calls its input what it likes
    if format.generates and "generation_config" not in kwargs:
        kwargs = {**format.padding_setting, **kwargs}
    return (), kwargs


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
    for name in _PROMPTS:
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
        fields = join(pieces, format, "item")
    beside = {name: _beside(name, value, fields, format, options) for name, value in named.items()}
    continued = named.get("past_key_values") is not None
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
    names = [name for name in _TOKENIZER_OPTIONS if name in named and name not in others]
    if not names or not prompts.has_text(prompt):
        return {}
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


def _is_text(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, str)


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


# --- the whole call --------------------------------------------------------------------------


def _put_positions_right(fields: Fields, format: Format) -> None:
    """Add `position_ids` where padding at the start would shift the positions of a decoder."""
    mask = fields.get("attention_mask")
    wanted = format.causal and format.takes_positions and not format.generates
    if mask is None or not wanted or "position_ids" in fields:
        return
    beside_tokens = mask.ndim == 2 and mask.shape[1] == length_of(fields)
    if beside_tokens and _has_values(mask) and not mask[:, 0].all():
        fields["position_ids"] = positions(mask, format.first_position)


def _check_ids(fields: Fields, format: Format) -> None:
    """On an accelerator an id out of range ends the process; here it is an error that names it."""
    ids, size = fields.get("input_ids"), format.vocab_size
    if ids is None or size is None or not _has_values(ids):
        return
    low, high = ids.aminmax()
    if low < 0 or high >= size:
        row, column = ((ids < 0) | (ids >= size)).nonzero()[0].tolist()
        raise errors.unknown_token(int(ids[row, column]), row, size)


def _check_length(fields: Fields, format: Format) -> None:
    """A table of positions ends somewhere; running over it says nothing about why."""
    length, limit = length_of(fields), format.position_limit
    if length is None or limit is None or length <= limit:
        return
    mask, given = fields.get("attention_mask"), fields.get("position_ids")
    if given is not None:
        length = int(given.max()) + 1 - format.first_position
    elif mask is not None and mask.ndim == 2 and format.generates:
        length -= int(leading_padding(mask).min())
    if length > limit:
        raise errors.too_long(length, limit)


def _drop_needless_mask(fields: Fields, format: Format) -> None:
    """Leave out a mask that the method does not take, if it masks nothing out."""
    mask = fields.get("attention_mask")
    if mask is None or not format.taken.names or format.taken.takes("attention_mask"):
        return
    if not _has_values(mask) or not mask.all():
        raise errors.no_mask(format.method_name)
    del fields["attention_mask"]


def _has_values(tensor: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether the numbers can be looked at: not on meta, nor while only shapes are computed."""
    return tensor is not None and not tensor.is_meta and not isinstance(tensor, FakeTensor)
