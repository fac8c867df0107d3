"""A tiny random model of every family, from its own config class, with a tokenizer made here.

The families that have standard names are in `tests/modeling/named.py`; here are the others.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from tests.modeling.named import _BASE as BASE
from tests.modeling.named import (
    _CAUSAL,
    _EXPERTS,
    _GPT,
    _HALVES,
    _HEADS,
    _MASKED,
    _SEQ,
    _SHARED,
    _T5,
    _WIDE,
    NAMED,
)

IMAGES, SPEECH, PAIRS = "AutoModelForImageClassification", "AutoModelForSpeechSeq2Seq", "AutoModel"
SIGHTS = "AutoModelForImageTextToText"
_SSM = {**BASE, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
_MAMBA2 = {**_SSM, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}
_MAMBA_PARTS = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2}
_PATCHES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
IMAGE = 94  # the id of the last word: in a prompt it is where an image goes
IMAGE_STARTS, FILM = 93, 92  # those before it, which Qwen-VL has in front of images, and for films
_TEXT = {"model_type": "llama", **_SHARED}
_SEEING = {"image_token_id": IMAGE, "image_token_index": IMAGE}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_QWEN = {
    "image_token_id": IMAGE,
    "video_token_id": FILM,
    "vision_start_token_id": IMAGE_STARTS,
    "vision_end_token_id": 3,
    "text_config": {
        **_SHARED,
        "head_dim": 8,
        "rope_parameters": _ROPE,
        "rope_scaling": {**_ROPE, "type": "mrope"},
    },
}
_EYES = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
_NEWER = {**_EYES, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
_LATENT = {
    **_SHARED,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
MORE: dict[str, tuple[str, dict[str, Any], str]] = {
    # decoders
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **BASE,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
        _CAUSAL,
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT, _CAUSAL),
    "codegen": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}, _CAUSAL),
    "mpt": ("MptConfig", {**BASE, "d_model": 32, "n_layers": 3, "n_heads": 4}, _CAUSAL),
    "cohere": ("CohereConfig", _SHARED, _CAUSAL),
    "cohere2": ("Cohere2Config", {**_SHARED, "sliding_window": 4}, _CAUSAL),
    "granite": ("GraniteConfig", _SHARED, _CAUSAL),
    "glm": ("GlmConfig", _HEADS, _CAUSAL),
    "glm4": ("Glm4Config", _HEADS, _CAUSAL),
    "nemotron": ("NemotronConfig", _SHARED, _CAUSAL),
    "starcoder2": ("Starcoder2Config", {**_SHARED, "sliding_window": 4}, _CAUSAL),
    "smollm3": ("SmolLM3Config", _SHARED, _CAUSAL),
    "ministral": ("MinistralConfig", {**_HEADS, "sliding_window": 4}, _CAUSAL),
    "olmo3": ("Olmo3Config", {**_SHARED, "sliding_window": 4}, _CAUSAL),
    "xglm": (
        "XGLMConfig",
        {**BASE, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48},
        _CAUSAL,
    ),
    "biogpt": ("BioGptConfig", _WIDE, _CAUSAL),
    "ctrl": ("CTRLConfig", {**_GPT, "dff": 48}, _CAUSAL),
    "openai-gpt": ("OpenAIGPTConfig", _GPT, _CAUSAL),
    "xlnet": (
        "XLNetConfig",
        {**BASE, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48},
        "XLNetLMHeadModel",
    ),
    # mixtures of experts
    "olmoe": ("OlmoeConfig", {**_SHARED, "num_experts": 4, "num_experts_per_tok": 2}, _CAUSAL),
    "phimoe": ("PhimoeConfig", {**_SHARED, "num_local_experts": 4}, _CAUSAL),
    "granitemoe": (
        "GraniteMoeConfig",
        {**_SHARED, "num_local_experts": 4, "num_experts_per_tok": 2},
        _CAUSAL,
    ),
    "deepseek_v2": ("DeepseekV2Config", _LATENT, _CAUSAL),
    "deepseek_v3": ("DeepseekV3Config", _LATENT, _CAUSAL),
    "dbrx": (
        "DbrxConfig",
        {
            **BASE,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
        _CAUSAL,
    ),
    # state spaces, recurrences and hybrids
    "mamba2": ("Mamba2Config", _MAMBA2, _CAUSAL),
    "falcon_mamba": ("FalconMambaConfig", _SSM, _CAUSAL),
    "falcon_h1": (
        "FalconH1Config",
        {**_SHARED, **_MAMBA_PARTS, "mamba_d_ssm": 64, "mamba_chunk_size": 4},
        _CAUSAL,
    ),
    "bamba": (
        "BambaConfig",
        {**_SHARED, **_MAMBA_PARTS, "mamba_chunk_size": 4, "attn_layer_indices": [1]},
        _CAUSAL,
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **_SHARED,
            **_MAMBA_PARTS,
            "mamba_chunk_size": 4,
            "shared_intermediate_size": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["mamba", "attention", "mamba"],
        },
        _CAUSAL,
    ),
    "zamba": (
        "ZambaConfig",
        {
            **_SHARED,
            "num_hidden_layers": 6,
            "num_key_value_heads": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
        },
        _CAUSAL,
    ),
    "zamba2": (
        "Zamba2Config",
        {
            **_SHARED,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "chunk_size": 4,
            "num_mem_blocks": 1,
            "adapter_rank": 4,
            "use_mamba_kernels": False,
        },
        _CAUSAL,
    ),
    "lfm2": (
        "Lfm2Config",
        {**_SHARED, "layer_types": ["conv", "full_attention", "conv"]},
        _CAUSAL,
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_HEADS,
            **_EXPERTS,
            "shared_expert_intermediate_size": 24,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        _CAUSAL,
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **_SHARED,
            "attention_window_size": 4,
            "lru_width": 32,
            "block_types": ["recurrent", "attention"],
        },
        _CAUSAL,
    ),
    "rwkv": (
        "RwkvConfig",
        {**BASE, "hidden_size": 32, "num_hidden_layers": 3, "context_length": 64},
        _CAUSAL,
    ),
    # encoders
    "electra": ("ElectraConfig", {**_WIDE, "embedding_size": 16}, _MASKED),
    "xlm-roberta": ("XLMRobertaConfig", _WIDE, _MASKED),
    "camembert": ("CamembertConfig", _WIDE, _MASKED),
    "albert": ("AlbertConfig", {**_WIDE, "embedding_size": 16}, _MASKED),
    "deberta-v2": ("DebertaV2Config", {**_WIDE, "relative_attention": True}, _MASKED),
    "mpnet": ("MPNetConfig", _WIDE, _MASKED),
    "roformer": ("RoFormerConfig", _WIDE, _MASKED),
    # encoders with a decoder
    "mbart": ("MBartConfig", _HALVES, _SEQ),
    "marian": ("MarianConfig", {**_HALVES, "decoder_start_token_id": 0}, _SEQ),
    "pegasus": ("PegasusConfig", _HALVES, _SEQ),
    "umt5": ("UMT5Config", _T5, _SEQ),
    "mt5": ("MT5Config", _T5, _SEQ),
    "switch_transformers": (
        "SwitchTransformersConfig",
        {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        _SEQ,
    ),
    "whisper": (
        "WhisperConfig",
        {
            **_HALVES,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 64,
            "decoder_start_token_id": 0,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        SPEECH,
    ),
    # images
    "vit": ("ViTConfig", _PATCHES, IMAGES),
    "dinov2": ("Dinov2Config", {**_PATCHES, "mlp_ratio": 2}, IMAGES),
    "clip": (
        "CLIPConfig",
        {"text_config": _WIDE, "vision_config": _PATCHES, "projection_dim": 16},
        PAIRS,
    ),
    "siglip": (
        "SiglipConfig",
        {"text_config": _WIDE, "vision_config": _PATCHES},
        PAIRS,
    ),
    # images in a text
    "llava": (
        "LlavaConfig",
        {
            **_SEEING,
            "text_config": _TEXT,
            "vision_config": {"model_type": "clip_vision_model", **_PATCHES},
            "vision_feature_layer": -1,
        },
        SIGHTS,
    ),
    "llava_next": (
        "LlavaNextConfig",
        {
            **_SEEING,
            "text_config": _TEXT,
            "vision_config": {"model_type": "clip_vision_model", **_PATCHES, "patch_size": 8},
            "vision_feature_layer": -1,
            "image_grid_pinpoints": [[8, 8]],
        },
        SIGHTS,
    ),
    "idefics3": (
        "Idefics3Config",
        {**_SEEING, "text_config": _TEXT, "vision_config": _PATCHES, "scale_factor": 1},
        SIGHTS,
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {**_SEEING, "text_config": _TEXT, "vision_config": _PATCHES, "scale_factor": 1},
        SIGHTS,
    ),
    "gemma3-vision": (
        "Gemma3Config",
        {
            **_SEEING,
            "text_config": {"model_type": "gemma3_text", **_HEADS, "sliding_window": 4},
            "vision_config": {"model_type": "siglip_vision_model", **_PATCHES},
            "mm_tokens_per_image": 4,
        },
        SIGHTS,
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {**_QWEN, "vision_config": {**_EYES, "embed_dim": 16, "hidden_size": 32}},
        SIGHTS,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {**_QWEN, "vision_config": {**_NEWER, "window_size": 16, "fullatt_block_indexes": [1]}},
        SIGHTS,
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            **_QWEN,
            "vision_config": {
                **_NEWER,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
        SIGHTS,
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            **_SEEING,
            "text_config": {"model_type": "gemma", **_HEADS},
            "vision_config": {"model_type": "siglip_vision_model", **_PATCHES},
            "projection_dim": 32,
        },
        SIGHTS,
    ),
}

ZOO = {**MORE, **NAMED}
for _family in ("t5", "t5-gated", "mt5", "umt5", "switch_transformers"):
    _config, _settings, _automodel = ZOO[_family]  # with fewer than the decoder has, `generate`
    ZOO[_family] = _config, {**_settings, "num_layers": 3}, _automodel  # of transformers 5 fails
"""By the name of the family: its config class, the settings, and the class that builds it."""

PARTS = {f"{one}_{part}_model" for one in ("clip", "siglip") for part in ("text", "vision")}
PARTS |= {f"{one}_text" for one in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}
"""Types of models that are a part of one: here, or in `tests/modeling/test_qwen_vl.py`."""

STATES = """
    mamba mamba2 falcon_mamba falcon_h1 jamba bamba granitemoehybrid zamba zamba2 lfm2 qwen3_next
    recurrent_gemma rwkv
""".split()


def kind_of(family: str) -> str:
    """The heading that a family goes under."""
    _, settings, automodel = ZOO[family]
    if family in STATES:
        return "State spaces, recurrences and hybrids"
    if any("expert" in name for name in (*settings, *settings.get("ffn_config", ()))):
        return "Mixtures of experts"
    others = {
        _MASKED: "Encoders",
        _SEQ: "Encoders with a decoder",
        SPEECH: "Encoders with a decoder",
        IMAGES: "Images, and images with text",
        SIGHTS: "Images, and images with text",
        PAIRS: "Images, and images with text",
    }
    return others.get(automodel, "Decoders")


def is_there(family: str) -> bool:
    """Whether the installed transformers has the family."""
    import transformers

    return hasattr(transformers, ZOO[family][0])


def model_type_of(family: str) -> str:
    import transformers

    return getattr(transformers, ZOO[family][0]).model_type


WORDS = [f"w{number}" for number in range(91)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
LENGTHS = (5, 11, 7)  # no size of any of these models
DECODED = (3, 6, 5)  # tokens of a decoder beside them


def build(family: str) -> torch.nn.Module:
    """A model of random weights, large enough that what a token gets from others shows."""
    import transformers

    config, settings, automodel = ZOO[family]
    torch.manual_seed(0)
    make = getattr(transformers, automodel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers 4.57 about itself
        own = getattr(transformers, config)(**settings)
        module = getattr(make, "from_config", None) or make._from_config
        module = module(own).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            elif "bias" in name:
                parameter.normal_(0, 0.05)
    return module


@functools.cache
def tokenizer() -> Any:
    """One word, one token; it starts and ends nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    listed = {word: number for number, word in enumerate([*SPECIAL.values(), "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(listed, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=names, **SPECIAL)


@dataclass(frozen=True)
class Prompt:
    """One prompt: its words, and what goes in beside them."""

    text: str | None
    beside: dict[str, torch.Tensor]
    embeds: torch.Tensor | None = None  # what goes in for the words

    @property
    def ids(self) -> list[int]:
        return tokenizer()(self.text)["input_ids"]


_QWEN_VL = ("Qwen2VLConfig", "Qwen2_5_VLConfig", "Qwen3VLConfig")
_PIXELS = {
    "Idefics3Config": (1, 1, 3, 8, 8),
    "SmolVLMConfig": (1, 1, 3, 8, 8),
    "LlavaNextConfig": (1, 2, 3, 8, 8),
    **dict.fromkeys(_QWEN_VL, (16, 96)),
}
"""What one image becomes where that is not three colours of 8 by 8 pixels."""


def prompts(module: torch.nn.Module) -> list[Prompt]:
    """Three prompts of unequal lengths for a model."""
    config = module.config
    kind, main = type(config).__name__, module.main_input_name
    generator = torch.Generator().manual_seed(3)
    found = []
    for length, decoded in zip(LENGTHS, DECODED, strict=True):
        numbers = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        if hasattr(config, "image_token_id"):  # an image, and then words
            seen = 3 if kind == "LlavaNextConfig" else 4
            last = len(WORDS) - 1
            numbers = [last] * seen + [number % last for number in numbers[seen:]]
        if kind in _QWEN_VL:
            words = [number % (last - 2) for number in numbers[seen + 1 :]]
            numbers = [last - 1, *numbers[:seen], *words]
        text = " ".join(WORDS[number] for number in numbers)
        beside: dict[str, torch.Tensor] = {}
        if "pixel_values" in inspect.signature(module.forward).parameters:
            beside["pixel_values"] = torch.randn(
                _PIXELS.get(kind, (1, 3, 8, 8)), generator=generator
            )
        if main == "input_features":
            beside["input_features"] = torch.randn(1, 8, 32, generator=generator)
        if config.is_encoder_decoder:
            ids = torch.randint(5, 96, (1, decoded), generator=generator)
            beside["decoder_input_ids"] = ids
        if kind == "LlavaNextConfig":
            beside["image_sizes"] = torch.tensor([[8, 8]])
        if kind in _QWEN_VL:
            beside["image_grid_thw"] = torch.tensor([[1, 4, 4]])
            if "mm_token_type_ids" in inspect.signature(module.forward).parameters:
                images = [int(number == last) for number in numbers]
                beside["mm_token_type_ids"] = torch.tensor([images])
        if kind == "CLIPConfig":
            text += " </s>"  # what it reads a text at
        found.append(Prompt(text if "input_ids" in main else None, beside))
    return found
