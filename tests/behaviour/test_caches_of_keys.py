"""Generations beside every kind of cache of keys and values: the same as with the bare model.

The batches have as many rows as the model has heads, so that which values are of rows is asked of a
twin of the model: it must not write into a cache that the user gave.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import states
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache, QuantizedLayer, StaticCache

from nnsight import LanguageModel

PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
CONFIG = LlamaConfig(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    eos_token_id=None,
    pad_token_id=0,
)


class Halved(QuantizedLayer):
    """Keys and values in half the bits once there are more than a few tokens."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.half()

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float()


class OfMine(DynamicCache):
    """A cache that a user wrote."""


def quantised() -> Any:
    cache = DynamicCache()
    cache.layers = [Halved(residual_length=3) for _ in range(2)]
    return cache


CACHES: dict[str, Callable[[], dict[str, Any]]] = {
    "static by name": lambda: {"cache_implementation": "static"},
    "static": lambda: {"past_key_values": StaticCache(config=CONFIG, max_cache_len=20)},
    "dynamic": lambda: {"past_key_values": DynamicCache()},
    "quantised": lambda: {"past_key_values": quantised()},
    "a user's own": lambda: {"past_key_values": OfMine()},
}


@pytest.fixture
def module() -> Any:
    """A new one for each test: what is found out about one is kept with it."""
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


@torch.no_grad()
def bare(module: Any, rows: list[list[int]], **settings: Any) -> tuple[Any, list[torch.Tensor]]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    seen: list[torch.Tensor] = []
    handle = module.model.layers[1].register_forward_hook(
        lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    tokens = module.generate(ids, attention_mask=(ids > 0).long(), **GREEDY, **settings)
    handle.remove()
    return tokens, seen


def lengths(settings: dict[str, Any]) -> int:
    cache = settings.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


@pytest.mark.parametrize("kind", CACHES)
def test_each_step_of_a_prompt(module, kind):
    own, other = CACHES[kind](), CACHES[kind]()
    tokens, seen = bare(module, PROMPTS[:1], **other)
    model = LanguageModel(module)
    with model.generate(PROMPTS[0], **GREEDY, **own) as tracer:
        found = [states(model.model.layers[1]) for _ in tracer.iter[:]].save()
        ids = tracer.result.save()
    assert torch.equal(ids, tokens)
    assert all(map(torch.equal, found, seen)) and len(found) == len(seen) == 4
    assert lengths(own) == lengths(other)


@pytest.mark.parametrize("kind", CACHES)
def test_each_step_of_two_prompts_that_may_be_heads(module, kind):
    own, other = CACHES[kind](), CACHES[kind]()
    tokens, seen = bare(module, PROMPTS, **other)
    model, found, ids = LanguageModel(module), {}, {}
    with model.generate(**GREEDY, **own) as tracer:
        for number, prompt in enumerate(PROMPTS):
            with tracer.invoke(prompt):
                found[number] = [states(model.model.layers[1]) for _ in tracer.iter[:]]
                ids[number] = tracer.result
    assert torch.equal(torch.cat([ids[0], ids[1]]), tokens)
    for step, expected in enumerate(seen):
        assert torch.allclose(torch.cat([found[0][step], found[1][step]]), expected, atol=1e-6)
    assert lengths(own) == lengths(other)


@pytest.mark.parametrize("kind", ["static", "dynamic", "a user's own"])
def test_a_forward_that_fills_the_cache_that_it_is_given(module, kind):
    own, other = CACHES[kind](), CACHES[kind]()
    rows = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        expected = module(rows, **other, use_cache=True).logits
        further = module(rows[:, :1], **other, use_cache=True).logits
    model, found = LanguageModel(module), {}
    with torch.no_grad(), model.trace(**own, use_cache=True) as tracer:
        for number in range(2):
            with tracer.invoke(rows[number : number + 1]):
                found[number] = model.lm_head.output
    assert torch.allclose(torch.cat([found[0], found[1]]), expected, atol=1e-6)
    assert own["past_key_values"].layers[0].keys.shape[0] == 2  # and not the rows of a twin
    with torch.no_grad(), model.trace(rows[:, :1], **own, use_cache=True):
        logits = model.lm_head.output.save()
    assert torch.allclose(logits, further, atol=1e-6)


def test_a_prompt_goes_on_from_the_cache_of_its_beginning(module):
    model, whole = LanguageModel(module), torch.tensor([PROMPTS[0]])
    with torch.no_grad(), model.trace(whole[:, :3]):
        start = model.output.past_key_values.save()
    with torch.no_grad(), model.trace(whole[:, 3:], past_key_values=copy.deepcopy(start)):
        logits = model.lm_head.output.save()
    with torch.no_grad():
        assert torch.allclose(logits, module(whole).logits[:, 3:], atol=1e-6)
    tokens, _ = bare(module, PROMPTS[:1], past_key_values=copy.deepcopy(start))
    assert torch.equal(model.generate(whole, past_key_values=start, **GREEDY), tokens)
