"""What a block cannot say by itself: how it is sent, waited for, and how it fails."""

# ruff: noqa: F841 (as users write)
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nnsight
from nnsight import CONFIG
from nnsight.remote.client import AsyncRemoteBackend, RemoteBackend

PROMPT = "The cat sat on the mat"
PATIENCE = 120.0


def here(model: Any) -> torch.Tensor:
    with model.trace(PROMPT):
        logits = model.lm_head.output.save()
    return logits


def up_20_mb(model: Any, url: str) -> None:
    vector = torch.randn(5_000_000)
    with model.trace(PROMPT, remote=url):
        ends = (vector[:3] + vector[-3:]).save()
        total = vector.double().sum().save()
    assert torch.equal(ends, vector[:3] + vector[-3:]) and total == vector.double().sum()


def down_40_mb(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url):
        found = torch.randn(10_000_000, generator=torch.Generator().manual_seed(3)).save()
    assert torch.equal(found, torch.randn(10_000_000, generator=torch.Generator().manual_seed(3)))


def not_blocking(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url, blocking=False) as tracer:
        logits = model.lm_head.output.save()
    backend, values = tracer.backend, None
    assert backend.job_id
    until = time.monotonic() + PATIENCE
    while values is None and time.monotonic() < until:
        values = backend.poll()
    assert values is not None and torch.equal(values["logits"], here(model))


def waited_for(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url, blocking=False) as tracer:
        logits = model.lm_head.output.save()
    assert torch.equal(tracer.backend.wait(PATIENCE)["logits"], here(model))


def in_another_process(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url, blocking=False) as tracer:
        logits = model.lm_head.output.save()
    code = (
        "import sys; from nnsight.remote.client import RemoteBackend\n"
        "print(float(RemoteBackend('any', sys.argv[1], job_id=sys.argv[2])"
        ".wait(60)['logits'].double().sum()))"
    )
    words = [sys.executable, "-c", code, url, tracer.backend.job_id]
    said = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert float(said.stdout.split()[-1]) == here(model).double().sum().item()


def awaited(model: Any, url: str) -> None:
    async def main() -> Any:
        with model.trace(PROMPT, backend=AsyncRemoteBackend(model, url)) as tracer:
            logits = model.lm_head.output.save()
        return await tracer.backend

    assert torch.equal(asyncio.run(main())["logits"], here(model))


def async_for(model: Any, url: str) -> None:
    async def main() -> list[Any]:
        with model.trace(PROMPT, backend=AsyncRemoteBackend(model, url)) as tracer:
            logits = model.lm_head.output.save()
        return [event async for event in tracer.backend]

    *events, values = asyncio.run(main())
    assert events[-1].status == "COMPLETED" and torch.equal(values["logits"], here(model))


def async_with(model: Any, url: str) -> None:
    async def one() -> torch.Tensor:
        async with model.trace(PROMPT, remote=url):
            logits = model.lm_head.output.save()
        return logits

    async def main() -> list[torch.Tensor]:
        return await asyncio.gather(*(one() for _ in range(4)))

    wanted = here(model)
    assert all(torch.equal(found, wanted) for found in asyncio.run(main()))


def prints_as_they_come(model: Any, url: str) -> None:
    class Clock(io.StringIO):
        def write(self, text: str) -> int:
            if text.strip():
                said.append((text.strip(), time.monotonic()))
            return len(text)

    said: list[tuple[str, float]] = []
    with contextlib.redirect_stdout(Clock()):
        with model.trace(PROMPT, remote=url):
            print("one", tuple(model.lm_head.output.shape))
            time.sleep(1.0)
            print("two")
    ended = time.monotonic()
    assert [text.split()[0] for text, _ in said] == ["one", "two"], said
    assert ended - said[0][1] > 0.8, "it was printed at the end"


def fails_here(value: Any) -> None:
    raise ValueError("it fails here")


def error_with_lines(model: Any, url: str) -> None:
    with pytest.raises(ValueError, match="it fails here") as caught:
        with model.trace(PROMPT, remote=url):
            logits = model.lm_head.output.save()
            fails_here(logits)
    assert isinstance(caught.value, nnsight.RemoteError) and caught.value.job_id
    lines = [(Path(frame.filename).name, frame.line) for frame in traceback.extract_tb(caught.tb)]
    assert lines[-2:] == [
        ("extra.py", "fails_here(logits)"),
        ("extra.py", 'raise ValueError("it fails here")'),
    ], lines


def error_of_order(model: Any, url: str) -> None:
    with pytest.raises(nnsight.OutOfOrderError) as caught:
        with model.trace(PROMPT, remote=url):
            logits = model.lm_head.output.save()
            early = model.transformer.h[0].output.save()
    frame = traceback.extract_tb(caught.tb)[-1]
    assert frame.line == "early = model.transformer.h[0].output.save()", frame


def works_after_errors(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url):
        logits = model.lm_head.output.save()
    assert torch.equal(logits, here(model))


def unknown_model(model: Any, url: str) -> None:
    form = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "no/such-model", %s}'
    key = form % '"revision": null, "task": "text-generation"'
    backend = RemoteBackend(model, url, blocking=False)
    written = backend._request

    def of_another(*given: Any) -> Any:
        return dataclasses.replace(written(*given), key=key)

    backend._request = of_another  # type: ignore[method-assign]
    with pytest.raises(nnsight.RemoteError, match="Could not deploy"):
        with model.trace(PROMPT, backend=backend):
            logits = model.lm_head.output.save()
        backend.wait(PATIENCE)


def refused_before_sending(model: Any, url: str) -> None:
    with open(__file__) as file:
        with pytest.raises(TypeError, match="cannot leave this process"):
            with model.trace(PROMPT, remote=url):
                text = file.read().save()
    with pytest.raises(TypeError):
        with model.scan(PROMPT, remote=url):
            shape = model.lm_head.output.shape


def a_job_that_is_not_there(model: Any, url: str) -> None:
    backend = RemoteBackend(model, url, job_id="0" * 32)
    assert backend.poll() is None  # NDIF says the same of a job that has only just been sent
    with pytest.raises(nnsight.RemoteError, match="knows no job"):
        backend.wait(PATIENCE)


def no_way_to_cancel(model: Any, url: str) -> None:
    with model.trace(PROMPT, remote=url, blocking=False) as tracer:
        logits = model.lm_head.output.save()
    with pytest.raises(nnsight.RemoteError, match="could not be cancelled"):
        tracer.backend.cancel()
    tracer.backend.wait(PATIENCE)


def remote_true(model: Any, url: str) -> None:
    CONFIG.API.HOST = url
    with model.trace(PROMPT, remote=True):
        logits = model.lm_head.output.save()
    assert torch.equal(logits, here(model))


def status(model: Any, url: str) -> None:
    CONFIG.API.HOST = url
    (repo,) = [name for name, found in nnsight.status().items()]
    assert nnsight.is_model_running(repo) and not nnsight.is_model_running("no/such-model")
    assert "RUNNING" in str(nnsight.status())


def environments(model: Any, url: str) -> None:
    CONFIG.API.HOST = url
    there = nnsight.get_remote_env(force_refresh=True)
    assert there["python_version"].startswith("3.12") and there["packages"]["nnsight"] == "0.8.0"
    assert "transformers" in str(nnsight.compare()) and nnsight.whoami() is not None


EXTRA: dict[str, Callable[[Any, str], None]] = {
    case.__name__: case
    for case in (
        up_20_mb,
        down_40_mb,
        not_blocking,
        waited_for,
        in_another_process,
        awaited,
        async_for,
        async_with,
        prints_as_they_come,
        error_with_lines,
        error_of_order,
        works_after_errors,
        unknown_model,
        refused_before_sending,
        a_job_that_is_not_there,
        no_way_to_cancel,
        remote_true,
        status,
        environments,
    )
}
