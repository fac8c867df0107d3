"""A model as somebody else sees it, over the same weights."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch

from nnsight.envoy.batch_axis import BatchAxis
from nnsight.modeling import remoting
from nnsight.modeling.language import LanguageModel

NAMES = {"aliases": {"": {"embed": "transformer.wte"}}}


@pytest.fixture
def model(gpt2_folder: Any) -> LanguageModel:
    return LanguageModel(gpt2_folder, dispatch=True)


def seen(model: Any, **given: Any) -> Any:
    return model._with_remote_settings({**remoting.settings(model), **given})


def rows(model: Any) -> torch.Tensor:
    with model.trace() as tracer:
        with tracer.invoke("The cat sat on the mat."):
            pass
        with tracer.invoke("Hello world!"):
            found = model.transformer.h[1].mlp.output.save()
    return found


@pytest.mark.parametrize("given", [{}, {"path": "llm"}, {"tuples": False}, NAMES], ids=str)
def test_what_one_run_finds_out_the_next_knows(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
):
    first = rows(seen(model, **given))
    monkeypatch.setattr(BatchAxis, "_measure", None)
    assert torch.equal(rows(seen(model, **given)), first)


def test_edits_of_one_are_not_those_of_the_next(model: LanguageModel):
    one = seen(model, path="llm")
    with one.edit(inplace=True):
        one.transformer.h[0].mlp.output *= 2
    other = seen(model, path="llm")
    assert len(one.edits) == 1 and len(other.edits) == len(model.edits) == 0
    assert torch.equal(rows(other), rows(model)) and not torch.equal(rows(one), rows(model))


def test_names_of_one_are_not_those_of_the_other(model: LanguageModel):
    assert seen(model, **NAMES).embed._module is model._module.get_submodule("transformer.wte")
    assert not hasattr(model, "embed") and not hasattr(seen(model, path="llm"), "embed")
    assert "llm.transformer" in repr(seen(model, path="llm").transformer._path)


def test_few_ways_of_seeing_are_kept(model: LanguageModel):
    for name in "abcdefghijklmnop":
        seen(model, path=name)
    seen(model, path="p")
    kept = model._tree.memory["<seen>"]
    assert [path for path, *_ in kept] == list("ijklmnop")


# --- weights that a server does not have ----------------------------------------------------------


def told_of_weights(model: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.trace("Hello", remote="local")._offered = None  # nothing is sent before it is entered
    assert all(w.filename == __file__ for w in given)
    return [str(w.message) for w in given]


def test_weights_as_they_were_read_are_not_spoken_of(model: LanguageModel):
    model.half().to("cpu").requires_grad_(False)
    with model.edit(inplace=True):
        model.transformer.h[0].mlp.output *= 2
    rows(model)
    assert told_of_weights(model) == []


def test_weights_that_were_changed_are(model: LanguageModel):
    with torch.no_grad():
        model._module.get_submodule("transformer.wte").weight.mul_(2)
        model.transformer.h[1].mlp.c_fc._module.bias.zero_()
    for _ in range(2):
        (said,) = told_of_weights(model)
        assert "`transformer.wte.weight` and of 1 more parameters were changed here" in said
    with pytest.warns(UserWarning, match="were changed here after they were read"):
        model.session(remote="local")._offered = None


def test_weights_that_are_read_later_are_as_they_were_read(gpt2_folder: Any):
    model = LanguageModel(gpt2_folder)
    assert told_of_weights(model) == []
    rows(model)
    assert told_of_weights(model) == []
    torch.nn.init.zeros_(model._module.get_submodule("lm_head").weight)
    assert len(told_of_weights(model)) == 1


def test_weights_of_an_object_are_spoken_of_once(gpt2_folder: Any):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    model = LanguageModel(network)
    (said,) = told_of_weights(model)
    assert "This GPT2LMHeadModel was given as an object, and its weights are not sent" in said
    assert repr(str(gpt2_folder)) in said and told_of_weights(model) == []


def test_a_copy_does_not_speak_for_the_model(model: LanguageModel):
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    torch.nn.init.zeros_(model._module.get_submodule("lm_head").weight)
    assert [told_of_weights(twin) for twin in twins] == [[], []]
    assert len(told_of_weights(model)) == 1
