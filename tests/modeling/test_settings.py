"""Settings that stand on a trace, on an invoke, or on an invoke of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nnsight import LanguageModel

LONG = "the eiffel tower is in the city of paris"


@pytest.fixture(scope="module")
def model(gpt2_folder: Path) -> LanguageModel:
    return LanguageModel(gpt2_folder, dispatch=True)


@pytest.mark.parametrize("place", ["trace", "invoke", "invoke of its own"])
def test_a_misspelt_setting_is_told_of_wherever_it_stands(model, place):
    wrong = {"outpt_hidden_states": True}
    expected = "`outpt_hidden_states=` has no effect.*Did you mean `output_hidden_states=`"
    with pytest.warns(UserWarning, match=expected) as found:
        with model.trace(**(wrong if place == "trace" else {})) as tracer:
            with tracer.invoke([1, 2], **(wrong if place == "invoke" else {})):
                model.lm_head.output.save()
            if place == "invoke of its own":
                with tracer.invoke(**wrong):
                    pass
    assert [w.filename for w in found] == [__file__]


def test_a_setting_of_the_trace_is_that_of_each_invoke(model):
    with model.trace(truncation=True, max_length=3) as tracer:
        with tracer.invoke(LONG):
            short = model.lm_head.output.save()
        with tracer.invoke([5, 6, 7]):
            model.lm_head.output.save()
    with model.trace(LONG, truncation=True, max_length=3):
        alone = model.lm_head.output.save()
    assert short.shape[1] == 3 and torch.allclose(short, alone, atol=1e-5)


def test_an_option_for_text_has_no_effect_on_ids(model):
    with pytest.warns(UserWarning, match="`truncation=` has no effect"):
        with model.trace(truncation=True) as tracer:
            with tracer.invoke([5, 6, 7]):
                pass


def test_an_invoke_comes_before_its_trace(model):
    with model.trace(use_cache=True) as tracer:
        with tracer.invoke([1, 2], use_cache=False):
            without = model.output.past_key_values
            without.save()
    assert without is None


def test_settings_that_disagree_are_refused(model):
    text = re.escape("`use_cache` is True in one and False in another")
    with pytest.raises(ValueError, match=text):
        with model.trace(use_cache=True) as tracer:
            with tracer.invoke([1, 2]):
                pass
            with tracer.invoke(use_cache=False):
                pass
    with pytest.raises(ValueError, match="use_cache"):
        with model.trace(use_cache=True) as tracer:
            with tracer.invoke([1, 2]):
                pass
            with tracer.invoke([3, 4], use_cache=False):
                pass


def test_a_tensor_of_the_trace_is_for_the_whole_batch(model):
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    with model.trace(attention_mask=mask) as tracer:
        with tracer.invoke([1, 2, 3]):
            first = model.lm_head.output.save()
        with tracer.invoke([4, 5, 6]):
            second = model.lm_head.output.save()
    expected = model._module(torch.tensor([[1, 2, 3], [4, 5, 6]]), attention_mask=mask).logits
    assert torch.allclose(torch.cat([first, second]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["text", "prompt", "inputs", "input_ids"])
def test_a_text_may_go_in_by_a_name(model, name):
    with model.trace(**{name: LONG}):
        named = model.lm_head.output.save()
    with model.trace(LONG):
        assert torch.equal(named, model.lm_head.output)


@pytest.mark.parametrize("form", [dict, lambda **named: [named]])
def test_messages_may_go_in_by_their_name(gpt2_folder, chatty, form):
    model = LanguageModel(gpt2_folder, tokenizer=chatty)
    chat = [{"role": "user", "content": "hello"}]
    with model.trace(form(messages=chat)):
        named = model.lm_head.output.save()
    with model.trace(chat):
        assert torch.equal(named, model.lm_head.output)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("padding", "Prompts are made into padded tensors here; remove it."),
        ("device_map", "It goes where the model is made: `LanguageModel(..., device_map=...)`."),
        ("max_new_token", "to generate, use `.generate(..., max_new_tokens=...)`."),
    ],
)
def test_a_keyword_that_belongs_elsewhere(model, name, hint):
    with pytest.warns(UserWarning, match=re.escape(hint)):
        with model.trace(LONG, **{name: 1}):
            pass
