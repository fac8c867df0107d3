"""Every form that a prompt can have, and how each becomes token ids.

A prompt is taken apart into atoms, each of one kind: a text, a chat, a list of ids, or a tensor of
ids. Atoms of one kind that stand next to each other are read together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from nnsight.modeling import errors, load_errors
from nnsight.modeling.format import Format
from nnsight.modeling.padding import Fields, join, stack

Options = Mapping[str, Any]

CHAT_OPTIONS = (
    "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"
)  # fmt: skip
"""What the template may be told beside a chat."""


def count(prompt: Any) -> int:
    """How many rows `prompt` makes, without reading it."""
    return sum(_kind(atom).rows(atom) for atom in atoms(prompt))


def has_text(prompt: Any) -> bool:
    """Whether a tokenizer is needed to read `prompt`."""
    return any(_kind(atom) in (_TEXT, _CHAT) for atom in atoms(prompt))


def has_chat(prompt: Any) -> bool:
    """Whether a template is needed to write out `prompt`."""
    return any(_kind(atom) is _CHAT for atom in atoms(prompt))


def is_encoding(value: Any) -> bool:
    """Whether `value` is named inputs, as a tokenizer returns them, and not a message of a chat."""
    return isinstance(value, Mapping) and "role" not in value


def read(prompt: Any, format: Format, options: Options) -> Fields:
    """The ids of `prompt`, one row for each text, chat or list of ids in it.

    Args:
        prompt: in any form but named inputs.
        format: how the model wants its inputs.
        options: what to tell the tokenizer.

    Returns:
        `input_ids`, int64 `(rows, tokens)` (a tensor keeps its type and is not copied); with what
        else the tokenizer made, and with `attention_mask` if rows were padded.

    Raises:
        ValueError: it is empty, no prompt at all, or text for a model that has no tokenizer.
    """
    pieces: list[Fields] = []
    for kind, group in itertools.groupby(atoms(prompt), _kind):
        pieces += kind.read(list(group), format, options)
    return join(pieces, format, "item")


def texts(prompt: Any, format: Format, options: Options) -> list[str | None]:
    """For each row of `prompt` the text that it is read from; None where it is ids already."""
    told = {name: options[name] for name in CHAT_OPTIONS if name in options}
    found: list[str | None] = []
    for atom in atoms(prompt):
        kind = _kind(atom)
        if kind is _CHAT:
            found.append(_written_out(atom, format.tokenizer.get(), told))
        else:
            found += [atom] if kind is _TEXT else [None] * kind.rows(atom)
    return found


def tokenised(texts: Sequence[str], format: Format, options: Options) -> dict[str, list[list[int]]]:
    """What the tokenizer makes of each text, unpadded, as far as the model takes it."""
    tokenizer = format.tokenizer.get()
    if tokenizer is None:
        raise errors.no_tokenizer()
    told = {name: options[name] for name in options if name not in CHAT_OPTIONS}
    named = tokenizer(list(texts), **told)
    kept = format.taken.names | {"input_ids", "attention_mask"}
    if not isinstance(named, Mapping) or "input_ids" not in named:
        raise load_errors.reads_otherwise(format.tokenizer, named)
    return {name: rows for name, rows in named.items() if name in kept}


# --- atoms -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Kind:
    rows: Callable[[Any], int]  # how many rows one atom makes
    read: Callable[[list[Any], Format, Options], Iterable[Fields]]  # atoms in a row, as tensors


def _kind(atom: Any) -> _Kind:
    if isinstance(atom, str):
        return _TEXT
    if isinstance(atom, torch.Tensor):
        return _TENSOR
    return _CHAT if isinstance(atom[0], Mapping) else _IDS


def atoms(prompt: Any) -> Iterator[Any]:
    """The atoms of a prompt, however deep in lists they lie."""
    if _is_array(prompt):
        prompt = prompt.tolist() if prompt.dtype.kind in "OSU" else torch.as_tensor(prompt)
    if isinstance(prompt, (str, torch.Tensor)):
        yield _not_empty(prompt)
    elif isinstance(prompt, Mapping) and "role" in prompt:
        yield [prompt]
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise errors.unreadable_input(prompt)
    elif all(isinstance(part, Mapping) and "role" in part for part in prompt):
        yield _not_empty(prompt)
    elif _is_ids(prompt):
        yield prompt
    else:
        for part in prompt:
            yield from atoms(part)


def _is_ids(parts: Sequence[Any]) -> bool:
    if all(type(part) is int for part in parts):  # as it mostly is; an abstract class takes long
        return True
    return all(isinstance(part, Integral) and not isinstance(part, bool) for part in parts)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, torch.Tensor)


def _not_empty(atom: Any) -> Any:
    size = atom.numel() if isinstance(atom, torch.Tensor) else len(atom)
    if size == 0:
        raise errors.empty_input(atom)
    return atom


def _one(atom: Any) -> int:
    return 1


def _rows_of_tensor(atom: torch.Tensor) -> int:
    return atom.shape[0] if atom.ndim > 1 else 1


def _read_ids(lists: list[Any], format: Format, options: Options) -> Iterable[Fields]:
    yield stack("input_ids", lists, format)


def _read_tensors(tensors: list[Any], format: Format, options: Options) -> Iterable[Fields]:
    for ids in tensors:
        if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
            raise errors.not_ids(ids)
        ids = ids if ids.dtype in (torch.int32, torch.int64) else ids.long()
        yield {"input_ids": ids if ids.ndim == 2 else ids[None]}


def _read_texts(texts: list[Any], format: Format, options: Options) -> Iterable[Fields]:
    named = tokenised(texts, format, options)
    for text, ids in zip(texts, named["input_ids"], strict=True):
        if not ids:
            raise errors.empty_input(text)
    fields: Fields = {}
    for name, rows in named.items():
        fields = {**stack(name, rows, format), **fields}
    yield fields


def _read_chats(chats: list[Any], format: Format, options: Options) -> Iterable[Fields]:
    """Chats through the template, which writes special tokens itself.

    A chat whose last word is the user's ends where the model is to answer; one whose last word is
    the assistant's ends within that word, so that the model goes on with it.
    """
    tokenizer = format.tokenizer.get()
    if tokenizer is None:
        raise errors.no_tokenizer()
    if not tokenizer.chat_template:
        raise errors.no_chat_template()
    told = {name: options[name] for name in CHAT_OPTIONS if name in options}
    rest = {name: options[name] for name in options if name not in told}
    texts = [_written_out(chat, tokenizer, told) for chat in chats]
    return _read_texts(texts, format, {"add_special_tokens": False, **rest})


def _written_out(chat: Sequence[Mapping[str, Any]], tokenizer: Any, told: Options) -> str:
    answered = chat[-1]["role"] == "assistant"
    ends = {"add_generation_prompt": not answered, "continue_final_message": answered}
    if told.keys() & ends.keys():  # one of them excludes the other
        ends = {}
    messages = [dict(message) for message in chat]
    return tokenizer.apply_chat_template(messages, tokenize=False, **ends, **told)


_TEXT = _Kind(_one, _read_texts)
_CHAT = _Kind(_one, _read_chats)
_IDS = _Kind(_one, _read_ids)
_TENSOR = _Kind(_rows_of_tensor, _read_tensors)
