"""Prompts of different lengths share a batch, and each gives the numbers that it gives alone."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy
import pytest
import torch
import transformers
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from nnsight import LanguageModel
from nnsight.modeling.format import format_of
from nnsight.modeling.inputs import batch, count_rows
from nnsight.modeling.tokenizer import LazyTokenizer

from .tiny import FAMILIES, VOCABULARY, call, config_of, format_for, given, model_of, run

PROMPT = "the eiffel tower is in"
PROMPTS = ["hello", "the eiffel tower is in", "the city of paris hello world world"]


# --- padding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"t5"}))
@pytest.mark.parametrize("several", [False, True], ids=["one list", "an invoke each"])
def test_each_row_of_a_padded_batch_is_its_solo_run(family, several, tokenizer):
    inputs = [given(prompt) for prompt in PROMPTS] if several else [given(PROMPTS)]
    kwargs = call(inputs, family, tokenizer)
    together = run(family, kwargs)
    for row, prompt in enumerate(PROMPTS):
        solo = run(family, call(given(prompt), family, tokenizer))[0]
        real = together[row]
        if real.ndim == 2:
            real = real[kwargs["attention_mask"][row].bool()]
        torch.testing.assert_close(real, solo, atol=1e-5, rtol=0)


def test_each_row_of_an_encoder_decoder_is_its_solo_run(tokenizer):
    targets = [[0, 5], [0, 7, 8], [0]]
    inputs = [given(p, decoder_input_ids=[t]) for p, t in zip(PROMPTS, targets, strict=True)]
    kwargs = call(inputs, "t5", tokenizer)
    assert kwargs["decoder_input_ids"].tolist()[0] == [0, 5, 0]
    together = run("t5", kwargs)
    for row, one in enumerate(inputs):
        solo = run("t5", call(one, "t5", tokenizer))[0]
        torch.testing.assert_close(together[row, : len(solo)], solo, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_batch_that_the_user_padded_gives_the_solo_numbers_too(family, tokenizer):
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    encoding = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    kwargs = call(given(encoding), family, tokenizer)
    together = run(family, kwargs)
    for row, prompt in enumerate(PROMPTS):
        solo = run(family, call(given(prompt), family, tokenizer))[0, -1]
        torch.testing.assert_close(together[row, -1], solo, atol=1e-5, rtol=0)


def test_decoders_are_padded_on_the_left_and_get_positions():
    kwargs = call([given([5, 6, 7]), given([8])], "gpt2")
    assert kwargs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert kwargs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert kwargs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_encoders_are_padded_on_the_right():
    kwargs = call([given([5, 6, 7]), given([8])], "bert")
    assert kwargs["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert kwargs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "position_ids" not in kwargs


def test_positions_start_where_the_family_starts_them():
    kwargs = call([given([5, 6]), given([8])], "roberta-decoder")
    assert kwargs["position_ids"].tolist() == [[2, 3], [2, 2]]


def test_the_side_is_right_where_left_would_shift_positions():
    """This decoder has a table of positions and no `position_ids` to put them right."""
    assert format_for("bart-decoder").side == "right"
    assert format_for("bart-decoder").of("generate").side == "left"


def test_generation_is_padded_on_the_left_and_sets_its_own_positions():
    kwargs = call([given([5, 6, 7]), given([8], max_new_tokens=3)], "gpt2", method="generate")
    assert "position_ids" not in kwargs
    assert kwargs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert kwargs["max_new_tokens"] == 3
    assert kwargs["pad_token_id"] == 0  # so that nothing has to be guessed, or warned of


def test_equal_lengths_need_no_padding_and_no_mask():
    kwargs = call([given([5, 6]), given(torch.tensor([[7, 8], [9, 10]]))], "gpt2")
    assert kwargs.keys() == {"input_ids"}
    assert kwargs["input_ids"].tolist() == [[5, 6], [7, 8], [9, 10]]


def test_forms_mix_in_one_batch(chatty):
    forms = [
        given("hello world"),
        given([1, 2, 3]),
        given(torch.tensor([[4, 5], [6, 7]])),
        given({"input_ids": [8, 9, 10, 11], "attention_mask": [0, 1, 1, 1]}),
        given([{"role": "user", "content": "hi"}]),
        given(["hello", [12, 13]]),
    ]
    kwargs = call(forms, "llama", chatty)
    assert kwargs["input_ids"].shape == kwargs["attention_mask"].shape
    assert len(kwargs["input_ids"]) == 8
    start = 0
    for form in forms:
        rows = count_rows(form.args, form.kwargs)
        part = {name: kwargs[name][start : start + rows] for name in kwargs}
        solo = call(form, "llama", chatty)
        for row in range(rows):
            mask = solo.get("attention_mask", torch.ones_like(solo["input_ids"]))[row].bool()
            real = part["input_ids"][row][part["attention_mask"][row].bool()]
            assert torch.equal(real, solo["input_ids"][row][mask])
        start += rows


ragged = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@forall(rows=ragged, cuts=st.sets(st.integers(1, 5)), family=st.sampled_from(["gpt2", "bert"]))
def test_a_batch_holds_the_rows_in_order_however_they_were_given(rows, cuts, family):
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    invokes = [given(rows[a:b]) for a, b in itertools.pairwise(edges)]
    kwargs = call(invokes, family)
    ids = kwargs["input_ids"]
    mask = kwargs.get("attention_mask", torch.ones_like(ids))
    assert ids.shape == (len(rows), max(map(len, rows)))
    for row, expected in enumerate(rows):
        assert ids[row][mask[row].bool()].tolist() == expected
        assert (mask[row].diff() >= 0).all() if family == "gpt2" else (mask[row].diff() <= 0).all()
        if "position_ids" in kwargs:
            positions = kwargs["position_ids"][row][mask[row].bool()]
            assert positions.tolist() == list(range(len(expected)))


# --- masks, positions, labels, embeddings ----------------------------------------------------


def test_an_explicit_mask_is_kept_and_extended_where_the_padding_is():
    holey = given([5, 6, 7], attention_mask=[1, 0, 1])
    kwargs = call([holey, given([1, 2, 3, 4])], "gpt2")
    assert kwargs["attention_mask"].tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert kwargs["position_ids"].tolist() == [[0, 0, 1, 2], [0, 1, 2, 3]]


def test_a_hole_in_a_mask_moves_no_positions():
    kwargs = call(given([5, 6, 7], attention_mask=[1, 0, 1]), "gpt2")
    assert "position_ids" not in kwargs


def test_an_explicit_mask_beside_text_takes_the_place_of_the_tokenizers(tokenizer):
    length = len(tokenizer(PROMPT)["input_ids"])
    mask = torch.ones(1, length)
    mask[0, 1] = 0
    assert call(given(PROMPT, attention_mask=mask), "gpt2", tokenizer)["attention_mask"] is mask


def test_explicit_positions_are_kept_and_extended():
    kwargs = call([given([5, 6], position_ids=[7, 9]), given([1, 2, 3])], "gpt2")
    assert kwargs["position_ids"].tolist() == [[0, 7, 9], [0, 1, 2]]


def test_a_four_dimensional_mask_passes_through():
    mask = torch.ones(1, 1, 3, 3)
    kwargs = call(given([[5, 6, 7], [8, 9, 10]], attention_mask=mask), "gpt2")
    assert kwargs["attention_mask"] is mask


def test_a_mask_may_cover_keys_and_values_of_earlier_tokens():
    past = object()
    mask = torch.ones(1, 5)
    kwargs = call(given([[5]], attention_mask=mask, past_key_values=past), "gpt2")
    assert kwargs["attention_mask"] is mask and kwargs["past_key_values"] is past
    assert "position_ids" not in kwargs


GOING_ON = ([5, 6], [7, 8, 9, 10])


def behind(family: str, beginning: list[list[int]]) -> tuple[LanguageModel, Any]:
    """A model, and its cache of the beginning of a prompt."""
    model = LanguageModel(model_of(family))
    with torch.no_grad(), model.trace(beginning):
        past = model.output.past_key_values.save()
    return model, past


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_mask_of_the_tokens_does_not_hide_the_cache_in_front_of_them(family):
    model, past = behind(family, [[11, 12, 13]])
    for more in GOING_ON:
        mask = torch.ones(1, len(more), dtype=torch.long)
        encoding = {"input_ids": torch.tensor([more]), "attention_mask": mask}
        with model.trace(encoding, past_key_values=copy.deepcopy(past)):
            logits = model.output.logits.save()
        expected = model_of(family)(torch.tensor([[11, 12, 13, *more]])).logits[:, 3:]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prompts_of_unequal_lengths_go_on_from_a_cache(family):
    model, past = behind(family, [[11, 12, 13], [11, 12, 13]])
    found = []
    with model.trace(GOING_ON, past_key_values=copy.deepcopy(past)):
        found.append(model.output.logits.save())
    with model.trace(past_key_values=copy.deepcopy(past)) as tracer:
        with tracer.invoke(GOING_ON[0]):
            one = model.output.logits
        with tracer.invoke(GOING_ON[1]):
            found.append(torch.cat([one, model.output.logits]).save())
    for logits in found:
        for row, more in zip(logits, GOING_ON, strict=True):
            expected = model_of(family)(torch.tensor([[11, 12, 13, *more]])).logits[0, 3:]
            torch.testing.assert_close(row[-len(more) :], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_empty_cache_is_as_none():
    model = LanguageModel(model_of("gpt2"))
    with model.trace(GOING_ON, past_key_values=transformers.DynamicCache()):
        logits = model.output.logits.save()
    expected = model_of("gpt2")(torch.tensor([GOING_ON[0]])).logits[0]
    torch.testing.assert_close(logits[0, -2:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_between_a_cache_and_a_prompt_is_told_of_where_layers_look_back_so_far():
    settings = {"vocab_size": 290, "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    config = transformers.MistralConfig(**settings, sliding_window=3)
    model = LanguageModel(transformers.MistralForCausalLM(config).eval())
    with model.trace([[11, 12, 13], [11, 12, 13]]):
        past = model.output.past_key_values.save()
    with (
        pytest.warns(UserWarning, match="row 0 of the batch may have other numbers"),
        model.trace(GOING_ON, past_key_values=past),
    ):
        pass


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([5, 6, 7], [[-100, -100, 6, 7]]),
        ([[5, 6, 7]], [[-100, -100, 6, 7]]),
        (torch.tensor([5, 6, 7]), [[-100, -100, 6, 7]]),
        (torch.tensor([[5, 6, 7]]), [[-100, -100, 6, 7]]),
        (numpy.array([[5, 6, 7]]), [[-100, -100, 6, 7]]),
    ],
)
def test_labels_are_padded_with_what_the_loss_ignores(labels, expected):
    kwargs = call([given([5, 6, 7], labels=labels), given([1, 2, 3, 4])], "gpt2")
    assert kwargs["labels"].tolist() == [*expected, [-100] * 4]


def test_labels_may_be_text(tokenizer):
    kwargs = call([given(PROMPTS, labels=PROMPTS)], "gpt2", tokenizer)
    real = kwargs["attention_mask"].bool()
    scored = real[:, 1:] & real[:, :-1]  # the padding predicts nothing
    labels, ids = kwargs["labels"][:, 1:], kwargs["input_ids"][:, 1:]
    assert torch.equal(labels[scored], ids[scored])
    assert (labels[~scored] == -100).all()


RAGGED = [[5, 6, 7], [8, 9, 2, 3, 4], [9, 2]]
LABELLED = {
    "one list": [given(RAGGED, labels=RAGGED)],
    "an invoke each": [given(row, labels=row) for row in RAGGED],
    "a list and a row": [given(RAGGED[:2], labels=RAGGED[:2]), given(RAGGED[2], labels=RAGGED[2])],
    "labels padded by hand": [
        given(RAGGED, labels=torch.tensor([[-100] * (5 - len(row)) + row for row in RAGGED]))
    ],
}


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta-decoder"])
@pytest.mark.parametrize("inputs", LABELLED.values(), ids=LABELLED.keys())
def test_the_loss_of_a_padded_batch_scores_what_the_rows_alone_score(family, inputs):
    model, terms = model_of(family), [len(row) - 1 for row in RAGGED]
    alone = [model(**call(given(row, labels=row), family)).loss.item() for row in RAGGED]
    expected = sum(n * loss for n, loss in zip(terms, alone, strict=True)) / sum(terms)
    together = model(**call(inputs, family))
    assert together.loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("automodel", ["AutoModelForTokenClassification", "AutoModelForMaskedLM"])
def test_labels_of_single_tokens_are_all_kept(automodel):
    family = "bert" if automodel == "AutoModelForMaskedLM" else "gpt2"
    module = getattr(transformers, automodel).from_config(config_of(family))
    format = format_of(module, LazyTokenizer(None))
    _, kwargs = batch([given([5, 6], labels=[0, 1]), given([1, 2, 3], labels=[1, 0, 1])], format)
    kept = kwargs["labels"] != -100
    assert torch.equal(kept, kwargs["attention_mask"].bool())


def test_text_labels_of_an_encoder_decoder_have_a_length_of_their_own(tokenizer):
    kwargs = call([given("hello", labels=PROMPT), given(PROMPT, labels="hello")], "t5", tokenizer)
    first, second = kwargs["labels"].tolist()
    assert first == tokenizer(PROMPT)["input_ids"]
    assert second == tokenizer("hello")["input_ids"] + [-100] * (
        len(first) - len(second_real(second))
    )


def second_real(row: list[int]) -> list[int]:
    return [label for label in row if label != -100]


def test_a_classifier_has_one_label_a_row():
    kwargs = call([given([[1, 2], [3]], labels=[0, 1]), given([4], labels=[1])], "bert-classifier")
    assert kwargs["labels"].tolist() == [0, 1, 1]


def test_token_types_are_filled_in_where_an_invoke_has_none():
    typed = {"input_ids": [[1, 2, 3]], "token_type_ids": [[0, 1, 1]]}
    kwargs = call([given(typed), given([4])], "bert")
    assert kwargs["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]


def test_embeddings_are_padded_and_keep_their_gradient():
    one = torch.randn(1, 2, 32, requires_grad=True)
    kwargs = call([given(inputs_embeds=one), given(inputs_embeds=torch.randn(3, 32))], "gpt2")
    assert kwargs["inputs_embeds"].shape == (2, 3, 32)
    assert kwargs["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    kwargs["inputs_embeds"].sum().backward()
    assert one.grad is not None


def test_embeddings_give_the_numbers_of_their_ids():
    embed = model_of("gpt2").get_input_embeddings()
    rows = [[5, 6, 7], [8]]
    by_ids = call(given(rows), "gpt2")
    by_embeds = call(given(inputs_embeds=[embed(torch.tensor(row)) for row in rows]), "gpt2")
    real = by_ids["attention_mask"].bool()
    torch.testing.assert_close(run("gpt2", by_embeds)[real], run("gpt2", by_ids)[real])
