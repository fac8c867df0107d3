"""Models of a few thousand random weights, whole in every part, to try code on in a second.

Each is the real architecture from its own config, with a tokenizer and a processor made on the
spot: nothing is downloaded. What they answer means nothing.
"""

from __future__ import annotations

from typing import Any

import torch

_WORDS = [
    "What is in this picture? A cat and a dog on a red mat.",
    "Where is the tower in this photo? In the city of Paris.",
    "the quick brown fox jumps over the lazy dog",
]
_IMAGE = 28  # pixels on a side
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def tokenizer(*special: str) -> Any:
    """A byte-level tokenizer that has been trained on three sentences.

    Args:
        special: its special tokens; the first one ends a sequence and pads.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = special or ("<end>",)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(_WORDS * 4, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), special[0])
    made = ["input_ids", "attention_mask"]  # transformers 4 adds the types of BERT, if not told
    return _of("PreTrainedTokenizerFast")(tokenizer_object=words, model_input_names=made, **ends)


def llava() -> tuple[torch.nn.Module, Any]:
    """A LLaVA and its processor; `<image>` in a prompt is where an image goes."""
    words = tokenizer("<end>", "<image>")
    processor = _of("LlavaProcessor")(
        image_processor=image_processor("CLIPImageProcessor"),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}[{{ message['role'] }}] "
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endif %} {% endfor %}"
            "{% if add_generation_prompt %}[assistant] {% endif %}"
        ),
    )
    eyes = _of("CLIPVisionConfig")(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_IMAGE,
        patch_size=14,
    )
    config = _of("LlavaConfig")(
        vision_config=eyes,
        text_config=_of("LlamaConfig")(**_TEXT),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return _of("LlavaForConditionalGeneration")(config).eval(), processor


def qwen_vl(release: str = "2.5") -> tuple[torch.nn.Module, Any]:
    """A Qwen-VL, which takes images of any size, and its processor.

    `<|vision_start|><|image_pad|><|vision_end|>` in a prompt is where an image goes.

    Args:
        release: `"2"` or `"2.5"`.
    """
    special = "<|endoftext|> <|image_pad|> <|video_pad|> <|vision_start|> <|vision_end|>".split()
    processor = _of_any_parts(_of("Qwen2VLProcessor"))(
        image_processor=_built(
            "Qwen2VLImageProcessor",
            min_pixels=4 * 14 * 14,
            max_pixels=64 * 14 * 14,
            patch_size=14,
            merge_size=2,
            temporal_patch_size=2,
        ),
        tokenizer=tokenizer(*special),
    )
    rotary: dict[str, Any] = {
        "rope_type": "default",
        "mrope_section": [2, 3, 3],
        "rope_theta": 10000.0,
    }
    eyes: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2}
    if release == "2":
        kind = _of("Qwen2VLForConditionalGeneration")
        eyes |= {"embed_dim": 32, "mlp_ratio": 2}
    else:
        kind = _of("Qwen2_5_VLForConditionalGeneration")
        eyes |= {"out_hidden_size": 32, "intermediate_size": 48, "window_size": 56}
        eyes["fullatt_block_indexes"] = [1]
    ids = dict(zip(_QWEN_IDS, range(1, 5), strict=True))
    rotary = {"rope_parameters": rotary, "rope_scaling": rotary}
    config = kind.config_class(text_config={**_TEXT, **rotary}, vision_config=eyes, **ids)
    torch.manual_seed(0)
    return kind(config).eval(), processor


_QWEN_IDS = (
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"
)  # fmt: skip


def stable_diffusion() -> Any:
    """A Stable Diffusion pipeline: a UNet with guidance, and images of 16 by 16 pixels."""
    diffusers = _diffusers()
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    words, encoder = _captions()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_vae((16, 32)),
        text_encoder=encoder,
        tokenizer=words,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux() -> Any:
    """A Flux pipeline: a transformer without guidance, and images of 8 by 8 pixels."""
    diffusers = _diffusers()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    words, encoder = _captions()
    t5 = _of("T5Config")(vocab_size=320, d_model=32, d_ff=48, d_kv=16, num_layers=1, num_heads=2)
    plain = {"shift_factor": 0.0, "use_quant_conv": False, "use_post_quant_conv": False}
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae((16,), **plain),
        text_encoder=encoder,
        tokenizer=words,
        text_encoder_2=_of("T5EncoderModel")(t5),
        tokenizer_2=words,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _diffusers() -> Any:
    import diffusers

    torch.manual_seed(0)
    return diffusers


def _vae(widths: tuple[int, ...], **settings: Any) -> Any:
    return _diffusers().AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        norm_num_groups=4,
        **settings,
    )


def _captions() -> tuple[Any, Any]:
    """A tokenizer for prompts of 16 tokens, and CLIP's encoder of text."""
    words = tokenizer("<end>")
    words.model_max_length = 16
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = _of("CLIPTextConfig")(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        **ends,
    )
    return words, _of("CLIPTextModel")(config)


def image_processor(name: str) -> Any:
    """The image processor of that name, for the small images that the models here look at."""
    size: Any = {"height": _IMAGE, "width": _IMAGE}
    if name.startswith("CLIP"):
        return _built(name, size={"shortest_edge": _IMAGE}, crop_size=size)
    return _built(name, size=size)


def _of(name: str) -> Any:
    """A class of transformers, which is imported when it is needed."""
    import transformers

    return getattr(transformers, name)


def _built(name: str, **settings: Any) -> Any:
    """An image processor that needs Pillow only, not torchvision."""
    import transformers

    kind: Any = getattr(transformers, f"{name}Pil", None) or _of(name)
    return kind(**settings)


def _of_any_parts(kind: Any) -> Any:
    """A processor that takes the tokenizer above, and, without torchvision, reads no videos."""

    def check(self: Any, name: str, value: Any) -> Any:
        if name in ("tokenizer", "video_processor"):
            return value
        return kind.check_argument_for_proper_class(self, name, value)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
