"""How one model wants its inputs: which side padding goes on, which ids and lengths it can take.

Everything here is read off the module and its config; nothing is changed on them or on the
tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nnsight.modeling.keywords import Accepts, accepts
from nnsight.modeling.tokenizer import LazyTokenizer

_POSITION_TABLES = frozenset(
    "wpe position_embeddings embed_positions position_embedding positions_embed pos_emb".split()
)
"""What learned tables of absolute positions are called; rotary and relative models have none."""

_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")
"""Parts of a multimodal model whose positions are not those of the text."""


@dataclass(frozen=True)
class Format:
    """What there is to know about a model before its inputs can be laid out."""

    module: torch.nn.Module
    tokenizer: LazyTokenizer
    causal: bool  # a decoder that reads from left to right, so that rows end together
    seq2seq: bool = False  # an encoder with a decoder, whose tokens have a length of their own
    position_limit: int | None = None  # tokens that fit, if the positions are a table
    first_position: int = 0  # the position id of the first token
    places_itself: bool = False  # it works positions out from the mask and the images
    method: str = "__call__"  # the one that is called with the inputs
    _taken: dict[str, Accepts] = field(default_factory=dict, repr=False)

    def of(self, method: str) -> Format:
        """The same model, called by another method."""
        return replace(self, method=method)

    @property
    def taken(self) -> Accepts:
        """The keywords that the method takes."""
        if self.method not in self._taken:
            self._taken[self.method] = accepts(self.module, self.method)
        return self._taken[self.method]

    @property
    def method_name(self) -> str:
        """The method as a message names it."""
        method = "forward" if self.method == "__call__" else self.method
        return f"{type(self.module).__name__}.{method}"

    @property
    def generates(self) -> bool:
        """Whether the method is `generate`, which takes further keywords and sets positions."""
        return self.method == "generate"

    @property
    def side(self) -> str:
        """The side that padding goes on, `"left"` or `"right"`.

        Left lines the last tokens up, which is where a causal model predicts. Where padding on
        the left would shift absolute positions and the method takes no `position_ids` to put them
        right, the numbers come first: right.
        """
        asked = self.tokenizer.side
        if asked is not None:
            return asked
        shifted = self.position_limit is not None and not self.takes_positions
        return "left" if self.causal and (self.generates or not shifted) else "right"

    @property
    def takes_positions(self) -> bool:
        return not self.places_itself and "position_ids" in self.taken.names

    @property
    def images_in_text(self) -> bool:
        """Whether images stand in the text, so that each prompt says how many it has."""
        return any(_setting(self.module, name) is not None for name in _TOKENS_OF_IMAGES)

    @property
    def window(self) -> int | None:
        """How many tokens some layer looks back at, where those are not all."""
        return _setting(self.module, "sliding_window")

    @property
    def predicts_next(self) -> bool:
        """Whether the loss shifts the labels: each position is scored on the token after it."""
        name = type(self.module).__name__
        per_token = "TokenClassification" in name or "MaskedLM" in name
        return self.causal and _setting(self.module, "model_type") is not None and not per_token

    @property
    def vocab_size(self) -> int | None:
        """How many ids the input embedding holds, which the user may have resized."""
        try:
            table = self.module.get_input_embeddings()  # type: ignore[operator] # transformers
        except (AttributeError, NotImplementedError, TypeError):
            table = None
        size = getattr(table, "num_embeddings", None)
        return _setting(self.module, "vocab_size") if size is None else size

    @property
    def pad_id(self) -> int:
        """The id to pad with: the tokenizer's, the config's, or else the end of sequence.

        Padding is masked out, so any id that the embedding holds will do.
        """
        size = self.vocab_size
        fitting = (i for i in self._pad_candidates() if i >= 0 and (size is None or i < size))
        return next(fitting, 0)

    @property
    def padding_setting(self) -> dict[str, Any]:
        """What `generate` needs to be told to fill rows that ended early, if nobody has told it."""
        settings = getattr(self.module, "generation_config", None)
        told = settings is None or getattr(settings, "pad_token_id", None) is not None
        return {} if told else {"pad_token_id": self.pad_id}

    def generation_setting(self, name: str, given: Sequence[Mapping[str, Any]]) -> Any:
        """A setting: of a call, of the config given to it, or of the model's own."""
        own = getattr(self.module, "generation_config", None)
        for kwargs in given:
            if kwargs.get(name) is not None:
                return kwargs[name]
        found = (getattr(kwargs.get("generation_config"), name, None) for kwargs in given)
        return next((value for value in found if value is not None), getattr(own, name, None))

    def _pad_candidates(self) -> Iterator[int]:
        settings = [_setting(self.module, name) for name in ("pad_token_id", "eos_token_id")]
        for pair in zip(self.tokenizer.pad_ids or (None, None), settings, strict=True):
            for value in pair:
                ids = value if isinstance(value, list) else [value]
                yield from (i for i in ids if isinstance(i, int))


def format_of(module: torch.nn.Module, tokenizer: LazyTokenizer) -> Format:
    """Read off `module` how it wants its inputs; walks the module once."""
    seq2seq = bool(_setting(module, "is_encoder_decoder"))
    places = any(hasattr(inner, "get_rope_index") for inner in module.modules())
    return Format(module, tokenizer, is_causal(module), seq2seq, *position_table(module), places)


_FROM_ONE = ("paligemma",)  # families that have no table, and count from 1
_TOKENS_OF_IMAGES = ("image_token_id", "image_token_index")
_TOKENS_OF_OTHERS = (*_TOKENS_OF_IMAGES, "audio_token_id", "audio_token_index")


def is_causal(module: torch.nn.Module) -> bool:
    """Whether `module` is a decoder that reads from left to right.

    By the family that the config names, since BERT and its kin can be told to be decoders; a
    module without such a config counts as causal.
    """
    family = _setting(module, "model_type")
    if _setting(module, "is_encoder_decoder"):
        return False
    if _setting(module, "is_decoder") or not family:
        return True
    from transformers.models.auto import modeling_auto

    if family in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if any(_setting(module, name) is not None for name in _TOKENS_OF_OTHERS):
        return True  # it writes about images or sounds that stand in its text
    name = type(module).__name__
    listed = family in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return listed or "CausalLM" in name or "LMHead" in name


def position_table(module: torch.nn.Module) -> tuple[int | None, int]:
    """How many positions the module's table of absolute positions holds, and its first id.

    There is no number for a module without such a table.
    """
    if _setting(module, "position_embedding_type") == "rotary":  # a table may be there, unused
        return None, 0
    for path, table in module.named_modules():
        named = path.rpartition(".")[2] in _POSITION_TABLES
        if named and isinstance(table, torch.nn.Embedding) and _is_for_text(path):
            # RoBERTa counts from the row after the padding's; BART and OPT add `offset` inside
            first = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - first - getattr(table, "offset", 0), first
    return None, int(_setting(module, "model_type") in _FROM_ONE)


def _is_for_text(path: str) -> bool:
    return not any(sense in path for sense in _OTHER_SENSES)


def _setting(module: torch.nn.Module, name: str) -> Any:
    """A setting of the module's config, if it has one; a multimodal config's text part answers."""
    config = getattr(module, "config", None)
    value = getattr(config, name, None)
    text_part = getattr(config, "get_text_config", None)
    return getattr(text_part(), name, None) if value is None and text_part else value
