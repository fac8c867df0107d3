"""A model that proposes tokens, or a prompt that does: a block sees the forwards of the other.

So it is with every way of generating that runs the model more often, or less, than once a token.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.families import zoo

from nnsight import LanguageModel
from nnsight.modeling.options import transformers_version
from nnsight.toolbox.facts import facts_folder

only_5 = pytest.mark.skipif(transformers_version() < (5, 0), reason="refused with transformers 4")
only_4 = pytest.mark.skipif(transformers_version() >= (5, 0), reason="not refused")

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


def test_an_assistant_with_another_tokenizer(gpt2_folder):
    model, other = LanguageModel(facts_folder()), LanguageModel(gpt2_folder, dispatch=True)
    prompt = "The Eiffel Tower is in the city of"
    wanted = model.generate(prompt, **SETTINGS)
    help = {"tokenizer": model.tokenizer, "assistant_tokenizer": other.tokenizer}
    with model.generate(prompt, assistant_model=other, **help, **SETTINGS) as tracer:
        shapes = [model.lm_head.output.shape for _ in tracer.iter[:]].save()
        tokens = tracer.result.save()
    assert torch.equal(tokens, wanted)
    assert max(shape[1] for shape in shapes) > 1  # several tokens are checked in one forward


@pytest.mark.parametrize(
    ("way", "widths"),
    [
        ({"guidance_scale": 1.5}, [7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        pytest.param({"prefill_chunk_size": 3}, [3, 3, 1, 1, 1, 1, 1, 1], marks=only_5),
    ],
)
def test_ways_that_run_the_model_more_often(module, way, widths):
    mask = torch.ones_like(IDS)
    wanted = module.generate(IDS, attention_mask=mask, **SETTINGS, **way)
    model = LanguageModel(module)
    with model.generate(IDS, **SETTINGS, **way) as tracer:
        found = [model.model.embed_tokens.output.shape[1] for _ in tracer.iter[:]].save()
        tokens = tracer.result.save()
    assert torch.equal(tokens, wanted)
    assert found == widths


@only_4
def test_steps_that_cannot_be_told_are_refused(module):
    model = LanguageModel(module)
    with pytest.raises(ValueError, match="a block cannot tell its steps there"):
        with model.generate(IDS, prefill_chunk_size=3, **SETTINGS) as tracer:
            tracer.result.save()
    assert model.generate(IDS, prefill_chunk_size=3, **SETTINGS).shape == (1, 13)
