"""The law of the sandbox: a block gives there what it gives beside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.server.sandbox import ahead_blocks, gradient_blocks
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import BLOCKS

ALL = {**BLOCKS, **gradient_blocks.BLOCKS, **ahead_blocks.BLOCKS}
MISTAKES = {**gradient_blocks.MISTAKES, **ahead_blocks.MISTAKES}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        alike = one.shape == other.shape and one.requires_grad == other.requires_grad
        return alike and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.filterwarnings("ignore:.*ended the run before")
@pytest.mark.parametrize("name", ALL)
def test_a_block_gives_what_it_gives_beside_the_model(sandbox: Sandbox, name: str) -> None:
    torch.manual_seed(0)
    here = ALL[name](sandbox.model, None)
    sandbox.model.zero_grad()
    torch.manual_seed(0)
    there = ALL[name](sandbox.model, sandbox)
    assert same(here, there), (here, there)
    assert all(parameter.grad is None for parameter in sandbox.model._module.parameters())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_as_it_is_beside_the_model(sandbox: Sandbox, name: str) -> None:
    said = []
    for at in (None, sandbox):
        with pytest.raises(Exception) as raised:
            MISTAKES[name](sandbox.model, at)
        said.append((type(raised.value).__name__, str(raised.value).splitlines()[0]))
    sandbox.model.zero_grad()
    assert said[0] == said[1]
