"""Where each family of transformers keeps what all of them have: a table, and how to add to it.

A family is one `Family`: paths of modules, and how the residual stream goes through a layer. Who
gives `model.layers[3].attn.z` its value reads this table and nothing else of a model's class. The
values themselves are in `points.py`, the objects that users walk in `standard.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nnsight.modeling.family import (
    BETWEEN,
    BLOCKS,
    BY_GROUP,
    BY_HEAD,
    ODD,
    OWN,
    PARALLEL,
    POST,
    Family,
)

Entry = Family | tuple[Family, ...] | Callable[[Any], "Family | tuple[Family, ...]"]
"""A family, the two of an encoder-decoder, or a function of the config where that decides."""

_LLAMA = Family()
_MIXTRAL = replace(_LLAMA, mlp="mlp|block_sparse_moe")
_GEMMA = replace(
    _LLAMA,
    mid="pre_feedforward_layernorm.input",
    order=BETWEEN,
    attn_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
)
_GPT2 = Family(
    layers="h",
    norm="ln_f",
    attn="attn",
    q="c_attn",
    k="c_attn",
    v="c_attn",
    joined=BLOCKS,
    out="c_proj",
    down="c_proj",
    mid="ln_2.input",
    router="",
)
_GPTJ = replace(
    _GPT2,
    q="q_proj",
    k="k_proj",
    v="v_proj",
    joined=OWN,
    out="out_proj",
    pattern="attn_dropout.input",
    down="fc_out",
    mid="",
    order=PARALLEL,
)
_BERT = Family(
    layers="encoder.layer",
    norm="",
    attn="attention",
    cross="crossattention",
    q="self.query",
    k="self.key",
    v="self.value",
    out="output.dense",
    kernel="self",
    mlp="",
    down="output.dense",
    router="",
    mid="attention.output",
    order=POST,
    attn_norm="attention.output.LayerNorm",
    mlp_norm="output.LayerNorm",
)
_DISTILBERT = replace(
    _BERT,
    layers="transformer.layer",
    q="q_lin",
    k="k_lin",
    v="v_lin",
    out="out_lin",
    cross="",
    kernel="",
    mlp="ffn",
    down="lin2",
    mid="sa_layer_norm.output",
    attn_norm="sa_layer_norm",
    mlp_norm="output_layer_norm",
)
_MODERNBERT = Family(
    norm="final_norm",
    attn="attn",
    q="Wqkv",
    k="Wqkv",
    v="Wqkv",
    joined=BLOCKS,
    out="Wo",
    down="Wo",
    mid="mlp_norm.input",
    router="",
)
_MAMBA = Family(norm="norm_f", attn="", mlp="", down="", mid="", router="", order=ODD)
_JAMBA = replace(
    _LLAMA,
    norm="final_layernorm",
    mlp="feed_forward",
    mid="pre_ff_layernorm.input",
    router="feed_forward.router",
)
_T5 = Family(
    layers="encoder.block",
    norm="encoder.final_layer_norm",
    stack="encoder",
    attn="layer.0.SelfAttention",
    q="q",
    k="k",
    v="v",
    out="o",
    mlp="layer.1.DenseReluDense",
    down="wo",
    router="",
    mid="layer.1.input",
)
_T5_DECODER = replace(
    _T5,
    layers="decoder.block",
    norm="decoder.final_layer_norm",
    stack="decoder",
    cross="layer.1.EncDecAttention",
    mlp="layer.2.DenseReluDense",
    mid="layer.2.input",
)
_BART = Family(
    layers="encoder.layers",
    norm="encoder.layer_norm",
    stack="encoder",
    out="out_proj",
    mlp="",
    down="fc2",
    router="",
    mid="self_attn_layer_norm.output",
    order=POST,
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    heads="encoder_attention_heads",
)
_BART_DECODER = replace(
    _BART,
    layers="decoder.layers",
    norm="decoder.layer_norm",
    stack="decoder",
    cross="encoder_attn",
    cross_norm="encoder_attn_layer_norm",
    mid="encoder_attn_layer_norm.output",
    heads="decoder_attention_heads",
)


_FUSED = dict.fromkeys(("q", "k", "v"), "query_key_value")
_NEOX = Family(
    **_FUSED,
    norm="final_layer_norm",
    attn="attention",
    joined=BY_HEAD,
    out="dense",
    down="dense_4h_to_h",
    router="",
)
_BLOOM = replace(_NEOX, layers="h", norm="ln_f", attn="self_attention")
_PHI = replace(
    _LLAMA, norm="final_layernorm", out="dense", down="fc2", mid="", order=PARALLEL, router=""
)
_PHI3 = replace(_LLAMA, q="qkv_proj", k="qkv_proj", v="qkv_proj", joined=BLOCKS)
_OLMO2 = replace(
    _LLAMA,
    mid="mlp.input",
    order=BETWEEN,
    attn_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
)


def _parallel(family: Family, config: Any) -> Family:
    """`family`, or its form in which attention and MLP read the same."""
    if getattr(config, "use_parallel_residual", True):
        return replace(family, mid="", order=PARALLEL)
    return family


def _gpt_neox(config: Any) -> Family:
    return _parallel(_NEOX, config)


def _stablelm(config: Any) -> Family:
    return _parallel(_LLAMA, config)


def _bloom(config: Any) -> Family:
    normed_first = config.apply_residual_connection_post_layernorm  # what is added to is normed
    return replace(_BLOOM, mid="", order=ODD) if normed_first else _BLOOM


def _falcon(config: Any) -> Family:
    if config.new_decoder_architecture:
        return replace(_BLOOM, joined=BY_GROUP, mid="", order=PARALLEL)
    family = replace(_BLOOM, joined=BLOCKS if config.multi_query else BY_HEAD)
    return replace(family, mid="", order=PARALLEL) if config.parallel_attn else family


def _opt(config: Any) -> Family:
    family = replace(
        _LLAMA,
        layers="decoder.layers",
        norm="decoder.final_layer_norm",
        out="out_proj",
        mlp="",
        down="fc2",
        router="",
        mid="final_layer_norm.input",
    )
    if config.do_layer_norm_before:
        return family
    norms = {"attn_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
    return replace(family, mid="self_attn_layer_norm.output", order=POST, **norms)


FAMILIES: dict[str, Entry] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "olmo", "ministral"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe"), _MIXTRAL),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO2),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    **dict.fromkeys(("t5", "mt5", "umt5"), (_T5, _T5_DECODER)),
    "bart": (_BART, _BART_DECODER),
    "gpt2": _GPT2,
    "gptj": _GPTJ,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "opt": _opt,
    "phi": _PHI,
    "phi3": _PHI3,
    "stablelm": _stablelm,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    "mamba": _MAMBA,
    "jamba": _JAMBA,
}
"""By `model_type` of the config."""


def register(model_type: str, family: Entry) -> None:
    """Give the models of a `model_type` their standard names, or other ones than they have.

    Models that are open already keep theirs.
    """
    FAMILIES[model_type] = family


def families_of(config: Any) -> tuple[Family, ...]:
    """The stacks of a model of this config; none for a family that is not known."""
    entry = FAMILIES.get(getattr(config, "model_type", ""))
    if entry is None:
        return ()
    if not isinstance(entry, Family | tuple):
        entry = entry(config)
    return entry if isinstance(entry, tuple) else (entry,)
