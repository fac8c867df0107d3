"""The standard names with every verb: invokes, steps, edits, gradients, caches; two real models."""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path

import pytest
import torch
from tests.behaviour.leaks import keeps_nothing
from tests.behaviour.test_minilm import SENTENCES, _folder
from tests.conftest import hooks_on
from tests.modeling.named import ids, module_of

from nnsight import LanguageModel
from nnsight.modeling.options import transformers_version
from nnsight.toolbox.facts import fact_pairs, facts_folder

PROMPT = "The Eiffel Tower is in the city of"
OTHER = "The Colosseum is in the city of"


@pytest.fixture(scope="module")
def facts() -> LanguageModel:
    return LanguageModel(facts_folder(), dispatch=True)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def minilm(request) -> LanguageModel:
    return LanguageModel(
        _folder(), automodel="AutoModel", attn_implementation=request.param, dispatch=True
    )


# --- the real MiniLM ------------------------------------------------------------------------------


def test_every_resid_post_is_the_hidden_state_of_transformers(minilm):
    inputs = dict(minilm.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = minilm._module(**inputs, output_hidden_states=True).hidden_states
        with minilm.trace(SENTENCES):
            pre = minilm.layers[0].resid_pre.save()
            states = [layer.resid_post for layer in minilm.layers].save()
    assert torch.equal(pre, expected[0]) and len(states) == 6
    for state, wanted in zip(states, expected[1:], strict=True):
        assert torch.equal(state, wanted)


def test_every_pattern_is_the_attention_of_transformers(minilm):
    inputs = dict(minilm.tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    eager = copy.deepcopy(minilm._module)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        expected = eager(**inputs, output_attentions=True).attentions
        with minilm.trace(SENTENCES):
            patterns = [layer.attn.pattern for layer in minilm.layers].save()
    exact = minilm._module.config._attn_implementation == "eager"
    for pattern, wanted in zip(patterns, expected, strict=True):
        assert torch.equal(pattern, wanted) or not exact
        torch.testing.assert_close(pattern, wanted, atol=1e-6, rtol=1e-5)
    assert patterns[0].shape == (2, 12, *[inputs["input_ids"].shape[1]] * 2)


def test_the_names_of_minilm_are_what_they_say(minilm):
    text = str(minilm.check_names())
    assert "attn.pattern" in text and "not in this model" in text


# --- the facts model ------------------------------------------------------------------------------


def test_patching_resid_post_moves_the_answer_to_the_other_city(facts):
    moved = 0
    for pair in fact_pairs()[:6]:
        clean, corrupted = (facts.tokenizer(p)["input_ids"] for p in (pair.clean, pair.corrupted))
        subject = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        with torch.no_grad(), facts.trace() as tracer:
            with tracer.invoke(pair.corrupted):
                source = facts.layers[1].resid_post
            with tracer.invoke(pair.clean):
                facts.layers[1].resid_post[:, subject] = source[:, subject]
                answer = facts.lm_head.output[0, -1].argmax().item().save()
        moved += facts.tokenizer.decode([answer]) == pair.corrupted_answer
    assert moved == 6


@torch.no_grad()
def test_each_invoke_has_its_own_rows_of_each_name(facts):
    alone = {}
    for prompt in (PROMPT, OTHER):
        with facts.trace(prompt):
            layer = facts.layers[2]
            q = layer.attn.q.save()
            pattern = layer.attn.pattern.save()
            z = layer.attn.z.save()
            mid = layer.resid_mid.save()
            act = layer.mlp.act.save()
        alone[prompt] = (q, pattern, z, mid, act)
    rows = []
    with facts.trace() as tracer:
        for prompt in (PROMPT, OTHER):
            with tracer.invoke(prompt):
                layer = facts.layers[2]
                rows.append(
                    (layer.attn.q, layer.attn.pattern, layer.attn.z, layer.resid_mid, layer.mlp.act)
                )
    for prompt, found in zip((PROMPT, OTHER), rows, strict=True):
        for index, (own, wanted) in enumerate(zip(found, alone[prompt], strict=True)):
            tokens = wanted.shape[-1] if index == 1 else wanted.shape[1]
            if index == 1:
                own = own[:, :, -tokens:, -tokens:]
            else:
                own = own[:, -tokens:]
            torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_change_in_one_invoke_leaves_the_rows_of_the_other(facts):
    with facts.trace(PROMPT):
        plain = facts.output.logits.save()
    with facts.trace(PROMPT):
        facts.layers[2].attn.z[:, :, 1] = 0
        facts.layers[3].resid_mid *= 1.5
        solo = facts.output.logits.save()
    with facts.trace() as tracer:
        with tracer.invoke(PROMPT):
            facts.layers[2].attn.z[:, :, 1] = 0
            facts.layers[3].resid_mid *= 1.5
            changed = facts.output.logits.save()
        with tracer.invoke(PROMPT):
            untouched = facts.output.logits.save()
    torch.testing.assert_close(changed, solo, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(untouched, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed, untouched, atol=1e-2)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*never has these probabilities")
def test_a_changed_pattern_of_one_invoke(facts):
    with facts.trace(PROMPT):
        plain = facts.output.logits.save()
    with facts.trace() as tracer:
        with tracer.invoke(PROMPT):
            facts.layers[1].attn.pattern = 0
            out = facts.layers[1].attn.out.save()
        with tracer.invoke(PROMPT):
            untouched = facts.output.logits.save()
    bias = facts.layers[1].attn.c_proj._module.bias
    torch.testing.assert_close(out, bias.expand_as(out))
    torch.testing.assert_close(untouched, plain, atol=1e-5, rtol=1e-4)


def test_a_switched_kernel_is_told_of_once_and_at_the_line():
    model = LanguageModel(facts_folder(), dispatch=True)
    for time in range(2):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with torch.no_grad(), model.trace(PROMPT):
                model.layers[1].attn.pattern[:, 0] = 0  # here
        if time == 0:
            assert [w.filename for w in told] == [__file__]
            line = Path(__file__).read_text().splitlines()[told[0].lineno - 1]
            assert line.endswith("# here")
            assert "`model.layers[1].attn.pattern`" in str(told[0].message)
    assert not told


@torch.no_grad()
def test_in_every_step_of_a_generation(facts):
    with facts.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        shapes, patterns = [].save(), [].save()
        for _ in tracer.iter[:]:
            attention = facts.layers[1].attn
            shapes.append(tuple(attention.q.shape[:3]))
            patterns.append(attention.pattern.clone())
            facts.layers[4].resid_post[:, -1] += 0.0
    length = len(facts.tokenizer(PROMPT)["input_ids"])
    assert shapes == [(1, length, 4), (1, 1, 4), (1, 1, 4)]
    assert [p.shape[-1] for p in patterns] == [length, length + 1, length + 2]
    for pattern in patterns:
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


@torch.no_grad()
def test_head_ablation_in_every_step_is_that_of_a_hook(facts):
    module = facts._module

    def head(m, args):
        merged = args[0].clone()
        merged[..., 22:44] = 0
        return (merged,)

    handle = module.transformer.h[3].attn.c_proj.register_forward_pre_hook(head)
    inputs = facts.tokenizer(PROMPT, return_tensors="pt")
    expected = module.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    handle.remove()
    with facts.generate(PROMPT, max_new_tokens=4, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            facts.layers[3].attn.z[:, :, 1] = 0
        result = tracer.result.save()
    assert torch.equal(result, expected)


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "mixtral"])  # which flatten rows and tokens
def test_rows_of_beams_are_rows(family):
    model = LanguageModel(module_of(family))
    options = {"do_sample": False, "pad_token_id": 2, "max_new_tokens": 2}
    with model.generate(ids(), num_beams=3, **options) as tracer:
        shapes = [].save()
        for _ in tracer.iter[:]:
            layer = model.layers[1]
            inner = layer.router.probs if family == "mixtral" else layer.mlp.act
            shapes.append((tuple(inner.shape[:2]), tuple(layer.resid_post.shape[:2])))
    assert shapes == [((6, 7), (6, 7)), ((6, 1), (6, 1))]


@pytest.mark.skipif(transformers_version() < (5, 0), reason="there the numbers say who runs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_scan_of_a_mixture_has_the_shapes_of_its_trace(dtype):
    model = LanguageModel(copy.deepcopy(module_of("mixtral")).to(dtype))
    with model.scan(ids()):
        probs, stream = model.layers[1].router.probs.shape, model.layers[1].resid_post
        logits = model.output.logits
        scanned = [(tuple(probs), stream.dtype), (tuple(stream.shape), logits.dtype)]
    with model.trace(ids()):
        probs = model.layers[1].router.probs.shape
        stream = model.layers[1].resid_post
        traced = [(tuple(probs), stream.dtype), (tuple(stream.shape), model.output.logits.dtype)]
        traced.save()
    assert scanned == traced


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "mixtral"])
def test_flattened_tokens_are_split_at_each_step(family):
    model = LanguageModel(module_of(family))
    options = {"do_sample": False, "pad_token_id": 2, "max_new_tokens": 3, "min_new_tokens": 3}
    prompts, alone = [ids()[:1], ids()[1:, 2:]], []

    def inner() -> torch.Tensor:
        layer = model.layers[1]
        return layer.router.probs if family == "mixtral" else layer.mlp.act

    for number, prompt in enumerate(prompts):
        with model.generate(prompt, **options) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(inner().clone())
                inner()[..., 1] += number  # in the second only
            alone.append((seen, tracer.result.save()))
    with model.generate(**options) as tracer:
        found = [].save()
        for number, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                seen = []
                for _ in tracer.iter[:]:
                    seen.append(inner().clone())
                    inner()[..., 1] += number
                found.append((seen, tracer.result))
    for (own, result), (seen, expected) in zip(found, alone, strict=True):
        assert torch.equal(result[:, -3:], expected[:, -3:])
        for one, other in zip(own, seen, strict=True):
            torch.testing.assert_close(one[:, -other.shape[1] :], other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*never has these probabilities")
def test_two_invokes_change_the_pattern_of_one_layer(facts):
    alone = []
    for prompt, head in ((PROMPT, 0), (OTHER, 2)):
        with facts.trace(prompt):
            facts.layers[3].attn.pattern[:, head] = 0
            alone.append(facts.output.logits[:, -1].save())
    with facts.trace() as tracer:
        together = [].save()
        for prompt, head in ((PROMPT, 0), (OTHER, 2)):
            with tracer.invoke(prompt):
                facts.layers[3].attn.pattern[:, head] = 0
                together.append(facts.output.logits[:, -1])
    for own, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*never has these probabilities")
def test_what_is_changed_after_a_barrier_is_in_force(facts):
    with facts.trace(PROMPT):
        pattern = facts.layers[1].attn.pattern
        pattern[:] = 0
        pattern[:, 0] = 1
        wanted = facts.layers[1].attn.out.save()
    with facts.trace() as tracer:
        meet = tracer.barrier(2)
        with tracer.invoke(PROMPT):
            pattern = facts.layers[1].attn.pattern
            pattern[:] = 0
            meet()
            pattern[:, 0] = 1
            found = facts.layers[1].attn.out.save()
        with tracer.invoke(PROMPT):
            meet()
            facts.layers[1].resid_post.save()
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_in_an_edit(facts):
    with facts.trace(PROMPT):
        facts.layers[2].attn.z[:, :, 0] = 0
        expected = facts.output.logits.save()
    with facts.edit() as edited:
        edited.layers[2].attn.z[:, :, 0] = 0
    with edited.trace(PROMPT):
        found = edited.output.logits.save()
    with facts.trace(PROMPT):
        plain = facts.output.logits.save()
    assert torch.equal(found, expected) and not torch.equal(found, plain)


@torch.no_grad()
def test_a_cache_takes_them_for_modules(facts):
    with facts.trace(PROMPT) as tracer:
        cache = tracer.cache(modules=[facts.layers[2], facts.layers[2].attn])
        hidden = facts.layers[2].resid_post.save()
    cached = cache["model.transformer.h.2"].output
    assert torch.equal(cached[0] if isinstance(cached, tuple) else cached, hidden)
    assert len(cache) == 2


@pytest.mark.filterwarnings("ignore:.*never has these probabilities")
def test_gradients_of_every_name_are_those_of_a_small_step(facts):
    names = ("resid_pre", "attn.q", "attn.v", "attn.pattern", "attn.z", "attn.out", "resid_mid")
    names = (*names, "mlp.act", "mlp.out", "resid_post")

    def owner(name):
        layer = facts.layers[2]
        part, _, last = name.rpartition(".")
        return (getattr(layer, part) if part else layer), last

    for name in names:
        with facts.trace(PROMPT):
            holder, last = owner(name)
            value = getattr(holder, last)
            score = facts.output.logits[0, -1, 7]
            with score.backward():
                gradient = value.grad.save()
        direction = torch.randn(gradient.shape)
        scores = []
        for size in (1e-2, -1e-2):
            with torch.no_grad(), facts.trace(PROMPT):
                holder, last = owner(name)
                setattr(holder, last, getattr(holder, last) + size * direction)
                scores.append(facts.output.logits[0, -1, 7].item())
        slope = (scores[0] - scores[1]) / 2e-2
        expected = (gradient * direction).sum().item()
        assert slope == pytest.approx(expected, rel=3e-2, abs=3e-2), name
    facts._module.zero_grad()


def test_changes_in_place_keep_gradients(facts):
    with facts.trace(PROMPT):
        attention = facts.layers[2].attn
        before = attention.z
        attention.z[:, :, 1] = 0
        act = facts.layers[2].mlp.act
        act[..., :5] = 0
        score = facts.output.logits[0, -1, 7]
        with score.backward():
            gradient = before.grad.save()
    assert gradient.shape == (1, 8, 4, 22)
    facts._module.zero_grad()


def test_a_learned_steering_vector_gets_a_gradient(facts):
    vector = torch.zeros(88, requires_grad=True)
    with facts.trace(PROMPT):
        facts.layers[2].resid_mid += vector
        loss = facts.output.logits[0, -1, 7]
        loss.backward()
    assert vector.grad is not None and vector.grad.norm() > 0
    facts._module.zero_grad()


@pytest.mark.filterwarnings("ignore:.*never has these probabilities")
def test_they_leave_nothing_behind(facts):
    def run():
        with torch.no_grad(), facts.trace() as tracer:
            with tracer.invoke(PROMPT):
                attention = facts.layers[1].attn
                q, pattern = attention.q.save(), attention.pattern.save()
                attention.z[:, :, 0] = 0
                facts.layers[2].resid_mid += 1
            with tracer.invoke(OTHER):
                facts.layers[1].attn.pattern = 0
                facts.layers[2].mlp.act[..., 0] = 0
        with facts.trace(PROMPT):
            z = facts.layers[1].attn.z
            with facts.output.logits.sum().backward():
                gradient = z.grad.save()
        with contextlib.suppress(ValueError), torch.no_grad(), facts.trace(PROMPT):
            facts.layers[1].attn.z = torch.zeros(3)
        return q, pattern, gradient

    facts._module.requires_grad_(False)
    facts.embed_tokens._module.requires_grad_(True)
    keeps_nothing(run, facts._module, runs=20)
    facts._module.requires_grad_(True).zero_grad()


def test_an_error_is_at_the_line_of_the_block(facts):
    with pytest.raises(ValueError, match="is a tensor of shape") as caught:
        with facts.trace(PROMPT):
            facts.layers[1].attn.z = torch.zeros(3)  # here
    last = caught.traceback[-1]
    assert str(last.statement).endswith("# here") and last.path == Path(__file__)


def test_a_report_tells_of_them(facts):
    with torch.no_grad(), facts.trace(PROMPT) as tracer:
        facts.layers[1].attn.z[:, :, 0] = 0
        facts.layers[2].resid_post[:, -1] += 1
    text = str(tracer.report())
    assert "transformer.h.1.attn.c_proj.input" in text and "transformer.h.2.output" in text


def test_wrapping_does_nothing_for_them(facts):
    model = LanguageModel(facts._module, tokenizer=facts.tokenizer)
    assert model.tree.memory == {}
    assert model.layers[0] == model.transformer.h[0]
    assert hooks_on(facts._module) == []
