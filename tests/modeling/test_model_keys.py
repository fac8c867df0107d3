"""The keys of models that see, hear, fill in or draw; those of text are in tests/remote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnsight import DiffusionModel, TransformersModel, VisionLanguageModel
from nnsight.toolbox import tiny
from tests.modeling.tiny import model_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def fields_of(key: str) -> tuple[str, dict[str, Any]]:
    address, brace, rest = key.partition("{")
    return address.rstrip(":").rpartition(".")[2], json.loads(brace + rest)


def test_a_model_with_eyes(tmp_path: Path):
    pytest.importorskip("PIL")
    module, _ = tiny.llava()
    module.save_pretrained(tmp_path)
    expected = {"repo_id": str(tmp_path), "revision": None, "task": "image-text-to-text"}
    for kind in (VisionLanguageModel, TransformersModel):
        key = kind(tmp_path).to_model_key()
        assert fields_of(key) == ("TransformersModel", expected)
    assert kind.from_model_key(key).to_model_key() == key


@pytest.mark.parametrize(
    ("config", "settings", "automodel", "task"),
    [
        (
            "ViTConfig",
            {**SMALL, "intermediate_size": 16, "image_size": 8, "patch_size": 4},
            "AutoModelForImageClassification",
            "image-classification",
        ),
        (
            "WhisperConfig",
            {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
            | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
            "AutoModelForSpeechSeq2Seq",
            "automatic-speech-recognition",
        ),
        ("BertConfig", {**SMALL, "intermediate_size": 16}, "AutoModelForMaskedLM", "fill-mask"),
        ("BertConfig", {**SMALL, "intermediate_size": 16}, "AutoModel", "feature-extraction"),
    ],
)
def test_the_class_that_was_saved_says_the_task(
    tmp_path: Path, config: str, settings: dict[str, Any], automodel: str, task: str
):
    import transformers

    made = getattr(transformers, config)(**settings)
    getattr(transformers, automodel).from_config(made).save_pretrained(tmp_path)
    key = TransformersModel(tmp_path).to_model_key()
    assert fields_of(key)[1]["task"] == task
    assert TransformersModel.from_model_key(key).to_model_key() == key


def test_a_model_that_turns_text_into_text(tmp_path: Path):
    model_of("t5").save_pretrained(tmp_path)
    key = TransformersModel(tmp_path).to_model_key()
    assert fields_of(key)[1]["task"] == "text2text-generation"


def test_a_pipeline(tmp_path: Path):
    pytest.importorskip("diffusers")
    tiny.stable_diffusion().save_pretrained(tmp_path)
    key = DiffusionModel(tmp_path).to_model_key()
    assert fields_of(key) == ("DiffusionModel", {"repo_id": str(tmp_path), "revision": None})
    assert DiffusionModel.from_model_key(key).to_model_key() == key
