"""Weights of 8 and of 4 bits, quantised while they are read: what runs is what a block sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from nnsight import LanguageModel

pytestmark = [  # of the package that quantises, not of ours
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
IDS = torch.tensor([PROMPTS[1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.15,
    )
    place = tmp_path_factory.mktemp("quantised") / "model"
    LlamaForCausalLM(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module", params=[torch.int8, torch.int4], ids=["8 bits", "4 bits"])
def both(request: pytest.FixtureRequest, folder: Path) -> tuple[Any, LanguageModel]:
    """The bare quantised model, and the same through nnsight, which reads weights later."""
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.IntxWeightOnlyConfig(weight_dtype=request.param))
    bare = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    model = LanguageModel(folder, quantization_config=config)
    assert not model.dispatched
    return bare, model


def bare_logits(
    bare: Any, ids: torch.Tensor, change: Callable[[torch.Tensor], Any] = lambda hidden: None
) -> torch.Tensor:
    """Logits of the bare model with a hook on the MLP of its second layer."""
    handle = bare.model.layers[1].mlp.register_forward_hook(lambda m, args, out: change(out))
    try:
        return bare(input_ids=ids).logits
    finally:
        handle.remove()


@torch.no_grad()
def test_a_trace_sees_what_the_quantised_model_computes(folder, both):
    bare, model = both
    with model.trace(IDS):
        inside = model.model.layers[1].mlp.output.save()
        logits = model.output.logits.save()
    kept = []
    assert torch.equal(logits, bare_logits(bare, IDS, kept.append))
    assert torch.equal(inside, kept[0])
    whole = AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits
    assert (logits - whole).abs().max() > 1e-4  # it has fewer bits indeed
    weight = type(model.model.layers[1].mlp.down_proj._module.weight)
    assert weight is type(bare.model.layers[1].mlp.down_proj.weight) is not torch.nn.Parameter


@torch.no_grad()
def test_an_edit_is_that_of_a_hook(both):
    bare, model = both
    with model.trace(IDS):
        model.model.layers[1].mlp.output = model.model.layers[1].mlp.output * 2
        assigned = model.output.logits.save()
    with model.trace(IDS):
        model.model.layers[1].mlp.output[:] *= 2
        in_place = model.output.logits.save()
    wanted = bare_logits(bare, IDS, lambda hidden: hidden * 2)
    assert torch.equal(assigned, wanted) and torch.equal(in_place, wanted)


def test_gradients_of_activations(both):
    bare, model = both
    with model.trace(IDS):
        hidden = model.model.layers[1].mlp.output
        with model.output.logits.logsumexp(-1).sum().backward():
            gradient = hidden.grad.save()
    kept = []

    def keep(hidden: torch.Tensor) -> None:
        hidden.retain_grad()
        kept.append(hidden)

    bare_logits(bare, IDS, keep).logsumexp(-1).sum().backward()
    torch.testing.assert_close(gradient, kept[0].grad)


@torch.no_grad()
def test_each_prompt_of_a_batch_has_the_numbers_that_it_has_alone(both):
    bare, model = both
    with model.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = model.output.logits.save()
        with tracer.invoke(PROMPTS[1]):
            model.model.layers[1].mlp.output[:] = 0
            second = model.output.logits.save()
    alone = bare_logits(bare, torch.tensor([PROMPTS[0]]))
    torch.testing.assert_close(first[:, -3:], alone, atol=1e-4, rtol=1e-4)
    wanted = bare_logits(bare, IDS, torch.zeros_like)
    torch.testing.assert_close(second, wanted, atol=1e-4, rtol=1e-4)


def test_tokens_and_standard_names(both):
    bare, model = both
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        model.generate(IDS, **settings), bare.generate(input_ids=IDS, pad_token_id=0, **settings)
    )
    with torch.no_grad(), model.trace(IDS):
        stream = model.layers[1].resid_post.save()
    states = bare(input_ids=IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(stream, states[2])
