"""`remote="local"`: what happens around the process that it starts."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight import LanguageModel, RemoteError, RemoteTimeoutError
from tests.benchmarks.remote import tiny

IDS = torch.arange(6)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tiny(folder)
    return LanguageModel(str(folder))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started, each of which must have ended after the block."""
    found: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_limit_of_time_holds_while_a_large_value_waits_to_be_read(model, started):
    """More than a pipe holds, for a process that does not read it yet."""
    large, before, start = torch.ones(2**20), open_files(), time.monotonic()
    with pytest.raises(RemoteTimeoutError, match="within the time given"):
        with model.trace(IDS, remote="local", timeout=0.05):
            logits = (model.lm_head.output * large[0]).save()
    assert time.monotonic() - start < 20.0  # it takes milliseconds on a machine that is not busy
    assert started[0].returncode == -9 and open_files() == before
    with model.trace(IDS):
        logits = model.lm_head.output.save()
    assert logits.shape == (1, 6, model.config.vocab_size)


def test_a_process_that_ends_is_told(model, started):
    before = open_files()
    with pytest.raises(RemoteError, match="ended, with status 3"):
        with model.trace(IDS, remote="local"):
            os._exit(3)
    assert started[0].returncode == 3 and open_files() == before


def test_a_process_that_cannot_be_started(model, monkeypatch):
    before = open_files()
    monkeypatch.setattr("sys.executable", "/there/is/no/python")
    with pytest.raises(FileNotFoundError):
        with model.trace(IDS, remote="local"):
            logits = model.lm_head.output.save()  # noqa: F841 # it is not reached
    assert open_files() == before
