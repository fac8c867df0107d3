"""Models that something else has taken hold of: adapters, offloading, compilation, few bits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nnsight import LanguageModel

pytestmark = [  # of the packages that take hold, not of ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
IDS = torch.tensor([PROMPTS[1]])


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def logits_of(module: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return module(input_ids=ids).logits


def traced(model: LanguageModel, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad(), model.trace(IDS):
        inside = layer.self_attn.q_proj.output.save()
        logits = model.output.logits.save()
    return inside, logits


def check_rows(model: LanguageModel, layer: Any) -> None:
    """Each of two invokes sees its own rows, and an edit in one changes the other in nothing."""
    alone = [logits_of(model._module, torch.tensor([prompt])) for prompt in PROMPTS]
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            rows = layer.mlp.output.shape[0]
            first = model.output.logits.save()
            assert rows == 1
        with tracer.invoke(PROMPTS[1]):
            layer.mlp.output[:] = 0
            second = model.output.logits.save()
    torch.testing.assert_close(first[:, -3:], alone[0], atol=1e-4, rtol=1e-4)
    assert (second - alone[1]).abs().max() > 1e-4


# --- adapters ---------------------------------------------------------------------------------


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return peft.get_peft_model(llama(), peft.LoraConfig(**settings)).eval()


def test_a_model_with_an_adapter():
    module = adapted()
    model = LanguageModel(module)
    layer = model.base_model.model.model.layers[1]
    with torch.no_grad(), model.trace(IDS):
        low = layer.self_attn.q_proj.lora_A.default.output.save()
        logits = model.output.logits.save()
    assert low.shape == (1, 5, 4)
    assert torch.equal(logits, logits_of(module))
    assert not torch.equal(logits, logits_of(llama()))
    with torch.no_grad(), model.trace(IDS):
        for each in model.base_model.model.model.layers:  # the adapter taken away
            each.self_attn.q_proj.lora_B.default.output[:] = 0
            each.self_attn.v_proj.lora_B.default.output[:] = 0
        without = model.output.logits.save()
    torch.testing.assert_close(without, logits_of(llama()))
    check_rows(model, layer)


def test_an_adapted_model_generates_and_has_standard_names():
    module = adapted()
    model = LanguageModel(module)
    settings = {"max_new_tokens": 3, "do_sample": False}
    expected = module.generate(input_ids=IDS, **settings)
    assert torch.equal(model.generate(IDS, **settings), expected)
    with torch.no_grad(), model.trace(IDS):
        stream = model.layers[1].resid_post.save()
    states = module(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(stream, states[2])


def test_an_adapter_that_comes_later(tmp_path: Path):
    adapted().save_pretrained(tmp_path / "adapter")
    llama().save_pretrained(tmp_path / "model")
    model = LanguageModel(tmp_path / "model")
    model.load_adapter(str(tmp_path / "adapter"))
    layer = model.model.layers[1]
    with torch.no_grad(), model.trace(IDS):
        low = layer.self_attn.q_proj.lora_A.default.output.save()
        logits = model.output.logits.save()
    assert low.shape == (1, 5, 4)
    torch.testing.assert_close(logits, logits_of(adapted()))


# --- offloading -------------------------------------------------------------------------------

WHERE = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm"]
WHERE += ["model.rotary_emb", "lm_head"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def on_disk(folder: Path, *layers: str) -> LanguageModel:
    device_map = {name: "disk" if name in layers else "cpu" for name in WHERE}
    kept = folder.parent / "kept"
    return LanguageModel(folder, device_map=device_map, offload_folder=kept, offload_buffers=True)


def test_layers_on_the_disk(folder: Path):
    model = on_disk(folder, "model.layers.1", "model.layers.2")
    layer = model.model.layers[1]
    inside, logits = traced(model, layer)
    module = model._module
    assert model.dispatched
    assert torch.equal(logits, logits_of(llama()))
    plain = LanguageModel(llama())
    assert torch.equal(inside, traced(plain, plain.model.layers[1])[0])
    again, _ = traced(model, layer)
    assert torch.equal(again, inside) and model._module is module  # it is read once
    check_rows(model, layer)


def test_a_layer_on_the_disk_is_skipped_and_looked_into(folder: Path):
    model, plain = on_disk(folder, "model.layers.1"), LanguageModel(llama())
    expected = []
    for each in (model, plain):
        with torch.no_grad(), each.trace(IDS):
            each.model.layers[1].skip(each.model.layers[1].input)
            expected.append(each.output.logits.save())
    assert torch.equal(*expected)
    settings = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(IDS, **settings), plain.generate(IDS, **settings))


def test_a_loaded_model_that_is_offloaded(folder: Path):
    module = on_disk(folder, "model.layers.1")._loader.weights()
    model = LanguageModel(module)
    assert model.dispatched
    assert torch.equal(traced(model, model.model.layers[1])[1], logits_of(llama()))


# --- compiled, checkpointed, in few bits --------------------------------------------------------


@pytest.mark.parametrize("part", ["the whole", "a layer"])
def test_a_compiled_model(part: str):
    module: Any = llama()
    if part == "a layer":
        module.model.layers[1].compile(backend="eager")
    model = LanguageModel(torch.compile(module, backend="eager") if part == "the whole" else module)
    inside, logits = traced(model, model.model.layers[1])
    assert inside.shape == (1, 5, 32)
    assert torch.equal(logits, logits_of(llama()))


def test_gradient_checkpointing():
    def gradient(module: Any) -> torch.Tensor:
        model = LanguageModel(module.train())
        with model.trace(IDS, use_cache=False):
            hidden = model.model.layers[1].output
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            with model.output.logits.logsumexp(-1).sum().backward():
                found = hidden.grad.save()
        return found

    checkpointed = llama()
    checkpointed.gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(checkpointed), gradient(llama()))


def test_eight_bits():
    """What PyTorch itself quantises on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(
            llama(), {torch.nn.Linear}, dtype=torch.qint8
        )
        model = LanguageModel(quantised)
        expected = logits_of(quantised)
        inside, logits = traced(model, model.model.layers[1])
        assert inside.shape == (1, 5, 32)
        assert torch.equal(logits, expected) and not torch.equal(logits, logits_of(llama()))
        with torch.no_grad(), model.trace(IDS):
            model.model.layers[1].mlp.down_proj.output[:] = 0
            changed = model.output.logits.save()
    assert not torch.equal(changed, logits)
