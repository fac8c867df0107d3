"""Any form of a prompt becomes the call that the model would have been given by hand."""

from __future__ import annotations

import re

import numpy
import pytest
import torch

from nnsight import LanguageModel
from nnsight.modeling.format import format_of, position_table
from nnsight.modeling.inputs import batch, count_rows
from nnsight.modeling.tokenizer import LazyTokenizer

from .tiny import FAMILIES, VOCABULARY, call, format_for, given, model_of, run

PROMPT = "the eiffel tower is in"
PROMPTS = ["hello", "the eiffel tower is in", "the city of paris hello world world"]


# --- every form ------------------------------------------------------------------------------

FORMS = {
    "text": lambda text, ids, enc: given(text),
    "list of texts": lambda text, ids, enc: given([text]),
    "nested texts": lambda text, ids, enc: given([[text]]),
    "array of texts": lambda text, ids, enc: given(numpy.array([text])),
    "ids": lambda text, ids, enc: given(ids),
    "tuple of ids": lambda text, ids, enc: given(tuple(ids)),
    "list of ids": lambda text, ids, enc: given([ids]),
    "1-d tensor": lambda text, ids, enc: given(torch.tensor(ids)),
    "2-d tensor": lambda text, ids, enc: given(torch.tensor([ids])),
    "small integers": lambda text, ids, enc: given(torch.tensor(ids, dtype=torch.int16)),
    "list of tensors": lambda text, ids, enc: given([torch.tensor(ids)]),
    "1-d array": lambda text, ids, enc: given(numpy.array(ids)),
    "2-d array": lambda text, ids, enc: given(numpy.array([ids], dtype=numpy.uint16)),
    "encoding": lambda text, ids, enc: given(enc),
    "dict": lambda text, ids, enc: given(dict(enc)),
    "dict of lists": lambda text, ids, enc: given(
        {"input_ids": ids, "attention_mask": [1] * len(ids)}
    ),
    "rows of a dataset": lambda text, ids, enc: given([{"input_ids": ids}]),
    "input_ids=": lambda text, ids, enc: given(input_ids=torch.tensor([ids])),
    "input_ids= list": lambda text, ids, enc: given(input_ids=ids),
    "input_ids= and mask": lambda text, ids, enc: given(**enc),
    "inputs=": lambda text, ids, enc: given(inputs=torch.tensor([ids])),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_all_forms_of_a_prompt_give_the_same_numbers(family, attention, tokenizer):
    model = model_of(family)
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        encoding = tokenizer(PROMPT, return_tensors="pt")
        expected = run(family, dict(encoding))
        for name, form in FORMS.items():
            inputs = form(PROMPT, encoding["input_ids"][0].tolist(), encoding)
            kwargs = call(inputs, family, tokenizer)
            assert torch.equal(run(family, kwargs), expected), name
            assert count_rows(inputs.args, inputs.kwargs) == 1, name
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_text_is_exactly_the_tokenizers_call(family, tokenizer):
    encoding = tokenizer(PROMPT, return_tensors="pt")
    kwargs = call(given(PROMPT), family, tokenizer)
    assert kwargs.keys() == encoding.keys()
    assert all(torch.equal(kwargs[name], encoding[name]) for name in encoding)


def test_a_lone_tensor_is_handed_on_itself():
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    kwargs = call(given(ids, attention_mask=mask), "gpt2")
    assert kwargs["input_ids"] is ids and kwargs["attention_mask"] is mask


@pytest.mark.parametrize(
    ("args", "kwargs", "rows"),
    [
        ((), {}, 0),
        ((), {"max_new_tokens": 3, "labels": None}, 0),
        (("text",), {}, 1),
        ((["a", "b"],), {}, 2),
        (([["a"], ["b", "c"]],), {}, 3),
        (([1, 2, 3],), {}, 1),
        (([[1, 2], [3]],), {}, 2),
        ((["a", [1, 2]],), {}, 2),
        ((torch.ones(4, dtype=torch.long),), {}, 1),
        ((torch.ones(4, 2, dtype=torch.long),), {}, 4),
        ((numpy.ones((4, 2), dtype=int),), {}, 4),
        (({"input_ids": [[1], [2]]},), {}, 2),
        (([{"input_ids": [1]}, {"input_ids": [2]}],), {}, 2),
        (({"role": "user", "content": "hi"},), {}, 1),
        (([{"role": "user", "content": "hi"}],), {}, 1),
        (([[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]],), {}, 2),
        ((), {"input_ids": torch.ones(3, 2, dtype=torch.long)}, 3),
        ((), {"inputs_embeds": torch.ones(3, 2, 8)}, 3),
        ((), {"inputs_embeds": torch.ones(2, 8)}, 1),
        ((), {"inputs_embeds": [torch.ones(2, 8), torch.ones(3, 8)]}, 2),
        ((), {"pixel_values": torch.ones(3, 3, 4, 4)}, 3),
    ],
)
def test_rows_are_counted_without_reading(args, kwargs, rows):
    assert count_rows(args, kwargs) == rows


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "The input is None, which holds no prompt"),
        ({}, "The input is {}, which holds no prompt"),
        ({"ids": [1]}, "its names are 'ids'. Named inputs hold 'input_ids'"),
        ([{"rol": "user", "content": "hi"}], "a message of a chat 'role' and 'content'"),
    ],
)
def test_an_input_without_a_prompt_is_refused(prompt, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        count_rows((prompt,), {})


# --- text and chats --------------------------------------------------------------------------


def test_a_chat_goes_through_the_template(chatty):
    chat = [{"role": "user", "content": "hello"}]
    text = "[user] hello<|endoftext|>[assistant]"
    expected = chatty(text, add_special_tokens=False)["input_ids"]
    assert call(given(chat), "llama", chatty)["input_ids"].tolist() == [expected]
    assert call(given(chat[0]), "llama", chatty)["input_ids"].tolist() == [expected]


def test_what_the_template_is_told_stands_beside_the_chat(chatty):
    chatty.chat_template = "{{ tools | length if tools else 0 }}" + chatty.chat_template
    chat = [{"role": "user", "content": "hello"}]

    def look(city: str) -> str:
        """Look at a city.

        Args:
            city: where it is.
        """
        return city

    model = LanguageModel(model_of("llama"), tokenizer=chatty)
    for told in ({"tools": [look]}, {"add_generation_prompt": False}, {}):
        text = chatty.apply_chat_template(
            chat, tokenize=False, **{"add_generation_prompt": True, **told}
        )
        expected = chatty(text, add_special_tokens=False)["input_ids"]
        assert call(given(chat, **told), "llama", chatty)["input_ids"].tolist() == [expected]
        assert model.tokens(chat, **told)[0].ids == expected
        with model.trace(**told) as tracer:  # beside an invoke that has no use for it
            with tracer.invoke("hello hello hello"):
                tracer.result.logits.save()
            with tracer.invoke(chat):
                ids = model.model.embed_tokens.input.save()
        assert ids[0, -len(expected) :].tolist() == expected
        made = model.generate(chat, max_new_tokens=1, do_sample=False, **told)
        assert made[0, :-1].tolist() == expected
    with pytest.warns(UserWarning, match="`tools=` has no effect"):
        model.trace("hello", tools=[look], trace=False)


def test_a_chat_that_the_assistant_began_is_continued(chatty):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the city"}]
    text = "[user] hello<|endoftext|>[assistant] the city"
    expected = chatty(text, add_special_tokens=False)["input_ids"]
    assert call(given(chat), "llama", chatty)["input_ids"].tolist() == [expected]


def test_the_tokenizer_takes_options_beside_text(tokenizer):
    kwargs = call(given(PROMPT, truncation=True, max_length=2), "gpt2", tokenizer)
    assert kwargs["input_ids"].shape == (1, 2)


def test_names_that_the_forward_lacks_are_not_passed_on(tokenizer):
    """Some tokenizers make token types for models that know none."""
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    assert "token_type_ids" not in call(given(PROMPT), "llama", tokenizer)
    assert "token_type_ids" in call(given(PROMPT), "bert", tokenizer)


def test_a_tokenizer_of_the_users_own_is_left_as_it_was(tokenizer):
    tokenizer.padding_side = "right"
    call(given(PROMPTS), "gpt2", tokenizer)
    assert tokenizer.pad_token is None and tokenizer.padding_side == "right"


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_padding_uses_the_best_id_that_the_model_has(family, tokenizer):
    format = format_for(family, tokenizer)
    assert format.pad_id == {"gpt2": 0, "roberta": 1}[family]
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # beyond the embedding
    assert format.pad_id == {"gpt2": 0, "roberta": 1}[family]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    assert format.pad_id == 7


# --- settings of the call --------------------------------------------------------------------


def test_settings_of_all_invokes_are_merged():
    first, second = given([5], output_attentions=True), given([6], output_hidden_states=True)
    kwargs = call([first, second, given([7], output_attentions=True)], "llama")
    assert kwargs["output_attentions"] is True and kwargs["output_hidden_states"] is True


def test_tensors_without_rows_are_shared():
    keep = torch.tensor([0])
    kwargs = call([given([5, 6], logits_to_keep=keep), given([7, 8])], "llama")
    assert kwargs["logits_to_keep"] is keep


def test_unknown_tensors_with_a_row_each_are_concatenated():
    inputs = [given([5, 6], encoder_hidden_states=torch.ones(1, 3, 32)) for _ in range(2)]
    assert call(inputs, "gpt2")["encoder_hidden_states"].shape == (2, 3, 32)


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("max_new_tokens", r"to generate, use `.generate\(..., max_new_tokens=...\)`"),
        ("atention_mask_", "Did you mean `attention_mask=`"),
        ("foo", "Remove it"),
    ],
)
def test_a_keyword_that_would_be_swallowed_is_a_warning(keyword, hint):
    with pytest.warns(UserWarning, match=f"`{keyword}=` has no effect.*{hint}") as caught:
        batch([given([5, 6], **{keyword: 3})], format_for("llama"))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("method", ["__call__", "generate"])
def test_types_of_tokens_that_say_nothing_go_only_where_they_are_known(method, recwarn):
    """Tokenizers of transformers 4 add them, unless they are told otherwise."""
    made = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]]}
    for form in (given(made), given(**made)):
        kwargs = call(form, "llama", method=method)
        assert kwargs["input_ids"].tolist() == [[5, 6]] and "token_type_ids" not in kwargs
        assert call(form, "gpt2", method=method)["token_type_ids"].tolist() == [[0, 0]]
    assert not recwarn.list
    with pytest.warns(UserWarning, match="`token_type_ids=` has no effect"):
        call(given({**made, "token_type_ids": [[0, 1]]}), "llama")


def test_generation_takes_what_it_likes(recwarn):
    call(given([5, 6], max_new_tokens=3, foo=1), "llama", method="generate")
    assert not recwarn.list


@pytest.mark.parametrize("keyword", ["scan", "validate", "invoker_args", "inference"])
def test_old_trace_keywords_are_dropped(keyword):
    with pytest.warns(DeprecationWarning, match=f"`{keyword}=` is no longer"):
        assert call(given([5, 6], **{keyword: True}), "llama").keys() == {"input_ids"}


class Plain(torch.nn.Module):
    """A module that calls its input what it likes."""

    def __init__(self):
        super().__init__()
        self.wte = torch.nn.Embedding(VOCABULARY, 8)

    def forward(self, idx):
        return self.wte(idx)


def test_a_plain_module_gets_its_ids_unnamed(tokenizer):
    args, kwargs = batch([given("hello")], format_of(Plain(), LazyTokenizer(tokenizer)))
    assert args[0].tolist() == [tokenizer("hello")["input_ids"]] and kwargs == {}


def test_a_compiled_module_takes_what_the_module_takes():
    compiled = torch.compile(model_of("gpt2"), backend="eager")
    taken = format_of(compiled, LazyTokenizer()).taken
    assert "position_ids" in taken.names and taken.first == "input_ids"


class Adapted(torch.nn.Module):
    """Wraps a model as adapter libraries do: some names, and the rest handed on."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_model(self):
        return self.base

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.base(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@torch.no_grad()
def test_a_wrapped_model_gets_what_the_model_inside_takes():
    adapted = Adapted(model_of("gpt2"))
    format = format_of(adapted, LazyTokenizer())
    _, kwargs = batch([given([5, 6, 7]), given([8])], format)
    solo = run("gpt2", call(given([8]), "gpt2"))
    torch.testing.assert_close(adapted(**kwargs).logits[1, -1], solo[0, -1], atol=1e-5, rtol=0)


def test_positions_of_pictures_are_not_those_of_the_text():
    module = torch.nn.ModuleDict({"vision_tower": torch.nn.ModuleDict()})
    module["vision_tower"]["position_embedding"] = torch.nn.Embedding(7, 2)
    assert position_table(module) == (None, 0)
    module["wpe"] = torch.nn.Embedding(9, 2)
    assert position_table(module) == (9, 0)


# --- what is refused -------------------------------------------------------------------------

REFUSED = [
    ("gpt2", given(""), "The input is empty"),
    ("gpt2", given([]), "The input is empty"),
    ("gpt2", given([[]]), "The input is empty"),
    ("gpt2", given([[1], []]), "The input is empty"),
    ("gpt2", given(torch.ones(1, 0, dtype=torch.long)), "The input is empty"),
    ("gpt2", given(3), "3 of type int is not a prompt"),
    ("gpt2", given([1.5]), "1.5 of type float is not a prompt"),
    ("gpt2", given(b"hello"), "is not a prompt"),
    ("gpt2", given(torch.ones(1, 2)), "Pass embeddings by name: `inputs_embeds=`"),
    ("gpt2", given(torch.ones(1, 1, 2, dtype=torch.long)), "is not token ids"),
    ("gpt2", given(inputs_embeds=torch.ones(1, 0, 32)), "The input is empty"),
    ("gpt2", given([1], [2]), "2 unnamed inputs were given"),
    ("gpt2", given([1], input_ids=[2]), "`input_ids` was given twice"),
    ("gpt2", given({"input_ids": [1], "labels": [1]}, labels=[1]), "`labels` was given twice"),
    ("gpt2", given("hello"), "no tokenizer .* `LanguageModel\\(module, tokenizer=tokenizer\\)`"),
    ("gpt2", given([{"role": "user", "content": "hello"}]), "no tokenizer"),
    (
        "gpt2",
        given([1, VOCABULARY]),
        f"Token id {VOCABULARY} .row 0. .* vocabulary of {VOCABULARY}",
    ),
    ("gpt2", given([[1], [-2]]), "Token id -2 .row 1."),
    ("gpt2", given([1] * 49), "49 tokens long, and this model has positions for 48"),
    ("roberta", given([5] * 49), "49 tokens long, and this model has positions for 48"),
    ("gpt2", given([1, 2], attention_mask=[1, 1, 1]), "its second dimension must be the same"),
    ("gpt2", given([[1], [2]], attention_mask=torch.ones(3, 1)), "has 2 row"),
    ("gpt2", given([1, 2], attention_mask=["a", "b"]), "cannot be made into a tensor"),
]


@pytest.mark.parametrize(("family", "inputs", "message"), REFUSED)
def test_what_does_not_fit_is_refused(family, inputs, message):
    with pytest.raises(ValueError, match=message):
        call(inputs, family)


TOGETHER = [
    (
        [given([1], foo=torch.ones(1, 2)), given([2])],
        "`foo` is given by invoke 0 but not by invoke 1",
    ),
    (
        [given([1], foo=torch.ones(1, 2)), given([2], foo=torch.ones(1, 3))],
        r"`foo` has the shapes \(1, 2\), \(1, 3\)",
    ),
    ([given([1], use_cache=True), given([2], use_cache=False)], "True in one and False in another"),
]


@pytest.mark.parametrize(("inputs", "message"), TOGETHER)
def test_what_does_not_fit_together_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        call(inputs, "gpt2")


def test_ids_and_embeddings_mix_in_a_forward_only():
    format = format_of(model_of("gpt2"), LazyTokenizer()).of("compute_transition_scores")
    with pytest.raises(ValueError, match="do not mix in one batch"):
        batch([given([1]), given(inputs_embeds=torch.ones(1, 1, 32))], format)


def test_a_chat_without_a_template_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        call(given([{"role": "user", "content": "hello"}]), "gpt2", tokenizer)


def test_labels_of_another_length_than_the_prompt_are_refused(tokenizer):
    with pytest.raises(ValueError, match="not one target for each token"):
        call(given(PROMPT, labels="hello"), "gpt2", tokenizer)


def test_padding_without_a_mask_to_take_it_is_refused():
    with pytest.raises(ValueError, match=r"Plain.forward takes no `attention_mask`"):
        batch([given([1, 2]), given([3])], format_of(Plain(), LazyTokenizer()))


def test_a_model_without_a_table_of_positions_has_no_limit():
    assert call(given([1] * 5000), "llama")["input_ids"].shape == (1, 5000)


def test_values_that_cannot_be_looked_at_are_not():
    ids = torch.ones(1, 3, dtype=torch.long, device="meta")
    assert call(given(ids), "gpt2")["input_ids"] is ids
