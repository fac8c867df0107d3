# ruff: noqa: B018 -- a value is read by naming it
"""Generation with models of many families: what a step is, and what an encoder is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nnsight import LanguageModel, NNsight, OutOfOrderError
from tests.conftest import hooks_on

from .tiny import config_of, model_of

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
IDS = torch.tensor([[5, 6, 7, 8, 9]])
DECODERS = ["gpt2", "llama", "bloom", "mamba", "bart-decoder"]


def seen_by_a_hook(module: nn.Module, run) -> list[Any]:
    found: list[Any] = []
    handle = module.register_forward_hook(lambda m, args, out: found.append(out))
    run()
    handle.remove()
    return found


def same(got: Any, expected: Any) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        one, other = (v[0] if isinstance(v, tuple) else v for v in (one, other))
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("turn", ["first", "later"])
def test_each_step_of_a_decoder(family, turn):
    module = model_of(family)
    model = LanguageModel(module)
    if turn == "later":
        with model.generate(IDS, **GREEDY):
            pass
    head = module.get_output_embeddings()
    inner = next(m for m in module.modules() if "Norm" in type(m).__name__)
    layer, logits = model._node_of(inner), model._node_of(head)
    expected = model.generate(IDS, **GREEDY)
    states = seen_by_a_hook(inner, lambda: model.generate(IDS, **GREEDY))
    values = seen_by_a_hook(head, lambda: model.generate(IDS, **GREEDY))
    with model.generate(IDS, **GREEDY) as tracer:
        got_states, got_values = [].save(), [].save()
        for _ in tracer.iter[:]:
            got_states.append(layer.output)
            got_values.append(logits.output)
        ids = tracer.result.save()
    assert torch.equal(ids, expected)
    same(got_states, states)
    same(got_values, values)
    assert hooks_on(module) == []


@pytest.mark.parametrize("family", DECODERS)
def test_prompts_of_a_batch_are_apart(family):
    model = LanguageModel(model_of(family))
    head = model._node_of(model._module.get_output_embeddings())
    prompts = [IDS, torch.tensor([[9, 8, 7, 6, 5]])]
    found: dict[int, Any] = {}
    with model.generate(**GREEDY) as tracer:
        for index, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                values = [head.output for _ in tracer.iter[:]]
                found[index] = values, tracer.result
    for index, prompt in enumerate(prompts):
        with model.generate(prompt, **GREEDY) as tracer:
            alone = [head.output for _ in tracer.iter[:]].save()
            ids = tracer.result.save()
        values, together = found[index]
        assert torch.equal(together, ids)
        for one, other in zip(values, alone, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("turn", ["first", "later"])
@pytest.mark.parametrize("beams", [1, 2])
def test_an_encoder_runs_before_the_steps(turn, beams):
    module = model_of("t5")
    model = LanguageModel(module, automodel="AutoModelForSeq2SeqLM")
    settings = {**GREEDY, "decoder_start_token_id": 0, "pad_token_id": 0, "num_beams": beams}
    if turn == "later":
        with model.generate(IDS, **settings):
            pass
    prompts = [IDS, torch.tensor([[9, 8, 7, 6, 5]])]
    found: list[Any] = []
    with model.generate(**settings) as tracer:
        for prompt in prompts:
            with tracer.invoke(prompt):
                encoded = model.encoder.output.last_hidden_state
                states = [model.decoder.block[0].layer[0].output for _ in tracer.iter[:]]
                found.append((encoded, states, tracer.result))
    for prompt, (encoded, states, ids) in zip(prompts, found, strict=True):
        assert torch.equal(ids, model.generate(prompt, **settings))
        once = seen_by_a_hook(module.encoder, lambda p=prompt: model.generate(p, **settings))
        assert torch.allclose(encoded, once[0].last_hidden_state, atol=1e-5)
        own = seen_by_a_hook(
            module.decoder.block[0].layer[0], lambda p=prompt: model.generate(p, **settings)
        )
        assert len(own) == len(states)
        for one, other in zip(states, own, strict=True):
            assert one[0].shape[0] == beams
            assert torch.allclose(one[0], other[0], atol=1e-4)


def test_a_late_loop_over_a_decoder_with_an_encoder():
    model = LanguageModel(model_of("t5"), automodel="AutoModelForSeq2SeqLM")
    settings = {**GREEDY, "decoder_start_token_id": 0, "pad_token_id": 0}
    with model.generate(IDS, **settings) as tracer:
        late = [model.lm_head.output for _ in tracer.iter[2:]].save()
    every = seen_by_a_hook(model._module.lm_head, lambda: model.generate(IDS, **settings))
    same(late, every[2:])


class Adapted(nn.Module):
    """Holds a model as an adapter does: it generates with the model inside it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.generate(*args, **kwargs)


@pytest.mark.parametrize("turn", ["first", "later"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_model_that_generates_with_the_model_inside_it(turn, start):
    module = Adapted(model_of("gpt2"))
    model = LanguageModel(module)
    if turn == "later":
        with model.generate(IDS, **GREEDY):
            pass
    with model.generate(IDS, **GREEDY) as tracer:
        values = [model.inner.lm_head.output for _ in tracer.iter[start:]].save()
        ids = tracer.result.save()
    assert torch.equal(ids, module.generate(IDS, pad_token_id=0, **GREEDY))
    every = seen_by_a_hook(
        module.inner.lm_head, lambda: module.generate(IDS, pad_token_id=0, **GREEDY)
    )
    same(values, every[start:])


def test_a_plain_wrapper_of_a_model_generates_too():
    module = model_of("gpt2")
    model = NNsight(module)
    settings = {**GREEDY, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    with model.trace(IDS, fn="generate", **settings) as tracer:
        values = [model.lm_head.output for _ in tracer.iter[:]].save()
        ids = tracer.result.save()
    assert torch.equal(ids, module.generate(IDS, **settings))
    assert len(values) == 4


@pytest.mark.parametrize("turn", range(2))
def test_experts_run_in_some_steps_only(turn):
    """The value of a step is that of the expert at this step, whatever it missed before."""
    config = config_of("llama")
    torch.manual_seed(1)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    layer = module.model.layers[1]
    layer.mlp = Experts(config.hidden_size)
    model = LanguageModel(module)
    chosen: list[int] = []
    layer.mlp.register_forward_hook(lambda m, args, out: chosen.append(m.chosen))
    settings = {**GREEDY, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    if turn:
        with model.generate(IDS, **settings):
            pass
    chosen.clear()
    values = [
        seen_by_a_hook(expert, lambda: module.generate(IDS, **settings))
        for expert in layer.mlp.experts
    ]
    order = chosen[:8]
    assert len(set(order)) > 1
    with model.generate(IDS, **settings) as tracer:
        got = [].save()
        for step in tracer.iter[:]:
            got.append(model.model.layers[1].mlp.experts[order[step]].output)
    same(got, [values[expert].pop(0) for expert in order])


class Experts(nn.Module):
    """Sends all tokens to one of three layers, by the sum of the last one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.chosen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.chosen = int(x[0, -1].abs().sum() * 100) % 3
        return self.experts[self.chosen](x)


class Twice(nn.Module):
    """Runs a layer twice in each forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize("turn", ["first", "later"])
def test_a_module_that_runs_twice_in_each_step_has_a_count_of_its_own(turn):
    config = config_of("llama")
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    module.model.layers[1].mlp = Twice(config.hidden_size)
    model = LanguageModel(module)
    if turn == "later":
        with model.generate(IDS, **GREEDY):
            pass
    layer = model.model.layers[1].mlp.layer
    with model.generate(IDS, **GREEDY) as tracer:
        got = [layer.output for _ in tracer.iter[:]].save()
    same(got, seen_by_a_hook(layer._module, lambda: model.generate(IDS, **GREEDY)))
    assert len(got) == 8
    with pytest.raises(OutOfOrderError, match=r"step 1 .*several times in each call.*own run numb"):
        with model.generate(IDS, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                layer.output
                model.lm_head.output
