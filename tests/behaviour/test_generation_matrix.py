# ruff: noqa: B007 -- loops that use no number
"""Generations of every length that end at every step, in every way of choosing and of looping.

What is read is compared with hooks on a bare `generate`: the same tokens, as many steps, the same
logits at each; and whatever ends the loop, its names are there and the code after it has run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.behaviour.test_generation import PROMPTS, Force, bare
from tests.conftest import hooks_on, make_gpt2_folder
from transformers import LogitsProcessorList

from nnsight import LanguageModel

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 2},
    "early beams": {"do_sample": False, "num_beams": 2, "early_stopping": True},
    "samples": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
}
FORMS = {  # the ways of looping that are tried with each
    "greedy": ["for", "with", "all", "bounded", "next"],
    "sampling": ["for", "with", "bounded"],
    "beams": ["for", "with", "next"],
    "early beams": ["for"],
    "samples": ["for"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder: Path = make_gpt2_folder(tmp_path_factory.mktemp("small"), layers=1, width=16)
    return LanguageModel(folder, dispatch=True)


def endings(count: int) -> list[list[int]]:
    """The last step of each of three rows: every step for each row, and one case without an end."""
    ended = [[end, (end + 2) % count, (3 * end + 1) % count] for end in range(count)]
    return [*ended, [count] * 3]


def settings_of(mode: str, count: int, ends: list[int]) -> dict[str, Any]:
    chosen = MODES[mode]
    each = chosen.get("num_beams") or chosen.get("num_return_sequences") or 1
    force = Force([end for end in ends for _ in range(each)])
    return {
        "max_new_tokens": count,
        "pad_token_id": 0,
        "logits_processor": LogitsProcessorList([force]),
        **chosen,
    }


def expect(model: LanguageModel, mode: str, count: int, ends: list[int]) -> tuple[Any, list[Any]]:
    """What a bare `generate` returns, and the logits of each of its calls of the model."""
    logits: list[torch.Tensor] = []
    handle = model._module.lm_head.register_forward_hook(lambda m, a, out: logits.append(out))
    torch.manual_seed(count)
    ids = bare(model, PROMPTS, **settings_of(mode, count, ends))
    handle.remove()
    if "num_beams" not in MODES[mode]:
        assert len(logits) == min(count, max(ends) + 1)
    return ids, logits


@pytest.mark.parametrize(("mode", "form"), [(m, f) for m, forms in FORMS.items() for f in forms])
@pytest.mark.parametrize("count", range(1, 9))
def test_a_batch_of_invokes(model, mode, form, count):
    for ends in endings(count):
        expected, calls = expect(model, mode, count, ends)
        total = len(calls)
        found: list[Any] = []
        torch.manual_seed(count)
        with model.generate(**settings_of(mode, count, ends)) as tracer:
            for prompt in PROMPTS:
                with tracer.invoke(prompt):
                    steps, logits = [], []
                    if form == "for":
                        for step in tracer.iter[:]:
                            steps.append(step)
                            logits.append(model.lm_head.output)
                    elif form == "with":
                        with tracer.iter[:] as step:
                            steps.append(step)
                            logits.append(model.lm_head.output)
                    elif form == "all":
                        for step in tracer.all():
                            steps.append(step)
                            logits.append(model.lm_head.output)
                    elif form == "bounded":
                        for step in tracer.iter[:total]:
                            steps.append(step)
                            logits.append(model.lm_head.output)
                    else:
                        step = 0
                        logits.append(model.lm_head.output)
                        for step in range(1, total):
                            logits.append(model.lm_head.next().output)
                        steps = list(range(total))
                    found.append((steps, logits, step, tracer.result))
            with tracer.invoke():
                after = "the code after the loops ran".save()
                whole = tracer.result.save()
        assert after and torch.equal(whole, expected), (ends, whole, expected)
        assert torch.equal(torch.cat([ids for *_, ids in found]), expected)
        for steps, logits, last, _ in found:
            assert steps == list(range(total)) and last == total - 1 and len(logits) == total
        for step, wanted in enumerate(calls):
            assert torch.equal(torch.cat([logits[step] for _, logits, *_ in found]), wanted)
    assert hooks_on(model._module) == []


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
@pytest.mark.parametrize("count", range(1, 9))
def test_one_list_of_prompts(model, mode, count):
    """The names that the loop binds are saved after it, with what they hold at its end."""
    for ends in endings(count):
        expected, calls = expect(model, mode, count, ends)
        torch.manual_seed(count)
        with model.generate(PROMPTS, **settings_of(mode, count, ends)) as tracer:
            for step in tracer.iter[:]:
                last, logits = step, model.lm_head.output
            last, logits = last, logits.save()
            last.save()
            ids = tracer.result.save()
            same = model.generator.output.save()
        assert torch.equal(ids, expected) and same is ids
        assert last == len(calls) - 1 and torch.equal(logits, calls[-1])
