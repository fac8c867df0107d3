"""Models that read padding: a trace says so, once, and only where there is padding."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from nnsight import LanguageModel
from tests.families import zoo


def model_of(family: str, **options: Any) -> LanguageModel:
    return LanguageModel(zoo.build(family), tokenizer=zoo.tokenizer(), **options)


def logits(model: LanguageModel, *prompts: list[int]) -> torch.Tensor:
    with torch.no_grad(), model.trace(list(prompts)):
        found = model.output.logits.save()
    return found


SHORT, LONG = [5, 6, 7], [8, 9, 10, 11, 12]


def test_padding_in_front_of_a_model_with_a_state_is_told_once_at_the_users_line():
    model = model_of("rwkv")
    with pytest.warns(UserWarning, match="carries a state over the padding") as told:
        padded = logits(model, SHORT, LONG)
    assert [warning.filename for warning in told] == [__file__]
    assert "row 0 of the batch" in str(told[0].message)
    assert not torch.allclose(padded[0, -3:], logits(model, SHORT)[0], atol=1e-2)
    logits(model, SHORT, LONG)  # said already: a warning would be an error here


def test_without_padding_nothing_is_told():
    model = model_of("rwkv")
    together = logits(model, SHORT, SHORT[::-1])
    assert torch.allclose(together[0], logits(model, SHORT)[0], atol=1e-5)
    with model.scan([SHORT, SHORT]):
        pass


def test_the_way_out_is_one():
    """Padding behind a prompt is read by none of its tokens."""
    model = model_of("rwkv", tokenizer_kwargs={"padding_side": "right"})
    together = logits(model, SHORT, LONG)
    assert torch.allclose(together[0, :3], logits(model, SHORT)[0], atol=1e-5)


def test_a_model_that_masks_its_padding_is_not_warned_of():
    for family in ("mamba", "gpt2"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(model_of(family), SHORT, LONG)
