"""Keys of models: the text that the published client sends for the same model, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnsight import DiffusionModel, LanguageModel, TransformersModel, VisionLanguageModel
from nnsight.remote import model_key
from nnsight.remote.model_key import ModelKey, parse

KIND = "nnsight.modeling.transformers.TransformersModel"


def written(repo_id: object, task: str, revision: str | None = None, **more: object) -> str:
    """A key as nnsight 0.8.1 wrote it for the same call (recorded)."""
    fields = {"repo_id": str(repo_id), "revision": revision, **more, "task": task}
    return f"{KIND}:{json.dumps(fields)}"


def test_language_models(gpt2_folder: Path):
    assert LanguageModel(gpt2_folder).to_model_key() == written(gpt2_folder, "text-generation")
    of_revision = LanguageModel(str(gpt2_folder), revision="abc").to_model_key()
    assert of_revision == written(gpt2_folder, "text-generation", "abc")
    main = LanguageModel(gpt2_folder, revision="main").to_model_key()
    assert main == written(gpt2_folder, "text-generation", "main")


def test_code_of_the_model_is_in_the_key_only_when_asked_for(gpt2_folder: Path):
    model = LanguageModel(gpt2_folder, trust_remote_code=True)
    key = written(gpt2_folder, "text-generation", None, trust_remote_code=True)
    assert model.to_model_key() == key
    opened = LanguageModel.from_model_key(key)
    assert opened.to_model_key() == written(gpt2_folder, "text-generation")


@pytest.mark.parametrize(
    ("task", "named"),
    [
        ("text-generation", "text-generation"),
        ("feature-extraction", "feature-extraction"),
        ("text-classification", "text-classification"),
        ("sentiment-analysis", "text-classification"),
        ("token-classification", "token-classification"),
    ],
)
def test_models_of_any_task(gpt2_folder: Path, task: str, named: str):
    assert TransformersModel(gpt2_folder, task=task).to_model_key() == written(gpt2_folder, named)


def test_a_task_that_is_not_given_is_that_of_the_class(gpt2_folder: Path):
    assert TransformersModel(gpt2_folder).to_model_key() == written(gpt2_folder, "text-generation")
    base = LanguageModel(gpt2_folder, automodel="AutoModel").to_model_key()
    assert base == written(gpt2_folder, "feature-extraction")
    marked = LanguageModel(gpt2_folder, automodel="AutoModelForSequenceClassification")
    assert marked.to_model_key() == written(gpt2_folder, "text-classification")


def test_a_loaded_model_is_the_one_that_it_was_loaded_from(gpt2_folder: Path):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    assert LanguageModel(loaded).to_model_key() == written(gpt2_folder, "text-generation")


def test_classes_that_serve_two_tasks():
    from transformers import Gemma3Config, T5Config

    from nnsight.modeling.tasks import task_of

    class Gemma3ForConditionalGeneration(torch.nn.Module):
        config = Gemma3Config()

    class T5ForConditionalGeneration(torch.nn.Module):
        config = T5Config()

    assert task_of(Gemma3ForConditionalGeneration()) == "image-text-to-text"
    assert task_of(Gemma3ForConditionalGeneration(), "text-generation") == "text-generation"
    assert VisionLanguageModel._usual_task == "image-text-to-text"
    assert task_of(T5ForConditionalGeneration(), "text-generation") == "text2text-generation"
    assert task_of(torch.nn.Linear(1, 1)) is None


def test_a_model_without_a_place_has_no_key():
    from transformers import GPT2Config

    model = LanguageModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="no server could know which model is meant"):
        model.to_model_key()


def test_subclasses_have_the_key_of_the_model(gpt2_folder: Path):
    class Standardized(LanguageModel):
        pass

    assert Standardized(gpt2_folder).to_model_key() == LanguageModel(gpt2_folder).to_model_key()


def test_a_key_opens_its_model(gpt2_folder: Path):
    for kind in (LanguageModel, TransformersModel):
        model = kind.from_model_key(written(gpt2_folder, "text-generation"), rename={"h": "layers"})
        assert type(model) is kind and not model.dispatched
        assert len(model.transformer.layers) == 12
    older = f'nnsight.modeling.language.LanguageModel:{{"repo_id": "{gpt2_folder}"}}'
    assert LanguageModel.from_model_key(older).repo_id == str(gpt2_folder)


def test_a_key_of_another_kind_is_refused(gpt2_folder: Path):
    diffusion = str(ModelKey("a/b", kind=model_key.DIFFUSION))
    with pytest.raises(ValueError, match="cannot open what the key names: a DiffusionModel"):
        LanguageModel.from_model_key(diffusion)
    with pytest.raises(ValueError, match="cannot open what the key names: a TransformersModel"):
        DiffusionModel.from_model_key(written(gpt2_folder, "text-generation"))


# --- keys as text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f'{KIND}:{{"repo_id": "a/b", "revision": null}}', ModelKey("a/b")),
        (
            'nnsight.modeling.language.LanguageModel:{"repo_id":"a/b","revision":"main"}',
            ModelKey("a/b", "main", "text-generation"),
        ),
        (
            'nnsight.modeling.vlm.VisionLanguageModel:{"repo_id": "a/b"}',
            ModelKey("a/b", None, "image-text-to-text"),
        ),
        (
            f'0:ModelActor:{KIND}:{{"repo_id": "a/b", "revision": "x", "task": "fill-mask"}}',
            ModelKey("a/b", "x", "fill-mask"),
        ),
        (
            f'{model_key.DIFFUSION}:{{"repo_id": "a/b", "revision": null}}',
            ModelKey("a/b", kind=model_key.DIFFUSION),
        ),
    ],
)
def test_keys_are_read_in_every_spelling(text: str, key: ModelKey):
    assert parse(text) == key
    assert parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpt2",
        "a.B:",
        "a.B:{",
        'a.B:{"revision": null}',
        'a.B:{"repo_id": 3}',
        '{"repo_id": "x"}',
        'a.B:{"repo_id": "x", "task": []}',
        r'a.B:{"repo_id": "\ud800"}',
        r'a.B:{"repo_id": "x", "task": "\ud800"}',
        "a.B:" + '{"a":' * 100_000,
    ],
    ids=lambda text: text[:12],
)
def test_other_text_is_no_key(text: str):
    with pytest.raises(ValueError, match="is no key of a model"):
        parse(text)


def test_which_keys_name_one_model():
    mine = ModelKey("Meta/Llama", None, "text-generation")
    for same in (
        ModelKey("meta/llama"),
        ModelKey("Meta/Llama", "main"),
        ModelKey("Meta/Llama", "main", "text-generation"),
    ):
        assert mine.is_same_model(same) and same.is_same_model(mine)
    for other in (
        ModelKey("meta/llama-2"),
        ModelKey("Meta/Llama", "abc"),
        ModelKey("Meta/Llama", None, "fill-mask"),
        ModelKey("Meta/Llama", kind=model_key.DIFFUSION),
    ):
        assert not mine.is_same_model(other)


# --- what the hub says -------------------------------------------------------------------------


class Hub:
    """Stands for the hub; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def model_info(self, repo_id: str, timeout: float) -> object:
        self.asked.append(repo_id)
        if repo_id == "broken":
            raise ConnectionError("no network")
        return type("Info", (), {"id": f"openai-community/{repo_id}"})()


def test_the_hub_is_asked_once_and_only_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model_key.canonical.cache_clear()
    assert model_key.canonical("gpt2") == "gpt2" and hub.asked == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model_key.canonical.cache_clear()
    for _ in range(2):
        assert model_key.canonical("gpt2") == "openai-community/gpt2"
        assert model_key.canonical("broken") == "broken"
        assert model_key.canonical(str(tmp_path)) == str(tmp_path)
    assert hub.asked == ["gpt2", "broken"]
    model_key.canonical.cache_clear()
