"""Checkpoints that are damaged, cut short or mixed up: one sentence each, nothing half-loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnsight import LanguageModel
from nnsight.modeling.errors import LoadError

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], Any]


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def setting(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        settings = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: v for name, v in settings.items() if v is not None}))

    return change


def cut_off(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:5000])


def without_one(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def without_a_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-1-of-2.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n"

LATE: dict[str, tuple[Damage, str]] = {  # seen when the weights are read
    "none": (lambda folder: (folder / WEIGHTS).unlink(), "The weights of {} could not be loaded"),
    "empty": (written(WEIGHTS, ""), "The weights of {} could not be loaded"),
    "settings": (
        written("generation_config.json", "{bad"),
        "The settings of generation of {} could not be loaded: Expecting property name",
    ),
    "other settings": (
        written("generation_config.json", "[]"),
        "generation_config.json' holds no settings by name. Save the model again, or remove",
    ),
    "index": (
        lambda folder: (
            (folder / WEIGHTS).rename(folder / "model-1.safetensors"),
            (folder / f"{WEIGHTS}.index.json").write_text("{bad"),
        ),
        "The weights of {} could not be loaded: Expecting property name",
    ),
    "garbage": (written(WEIGHTS, "hello"), "The weights of {} could not be loaded"),
    "pointer": (written(WEIGHTS, POINTER), "The weights of {} could not be loaded"),
    "cut off": (cut_off, "The weights of {} could not be loaded"),
    "shard": (without_a_shard, "The weights of {} could not be loaded: No such file"),
    "other width": (setting(n_embd=64), "The weights of {} have other sizes than its config says"),
    "more layers": (setting(n_layer=3), "The weights of {} are not complete: `transformer.h.2."),
    "one missing": (
        without_one,
        "The weights of {} are not complete: `transformer.h.1.mlp.c_fc.weight` of its layers is",
    ),
}
EARLY: dict[str, tuple[Damage, str]] = {  # seen at once
    "no json": (written("config.json", "{bad"), "The config of {} could not be loaded"),
    "other json": (written("config.json", "[]"), "The config of {} could not be loaded"),
    "no kind": (setting(model_type=None), "The config of {} could not be loaded"),
    "new kind": (setting(model_type="gpt17"), "A newer transformers may know it."),
    "no number": (setting(n_embd="x"), "{} could not be loaded"),
    "no heads": (setting(n_head=0), "The architecture of {} could not be loaded: "),
    "no such function": (
        setting(activation_function="nope"),
        "The architecture of {} could not be loaded: there is no 'nope'.",
    ),
}


@pytest.fixture
def broken(gpt2_folder: Path, tmp_path: Path) -> Callable[[Damage], Path]:
    def damaged(damage: Damage) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(gpt2_folder, folder)
        damage(folder)
        return folder

    return damaged


@pytest.mark.parametrize("name", LATE)
def test_weights_that_are_broken(broken, gpt2_folder, name, capfd):
    damage, text = LATE[name]
    folder = broken(damage)
    model = LanguageModel(folder)
    tree = model._module
    for _ in range(2):  # it can be tried again, and says the same
        with (
            pytest.raises(LoadError, match=re.escape(text.format(repr(str(folder))))),
            model.trace([1, 2]),
        ):
            pass
        assert not model.dispatched and model._module is tree
        assert all(weight.is_meta for weight in tree.parameters())
    with pytest.raises(LoadError):
        LanguageModel(folder, dispatch=True)


def test_what_is_mended_loads(broken, gpt2_folder):
    folder = broken(cut_off)
    model = LanguageModel(folder)
    with pytest.raises(LoadError):
        model.dispatch()
    shutil.copy(gpt2_folder / WEIGHTS, folder / WEIGHTS)
    with model.trace([1, 2]):
        logits = model.lm_head.output.save()
    with LanguageModel(gpt2_folder).trace([1, 2]) as other:
        assert torch.equal(logits, other.lm_head.output)


@pytest.mark.parametrize("name", EARLY)
def test_configs_that_are_broken(broken, name):
    damage, text = EARLY[name]
    folder = broken(damage)
    with pytest.raises(LoadError, match=re.escape(text.format(repr(str(folder))))) as found:
        LanguageModel(folder)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["{bad", "{}"])
def test_a_tokenizer_that_is_broken(broken, text):
    model = LanguageModel(broken(written("tokenizer.json", text)))
    with pytest.raises(LoadError, match=r"The tokenizer of .* could not be loaded: "):
        model.tokenizer  # noqa: B018 -- asked for, it is read
    with model.trace([1, 2]):  # ids need none
        normed = model.transformer.ln_f.output.save()
    assert normed.shape == (1, 2, 32)


def test_a_head_that_is_not_in_the_files_is_random_and_says_so(gpt2_folder, capfd):
    model = LanguageModel(gpt2_folder, automodel="AutoModelForSequenceClassification")
    expected = re.escape(f"`score.weight` is not in the files of {str(gpt2_folder)!r}, so the val")
    with pytest.warns(UserWarning, match=expected) as found:
        model.dispatch()
    assert found[0].filename == __file__


@pytest.mark.parametrize("as_text", [True, False])
def test_a_file_is_not_its_folder(gpt2_folder, as_text):
    place = gpt2_folder / "config.json"
    with pytest.raises(LoadError, match=r"is a file\. Pass the folder that it lies in\."):
        LanguageModel(str(place) if as_text else place)


def test_nothing_is_no_place():
    with pytest.raises(TypeError, match="Nothing to load: pass a hub id, a folder"):
        LanguageModel("")
