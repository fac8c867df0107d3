"""`peft=` and `load_adapter`: the numbers of PEFT itself, and a tree that is there at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nnsight import LanguageModel

pytestmark = [  # of peft, not of ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
peft = pytest.importorskip("peft")

IDS = torch.tensor([[8, 9, 10, 11, 12]])


def llama(layers: int = 3) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def write(folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter of random matrices, in a folder."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    module = llama()
    torch.manual_seed(seed)
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    peft.get_peft_model(module, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, and the adapters `one` and `two` for it."""
    place = tmp_path_factory.mktemp("adapters")
    llama().save_pretrained(place / "model")
    write(place / "one", 1)
    write(place / "two", 2)
    return place


@torch.no_grad()
def bare(folder: Path, adapter: str | None) -> torch.Tensor:
    """The logits that PEFT gives."""
    module: Any = LlamaForCausalLM.from_pretrained(folder / "model")
    if adapter is not None:
        module = peft.PeftModel.from_pretrained(module, folder / adapter)
    return module.eval()(input_ids=IDS).logits


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    with model.trace(IDS):
        found = model.output.logits.save()
    return found


@pytest.mark.parametrize("adapter", ["one", "two"])
def test_an_adapter_is_in_the_tree_at_once_and_gives_what_peft_gives(folder, adapter):
    model = LanguageModel(folder / "model", peft=folder / adapter)
    layer = model.model.layers[1].self_attn.q_proj
    assert not model.dispatched
    assert all(weight.is_meta for weight in model._module.parameters())
    assert layer.lora_A.default._module.weight.shape == (4, 32)
    with torch.no_grad(), model.trace(IDS):
        low = layer.lora_A.default.output.save()
        found = model.output.logits.save()
    assert model.dispatched and low.shape == (1, 5, 4)
    assert torch.equal(found, bare(folder, adapter))
    assert not torch.equal(found, bare(folder, None))
    with torch.no_grad(), model.trace(IDS):
        for each in model.model.layers:  # the adapter taken away, in this run only
            each.self_attn.q_proj.lora_B.default.output[:] = 0
            each.self_attn.v_proj.lora_B.default.output[:] = 0
        without = model.output.logits.save()
    torch.testing.assert_close(without, bare(folder, None))


def test_with_the_weights_at_once_and_as_a_string(folder):
    model = LanguageModel(str(folder / "model"), peft=str(folder / "one"), dispatch=True)
    assert torch.equal(logits(model), bare(folder, "one"))


def test_the_next_adapter_and_none(folder):
    model = LanguageModel(folder / "model")
    assert torch.equal(logits(model), bare(folder, None))
    model.load_adapter(folder / "one")
    assert torch.equal(logits(model), bare(folder, "one"))
    model.load_adapter(None)
    assert torch.equal(logits(model), bare(folder, None))
    model.load_adapter(str(folder / "two"))
    assert torch.equal(logits(model), bare(folder, "two"))


def test_standard_names_and_generation(folder):
    model = LanguageModel(folder / "model", peft=folder / "one")
    module = peft.PeftModel.from_pretrained(llama(), folder / "one").eval()
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(IDS, **settings), module.generate(input_ids=IDS, **settings))
    with torch.no_grad(), model.trace(IDS):
        stream = model.layers[1].resid_post.save()
    states = module(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(stream, states[2])


# --- mistakes ---------------------------------------------------------------------------------


def test_a_folder_without_an_adapter(folder):
    with pytest.raises(OSError, match=r"has no adapter_config\.json\. Pass the folder that"):
        LanguageModel(folder / "model", peft=folder / "model")
    with pytest.raises(OSError, match="nowhere"):
        LanguageModel(folder / "model", peft=folder / "nowhere")


def test_an_adapter_of_another_model(folder, tmp_path):
    other = write(tmp_path / "other", 1, target_modules=["q_proj"], layers_to_transform=None)
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "c_attn"))
    with pytest.raises(ValueError, match=r"is not of this model, a LlamaForCausalLM: .*c_attn"):
        LanguageModel(folder / "model", peft=other)


def test_matrices_that_the_model_has_no_place_for(folder, tmp_path):
    llama(layers=2).save_pretrained(tmp_path / "small")
    model = LanguageModel(tmp_path / "small", peft=folder / "one")
    with pytest.raises(ValueError, match=r"is not of this model.*layers\.2"):
        model.dispatch()
    assert not model.dispatched


def test_an_adapter_that_is_no_layer(folder, tmp_path):
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(llama(), prompt).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"virtual tokens before a prompt .* wrap the PeftModel"):
        LanguageModel(folder / "model", peft=tmp_path / "prompt")


def test_a_model_that_is_loaded(folder):
    with pytest.raises(ValueError, match=r"is loaded already\. Wrap it without"):
        LanguageModel(llama(), peft=folder / "one")


def test_without_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        LanguageModel(folder / "model", peft=folder / "one")


def test_a_key_for_servers_would_leave_the_adapter_out(folder):
    model = LanguageModel(folder / "model", peft=folder / "one")
    with pytest.raises(ValueError, match="has an adapter, which no key names"):
        model.to_model_key()
    model.load_adapter(None)
    assert "one" not in model.to_model_key()
