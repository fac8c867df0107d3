"""The law of the sandbox: a block gives there what it gives beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight.modeling.language import LanguageModel
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import BLOCKS


@pytest.fixture(scope="module")
def sandbox(gpt2_folder: Path):
    model = LanguageModel(gpt2_folder, dispatch=True)
    sandbox = Sandbox(model, "tests.server.sandbox.apart:language_model", gpt2_folder)
    yield sandbox
    sandbox.close()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
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
