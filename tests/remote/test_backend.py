"""`remote=` against a server of one small model: as a user writes it, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nnsight import CONFIG, LanguageModel, RemoteError, RemoteException, RemoteTimeoutError
from nnsight.intervention.backends.remote import AsyncRemoteBackend, RemoteBackend
from nnsight.remote.messages import Event
from tests.benchmarks.remote import serving, tiny

IDS = torch.arange(6)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "gpt2"
    tiny(found)
    return found


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


@pytest.fixture
def model(folder: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setenv("NDIF_HOST", host)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    return LanguageModel(str(folder))


def scaled(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return x * by


def test_the_same_block_here_and_there(model, capsys):
    with model.trace(IDS, remote=True):
        there = scaled(model.transformer.h[1].mlp.output).save()
        print("shape", tuple(model.lm_head.output.shape))
    assert model.dispatched is False
    assert "shape (1, 6, 100)" in capsys.readouterr().out
    with model.trace(IDS):
        here = scaled(model.transformer.h[1].mlp.output).save()
    torch.testing.assert_close(there, here)


def test_an_address_in_place_of_the_usual_one(model, host, monkeypatch):
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:9")
    with model.trace(IDS, remote=host):
        last = model.lm_head.output[:, -1].save()
    assert last.shape == (1, 100)
    with pytest.raises(ValueError, match="says nowhere"), model.trace(IDS, remote="somewhere"):
        pass


def test_generation_sessions_and_several_invokes(model):
    with model.generate(IDS, max_new_tokens=3, remote=True) as tracer:
        steps = [].save()
        for _ in tracer.iter[:]:
            steps.append(model.lm_head.output[0, -1].argmax().item())
        ids = tracer.result.save()
    assert ids[0, 6:].tolist() == steps
    with model.session(remote=True):
        with model.trace(IDS):
            kept = model.transformer.h[0].mlp.output
        with model.trace(IDS, remote=True):  # where it runs is where it was sent
            model.transformer.h[0].mlp.output = kept * 0
            zeroed = model.transformer.h[0].mlp.output.save()
    assert not zeroed.any()
    with model.trace(remote=True) as tracer:
        with tracer.invoke(IDS):
            one = model.transformer.h[0].mlp.output.save()
        with tracer.invoke(IDS + 1):
            model.transformer.h[0].mlp.output[:] = one
            both = model.lm_head.output.save()
    assert one.shape == (1, 6, 32)
    assert both.shape == (1, 6, 100)


def test_a_call_without_a_block(model):
    there = model.generate(IDS, max_new_tokens=3, remote=True)
    assert there.shape == (1, 9)
    out = model.trace(IDS, trace=False, remote=True)
    assert out.logits.shape == (1, 6, 100)


def test_an_error_is_of_its_own_type_at_the_users_line(model):
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        with model.trace(IDS, remote=True):
            kept = model.transformer.h[0].mlp.output.save()
            kept + torch.ones(7)
    error = caught.value
    assert isinstance(error, RemoteError)
    assert RemoteException is RemoteError
    assert error.saved["kept"].shape == (1, 6, 32)
    lines = [entry.frame.code.raw.co_filename for entry in caught.traceback]
    assert lines[-1] == __file__
    assert str(caught.traceback[-1].statement).strip() == "kept + torch.ones(7)"


class Mine(LookupError):
    pass


def test_an_error_of_a_class_of_ones_own_is_named(model):
    """The class is not there: `except` meets what it comes from, and a note says its name."""
    with pytest.raises(LookupError, match=r"^so\n") as caught:
        with model.trace(IDS, remote=True):
            raise Mine("so")
    assert isinstance(caught.value, RemoteError) and caught.value.type == "Mine"
    assert "(there it is a `Mine`)" in caught.value.__notes__


def test_a_job_that_is_not_waited_for(model, capsys, host):
    with model.trace(IDS, remote=True, blocking=False) as tracer:
        print("later")
        last = model.lm_head.output[:, -1].save()
    backend = tracer.backend
    assert backend.job_id
    values = backend.wait(30.0)
    assert capsys.readouterr().out == "later\n"
    assert values["last"].shape == (1, 100)
    assert backend() is not None
    assert backend.wait() is values
    assert "last" not in locals()
    again = RemoteBackend(host=host, job_id=backend.job_id)()
    torch.testing.assert_close(again["last"], values["last"])
    with model.trace(IDS, remote=True, job_id=backend.job_id):
        last = model.lm_head.output[:, -1].save()
    torch.testing.assert_close(last, values["last"])


def test_a_failed_job_that_is_not_waited_for(model):
    with model.trace(IDS, remote=True, blocking=False) as tracer:
        raise KeyError("mine")
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            tracer.backend.wait(30.0)
    with pytest.raises(KeyError):
        tracer.backend()


def test_a_limit_of_time(model):
    with pytest.raises(RemoteTimeoutError) as caught, model.trace(IDS, remote=True, timeout=1.0):
        time.sleep(60)
    RemoteBackend(host=CONFIG.API.HOST, job_id=caught.value.job_id).cancel()


CTRL_C = """
import time, sys, torch
from nnsight import LanguageModel
model = LanguageModel(sys.argv[1])
try:
    with model.trace(torch.arange(6)[None], remote=sys.argv[2]) as tracer:
        print("running", flush=True)
        time.sleep(60)
except KeyboardInterrupt as error:
    print(error.__notes__ if hasattr(error, "__notes__") else "", flush=True)
    print(tracer.backend.job_id, flush=True)
"""


def test_ctrl_c_cancels_the_job(folder, host, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CTRL_C)
    process = subprocess.Popen(
        [sys.executable, script, str(folder), host],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NNSIGHT_REMOTE_LOGGING": "0"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # the block runs there
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=50)
    finally:
        process.kill()
    assert first == "running\n", errors
    assert "was cancelled" in said, errors
    job = said.split()[-1]
    with pytest.raises(RemoteError, match="cancel"):
        RemoteBackend(host=host, job_id=job).wait(10.0)


class TestAwaiting:
    def test_a_backend(self, model):
        async def ask():
            backend = AsyncRemoteBackend(model)
            with model.trace(IDS, backend=backend):
                last = model.lm_head.output[:, -1].save()  # noqa: F841
            return await backend

        assert asyncio.run(ask())["last"].shape == (1, 100)

    def test_events_and_values(self, model):
        async def ask():
            backend = AsyncRemoteBackend(model)
            with model.trace(IDS, backend=backend):
                print("hello")
                last = model.lm_head.output[:, -1].save()  # noqa: F841
            return [update async for update in backend]

        *events, values = asyncio.run(ask())
        assert all(isinstance(event, Event) for event in events)
        assert "hello" in [event.description for event in events if event.status == "LOG"]
        assert events[-1].status == "COMPLETED"
        assert values["last"].shape == (1, 100)

    def test_a_block_while_the_loop_goes_on(self, model):
        async def block():
            async with model.trace(IDS, remote=True):
                time.sleep(0.5)
                last = model.lm_head.output[:, -1].save()
            return last

        async def both():
            ticks = 0
            task = asyncio.create_task(block())
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            return await task, ticks

        last, ticks = asyncio.run(both())
        assert last.shape == (1, 100)
        assert ticks > 10

    def test_an_error_of_such_a_block(self, model):
        async def block():
            async with model.trace(IDS, remote=True):
                kept = model.lm_head.output.save()
                raise ValueError("mine")
            return kept

        with pytest.raises(ValueError, match="mine") as caught:
            asyncio.run(block())
        assert caught.value.saved["kept"].shape == (1, 6, 100)

    def test_nobody_waits_any_more(self, model):
        async def leave():
            backend = AsyncRemoteBackend(model)
            with model.trace(IDS, backend=backend):
                time.sleep(2)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(backend, 0.3)
            return backend

        backend = asyncio.run(leave())
        assert RemoteBackend(host=CONFIG.API.HOST, job_id=backend.job_id).wait(30.0) == {}


def test_blocks_side_by_side(model):
    found = {}

    def one(number):
        with model.trace(IDS + number, remote=True):
            ids = model.transformer.wte.input.save()
        found[number] = ids

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert {n: ids[0, 0].item() for n, ids in found.items()} == {n: n for n in range(6)}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
