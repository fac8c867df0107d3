"""A model that proposes tokens, or a prompt that does: a block sees the forwards of the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.families import zoo

from nnsight import LanguageModel

IDS = torch.tensor([[8, 9, 10, 11, 12, 9, 10]])
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def module() -> Any:
    return zoo.build("llama")


def helped(module: Any, way: str) -> dict[str, Any]:
    if way == "by the prompt":
        return {"prompt_lookup_num_tokens": 2}
    return {"assistant_model": copy.deepcopy(module)}


@pytest.mark.parametrize("way", ["by a model", "by the prompt"])
def test_what_is_read_and_what_comes_out_is_that_of_the_bare_model(module, way):
    mask, help = torch.ones_like(IDS), helped(module, way)
    seen: list[torch.Tensor] = []
    handle = module.model.layers[1].register_forward_hook(
        lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    wanted = module.generate(IDS, attention_mask=mask, **SETTINGS, **help)
    handle.remove()
    model, found = LanguageModel(module), []
    with model.generate(IDS, **SETTINGS, **help) as tracer:
        for _ in tracer.iter[:]:
            output = model.model.layers[1].output
            found.append(output[0] if isinstance(output, tuple) else output)
        tokens = tracer.result.save()
    assert torch.equal(tokens, wanted)
    assert len(found) == len(seen)
    new = tokens.shape[1] - IDS.shape[1]
    assert len(seen) < new or way == "by the prompt"  # several tokens are checked in one forward
    for own, bare in zip(found, seen, strict=True):
        assert torch.equal(own, bare)
