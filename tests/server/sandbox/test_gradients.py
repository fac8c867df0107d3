"""Gradients in a sandbox: one backward pass through the model and through what a block computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nnsight.remote.errors import RemoteError
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.test_hostile import healthy

ONE, TWO = "The cat sat on the", "The capital of France"


def test_second_derivatives_are_refused(sandbox: Sandbox) -> None:
    model = sandbox.model
    with pytest.raises(RuntimeError, match="would go backward through a backward pass"):
        with model.trace(ONE, backend=sandbox):
            h = model.transformer.h[2].mlp.output
            loss = model.lm_head.output.sum()
            torch.autograd.grad(loss, h, create_graph=True)[0].save()
    healthy(sandbox)


def test_the_graph_of_an_earlier_trace_is_gone(sandbox: Sandbox) -> None:
    model = sandbox.model
    with pytest.raises(RuntimeError, match="values of an earlier trace"):
        with model.session(backend=sandbox):
            with model.trace(ONE):
                one = model.lm_head.output.sum()
            with model.trace(TWO):
                two = model.lm_head.output.sum()
            (one + two).backward()
    healthy(sandbox)


def test_a_job_sees_no_gradients_of_another(sandbox: Sandbox) -> None:
    model = sandbox.model
    found: list[Any] = []
    for _ in range(2):
        with model.trace(ONE, backend=sandbox):
            model.lm_head.output.sum().backward()
            gradient = model.transformer.h[3].mlp.c_fc.weight.grad.save()
        found.append(gradient)
    assert torch.equal(found[0], found[1])
    assert model.transformer.h[3].mlp.c_fc.weight.grad is None


@pytest.mark.parametrize(
    "nodes", [[[-1, [[[2], "float32"]], [[77, 0]], 0]], [[5, [], [], 0]], [[-1]], 7], ids=str
)
def test_a_graph_that_a_guest_makes_up_is_not_believed(sandbox: Sandbox, nodes: Any) -> None:
    """As a block that speaks to the model's process by itself."""
    model = sandbox.model
    with pytest.raises(RemoteError, match="sent nonsense"):
        with model.trace(ONE, backend=sandbox):
            h = model.transformer.h[1].mlp.output
            import gc

            from nnsight.server.sandbox.graph import Graph

            graph = next(one for one in gc.get_objects() if type(one) is Graph)
            graph.told = lambda: nodes
            (model.lm_head.output.sum() + h.sum()).backward()
    healthy(sandbox)
