"""Random blocks over the verbs, with invokes that share names: the same here and in a sandbox."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.conftest import states
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import put_out

TEXTS = ("The cat sat on the", "The capital of France", "Hello world! Test.")
VERBS = (
    *("read", "read", "scale", "in place", "detached", "data", "input", "skip", "skip mlp"),
    *("operation", "carry", "take", "lens", "weight", "noise", "same"),
)


def plan(seed: int) -> list[dict[str, Any]]:
    """What each invoke does, layer by layer."""
    draw = random.Random(seed)
    plans = []
    for _ in range(draw.choice((1, 1, 2, 3))):
        layers = sorted(draw.sample(range(12), draw.randrange(1, 6)))
        steps = [(draw.choice(VERBS), layer, draw.uniform(0.5, 2.0)) for layer in layers]
        plans.append({"text": draw.choice(TEXTS), "steps": steps})
    return plans


def program(model: Any, at: Any, plans: list[dict[str, Any]]) -> list[Any]:
    with model.trace(backend=at) as tracer:
        torch.manual_seed(0)
        found = [].save()  # type: ignore[attr-defined]
        carried = []
        for given in plans:
            with tracer.invoke(given["text"]):
                for verb, layer, amount in given["steps"]:
                    block = model.transformer.h[layer]
                    if verb == "read":
                        found.append(block.mlp.output)
                        found.append(states(block))
                    elif verb == "scale":
                        block.output = put_out(states(block) * amount)
                    elif verb == "in place":
                        block.mlp.output[:, -1] += amount
                    elif verb == "detached":
                        block.attn.output[0].detach()[:, 0] = amount
                    elif verb == "data":
                        block.mlp.output.data.mul_(amount)
                    elif verb == "input":
                        block.mlp.input = block.mlp.input + amount
                        found.append(block.mlp.output.sum(-1))
                    elif verb == "skip":
                        block.skip(put_out(block.input * amount))
                    elif verb == "skip mlp":
                        block.mlp.skip(block.mlp.input - amount)
                    elif verb == "operation":
                        block.mlp.source.self_act_0.output = block.mlp.source.self_act_0.output + 1
                    elif verb == "carry":
                        carried.append(states(block)[:, -1].mean())
                    elif verb == "take" and carried:
                        states(block)[:] = states(block) * carried[-1]
                    elif verb == "lens":
                        found.append(model.lm_head(model.transformer.ln_f(states(block))))
                    elif verb == "weight":
                        found.append(block.mlp.output @ block.mlp.c_fc.weight)
                    elif verb == "noise":
                        hidden = states(block)
                        hidden += torch.randn(()) * amount
                    else:
                        first = block.mlp.output
                        found.append(float(first is block.mlp.output))
                found.append(model.lm_head.output)
                found.append(tracer.result.logits)
    return found


def outcome(model: Any, at: Any, plans: list[dict[str, Any]]) -> Any:
    try:
        return program(model, at, plans)
    except Exception as error:
        return f"{str(error).splitlines()[0]}"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_blocks_give_the_same(sandbox: Sandbox, first: int) -> None:
    for seed in range(first, first + 10):
        plans = plan(seed)
        here, there = (outcome(sandbox.model, at, plans) for at in (None, sandbox))
        assert type(here) is type(there), (seed, plans, here, there)
        if isinstance(here, str):
            assert here == there, (seed, plans)
            continue
        assert len(here) == len(there), seed
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            one, other = torch.as_tensor(one), torch.as_tensor(other)
            assert torch.equal(one, other), (seed, number, plans)
