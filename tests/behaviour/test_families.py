"""Of every family: each prompt of a batch has the numbers that it has alone, at every module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.modeling.tiny import FAMILIES, VOCABULARY, model_of

from nnsight import LanguageModel, nested

LENGTHS = (3, 6, 4)
RIGHT = {
    "bert",
    "roberta",
    "bert-classifier",
    "bart-decoder",
}  # padded there
ONE_SEQUENCE = sorted(FAMILIES.keys() - {"t5"})


def prompts() -> list[list[int]]:
    torch.manual_seed(5)
    return [torch.randint(2, VOCABULARY, (length,)).tolist() for length in LENGTHS]


def of_real_tokens(value: torch.Tensor, length: int, right: bool) -> torch.Tensor:
    """`value` without the places of padding, in whichever dimensions they are."""
    for dim, size in enumerate(value.shape):
        if size == max(LENGTHS) and dim > 0:
            value = value.narrow(dim, 0 if right else size - length, length)
    return value


def outputs(cache: Any) -> dict[str, list[torch.Tensor]]:
    return {
        path: [leaf for leaf in nested.leaves(entry.output) if leaf.is_floating_point()]
        for path, entry in cache.items()
    }


@pytest.mark.parametrize("family", ONE_SEQUENCE)
def test_every_module_of_a_batch_has_the_values_of_the_prompt_alone(family):
    model = LanguageModel(model_of(family))
    alone = []
    for prompt in prompts():
        with torch.no_grad(), model.trace(prompt) as tracer:
            seen = tracer.cache()
        alone.append(outputs(seen))
    together = []
    with torch.no_grad(), model.trace() as tracer:
        for prompt in prompts():
            with tracer.invoke(prompt):
                together.append(tracer.cache())
    compared = 0
    for prompt, solo, cache in zip(prompts(), alone, together, strict=True):
        batched = outputs(cache)
        assert batched.keys() == solo.keys()
        for path, expected in solo.items():
            for own, wanted in zip(batched[path], expected, strict=True):
                own = of_real_tokens(own, len(prompt), family in RIGHT)
                if own.shape != wanted.shape:  # positions and biases of the padded length
                    assert own.shape[0] == 1 or "rotary" in path or "alibi" in path, path
                    continue
                torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4, msg=path)
                compared += 1
    assert compared > 30


@pytest.mark.parametrize("family", ONE_SEQUENCE)
def test_an_edit_and_its_gradient_are_those_of_the_prompt_alone(family):
    model = LanguageModel(model_of(family))
    words = model._module.get_input_embeddings()
    path = next(name for name, module in model._module.named_modules() if module is words)
    embedding = model.get(path)

    def scores(logits: torch.Tensor) -> torch.Tensor:
        if logits.ndim == 2:  # of a classifier: a row for each prompt
            return logits[0]
        return logits[0, 0 if family in RIGHT else -1]

    alone = []
    for number, prompt in enumerate(prompts()):
        with model.trace(prompt):
            hidden = embedding.output
            embedding.output = hidden * (number + 2)
            row = scores(model.output.logits).save()
            with row.logsumexp(-1).sum().backward():
                gradient = hidden.grad.save()
        alone.append((row.detach(), gradient))
    rows, gradients = [], []
    with model.trace() as tracer:
        for number, prompt in enumerate(prompts()):
            with tracer.invoke(prompt):
                hidden = embedding.output
                embedding.output = hidden * (number + 2)
                row = scores(model.output.logits)
                rows.append(row.detach())
                with row.logsumexp(-1).sum().backward():
                    gradients.append(hidden.grad)
    for prompt, (row, gradient), own, grad in zip(prompts(), alone, rows, gradients, strict=True):
        torch.testing.assert_close(own, row, atol=1e-4, rtol=1e-4)
        real = of_real_tokens(grad, len(prompt), family in RIGHT)
        torch.testing.assert_close(real, gradient, atol=1e-4, rtol=1e-4)
