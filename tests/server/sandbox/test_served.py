"""A key that is not trusted, at a real server: the whole way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from nnsight import LanguageModel
from nnsight.remote.errors import RemoteError
from nnsight.server import keys
from nnsight.server.store import Store
from tests.server.running import until
from tests.server.test_models import Real


@pytest.fixture(scope="module")
def served(gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    data = tmp_path_factory.mktemp("served") / "data"
    server = Real(data, str(gpt2_folder))
    store = Store(data / "server.db")
    server.headers = {"ndif-api-key": keys.add(store, "guest")}
    store.close()
    yield server
    server.kill()


@pytest.fixture
def client(served: Any, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setenv("NDIF_API_KEY", served.headers["ndif-api-key"])
    return LanguageModel(gpt2_folder)


def worker_starts(served: Any) -> int:
    return served.model()["starts"]


@pytest.mark.timeout(60)
def test_its_blocks_give_what_they_give_here(served: Any, client: Any, gpt2: Any) -> None:
    with client.trace("Hello world", remote=served.url):
        hidden = client.transformer.h[5].mlp.output.save()
        client.transformer.h[6].mlp.output[:] = 0
        logits = client.lm_head.output.save()
    with gpt2.trace("Hello world"):
        hidden_here = gpt2.transformer.h[5].mlp.output.save()
        gpt2.transformer.h[6].mlp.output[:] = 0
        logits_here = gpt2.lm_head.output.save()
    assert torch.equal(hidden, hidden_here) and torch.equal(logits, logits_here)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        with client.trace("Hello world", remote=served.url):
            client.transformer.h[5].mlp.output.save()
            _ = 1 / 0
    began = time.perf_counter()
    with client.trace("Hello world", remote=served.url):
        client.lm_head.output.save()
    assert time.perf_counter() - began < 5
    assert worker_starts(served) == 1


@pytest.mark.timeout(60)
def test_it_is_cancelled_at_once_and_the_model_stays(served: Any, client: Any) -> None:
    with client.trace("Hello world", remote=served.url, blocking=False) as tracer:
        client.transformer.h[5].mlp.output.save()
        print("begun")
        while True:
            pass
    job = tracer.backend.job_id
    until(lambda: served.status(job) == "RUNNING")
    time.sleep(0.5)  # into the loop
    assert requests.delete(f"{served.url}/job/{job}", headers=served.headers, timeout=20).ok
    ended = served.events(job)[-1]
    assert ended["status"] == "ERROR" and ended["meta"]["error"]["type"] == "Cancelled"
    with client.trace("Hello world", remote=served.url):
        logits = client.lm_head.output.save()
    assert logits.shape[0] == 1 and worker_starts(served) == 1


@pytest.mark.timeout(60)
def test_a_sandbox_that_dies_costs_its_own_job_only(served: Any, client: Any) -> None:
    with pytest.raises(RemoteError, match="ended before the block did"):
        with client.trace("Hello world", remote=served.url):
            import os as there

            client.transformer.h[5].mlp.output.save()
            there._exit(3)
    with client.trace("Hello world", remote=served.url):
        logits = client.lm_head.output.save()
    assert logits.shape[0] == 1 and worker_starts(served) == 1
