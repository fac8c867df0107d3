"""Prompts of one generation that end after different numbers of tokens, and what stands in the way.

Each row is compared with the prompt generated alone: its tokens, and the values of its steps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_gpt2_folder, states

from nnsight import LanguageModel

LIMITS = {"The Eiffel Tower is in the city of": 5, "Hello World": 2, "The capital of France is": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "suppress_tokens": [0]},
    "static cache": {"do_sample": False, "cache_implementation": "static", "suppress_tokens": [0]},
    "no cache": {"do_sample": False, "use_cache": False, "suppress_tokens": [0]},
    "no end": {"do_sample": False, "eos_token_id": -1},  # nothing else ends a row
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = make_gpt2_folder(tmp_path_factory.mktemp("small"), layers=2, width=32)
    return LanguageModel(folder, dispatch=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_row_is_what_the_prompt_is_alone(model, name):
    settings = SETTINGS[name]
    found: dict[str, Any] = {}
    with model.generate(**settings) as tracer:
        for prompt, limit in LIMITS.items():
            with tracer.invoke(prompt, max_new_tokens=limit):
                seen, running = [], []
                for _ in tracer.iter[:]:
                    seen.append(states(model.transformer.h[1])[0, -1])
                    running.append(model.generator.running)
                found[prompt] = seen, running, tracer.result
    longest = max(LIMITS.values())
    for prompt, limit in LIMITS.items():
        seen, running, ids = found[prompt]
        with model.generate(prompt, max_new_tokens=limit, **settings) as tracer:
            alone = [states(model.transformer.h[1])[0, -1] for _ in tracer.iter[:]].save()
            expected = tracer.result.save()
        new = ids[0, -longest:]
        assert torch.equal(new[:limit], expected[0, -limit:])
        assert (new[limit:] == 0).all()  # padding
        assert torch.allclose(torch.stack(seen[:limit]), torch.stack(alone), atol=1e-4)
        assert torch.cat(running).tolist() == [True] * limit + [False] * (longest - limit)


def test_the_trace_says_it_for_those_that_do_not(model):
    with model.generate(do_sample=False, max_new_tokens=4) as tracer:
        with tracer.invoke(["Hello World", "The cat"], max_new_tokens=1):
            short = tracer.result.save()
        with tracer.invoke("Hello World"):
            long = tracer.result.save()
    assert (short[:, -3:] == 0).all() and short.shape == (2, long.shape[1])
    alone = model.generate("Hello World", do_sample=False, max_new_tokens=4)
    assert torch.equal(long[:, -4:], alone[:, -4:]) and short[0, -4] == alone[0, -4]


def test_several_samples_of_each_prompt(model):
    with model.generate(do_sample=True, num_return_sequences=2) as tracer:
        with tracer.invoke("Hello World", max_new_tokens=1):
            short = tracer.result.save()
        with tracer.invoke("The cat", max_new_tokens=3):
            long = tracer.result.save()
    assert short.shape == long.shape and (short[:, -2:] == 0).all()


def test_beside_a_criterion_of_the_users(model):
    def after_two(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), ids.shape[1] >= width + 2)

    width = len(model.tokenizer("Hello World")["input_ids"])
    with model.generate(do_sample=False, stopping_criteria=[after_two]) as tracer:
        for limit in (1, 9):
            with tracer.invoke("Hello World", max_new_tokens=limit):
                ids = tracer.result.save()
    assert ids.shape[1] == width + 2


def test_an_encoder_with_a_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40, d_model=16, d_ff=16, d_kv=8, num_layers=2, num_heads=2, eos_token_id=None,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LanguageModel(T5ForConditionalGeneration(config).eval())
    limits = {(5, 6, 7): 4, (8, 9): 2}
    found = {}
    with model.generate(do_sample=False) as tracer:
        for ids, limit in limits.items():
            with tracer.invoke(list(ids), max_new_tokens=limit):
                found[ids] = tracer.result
    for ids, limit in limits.items():
        alone = model.generate(list(ids), max_new_tokens=limit, do_sample=False)
        assert found[ids].shape == (1, 5) and torch.equal(found[ids][:, : limit + 1], alone)


@pytest.mark.parametrize(
    ("settings", "limits", "text"),
    [
        ({"num_beams": 2}, [2, 3], "max_new_tokens` (2, 3), and a beam search cannot end one"),
        ({}, [2, 3, None], "(2, 3) and others do not say. Give it to each, or to the trace"),
    ],
)
def test_where_that_cannot_be_right(model, settings, limits, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        with model.generate(**settings) as tracer:
            for limit in limits:
                with tracer.invoke("Hello", **({"max_new_tokens": limit} if limit else {})):
                    tracer.result.save()


@pytest.mark.parametrize("wrong", ["max_new_token", "num_beam", "top_kk"])
def test_a_misspelt_setting_is_refused(model, wrong):
    with pytest.raises(ValueError, match=f"`generate` takes no `{wrong}=`. Did you mean `"):
        model.generate("Hello", **{wrong: 3})


def test_a_text_that_ends_the_generation_is_found_with_the_models_tokenizer(model):
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [0]}
    ids = model.generate("Hello World", **settings)
    end = model.tokenizer.decode(ids[0, -5])
    with model.generate("Hello World", stop_strings=[end], **settings) as t:
        ended = t.result.save()
    assert ended.shape[1] <= ids.shape[1] - 4
    assert torch.equal(ended, ids[:, : ended.shape[1]])


def test_a_generation_beyond_the_positions_is_told_of(model):
    with pytest.warns(UserWarning, match="goes beyond the 64 positions that this model has"):
        with pytest.raises(IndexError):
            model.generate([5] * 62, max_new_tokens=9, min_new_tokens=9, do_sample=False)
    model.generate([5] * 62, max_new_tokens=3, min_new_tokens=3, do_sample=False)  # just fits
