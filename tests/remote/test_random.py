"""Random programs beside a served model and in fresh processes: what they do here.

Many more go through bytes within one process: `tests/behaviour/test_fuzz.py`, kind `wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from nnsight import CONFIG, LanguageModel
from tests.behaviour.fuzz.verbs.subjects import VOCABULARY, gpt2
from tests.behaviour.fuzz.verbs.writer import random_program
from tests.behaviour.fuzz.wire import perform_verbs
from tests.benchmarks.remote import serving


@pytest.fixture(scope="module", autouse=True)
def one_thread_there() -> Iterator[None]:
    """As here: with more of them, sums differ in their last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MKL_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "gpt2"
    gpt2().envoy._module.float().save_pretrained(found)
    gpt2().envoy._module.double()
    return found


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    found = LanguageModel(str(folder))
    found.dispatch()
    return found


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def differences(seed: int, model: Any, at: dict[str, Any]) -> list[str]:
    """What a program of a language model does elsewhere that it does not do here."""
    _, program = random_program(Random(seed), gpt2())
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randint(1, VOCABULARY, (2, 3), generator=generator) for _ in range(program.inputs)]
    here = perform_verbs(program, model, xs, f"<law {seed}>", {})
    there = perform_verbs(program, model, xs, f"<law {seed}>", at)
    return [program.source(), *found] if (found := there.differences(here)) else []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_random_programs_do_beside_a_served_model_what_they_do_here(
    model: LanguageModel, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    for seed in range(20):
        found = differences(seed, model, {"remote": host})
        assert not found, "\n".join([f"seed {seed}", *found])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_random_programs_do_in_a_fresh_process_what_they_do_here(model: LanguageModel) -> None:
    for seed in (3, 8):
        found = differences(seed, model, {"remote": "local"})
        assert not found, "\n".join([f"seed {seed}", *found])
