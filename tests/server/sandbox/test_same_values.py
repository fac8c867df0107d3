"""The law of the sandbox: a block gives there what it gives beside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import BLOCKS


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        alike = one.shape == other.shape and one.requires_grad == other.requires_grad
        return alike and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_gives_what_it_gives_beside_the_model(sandbox: Sandbox, name: str) -> None:
    torch.manual_seed(0)
    here = BLOCKS[name](sandbox.model, None)
    torch.manual_seed(0)
    there = BLOCKS[name](sandbox.model, sandbox)
    assert same(here, there), (here, there)


def test_lines_in_another_order_than_the_model_s_are_refused(sandbox: Sandbox) -> None:
    model = sandbox.model
    with pytest.raises(ValueError, match="already ran past it"):
        with model.trace("The cat", backend=sandbox):
            late = model.transformer.h[3].mlp.output.save()
            early = model.transformer.h[1].mlp.output.save()
    assert "late" not in locals() and "early" not in locals()
