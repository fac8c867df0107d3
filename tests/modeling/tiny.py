"""Tiny models of many families, built from their configs; nothing here reaches the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from nnsight.modeling.format import Format, format_of
from nnsight.modeling.inputs import batch
from nnsight.modeling.tokenizer import LazyTokenizer


@dataclass
class Given:
    """What one invoke was given."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def given(*args: Any, **kwargs: Any) -> Given:
    return Given(args, kwargs)


VOCABULARY = 290
_SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 48, **_SMALL}
_WIDE = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, **_SMALL}
_WIDE |= {"num_attention_heads": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", _GPT2, "AutoModelForCausalLM"),
    "llama": ("LlamaConfig", {**_WIDE, "num_key_value_heads": 2}, "AutoModelForCausalLM"),
    "bert": ("BertConfig", {**_WIDE, "max_position_embeddings": 48}, "AutoModelForMaskedLM"),
    "roberta": ("RobertaConfig", {**_WIDE, "max_position_embeddings": 50}, "AutoModelForMaskedLM"),
    "roberta-decoder": (
        "RobertaConfig",
        {**_WIDE, "max_position_embeddings": 50, "is_decoder": True},
        "AutoModelForCausalLM",
    ),
    "bart-decoder": (
        "BartConfig",
        {
            "d_model": 32,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 48,
            **{f"{half}_layers": 2 for half in ("encoder", "decoder")},
            **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
            **{f"{half}_ffn_dim": 32 for half in ("encoder", "decoder")},
        },
        "AutoModelForCausalLM",
    ),
    "bloom": (
        "BloomConfig",
        {"hidden_size": 32, "n_layer": 2, "n_head": 2, **_SMALL},
        "AutoModelForCausalLM",
    ),
    "mamba": (
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, **_SMALL},
        "AutoModelForCausalLM",
    ),
    "gpt2-classifier": (
        "GPT2Config",
        {**_GPT2, "pad_token_id": 0},
        "AutoModelForSequenceClassification",
    ),
    "bert-classifier": (
        "BertConfig",
        {**_WIDE, "max_position_embeddings": 48},
        "AutoModelForSequenceClassification",
    ),
    "t5": (
        "T5Config",
        {
            "d_model": 32,
            "d_ff": 32,
            "d_kv": 16,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": VOCABULARY,
        },
        "AutoModelForSeq2SeqLM",
    ),
}


def config_of(family: str) -> Any:
    import transformers

    name, settings, _ = FAMILIES[family]
    return getattr(transformers, name)(**settings)


_built: dict[str, torch.nn.Module] = {}


def model_of(family: str) -> torch.nn.Module:
    """A small random model of one family, in evaluation mode, the same one each time."""
    import transformers

    if family not in _built:
        torch.manual_seed(0)
        automodel = getattr(transformers, FAMILIES[family][2])
        _built[family] = automodel.from_config(config_of(family)).eval()
    return _built[family]


def format_for(family: str, tokenizer: Any = None, method: str = "__call__") -> Format:
    return format_of(model_of(family), LazyTokenizer(tokenizer)).of(method)


def call(inputs: Any, family: str, tokenizer: Any = None, method: str = "__call__") -> dict:
    """The keywords of the call that runs `inputs`: one input, or a list of several."""
    listed = inputs if isinstance(inputs, list) else [inputs]
    args, kwargs = batch(listed, format_for(family, tokenizer, method))
    assert args == ()
    return kwargs


@torch.no_grad()
def run(family: str, kwargs: dict) -> torch.Tensor:
    out = model_of(family)(**kwargs)
    return out.logits
