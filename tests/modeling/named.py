"""A tiny random model of each family that has standard names, made from its own config class."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch

_BASE = {"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_WIDE = {
    **_BASE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_SHARED = {**_WIDE, "num_key_value_heads": 2}
_HEADS = {**_SHARED, "head_dim": 12}
_GPT = {**_BASE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_HALVES = {
    **_BASE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
_T5 = {**_BASE, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_T5 |= {"num_decoder_layers": 3, "decoder_start_token_id": 0}
_FALCON = {**_BASE, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_CAUSAL, _MASKED, _SEQ = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"

NAMED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", _GPT, _CAUSAL),
    "llama": ("LlamaConfig", _SHARED, _CAUSAL),
    "mistral": ("MistralConfig", {**_SHARED, "sliding_window": 3}, _CAUSAL),
    "qwen2": ("Qwen2Config", _SHARED, _CAUSAL),
    "qwen3": ("Qwen3Config", _HEADS, _CAUSAL),
    "gemma": ("GemmaConfig", _HEADS, _CAUSAL),
    "gemma2": ("Gemma2Config", {**_HEADS, "sliding_window": 4}, _CAUSAL),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, "sliding_window": 4}, _CAUSAL),
    "phi": ("PhiConfig", _SHARED, _CAUSAL),
    "phi3": ("Phi3Config", _SHARED, _CAUSAL),
    "opt": ("OPTConfig", {**_WIDE, "ffn_dim": 48, "word_embed_proj_dim": 32}, _CAUSAL),
    "opt-post-norm": (
        "OPTConfig",
        {**_WIDE, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
        _CAUSAL,
    ),
    "bloom": ("BloomConfig", {**_BASE, "hidden_size": 32, "n_layer": 3, "n_head": 4}, _CAUSAL),
    "falcon": ("FalconConfig", {**_FALCON, "alibi": False}, _CAUSAL),
    "falcon-alibi": (
        "FalconConfig",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False},
        _CAUSAL,
    ),
    "falcon-groups": (
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
        _CAUSAL,
    ),
    "gpt_neox": ("GPTNeoXConfig", _WIDE, _CAUSAL),
    "gpt_neox-sequential": ("GPTNeoXConfig", {**_WIDE, "use_parallel_residual": False}, _CAUSAL),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}, _CAUSAL),
    "gpt_oss": (
        "GptOssConfig",
        {**_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
        _CAUSAL,
    ),
    "mixtral": ("MixtralConfig", {**_SHARED, "num_local_experts": 4}, _CAUSAL),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_SHARED, **_EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
        _CAUSAL,
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADS, **_EXPERTS}, _CAUSAL),
    "olmo": ("OlmoConfig", _SHARED, _CAUSAL),
    "olmo2": ("Olmo2Config", _SHARED, _CAUSAL),
    "stablelm": ("StableLmConfig", _SHARED, _CAUSAL),
    "stablelm-parallel": ("StableLmConfig", {**_SHARED, "use_parallel_residual": True}, _CAUSAL),
    "mamba": ("MambaConfig", {**_BASE, "hidden_size": 32, "num_hidden_layers": 3}, _CAUSAL),
    "jamba": (
        "JambaConfig",
        {
            **_SHARED,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
            "num_experts": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        _CAUSAL,
    ),
    "bert": ("BertConfig", _WIDE, _MASKED),
    "roberta": ("RobertaConfig", _WIDE, _MASKED),
    "distilbert": (
        "DistilBertConfig",
        {**_BASE, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
        _MASKED,
    ),
    "modernbert": (
        "ModernBertConfig",
        {
            **_WIDE,
            "pad_token_id": 2,
            "cls_token_id": 3,
            "sep_token_id": 4,
            "reference_compile": False,
        },
        _MASKED,
    ),
    "bart-decoder": ("BartConfig", {**_HALVES, "encoder_layers": 3}, _CAUSAL),
    "t5": ("T5Config", _T5, _SEQ),
    "t5-gated": ("T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}, _SEQ),
    "bart": ("BartConfig", _HALVES, _SEQ),
}
DECODERS = [f for f, (_, _, kind) in NAMED.items() if kind == _CAUSAL]
ENCODERS = [f for f, (_, _, kind) in NAMED.items() if kind == _MASKED]
ONE_STACK = [*DECODERS, *ENCODERS]
_built: dict[tuple[str, str | None, str], torch.nn.Module] = {}


def config_of(family: str, **more: Any) -> Any:
    import transformers

    name, settings, _ = NAMED[family]
    return getattr(transformers, name)(**{**settings, **more})


def module_of(family: str, attention: str | None = None, copy: str = "") -> torch.nn.Module:
    """A model with weights large enough that patterns are far from even; kept for the session.

    Args:
        copy: one of its own, on which transformers has left no hooks.
    """
    import transformers

    if (family, attention, copy) not in _built:
        torch.manual_seed(0)
        options = {} if attention is None else {"attn_implementation": attention}
        automodel = getattr(transformers, NAMED[family][2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers 4.57 about itself
            module = automodel.from_config(config_of(family), **options).eval()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.15)
                elif "bias" in name:
                    parameter.normal_(0, 0.05)
        _built[family, attention, copy] = module
    return _built[family, attention, copy]


def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(3))


def given(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Inputs for a forward."""
    takes = inspect.signature(module.forward).parameters
    more = {"decoder_input_ids": ids().flip(1)} if "decoder_input_ids" in takes else {}
    return {"input_ids": ids(), **more}
