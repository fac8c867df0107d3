"""Rows of a generation that end before the others: which values of which steps are theirs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.behaviour.test_generation import GREEDY, PROMPT, PROMPTS, bare, forced
from tests.conftest import hooks_on, make_gpt2_folder

from nnsight import LanguageModel, NeverCalledError, OutOfOrderError, OutsideTraceError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = make_gpt2_folder(tmp_path_factory.mktemp("small"), layers=2)
    return LanguageModel(folder, dispatch=True)


def wanted(ends: list[int], steps: int) -> torch.Tensor:
    """The mask of rows whose last steps are `ends`."""
    return torch.tensor([[step <= end for step in range(steps)] for end in ends])


@pytest.mark.parametrize("ends", [[0, 1, 2], [3, 0, 3], [5, 2, 9], [1, 1, 1], [9, 9, 9]])
def test_values_of_a_row_up_to_its_end_are_those_of_the_row_alone(model, ends):
    settings = {"max_new_tokens": 6, **GREEDY}
    with model.generate(PROMPTS, **settings, **forced(*ends)) as tracer:
        states, running = [].save(), [].save()
        for _ in tracer.iter[:]:
            states.append(model.transformer.h[1].mlp.output[:, -1])
            running.append(model.generator.running)
        ids = tracer.result.save()
    steps = min(6, max(ends) + 1)
    padded, mask = torch.stack(states, dim=1), torch.stack(running, dim=1)
    assert mask.dtype == torch.bool and mask.device == padded.device
    assert torch.equal(mask, wanted(ends, steps))
    assert torch.equal(ids, bare(model, PROMPTS, **settings, **forced(*ends)))
    for row, (prompt, end) in enumerate(zip(PROMPTS, ends, strict=True)):
        with model.generate(prompt, **settings, **forced(end)) as tracer:
            alone = [model.transformer.h[1].mlp.output[0, -1] for _ in tracer.iter[:]].save()
        torch.testing.assert_close(padded[row][mask[row]], torch.stack(alone), atol=1e-4, rtol=0)
    assert hooks_on(model._module) == []


def test_each_invoke_has_those_of_its_rows(model):
    ends = [1, 4, 2]
    with model.generate(max_new_tokens=6, **GREEDY, **forced(*ends)) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = [model.generator.running for _ in tracer.iter[:]].save()
        with tracer.invoke(PROMPTS[1:]):
            others = []
            for _ in tracer.iter[:]:
                model.lm_head.output  # noqa: B018
                others.append(model.generator.running)
            others.save()
        with tracer.invoke():
            every = [model.generator.running for _ in tracer.iter[:]].save()
    mask = wanted(ends, 5)
    assert torch.equal(torch.stack(first, 1), mask[:1])
    assert torch.equal(torch.stack(others, 1), mask[1:])
    assert torch.equal(torch.stack(every, 1), mask)


def test_several_samples_of_each_prompt(model):
    ends = [2, 0, 1, 3]
    settings = {"num_return_sequences": 2, "do_sample": True, "top_k": 1}
    found, tokens = [], []
    with model.generate(max_new_tokens=5, **settings, **forced(*ends)) as tracer:
        for prompt in PROMPTS[:2]:
            with tracer.invoke(prompt):
                running, parts = [], []
                for _ in tracer.iter[:]:
                    running.append(model.generator.running)
                    parts.append(model.generator.streamer.output)
                found.append(torch.stack(running, 1))
                tokens.append((torch.stack(parts[1:], 1), tracer.result))
    assert torch.equal(torch.cat(found), wanted(ends, 4))
    for parts, ids in tokens:
        assert parts.shape == (2, 3) and torch.equal(parts, ids[:, -4:-1])


class EndsAfter(transformers.StoppingCriteria):
    """A criterion of the user's: a row ends with a token that is a multiple of three."""

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return ids[:, -1] % 3 == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("listed", [list, transformers.StoppingCriteriaList])
def test_whatever_ends_a_row(model, listed, seed):
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0}
    criteria = listed([EndsAfter()])
    torch.manual_seed(seed)
    expected = bare(model, PROMPTS, **settings, stopping_criteria=criteria)
    torch.manual_seed(seed)
    with model.generate(PROMPTS, **settings, stopping_criteria=criteria) as tracer:
        running = [model.generator.running for _ in tracer.iter[:]].save()
        ids = tracer.result.save()
    assert torch.equal(ids, expected) and len(criteria) == 1
    new, mask = ids[:, -len(running) :], torch.stack(running, 1)
    for row in range(3):
        ended = [step for step, token in enumerate(new[row].tolist()) if token % 3 == 0]
        last = ended[0] if ended else 7
        assert mask[row].sum() == last + 1 and mask[row, : last + 1].all()


def test_a_text_that_ends_a_row(model):
    settings = {"max_new_tokens": 6, "tokenizer": model.tokenizer, **GREEDY}
    ids = bare(model, PROMPTS, **{"max_new_tokens": 6, **GREEDY})
    second = model.tokenizer.decode(ids[1, -5])  # the second row's second token
    expected = bare(model, PROMPTS, **settings, stop_strings=[second])
    with model.generate(PROMPTS, **settings, stop_strings=[second]) as tracer:
        running = [model.generator.running for _ in tracer.iter[:]].save()
        found = tracer.result.save()
    assert torch.equal(found, expected)
    mask = torch.stack(running, 1)
    assert mask[1, :1].all() and not mask[1, 2:].any()


def test_a_change_of_the_rows_that_still_run(model):
    """An edit of ended rows is of no effect; one of running rows is that of the row alone."""
    settings = {"max_new_tokens": 5, **GREEDY}
    push = 30 * torch.randn(48)
    with model.generate(PROMPTS[:2], **settings, **forced(1, 9)) as tracer:
        for _ in tracer.iter[:]:
            running = model.generator.running
            model.transformer.h[0].mlp.output[:, -1] += push * running[:, None]
        ids = tracer.result.save()
    with model.generate(PROMPTS[1], **settings, **forced(9)) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[0].mlp.output[:, -1] += push
        alone = tracer.result.save()
    plain = bare(model, PROMPTS[:2], **settings, **forced(1, 9))
    assert torch.equal(ids[1, -5:], alone[0, -5:]) and not torch.equal(ids[1], plain[1])


def test_it_is_asked_for_like_any_value_of_a_step(model):
    with model.generate(PROMPTS, max_new_tokens=4, **GREEDY, **forced(0, 2, 1)) as tracer:
        logits = model.lm_head.output.save()
        prompt = model.generator.running.save()
        for _ in tracer.iter[2]:
            late = model.generator.running.save()
            width = model.lm_head.output.shape[1]
        width.save()
    assert prompt.tolist() == [True] * 3 and late.tolist() == [False, True, False]
    assert logits.shape[0] == 3 and width == 1
    with pytest.raises(OutOfOrderError, match=r"`model\.generator\.running` of step 0 was"):
        with model.generate(PROMPT, max_new_tokens=3, **GREEDY) as tracer:
            for step in tracer.iter[:1]:
                assert step == 0 and model.lm_head.output is not None
            model.lm_head.next(2).output  # noqa: B018
            for _ in tracer.iter[0]:
                model.generator.running  # noqa: B018


def test_where_there_is_none(model):
    with pytest.raises(NeverCalledError, match=r"`model\.generator\.running` .*model\.generate"):
        with model.trace(PROMPT):
            model.generator.running  # noqa: B018
    with pytest.raises(NeverCalledError, match="beam search chooses its tokens when it is over"):
        with model.generate(PROMPT, max_new_tokens=3, num_beams=2):
            model.generator.running  # noqa: B018
    with pytest.raises(OutsideTraceError, match=r"model\.generator\.running"):
        model.generator.running  # noqa: B018


def test_nothing_is_kept_with_the_collector_off(tmp_path):
    model = LanguageModel(make_gpt2_folder(tmp_path, layers=1), dispatch=True)
    alive: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with model.generate(PROMPTS[:2], max_new_tokens=3, **GREEDY, **forced(0, 2)) as tracer:
                for _ in tracer.iter[:]:
                    running = model.generator.running
                alive.append(weakref.ref(running))
        assert [ref() for ref in alive] == [None] * 10
        kept = weakref.ref(model._module)
        del model, tracer
        assert kept() is None
    finally:
        gc.enable()
