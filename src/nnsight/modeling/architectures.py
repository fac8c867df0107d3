"""Where each family of transformers keeps what all of them have: a table, and how to add to it.

A family is one `Family`: paths of modules, and how the residual stream goes through a layer. Who
gives `model.layers[3].attn.z` its value reads this table and nothing else of a model's class. The
values themselves are in `points.py`, the objects that users walk in `standard.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nnsight.modeling.encoders import (
    BART,
    BART_DECODER,
    BERT,
    CLIP,
    CLIP_BOTH,
    DINO,
    DISTILBERT,
    MBART,
    MBART_DECODER,
    MODERNBERT,
    SWITCH,
    SWITCH_DECODER,
    T5,
    T5_DECODER,
    VIT,
    XGLM,
)
from nnsight.modeling.family import (
    BETWEEN,
    BLOCKS,
    BY_GROUP,
    BY_HEAD,
    GATED,
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
_GATED = replace(_MIXTRAL, joined=GATED)
_GPT2 = Family(
    layers="h",
    norm="ln_f",
    attn="attn",
    cross="crossattention",
    q="q_attn|c_attn",
    k="c_attn",
    v="c_attn",
    joined=BLOCKS,
    out="c_proj",
    down="c_proj",
    mid="ln_2.input",
    router="",
)
_GPT = replace(_GPT2, cross="", mid="ln_1.output", order=POST, attn_norm="ln_1", mlp_norm="ln_2")
_GPT_NEO = replace(
    _GPT2,
    cross="",
    attn="attn.attention",
    q="q_proj",
    k="k_proj",
    v="v_proj",
    joined=OWN,
    out="out_proj",
)
_MPT = Family(
    layers="blocks",
    norm="norm_f",
    attn="attn",
    **dict.fromkeys(("q", "k", "v"), "Wqkv"),
    joined=BLOCKS,
    out="out_proj",
    mlp="ffn",
    mid="norm_2.input",
    router="",
)
_GPTJ = replace(
    _GPT2,
    cross="",
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
_MAMBA = Family(norm="norm_f", attn="", mlp="", down="", mid="", router="", order=ODD)
_JAMBA = replace(
    _LLAMA,
    norm="final_layernorm",
    mlp="feed_forward",
    mid="pre_ff_layernorm.input",
    router="feed_forward.router",
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
_COHERE = replace(_LLAMA, mid="", order=PARALLEL, router="")
_GLM4 = replace(
    _LLAMA, order=BETWEEN, attn_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm"
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


def _granite(config: Any) -> Family:
    router = f"{_MIXTRAL.router}|block_sparse_moe.router"
    return replace(_MIXTRAL, router=router, scale=config.residual_multiplier)


def _gpt_bigcode(config: Any) -> Family:
    return replace(_GPT2, cross="", joined=BLOCKS if config.multi_query else BY_HEAD)


_ONE_BY_ONE = "its experts are chosen one by one, each by a softmax over the scores near the best"
_LATENT = (
    "keys and values are unfolded from a latent that all heads share, so no projection has those "
    "of one head; `attn.k_rot` are the keys as they are compared"
)
_EACH_BY_ITSELF = "each expert has a score of its own, a sigmoid, so they are no probabilities"


def _deepseek(config: Any) -> Family:
    lacks = {"attn.k": _LATENT, "attn.v": _LATENT}
    if config.model_type == "deepseek_v3":
        lacks |= {"router.probs": _EACH_BY_ITSELF}
    width, v_width = config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    return replace(_LLAMA, q="q_proj|q_b_proj", width=width, v_width=v_width, lacks=lacks)


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
    **dict.fromkeys(("glm", "nemotron", "smollm3"), _LLAMA),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), _LLAMA),
    "phimoe": replace(_MIXTRAL, lacks={"router.probs": _ONE_BY_ONE}),
    "starcoder2": replace(_LLAMA, down="c_proj"),
    "glm4": _GLM4,
    **dict.fromkeys(("cohere", "cohere2"), _COHERE),
    **dict.fromkeys(("granite", "granitemoe"), _granite),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe"), _MIXTRAL),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("olmo2", "olmo3"), _OLMO2),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "roformer"), BERT),
    **dict.fromkeys(("t5", "mt5", "umt5"), (T5, T5_DECODER)),
    **dict.fromkeys(("bart", "marian"), (BART, BART_DECODER)),
    **dict.fromkeys(("mbart", "pegasus", "whisper"), (MBART, MBART_DECODER)),
    **dict.fromkeys(("clip", "siglip"), CLIP_BOTH),
    **{f"{kind}_{part}_model": CLIP for kind in ("clip", "siglip") for part in ("text", "vision")},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _deepseek),
    "switch_transformers": (SWITCH, SWITCH_DECODER),
    "qwen3_next": _GATED,
    "vit": VIT,
    "dinov2": DINO,
    "xglm": XGLM,
    "biogpt": replace(XGLM, pattern=""),
    "gpt_neo": _GPT_NEO,
    "openai-gpt": _GPT,
    "mpt": _MPT,
    "gpt2": _GPT2,
    "gpt_bigcode": _gpt_bigcode,
    "gptj": _GPTJ,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "opt": _opt,
    "phi": _PHI,
    "phi3": _PHI3,
    "stablelm": _stablelm,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
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
