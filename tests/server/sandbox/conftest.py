from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnsight.modeling.language import LanguageModel
from tests.server.sandbox.apart import Sandbox

MAKE = "tests.server.sandbox.apart:language_model"


@pytest.fixture(scope="session")
def sandbox(gpt2_folder: Path) -> Iterator[Sandbox]:
    """A model, and sandboxes for the blocks that are given to it."""
    sandbox = Sandbox(LanguageModel(gpt2_folder, dispatch=True), MAKE, gpt2_folder)
    yield sandbox
    sandbox.close()
