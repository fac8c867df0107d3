# ruff: noqa: B007, B018, F841 -- a value is read by naming it; loops that use no number
"""Generation as users write it, against the model's own `generate` and raw hooks."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.conftest import hooks_on, make_gpt2_folder

from nnsight import LanguageModel, MissedProviderError, NeverCalledError, OutOfOrderError

PROMPT = "The Eiffel Tower is in"
PROMPTS = [PROMPT, "Hello", "The cat sat on the mat"]
GREEDY: dict[str, Any] = {"do_sample": False, "suppress_tokens": [0]}  # which would end the text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = make_gpt2_folder(tmp_path_factory.mktemp("small"), layers=2)
    return LanguageModel(folder, dispatch=True)


def bare(model: LanguageModel, prompts: Any, **settings: Any) -> Any:
    """What transformers gives by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.repo_id, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    return model._module.generate(**encoded, **{"pad_token_id": 0, **settings})


class Force(transformers.LogitsProcessor):
    """Ends rows at steps of ours, and no row before: `ends[row]` is the row's last step."""

    def __init__(self, ends: list[int]) -> None:
        self.ends, self.step = ends, -1

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.step += 1
        scores = scores.clone()
        scores[:, 0] = -torch.inf
        for row, end in enumerate(self.ends):
            if self.step == end:
                scores[row, :] = -torch.inf
                scores[row, 0] = 0.0
        return scores


def forced(*ends: int) -> dict[str, Any]:
    return {"logits_processor": transformers.LogitsProcessorList([Force(list(ends))])}


@pytest.fixture(params=["first", "later"])
def run(request: pytest.FixtureRequest, model: LanguageModel) -> str:
    """The first generation counts every module, a later one only what a survey names."""
    model.tree.surveys.clear()
    if request.param == "later":
        with model.generate(PROMPT, max_new_tokens=3, **GREEDY):
            model.lm_head.output
        assert (model.path, "generate") in model.tree.surveys
    return request.param


# --- as many steps as tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 9))
def test_a_loop_has_as_many_steps_as_there_are_tokens(run, model, count):
    settings = {"max_new_tokens": count, **GREEDY, **forced()}
    with model.generate(PROMPT, **settings) as tracer:
        tokens, numbers = [].save(), [].save()
        for step in tracer.iter[:]:
            numbers.append(step)
            tokens.append(model.lm_head.output[0, -1, 1:].argmax() + 1)
        ids = tracer.result.save()
        after = "the code after the loop ran".save()
    expected = bare(model, PROMPT, **{**settings, **forced()})
    assert torch.equal(ids, expected)
    assert numbers == list(range(count))
    assert torch.equal(torch.stack(tokens), ids[0, -count:])
    assert after and hooks_on(model._module) == []


@pytest.mark.parametrize("end", range(6))
@pytest.mark.parametrize("form", ["for", "with", "bounded", "next"])
def test_a_generation_that_ends_early(run, model, end, form):
    settings = {"max_new_tokens": 6, **GREEDY}
    logits = []
    with model.generate(PROMPT, **settings, **forced(end)) as tracer:
        last = 0
        if form == "for":
            for step in tracer.iter[:]:
                logits.append(model.lm_head.output)
                last = step
        elif form == "with":
            with tracer.all() as step:
                logits.append(model.lm_head.output)
                last = step
        elif form == "bounded":
            for step in tracer.iter[: end + 1]:
                logits.append(model.lm_head.output)
                last = step
        else:
            logits.append(model.lm_head.output)
            for _ in range(end):
                logits.append(model.lm_head.next().output)
                last += 1
        nnsight_ids = model.generator.output.save()
        last.save()
    expected = bare(model, PROMPT, **settings, **forced(end))
    assert torch.equal(nnsight_ids, expected)
    assert len(logits) == end + 1 and last == end


def test_a_bounded_loop_that_outruns_the_generation_says_so(run, model):
    with pytest.warns(UserWarning, match=r"`tracer\.iter\[:10\]` ended before step 3"):
        with model.generate(PROMPT, max_new_tokens=9, **GREEDY, **forced(2)) as tracer:
            logits = [].save()
            for _ in tracer.iter[:10]:
                logits.append(model.lm_head.output)
            ids = tracer.result.save()
    assert len(logits) == 3 and ids[0, -1] == 0


def test_rows_that_end_at_different_steps(run, model):
    settings = {"max_new_tokens": 6, **GREEDY}
    ends = [1, 4, 2]
    found: dict[str, Any] = {}
    with model.generate(**settings, **forced(*ends)) as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                logits = [model.lm_head.output for _ in tracer.iter[:]]
                found[prompt] = logits, tracer.result
        with tracer.invoke():
            steps = len([model.lm_head.output for _ in tracer.iter[:]]).save()
    expected = bare(model, PROMPTS, **settings, **forced(*ends))
    together = torch.cat([ids for _, ids in found.values()])
    assert torch.equal(together, expected) and steps == 5
    for prompt, end in zip(PROMPTS, ends, strict=True):
        alone = bare(model, prompt, **settings, **forced(end))
        logits, ids = found[prompt]
        new = alone.shape[1] - len(model.tokenizer(prompt)["input_ids"])
        start = ids.shape[1] - 5
        assert new == end + 1 and len(logits) == 5
        assert torch.equal(ids[0, start : start + new], alone[0, -new:])


@pytest.mark.parametrize("seed", range(3))
def test_sampling_is_not_disturbed(run, model, seed):
    settings = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, **forced()}
    torch.manual_seed(seed)
    expected = bare(model, PROMPTS[:2], **settings)
    torch.manual_seed(seed)
    with model.generate(PROMPTS[:2], **settings) as tracer:
        count = 0
        for _ in tracer.iter[:]:
            model.transformer.h[0].mlp.output
            count += 1
        ids = tracer.result.save()
        count.save()
    assert torch.equal(ids, expected) and count == 5
    torch.manual_seed(seed)
    halves: list[Any] = []
    with model.generate(**settings) as tracer:
        for prompt in PROMPTS[:2]:
            with tracer.invoke(prompt):
                for _ in tracer.iter[:]:
                    model.transformer.h[0].mlp.output
                halves.append(tracer.result)
    assert torch.equal(torch.cat(halves), expected)


# --- several rows for each prompt -----------------------------------------------------------------

MANY = {
    "beams": {"num_beams": 3, **GREEDY},
    "several beams": {"num_beams": 3, "num_return_sequences": 2, **GREEDY},
    "samples": {"num_return_sequences": 2, "do_sample": True, "top_k": 1, "suppress_tokens": [0]},
}


@pytest.mark.parametrize("kind", MANY)
def test_several_rows_for_each_prompt(run, model, kind):
    settings = {"max_new_tokens": 4, **MANY[kind]}
    expected = bare(model, PROMPT, **settings)
    with model.generate(PROMPT, **settings) as tracer:
        shapes = [model.lm_head.output.shape for _ in tracer.iter[:]].save()
        ids = tracer.result.save()
    assert torch.equal(ids, expected)
    rows = settings.get("num_beams", 0) or settings["num_return_sequences"]
    assert shapes == [(rows, 1, 400)] * 4


@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("count", [2, 3])
def test_each_prompt_has_its_own_beams(run, model, kind, count):
    settings = {"max_new_tokens": 4, **MANY[kind]}
    found: dict[str, Any] = {}
    with model.generate(**settings) as tracer:
        for prompt in PROMPTS[:count]:
            with tracer.invoke(prompt):
                states, logits = [], []
                for _ in tracer.iter[:]:
                    states.append(model.transformer.h[1].mlp.output)
                    logits.append(model.lm_head.output)
                found[prompt] = states, logits, model.generator.output
    for prompt, (states, logits, ids) in found.items():
        with model.generate(prompt, **settings) as tracer:
            own_states, own_logits = [].save(), [].save()
            for _ in tracer.iter[:]:
                own_states.append(model.transformer.h[1].mlp.output)
                own_logits.append(model.lm_head.output)
            own_ids = tracer.result.save()
        assert torch.equal(ids[:, -4:], own_ids[:, -4:])
        for one, other in zip(logits, own_logits, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        for one, other in zip(states, own_states, strict=True):
            assert torch.allclose(one[:, -1], other[:, -1], atol=1e-4)


def test_an_edit_of_one_prompts_beams_leaves_the_others_alone(model):
    settings = {"max_new_tokens": 3, **MANY["beams"]}
    found: list[Any] = []
    with model.generate(**settings) as tracer:
        with tracer.invoke(PROMPTS[0]):
            for step in tracer.iter[:]:
                model.transformer.h[0].mlp.output = torch.zeros_like(
                    model.transformer.h[0].mlp.output
                )
            found.append(tracer.result)
        with tracer.invoke(PROMPTS[2]):
            found.append(tracer.result)
    with model.generate(PROMPTS[0], **settings) as tracer:
        for step in tracer.iter[:]:
            model.transformer.h[0].mlp.output[:] = 0
        zeroed = tracer.result.save()
    plain = bare(model, PROMPTS[2], **settings)
    assert torch.equal(found[0][:, -3:], zeroed[:, -3:])
    assert torch.equal(found[1][:, -3:], plain[:, -3:])


# --- what a step is -------------------------------------------------------------------------------


def test_the_first_step_reads_the_prompt_and_the_others_a_token(run, model):
    length = len(model.tokenizer(PROMPT)["input_ids"])
    with model.generate(PROMPT, max_new_tokens=4, **GREEDY) as tracer:
        widths, ids = [].save(), [].save()
        for _ in tracer.iter[:]:
            ids.append(model.transformer.input)
            widths.append(model.transformer.h[1].mlp.output.shape[1])
        result = tracer.result.save()
    assert widths == [length, 1, 1, 1]
    assert torch.equal(torch.cat(ids, 1), result[:, :-1])


def test_every_value_is_that_of_a_raw_hook(run, model):
    module = model._module
    watched = [module.transformer.h[0].attn, module.transformer.h[1].mlp, module.lm_head]
    raw: list[Any] = []
    handles = [m.register_forward_hook(lambda m, a, out: raw.append(out)) for m in watched]
    expected = bare(model, PROMPT, max_new_tokens=5, **GREEDY)
    for handle in handles:
        handle.remove()
    with model.generate(PROMPT, max_new_tokens=5, **GREEDY) as tracer:
        seen = [].save()
        for _ in tracer.iter[:]:
            seen.append(model.transformer.h[0].attn.output)
            seen.append(model.transformer.h[1].mlp.output)
            seen.append(model.lm_head.output)
        ids = tracer.result.save()
    assert torch.equal(ids, expected) and len(seen) == len(raw) == 15
    for one, other in zip(seen, raw, strict=True):
        one, other = (v[0] if isinstance(v, tuple) else v for v in (one, other))
        assert torch.equal(one, other)


@pytest.mark.parametrize("at", range(4))
def test_an_edit_of_one_step(run, model, at):
    """The same as a hook that counts."""
    count, push = -1, 100 * torch.randn(48)

    def shift(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor | None:
        nonlocal count
        count += 1
        return out + push if count == at else None

    layer = model._module.transformer.h[0].mlp
    handle = layer.register_forward_hook(shift)
    expected = bare(model, PROMPT, max_new_tokens=4, **GREEDY)
    handle.remove()
    with model.generate(PROMPT, max_new_tokens=4, **GREEDY) as tracer:
        for step in tracer.iter[:]:
            if step == at:
                mlp = model.transformer.h[0].mlp
                mlp.output = mlp.output + push
            else:
                model.lm_head.output
        ids = tracer.result.save()
    with model.generate(PROMPT, max_new_tokens=4, **GREEDY) as tracer:
        for _ in tracer.iter[at]:
            model.transformer.h[0].mlp.output[:] += push
        same = tracer.result.save()
    assert torch.equal(ids, expected) and torch.equal(same, expected)
    assert not torch.equal(expected, bare(model, PROMPT, max_new_tokens=4, **GREEDY))


def test_a_skip_in_some_steps_moves_no_other_step(run, model):
    """What is inside a skipped module does not run at that step: the later ones stay in place."""
    block = model.transformer.h[1].mlp
    with model.generate(PROMPT, max_new_tokens=5, **GREEDY) as tracer:
        inside = {}.save()
        for step in tracer.iter[:]:
            if step == 2:
                block.skip(block.input)
            else:
                inside[step] = block.c_fc.output
    seen: list[Any] = []
    module = model._module.transformer.h[1].mlp
    original, count = module.forward, -1

    def forward(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return hidden if count == 2 else original(hidden, *args, **kwargs)

    module.forward = forward
    handle = module.c_fc.register_forward_hook(lambda m, a, out: seen.append(out))
    bare(model, PROMPT, max_new_tokens=5, **GREEDY)
    handle.remove()
    del module.forward
    assert list(inside) == [0, 1, 3, 4]
    for one, other in zip(inside.values(), seen, strict=True):
        assert torch.equal(one, other)


def test_per_step_reads_in_a_batch_are_those_of_each_prompt_alone(run, model):
    settings = {"max_new_tokens": 4, **GREEDY}
    found: dict[str, Any] = {}
    with model.generate(**settings) as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(prompt):
                found[prompt] = [
                    (model.transformer.h[0].mlp.output, model.lm_head.output)
                    for _ in tracer.iter[:]
                ]
    for prompt in PROMPTS:
        with model.generate(prompt, **settings) as tracer:
            alone = [
                (model.transformer.h[0].mlp.output, model.lm_head.output) for _ in tracer.iter[:]
            ].save()
        for (state, logits), (own_state, own_logits) in zip(found[prompt], alone, strict=True):
            assert torch.allclose(logits, own_logits, atol=1e-4)
            assert torch.allclose(state[:, -own_state.shape[1] :], own_state, atol=1e-4)


def test_a_late_first_read(run, model):
    with model.generate(PROMPT, max_new_tokens=6, **GREEDY) as tracer:
        for _ in tracer.iter[4]:
            late = model.transformer.h[1].mlp.output.save()
    with model.generate(PROMPT, max_new_tokens=6, **GREEDY) as tracer:
        every = [model.transformer.h[1].mlp.output for _ in tracer.iter[:]].save()
    assert torch.equal(late, every[4])


def test_plain_reads_are_of_the_first_step(run, model):
    with model.generate(PROMPT, max_new_tokens=3, **GREEDY):
        hidden = model.transformer.h[0].mlp.output.save()
        logits = model.lm_head.output.save()
    with model.trace(PROMPT):
        own = model.transformer.h[0].mlp.output.save()
    assert torch.equal(hidden, own) and logits.shape[1] == 1


def test_next_reads_on(run, model):
    with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
        first = model.transformer.h[-1].mlp.output.save()
        second = model.transformer.h[-1].mlp.next().output.save()
        third = model.transformer.h[-1].mlp.next().output.save()
        ids = model.generator.output.save()
    with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
        every = [model.transformer.h[-1].mlp.output for _ in tracer.iter[:]].save()
    for one, other in zip((first, second, third), every, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ids, bare(model, PROMPT, max_new_tokens=3, **GREEDY))


# --- the result, and the tokens on their way ------------------------------------------------------


def test_the_result_has_two_names_in_any_order(model):
    with model.generate(PROMPT, max_new_tokens=2, **GREEDY) as tracer:
        one = tracer.result.save()
        two = model.generator.output.save()
        three = tracer.result.save()
    assert one is two is three
    with model.generate(PROMPT, max_new_tokens=2, **GREEDY) as tracer:
        model.generator.output = one + 1
        changed = tracer.result.save()
    assert torch.equal(changed, one + 1)


def test_the_result_inside_a_loop_and_before_it(model):
    with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
        for step in tracer.iter[1:]:
            ids = tracer.result.save()
            last = step
        last.save()
    assert last == 1 and ids.shape[1] == len(model.tokenizer(PROMPT)["input_ids"]) + 3


def test_the_result_of_each_invoke(model):
    with model.generate(max_new_tokens=3, **GREEDY) as tracer:
        with tracer.invoke(PROMPTS[:2]):
            two = model.generator.output.save()
        with tracer.invoke(PROMPTS[2]):
            one = tracer.result.save()
        with tracer.invoke():
            whole = tracer.result.save()
    assert two.shape[0] == 2 and one.shape[0] == 1
    assert torch.equal(whole, torch.cat([two, one]))
    assert torch.equal(whole, bare(model, PROMPTS, max_new_tokens=3, **GREEDY))


def test_a_result_that_is_more_than_ids(model):
    settings = {"return_dict_in_generate": True, "output_logits": True, **GREEDY}
    with model.generate(PROMPT, max_new_tokens=3, **settings) as tracer:
        logits = [model.lm_head.output[:, -1] for _ in tracer.iter[:]].save()
        result = tracer.result.save()
    assert len(result.logits) == 3
    for score, own in zip(result.logits, logits, strict=True):
        assert torch.equal(score, own)
    assert torch.equal(result.sequences, bare(model, PROMPT, max_new_tokens=3, **GREEDY))


def test_the_streamer_gives_the_prompt_and_then_each_token(model):
    with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
        parts = [model.generator.streamer.output for _ in tracer.iter[:]].save()
        ids = tracer.result.save()
    assert torch.equal(torch.cat([parts[0][0], *parts[1:]]), ids[0])


def test_the_streamer_beside_other_values_gives_the_token_that_the_step_reads(run, model):
    with model.generate(max_new_tokens=3, **GREEDY) as tracer:
        with tracer.invoke(PROMPT):
            tokens, read = [].save(), [].save()
            for _ in tracer.iter[:]:
                read.append(model.transformer.input[:, -1])
                tokens.append(model.generator.streamer.output)
        with tracer.invoke("Hello"):
            model.lm_head.output
    assert tokens[0].shape == (1, len(model.tokenizer(PROMPT)["input_ids"]))
    assert len(tokens) == 3
    for token, own in zip(tokens[1:], read[1:], strict=True):
        assert torch.equal(token, own)


def test_a_streamer_of_the_users_gets_its_tokens_too(model):
    class Keep:
        def __init__(self) -> None:
            self.got: list[Any] = []
            self.ended = False

        def put(self, tokens: torch.Tensor) -> None:
            self.got.append(tokens)

        def end(self) -> None:
            self.ended = True

    keep = Keep()
    with model.generate(PROMPT, max_new_tokens=3, streamer=keep, **GREEDY) as tracer:
        parts = [model.generator.streamer.output for _ in tracer.iter[:]].save()
    assert keep.ended and len(keep.got) == 4
    for one, other in zip(keep.got, parts, strict=True):
        assert torch.equal(one, other)


# --- with and without `with` ----------------------------------------------------------------------


def test_a_plain_call_runs_at_once(model):
    expected = bare(model, PROMPT, max_new_tokens=2, **GREEDY)
    ids = model.generate(PROMPT, max_new_tokens=2, **GREEDY)
    assert torch.equal(ids, expected)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=2, trace=False, **GREEDY), expected)
    assert [model.generate(PROMPT, max_new_tokens=2, **GREEDY)][0].equal(expected)


def generating(model: LanguageModel, **settings: Any) -> Any:
    return model.generate(PROMPT, **settings)


@pytest.mark.parametrize("form", ["helper", "choice", "explicit", "later items", "lambda"])
def test_a_with_opens_a_trace(model, form):
    settings = {"max_new_tokens": 2, **GREEDY}
    expected = bare(model, PROMPT, **settings)
    if form == "helper":
        with generating(model, **settings) as tracer:
            ids = tracer.result.save()
        assert torch.equal(generating(model, **settings), expected)
    elif form == "choice":
        with (
            model.generate(PROMPT, **settings)
            if settings
            else model.generate(PROMPT, max_new_tokens=1)
        ) as tracer:
            ids = tracer.result.save()
    elif form == "explicit":
        opened = model.generate(PROMPT, trace=True, **settings)
        with opened as tracer:
            ids = tracer.result.save()
    elif form == "later items":
        with torch.no_grad(), model.generate(PROMPT, **settings) as tracer, tracer.iter[0] as step:
            model.lm_head.output
            ids = tracer.result.save()
    else:
        with (lambda: model.generate(PROMPT, **settings))() as tracer:
            ids = tracer.result.save()
    assert torch.equal(ids, expected)


def test_settings_on_the_trace_and_on_invokes(model):
    with model.generate() as tracer:
        with tracer.invoke(PROMPT, max_new_tokens=2):
            first = tracer.result.save()
        with tracer.invoke("Hello"):
            second = tracer.result.save()
        with tracer.invoke(**GREEDY):
            pass
    assert torch.equal(
        torch.cat([first, second]), bare(model, PROMPTS[:2], max_new_tokens=2, **GREEDY)
    )


def test_settings_that_disagree_are_refused(model):
    with pytest.raises(ValueError, match=r"`temperature` is 0\.5 in one and 2\.0 in another"):
        with model.generate() as tracer:
            with tracer.invoke(PROMPT, temperature=0.5):
                tracer.result
            with tracer.invoke("Hello", temperature=2.0):
                tracer.result


def test_weights_that_are_not_there_yet(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    with model.generate(PROMPT, max_new_tokens=2, **GREEDY) as tracer:
        count = len([model.lm_head.output for _ in tracer.iter[:]]).save()
    assert model.dispatched and count == 2


# --- mistakes -------------------------------------------------------------------------------------


def test_out_of_order_inside_a_step(run, model):
    with pytest.raises(
        OutOfOrderError, match=r"`model\.transformer\.h\.0\.mlp\.output` of step 2 was"
    ):
        with model.generate(PROMPT, max_new_tokens=5, **GREEDY) as tracer:
            for _ in tracer.iter[2:]:
                model.transformer.h[1].mlp.output
                model.transformer.h[0].mlp.output


def test_a_module_that_never_runs(run, model):
    with pytest.raises(MissedProviderError, match="not provided"):
        with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
            for _ in tracer.iter[:]:
                model.transformer.h[0].attn.attn_dropout.output


def test_the_generator_of_a_single_forward(model):
    with pytest.raises(NeverCalledError, match=r"`model\.generator\.output` .*model\.generate"):
        with model.trace(PROMPT):
            model.generator.output
    with pytest.raises(NeverCalledError, match=r"`model\.generator\.streamer\.output`"):
        with model.trace(PROMPT):
            model.generator.streamer.output


def test_beams_have_no_tokens_on_their_way(model):
    with pytest.raises(NeverCalledError, match="beam search chooses its tokens when it is over"):
        with model.generate(PROMPT, max_new_tokens=3, num_beams=2):
            model.generator.streamer.output


def test_generating_without_a_prompt(model):
    with pytest.raises(ValueError, match=r"generate\(\) needs a prompt.*with model\.generate"):
        model.generate(max_new_tokens=3)
    with pytest.raises(ValueError, match=r"generate\(\) needs a prompt"):
        with model.trace() as tracer:
            with tracer.invoke(PROMPT):
                model.generate(max_new_tokens=3)


# --- nothing stays --------------------------------------------------------------------------------


def test_nothing_is_kept_with_the_collector_off(tmp_path):
    model = LanguageModel(make_gpt2_folder(tmp_path, layers=1), dispatch=True)
    alive: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            with model.generate(max_new_tokens=3, **GREEDY) as tracer:
                with tracer.invoke(PROMPT):
                    states = []
                    for _ in tracer.iter[:]:
                        model.generator.streamer.output
                        states.append(model.transformer.h[0].mlp.output)
                    alive.append(weakref.ref(states[-1]))
                    model.generator.output
                with tracer.invoke("Hello"):
                    model.lm_head.next().output
            assert all(state() is None for state in alive)
            assert hooks_on(model._module) == []
        assert len(alive) == 20
        kept = weakref.ref(model._module)
        del model, tracer
        assert kept() is None
    finally:
        gc.enable()
