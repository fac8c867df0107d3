"""`TransformersModel`: images, sound, text and tensors, for models of any task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from nnsight import TransformersModel  # noqa: E402 # only where Pillow is
from nnsight.toolbox import tiny  # noqa: E402

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2}


def picture(seed: int) -> Any:
    pixels = np.random.RandomState(seed).randint(0, 255, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def vit() -> TransformersModel:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=28, patch_size=14, num_labels=5)
    module = transformers.ViTForImageClassification(config).eval()
    return TransformersModel(module, image_processor=tiny.image_processor("ViTImageProcessor"))


@pytest.fixture(scope="module")
def clip() -> TransformersModel:
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": 320, "max_position_embeddings": 40, "eos_token_id": 0}
    eyes = {**SMALL, "image_size": 28, "patch_size": 14}
    config = transformers.CLIPConfig(text_config=text, vision_config=eyes, projection_dim=16)
    words, shown = tiny.tokenizer("<end>"), tiny.image_processor("CLIPImageProcessor")
    processor = transformers.CLIPProcessor(image_processor=shown, tokenizer=words)
    return TransformersModel(transformers.CLIPModel(config).eval(), processor=processor)


@pytest.fixture(scope="module")
def whisper() -> TransformersModel:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=320,
        d_model=32,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **{f"{half}_layers": 1 for half in ("encoder", "decoder")},
        **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
        **{f"{half}_ffn_dim": 48 for half in ("encoder", "decoder")},
    )
    ears = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    module = transformers.WhisperForConditionalGeneration(config).eval()
    return TransformersModel(module, feature_extractor=ears)


# --- images -----------------------------------------------------------------------------------


def test_images_in_every_form(vit: TransformersModel):
    shown = [picture(0), picture(1)]
    ready = vit.image_processor(shown, return_tensors="pt")
    with torch.no_grad():
        expected = vit._module(**ready).logits
    pixels = ready["pixel_values"]
    forms: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((shown,), {}),
        ((), {"images": shown}),
        ((), {"pixel_values": pixels}),
        ((pixels,), {}),
        ((ready,), {}),
    ]
    for args, kwargs in forms:
        with torch.no_grad(), vit.trace(*args, **kwargs):
            logits = vit.output.logits.save()
        assert torch.equal(logits, expected)


def test_an_image_in_each_invoke(vit: TransformersModel):
    alone = []
    for seed in range(3):
        with torch.no_grad(), vit.trace(picture(seed)):
            pattern = vit.layers[1].attn.pattern.save()
            hidden = vit.classifier.input.save()
            logits = vit.output.logits.save()
        alone.append((pattern, hidden, logits))
    together = []
    with torch.no_grad(), vit.trace() as tracer:
        for seed in range(3):
            with tracer.invoke(picture(seed)):
                pattern = vit.layers[1].attn.pattern
                together.append((pattern, vit.classifier.input, vit.output.logits))
    for own, expected in zip(together, alone, strict=True):
        for one, other in zip(own, expected, strict=True):
            close(one, other)


# --- text and images --------------------------------------------------------------------------


def test_clip(clip: TransformersModel):
    text, image = ["a cat<end>", "the city of Paris<end>"], picture(0)
    ready = clip.processor(text=text, images=[image], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = clip._module(**ready).logits_per_image
    with torch.no_grad(), clip.trace(text=text, images=[[image], []]):
        logits = clip.output.logits_per_image.save()
    assert logits.shape == (1, 2)
    close(logits, expected)


def test_clip_in_invokes(clip: TransformersModel):
    """Each image and each text is its own; the scores of all with all are the batch's."""
    alone = []
    for seed, text in enumerate(("a cat<end>", "the city of Paris<end>")):
        with torch.no_grad(), clip.trace(text=text, images=picture(seed)):
            alone.append((clip.output.image_embeds.save(), clip.output.text_embeds.save()))
    together = []
    with torch.no_grad(), clip.trace() as tracer:
        for seed, text in enumerate(("a cat<end>", "the city of Paris<end>")):
            with tracer.invoke(text=text, images=picture(seed)):
                together.append((clip.output.image_embeds, clip.output.text_embeds))
    for own, expected in zip(together, alone, strict=True):
        close(own[0], expected[0])
        close(own[1], expected[1])


# --- sound ------------------------------------------------------------------------------------


def sound(seed: int) -> Any:
    return np.random.RandomState(seed).randn(16000).astype(np.float32)


def test_sound(whisper: TransformersModel):
    start = torch.tensor([[1]])
    ready = whisper.feature_extractor(sound(0), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = whisper._module(**ready, decoder_input_ids=start).logits
    given = {"sampling_rate": 16000, "decoder_input_ids": start}
    with torch.no_grad(), whisper.trace(audio=sound(0), **given):
        logits = whisper.output.logits.save()
    assert torch.equal(logits, expected)
    with torch.no_grad(), whisper.trace() as tracer:
        with tracer.invoke(audio=sound(1), **given):
            whisper.output.logits.save()
        with tracer.invoke(audio=sound(0), **given):
            encoded = whisper.model.encoder.output[0].save()
            second = whisper.output.logits.save()
    assert encoded.shape[0] == 1
    close(second, expected)


def test_what_was_said(whisper: TransformersModel):
    ready = whisper.feature_extractor(sound(0), sampling_rate=16000, return_tensors="pt")
    expected = whisper._module.generate(**ready, max_new_tokens=3)
    made = whisper.generate(audio=sound(0), sampling_rate=16000, max_new_tokens=3)
    assert torch.equal(made, expected)


# --- text -------------------------------------------------------------------------------------


def test_a_classifier_of_text():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=320, max_position_embeddings=40)
    module = transformers.BertForSequenceClassification(config).eval()
    model = TransformersModel(module, tokenizer=tiny.tokenizer())
    with torch.no_grad():
        expected = module(**model.tokenizer("a cat", return_tensors="pt")).logits
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke("a cat"):
            first = model.output.logits.save()
        with tracer.invoke("in the city of Paris a dog"):
            pass
    close(first, expected)


def test_translation():
    torch.manual_seed(0)
    config = transformers.T5Config(
        d_model=32, d_ff=48, d_kv=16, num_layers=1, num_heads=2, vocab_size=320
    )
    config.decoder_start_token_id = 0
    module = transformers.T5ForConditionalGeneration(config).eval()
    model = TransformersModel(module, tokenizer=tiny.tokenizer())
    ids = model.tokenizer("a cat", return_tensors="pt")
    expected = module.generate(**ids, max_new_tokens=3)
    assert torch.equal(model.generate("a cat", max_new_tokens=3), expected)


# --- loading ----------------------------------------------------------------------------------


def test_the_class_is_the_one_it_was_saved_from(vit: TransformersModel, tmp_path):
    vit._module.save_pretrained(tmp_path)  # type: ignore[operator] # transformers
    vit.image_processor.save_pretrained(tmp_path)
    model = TransformersModel(tmp_path)
    assert type(model._module).__name__ == "ViTForImageClassification"
    assert not model.dispatched
    with torch.no_grad(), vit.trace(picture(0)):
        expected = vit.output.logits.save()
    pixels = vit.image_processor(picture(0), return_tensors="pt")["pixel_values"]
    with torch.no_grad(), model.trace(pixels):
        logits = model.output.logits.save()
    close(logits, expected)
    headless = TransformersModel(tmp_path, task="image-feature-extraction")
    assert type(headless._module).__name__ == "ViTModel"


def test_from_a_config():
    config = transformers.ViTConfig(**SMALL, image_size=28, patch_size=14)
    model = TransformersModel(config, task="image-classification")
    assert type(model._module).__name__ == "ViTForImageClassification"
    with torch.no_grad(), model.trace(torch.zeros(1, 3, 28, 28)):
        logits = model.output.logits.save()
    assert logits.shape == (1, 2)


def test_no_such_task():
    with pytest.raises(ValueError, match="Did you mean 'image-classification'"):
        TransformersModel(transformers.ViTConfig(), task="image-clasification")


def test_nothing_to_read_sound_with(clip: TransformersModel):
    model = TransformersModel(clip._module)
    with pytest.raises(ValueError, match="no feature extractor"):
        with model.trace(audio=sound(0)):
            pass
