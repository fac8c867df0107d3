"""`model.tokens(...)`: which positions are which words, what was added, where padding is."""

from __future__ import annotations

import pytest
import torch

from nnsight import LanguageModel
from nnsight.toolbox.facts import facts_folder
from tests.behaviour.test_minilm import _folder

LONG, SHORT = "The Eiffel Tower is in the city of", "The Colosseum is in"


@pytest.fixture(scope="module")
def facts() -> LanguageModel:
    return LanguageModel(facts_folder())


@pytest.fixture(scope="module")
def minilm() -> LanguageModel:
    return LanguageModel(_folder(), automodel="AutoModel")


def test_the_ids_are_those_of_the_call(facts):
    tokens = facts.tokens([LONG, SHORT])
    with torch.no_grad(), facts.trace([LONG, SHORT]):
        shape = facts.layers[0].resid_pre.shape[:2].save()
    assert tokens.ids.shape == shape == (2, 8)
    assert tokens[0].ids == facts.tokenizer(LONG)["input_ids"]
    assert tokens[1].ids[3:] == facts.tokenizer(SHORT)["input_ids"]
    assert tokens[1].padding == [0, 1, 2] and tokens[0].padding == []
    assert tokens[0].bos is None and tokens[0].added == []


def test_where_a_word_is(facts):
    tokens = facts.tokens(LONG)
    assert tokens.positions("Eiffel Tower") == [1, 2]
    assert tokens.find("Eiffel Tower") == slice(-7, -5)
    assert tokens.find(" of") == slice(-1, None)
    assert tokens.positions("iff") == [1]  # a piece of a word: the tokens that hold it
    assert facts.tokens(SHORT).positions("Colosseum") == [1, 2]
    assert [token.word for token in facts.tokens(SHORT).tokens] == [
        "The", "Colosseum", "Colosseum", "is", "in",
    ]  # fmt: skip


def test_positions_from_the_end_hold_in_a_batch(facts):
    where = facts.tokens(SHORT).find("Colosseum")
    with torch.no_grad(), facts.trace(SHORT):
        alone = facts.layers[1].resid_post[:, where].save()
    with torch.no_grad(), facts.trace() as tracer:
        with tracer.invoke(LONG):
            facts.layers[0].resid_post.save()
        with tracer.invoke(SHORT):
            batched = facts.layers[1].resid_post[:, where].save()
    assert alone.shape == (1, 2, 88)
    torch.testing.assert_close(batched, alone, atol=1e-5, rtol=1e-4)


def test_what_the_tokenizer_adds_is_said(minilm):
    tokens = minilm.tokens(["The cat sat.", "ok"])
    assert tokens[0].bos == 0 and tokens[0].added == [0, 5]
    assert tokens[1].padding == [3, 4, 5]
    assert tokens[0].find("cat") == slice(2, 3)  # padded on the right: from the start
    assert tokens[1].tokens[0].text == "[CLS]" and tokens[1].tokens[0].kind == "added"
    bare = minilm.tokens("The cat sat.", add_special_tokens=False)
    assert bare.bos is None and bare.added == [] and len(bare.tokens) == 4
    twice = minilm.tokens("[CLS] cat")
    assert "[CLS] added in front, where the text begins with one already" in str(twice)


def test_a_character_of_several_tokens(facts):
    tokens = facts.tokens("a 🥚 b")
    assert len(tokens.positions("🥚")) == 4
    from_ids = facts.tokens(facts.tokenizer("a 🥚 b")["input_ids"])
    assert from_ids.text == "a 🥚 b"
    assert from_ids.positions("🥚") == tokens.positions("🥚")
    assert from_ids.find("b") == tokens.find("b") == slice(-1, None)


def test_ids_tensors_and_named_inputs(facts):
    ids = facts.tokenizer(LONG, return_tensors="pt")
    for form in (ids["input_ids"], ids, ids["input_ids"][0].tolist(), [LONG]):
        assert facts.tokens(form).positions("Tower") == [2]
    masked = facts.tokens(
        input_ids=ids["input_ids"], attention_mask=torch.tensor([[0] * 2 + [1] * 6])
    )
    assert masked.padding == [0, 1]
    with pytest.raises(ValueError, match="hold no tokens"):
        facts.tokens(inputs_embeds=torch.zeros(1, 2, 88))


def test_it_prints_as_a_table(facts):
    text = str(facts.tokens([LONG, SHORT]))
    assert "'The Colosseum is in': 5 tokens, no BOS added, 3 of padding on the left (0-2)" in text
    assert "4         -4            538  ' Co'      Colosseum" in text


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda t: t[0].find("London"), "'London' is not in"),
        (lambda t: t.find("is"), "tokens of 2 prompts"),
        (lambda t: t[0].find("e"), "times, at positions"),
        (lambda t: t[0].find("is", which=3), "no `which=3`"),
    ],
)
def test_what_cannot_be_told_is_an_error(facts, ask, text):
    with pytest.raises(ValueError, match=text):
        ask(facts.tokens([LONG, SHORT]))
    assert facts.tokens([LONG, SHORT])[0].find("the", which=0) == slice(-3, -2)
