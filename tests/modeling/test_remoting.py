"""A model as somebody else sees it, over the same weights."""

from __future__ import annotations

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
        one.transformer.h[0].output *= 2
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
