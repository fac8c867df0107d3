"""Invokes of embeddings beside invokes of ids and of text: each is as it is alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

import nnsight
from nnsight import LanguageModel, VisionLanguageModel
from nnsight.interleave.errors import NeverCalledError

from .test_qwen_vl import module_of as qwen
from .test_qwen_vl import prompt as of_qwen
from .tiny import VOCABULARY, model_of

FAMILIES = ["gpt2", "llama", "bloom", "mamba", "bert", "roberta", "roberta-decoder", "t5"]
LENGTHS = (3, 5, 4, 6)
LAYERS = ("h.1", "layer.1", "layers.1", "block.1")
EMBEDDED = (1, 3)  # which of the prompts go in as embeddings


def prompts() -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(3, VOCABULARY, (length,)).tolist() for length in LENGTHS]


def beside(family: str) -> dict[str, Any]:
    return {"decoder_input_ids": torch.tensor([[4, 5, 6]])} if family == "t5" else {}


def embedding_of(module: Any, ids: list[int]) -> torch.Tensor:
    """Not those of any id, so that no id could stand for them."""
    found = module.get_input_embeddings()(torch.tensor([ids])).detach()
    return found + 0.3 * torch.randn(found.shape, generator=torch.Generator().manual_seed(len(ids)))


def given(module: Any, family: str) -> list[dict[str, Any]]:
    return [
        {"inputs_embeds": embedding_of(module, ids), **beside(family)}
        if number in EMBEDDED
        else {"input_ids": torch.tensor([ids]), **beside(family)}
        for number, ids in enumerate(prompts())
    ]


def own(value: torch.Tensor, alone: torch.Tensor, left: bool) -> torch.Tensor:
    """`value` without padding; that of a decoder has none."""
    missing = value.shape[1] - alone.shape[1]
    return value.narrow(1, missing if left else 0, alone.shape[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_as_alone(family):
    module = model_of(family)
    model = LanguageModel(module)
    left = model._format.side == "left"
    found = []
    with torch.no_grad(), model.trace() as tracer:
        for one in given(module, family):
            with tracer.invoke(**one):
                found.append((tracer.cache(), model.output.logits))
    for length, one, (cache, logits) in zip(LENGTHS, given(module, family), found, strict=True):
        with torch.no_grad(), model.trace(**one) as tracer:
            alone = tracer.cache()
        wanted = module(**one).logits
        torch.testing.assert_close(own(logits, wanted, left), wanted, atol=1e-4, rtol=1e-4)
        assert cache.keys() == alone.keys()  # the layer that looks ids up is in those of ids only
        compared = 0
        for path, entry in alone.items():
            value = entry.output
            shape = tuple(value.shape[:2]) if isinstance(value, torch.Tensor) else ()
            if shape in ((1, length), (1, 3)):  # the encoder's tokens, and those of a decoder
                seen = own(cache[path].output, value, left)
                torch.testing.assert_close(seen, value, atol=1e-4, rtol=1e-4, msg=path)
                compared += 1
        assert compared > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_and_gradients_are_those_of_each_alone(family):
    module = model_of(family)
    model = LanguageModel(module)
    left = model._format.side == "left"
    layer = model.get(
        next(
            n
            for n, m in module.named_modules()
            if n.endswith(("h.1", "layer.1", "layers.1", "block.1"))
        )
    )
    shows = isinstance(_output(model, layer, given(module, family)[0]), tuple)

    def double(factor: float) -> Any:
        hidden = layer.output[0] if shows else layer.output
        layer.output = (hidden * factor, *layer.output[1:]) if shows else hidden * factor
        return hidden

    found = []
    with model.trace() as tracer:
        for number, one in enumerate(given(module, family)):
            with tracer.invoke(**one):
                hidden = double(number + 2)
                logits = model.output.logits
                length = (
                    beside(family)
                    .get("decoder_input_ids", torch.tensor([prompts()[number]]))
                    .shape[1]
                )
                real = logits[:, -length:] if left else logits[:, :length]
                with real.logsumexp(-1).sum().backward():
                    found.append((real.detach(), hidden.grad))
    for number, (one, (logits, gradient)) in enumerate(
        zip(given(module, family), found, strict=True)
    ):
        with model.trace(**one):
            hidden = double(number + 2)
            alone = model.output.logits.save()
            with alone.logsumexp(-1).sum().backward():
                wanted = hidden.grad.save()
        torch.testing.assert_close(logits, alone.detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own(gradient, wanted, left), wanted, atol=1e-4, rtol=1e-4)


def _output(model: Any, layer: Any, one: dict[str, Any]) -> Any:
    with torch.no_grad(), model.trace(**one):
        found = layer.output.save()
    return found


@pytest.fixture
def gpt2(tokenizer) -> LanguageModel:
    return LanguageModel(model_of("gpt2"), tokenizer=tokenizer)


IDS, OTHERS = [7, 8, 9, 10], [11, 12]


@pytest.fixture
def embeds(gpt2) -> torch.Tensor:
    return embedding_of(gpt2._module, [20, 21, 22])


def logits_of(model: Any, **given: Any) -> torch.Tensor:
    return model._module(**given).logits


def test_text_and_rows_of_embeddings_of_unlike_length(gpt2):
    module = gpt2._module
    rows = [embedding_of(module, [20, 21, 22])[0], embedding_of(module, [23])[0]]
    with torch.no_grad(), gpt2.trace() as tracer:
        with tracer.invoke("hello world"):
            text = gpt2.output.logits.save()
        with tracer.invoke(inputs_embeds=rows):
            both = gpt2.output.logits.save()
        with tracer.invoke():
            every = gpt2.output.logits.save()
    assert torch.equal(every, torch.cat([text, both]))
    ids = gpt2.tokenizer("hello world", return_tensors="pt").input_ids
    wanted = logits_of(gpt2, input_ids=ids)
    torch.testing.assert_close(text[:, -ids.shape[1] :], wanted, atol=1e-4, rtol=1e-4)
    for found, row in zip(both, rows, strict=True):
        wanted = logits_of(gpt2, inputs_embeds=row[None])[0]
        torch.testing.assert_close(found[-len(row) :], wanted, atol=1e-4, rtol=1e-4)


def test_an_edit_where_ids_are_looked_up_is_of_the_rows_that_have_ids(gpt2, embeds):
    words = gpt2.transformer.wte
    with torch.no_grad(), gpt2.trace() as tracer:
        with tracer.invoke(inputs_embeds=embeds):
            third = gpt2.output.logits.save()
        with tracer.invoke(IDS):
            words.output[:, 1] = 0
            first = gpt2.output.logits.save()
        with tracer.invoke(OTHERS):
            words.output = words.output * 3
            second = gpt2.output.logits.save()
        with tracer.invoke():
            seen = words.input.save()
            shape = nnsight.save(words.output.shape)
    assert shape == (2, 4, 32)  # a block without an input sees those rows
    assert seen[0].tolist() == IDS
    with torch.no_grad():
        table = gpt2._module.transformer.wte.weight
        one, two = table[IDS][None].clone(), table[OTHERS][None] * 3
        one[:, 1] = 0
        torch.testing.assert_close(first, logits_of(gpt2, inputs_embeds=one), atol=1e-4, rtol=1e-4)
        two = logits_of(gpt2, inputs_embeds=two)
        torch.testing.assert_close(second[:, -2:], two, atol=1e-4, rtol=1e-4)
        three = logits_of(gpt2, inputs_embeds=embeds)
        torch.testing.assert_close(third[:, -3:], three, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("everyone", [False, True])
def test_the_lookup_is_skipped_for_the_rows_that_have_ids(gpt2, embeds, everyone):
    instead = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    words = gpt2.transformer.wte
    with torch.no_grad(), gpt2.trace() as tracer:
        with tracer.invoke(IDS):
            if not everyone:
                words.skip(instead)
            first = gpt2.output.logits.save()
        with tracer.invoke(inputs_embeds=embeds):
            second = gpt2.output.logits.save()
        with tracer.invoke():
            if everyone:
                words.skip(instead)
    with torch.no_grad():
        one, two = logits_of(gpt2, inputs_embeds=instead), logits_of(gpt2, inputs_embeds=embeds)
    torch.testing.assert_close(first, one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second[:, -3:], two, atol=1e-4, rtol=1e-4)


def test_a_kept_edit_is_in_force_where_it_is_alone(gpt2, embeds):
    with gpt2.edit() as edited:
        edited.transformer.wte.output[:] = 1.0
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(IDS):
            first = edited.output.logits.save()
        with tracer.invoke(inputs_embeds=embeds):
            second = edited.output.logits.save()
    with torch.no_grad():
        one = logits_of(gpt2, inputs_embeds=torch.ones(1, 4, 32))
        two = logits_of(gpt2, inputs_embeds=embeds)
    torch.testing.assert_close(first, one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second[:, -3:], two, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_embeddings_that_were_given_and_the_table(gpt2, embeds):
    embeds.requires_grad_()
    with gpt2.trace() as tracer:
        with tracer.invoke(IDS):
            first = gpt2.output.logits
        with tracer.invoke(inputs_embeds=embeds):
            (first[:, -1].sum() + gpt2.output.logits[:, -1].logsumexp(-1).sum()).backward()
    (found,) = (embeds.grad,)
    assert gpt2._module.transformer.wte.weight.grad is not None
    alone = embeds.detach().clone().requires_grad_()
    logits_of(gpt2, inputs_embeds=alone)[:, -1].logsumexp(-1).sum().backward()
    torch.testing.assert_close(found, alone.grad, atol=1e-4, rtol=1e-4)
    gpt2._module.zero_grad()


def test_labels_beside_both(gpt2, embeds):
    ids, labels = torch.tensor([IDS]), torch.tensor([[20, 21, 22]])
    with gpt2.trace() as tracer:
        with tracer.invoke(input_ids=ids, labels=ids):
            loss = gpt2.output.loss.save()
        with tracer.invoke(inputs_embeds=embeds, labels=labels):
            pass
    one = gpt2._module(input_ids=ids, labels=ids).loss
    two = gpt2._module(inputs_embeds=embeds, labels=labels).loss
    torch.testing.assert_close(loss, (one * 3 + two * 2) / 5)  # so many tokens are scored of each


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.0}, {"num_beams": 2}, {"return_dict_in_generate": True}],
)
def test_each_generation_is_as_alone(gpt2, embeds, options):
    settings = {**options, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    steps, found = [], []
    with gpt2.generate(**settings) as tracer:
        with tracer.invoke(IDS):
            found.append(tracer.result)
        with tracer.invoke(inputs_embeds=embeds):
            for _ in tracer.iter[:]:
                steps.append(gpt2.lm_head.output[:, -1])
            found.append(tracer.result)
    inputs = ({"input_ids": torch.tensor([IDS])}, {"inputs_embeds": embeds})
    for own, one in zip(found, inputs, strict=True):
        wanted = gpt2._module.generate(**one, **settings, pad_token_id=0)
        if "return_dict_in_generate" in settings:
            own, wanted = own.sequences, wanted.sequences
        assert torch.equal(own, wanted)  # of embeddings only the new tokens, as alone
    assert len(steps) == 4


def test_what_a_generation_returns_is_replaced_without_the_prompt(gpt2, embeds):
    with gpt2.generate(max_new_tokens=3, min_new_tokens=3) as tracer:
        with tracer.invoke(IDS):
            pass
        with tracer.invoke(inputs_embeds=embeds):
            tracer.result = tracer.result * 0
            mine = tracer.result.save()
        with tracer.invoke():
            both = tracer.result.save()
    assert mine.tolist() == [[0, 0, 0]]
    assert both[0, :4].tolist() == IDS and both[1, 4:].tolist() == [0, 0, 0]


def test_the_stream_of_embeddings_begins_with_no_token(gpt2, embeds):
    with gpt2.generate(max_new_tokens=2, min_new_tokens=2) as tracer:
        with tracer.invoke(IDS):
            ids = gpt2.generator.streamer.output.save()
        with tracer.invoke(inputs_embeds=embeds):
            none = gpt2.generator.streamer.output.save()
    assert ids.tolist() == [IDS] and none.shape == (1, 0)


def test_an_encoder_with_a_decoder_generates_from_both():
    module = model_of("t5")
    model = LanguageModel(module)
    embeds = embedding_of(module, [20, 21, 22])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "decoder_start_token_id": 0}
    with model.generate(**settings) as tracer:
        with tracer.invoke(IDS):
            one = tracer.result.save()
        with tracer.invoke(inputs_embeds=embeds):
            two = tracer.result.save()
    assert torch.equal(one, module.generate(torch.tensor([IDS]), **settings))
    assert torch.equal(two, module.generate(inputs_embeds=embeds, **settings))


def test_a_scan_finds_the_shapes(gpt2, embeds):
    with gpt2.scan() as tracer:
        with tracer.invoke(IDS):
            one = gpt2.transformer.wte.output.shape
        with tracer.invoke(inputs_embeds=embeds):
            two = gpt2.output.logits.shape
    assert one == (1, 4, 32) and two == (1, 4, VOCABULARY)


@pytest.mark.parametrize("kind", [LanguageModel, VisionLanguageModel])
def test_images_in_another_invoke(kind):
    module = qwen("Qwen2VL")
    model = kind(module)
    seeing = of_qwen([(4, 4)], 3, 1)
    embeds = embedding_of(module, [20, 21, 22])
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(**seeing):
            eyes = model.model.visual.merger.output.save()
            one = model.output.logits.save()
        with tracer.invoke(inputs_embeds=embeds, attention_mask=torch.ones(1, 3).long()):
            two = model.output.logits.save()
    with torch.no_grad():
        wanted = module(**seeing).logits
        torch.testing.assert_close(one[:, -wanted.shape[1] :], wanted, atol=1e-4, rtol=1e-4)
        module.model.rope_deltas = None  # of that image: alone, after it, the model would use them
        wanted = module(inputs_embeds=embeds, attention_mask=torch.ones(1, 3).long()).logits
        torch.testing.assert_close(two[:, -3:], wanted, atol=1e-4, rtol=1e-4)
    assert eyes.shape == (4, 32)


# --- what is refused -----------------------------------------------------------------------------


def test_where_there_are_no_ids_none_are_shown(gpt2, embeds):
    with pytest.raises(NeverCalledError, match=r"wte\.output"), gpt2.trace() as tracer:
        with tracer.invoke(IDS):
            pass
        with tracer.invoke(inputs_embeds=embeds):
            gpt2.transformer.wte.output.save()
    with pytest.raises(ValueError, match=r"`model\.input` holds token ids"), gpt2.trace() as tracer:
        with tracer.invoke(IDS):
            pass
        with tracer.invoke(inputs_embeds=embeds):
            gpt2.input.save()
    assert not gpt2._module.transformer.wte._forward_hooks
    assert not gpt2._module.transformer.wte._forward_pre_hooks


def test_ids_in_the_place_of_embeddings_are_refused(gpt2, embeds):
    with pytest.raises(ValueError, match="replaced ids in rows that have none"):
        with gpt2.trace() as tracer:
            with tracer.invoke(IDS):
                pass
            with tracer.invoke(inputs_embeds=embeds):
                pass
            with tracer.invoke():
                gpt2.input = torch.full((2, 4), 5)


def test_what_does_not_run_alone_is_refused_and_the_next_is_not(gpt2, embeds):
    found = []

    def run(given: torch.Tensor) -> None:
        with gpt2.trace() as tracer:
            with tracer.invoke(IDS):
                pass
            with tracer.invoke(inputs_embeds=given):
                found.append(gpt2.output.logits)

    for wrong in (torch.ones(1, 2, 31), embeds.double()):
        with pytest.raises(ValueError, match=r"cannot be measured: .* as embeddings, it fails"):
            run(wrong)
    handle = gpt2._module.transformer.h[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot be measured: .*hooks of its own"):
        run(embeds)
    handle.remove()
    run(embeds)
    assert len(found) == 1
    with pytest.raises(ValueError, match="they must agree in width and dtype"):
        run(torch.ones(1, 2, 31))  # that the model can is known by now


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"stop_strings": ["a"]}]
)
def test_what_looks_at_the_ids_of_a_prompt_is_refused(gpt2, embeds, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"`{name}=` looks at the ids of every prompt"):
        with gpt2.generate(max_new_tokens=2, **setting) as tracer:
            with tracer.invoke(IDS):
                pass
            with tracer.invoke(inputs_embeds=embeds):
                pass


def test_a_model_that_reads_more_from_ids_is_refused():
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "laurel_rank": 4}
    if not hasattr(transformers, "Gemma3nTextConfig"):
        pytest.skip("no such family")
    config = transformers.Gemma3nTextConfig(
        vocab_size=96,
        vocab_size_per_layer_input=96,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=[48] * 2,
        num_hidden_layers=2,
        num_kv_shared_layers=0,
        layer_types=["full_attention"] * 2,
        activation_sparsity_pattern=[0.0] * 2,
        **small,
    )
    module = transformers.Gemma3nForCausalLM(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    model = LanguageModel(module)
    with pytest.raises(ValueError, match="Gemma3nForCausalLM does not give the same numbers"):
        with model.trace() as tracer:
            with tracer.invoke(IDS):
                pass
            with tracer.invoke(inputs_embeds=embedding_of(module, [20, 21])):
                pass


# --- laws ----------------------------------------------------------------------------------------

INVOKES = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(1, 6), min_size=1, max_size=2)),
    min_size=2,
    max_size=4,
)


@settings(max_examples=30, deadline=None)
@given_by(INVOKES, st.sampled_from(["gpt2", "bert"]))
def test_any_invokes_in_any_order(invokes, family):
    """Each invoke is embeddings or not, of one or two rows of some lengths."""
    module = model_of(family)
    model, found = LanguageModel(module), []
    left = model._format.side == "left"
    rows = [[list(range(5, 5 + length)) for length in lengths] for _, lengths in invokes]
    with torch.no_grad(), model.trace() as tracer:
        for (embedded, _), own_rows in zip(invokes, rows, strict=True):
            one = [embedding_of(module, ids)[0] for ids in own_rows] if embedded else own_rows
            with tracer.invoke(**{"inputs_embeds" if embedded else "input_ids": one}):
                found.append(model.output.logits)
    for (embedded, _), own_rows, logits in zip(invokes, rows, found, strict=True):
        for ids, row in zip(own_rows, logits, strict=True):
            one = {"input_ids": torch.tensor([ids])}
            if embedded:
                one = {"inputs_embeds": embedding_of(module, ids)}
            with torch.no_grad():
                wanted = module(**one).logits
            assert torch.allclose(own(row[None], wanted, left), wanted, atol=1e-4, rtol=1e-4)


def test_nothing_is_kept_after_a_run(gpt2):
    embeds = embedding_of(gpt2._module, [20, 21, 22])
    given_up = weakref.ref(embeds)
    seen: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), gpt2.trace() as tracer:
            with tracer.invoke(IDS):
                seen.append(weakref.ref(gpt2.output.logits))
            with tracer.invoke(inputs_embeds=embeds):
                pass
        del embeds, tracer
        assert given_up() is None and seen[0]() is None
    finally:
        gc.enable()
    words = gpt2._module.transformer.wte
    assert not words._forward_hooks and not words._forward_pre_hooks
