"""A sandbox that dies or stands still at any of the messages that it and the model exchange."""

from __future__ import annotations

import gc
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnsight.modeling.language import LanguageModel
from nnsight.remote.errors import RemoteError
from nnsight.server.sandbox import process
from nnsight.server.sandbox.channel import Channel
from tests.conftest import hooks_on
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import ONE, TWO
from tests.server.sandbox.conftest import MAKE

pytestmark = pytest.mark.timeout(180)


class Struck(process.Nursery):
    """A nursery whose next guest is sent a signal before one of its messages."""

    at: int | None = None  # before which message
    signal: int = signal.SIGKILL
    count = 0  # of messages of the last guest
    guest: Any = None

    def _fork(self, end: socket.socket) -> Any:
        self.guest = super()._fork(end)
        return self.guest

    def message(self) -> None:
        if self.count == self.at:
            signal.pidfd_send_signal(self.guest.handle, self.signal)
        self.count += 1


@pytest.fixture(scope="module")
def struck(gpt2_folder: Path) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server.sandbox.apart.Nursery", Struck)
        sandbox = Sandbox(LanguageModel(gpt2_folder, dispatch=True), MAKE, gpt2_folder)
        nursery: Any = sandbox.nursery

        class Counted(Channel):
            def send(self, *given: Any) -> None:
                nursery.message()
                super().send(*given)

            def receive(self) -> Any:
                nursery.message()
                return super().receive()

        patch.setattr(process, "Channel", Counted)
        yield sandbox
        sandbox.close()


def everything(model: Any, at: Any) -> tuple[torch.Tensor, ...]:
    """A block of each verb that speaks with the model: reads, edits, invokes, steps, gradients."""
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            print("begun")
            early = model.transformer.h[0].mlp.output.save()
            model.transformer.h[1].mlp.output[:] = early * 2
            late = model.transformer.h[3].mlp.output
            loss = model.lm_head.output.sum()
            with loss.backward():
                gradient = late.grad.save()
        with tracer.invoke(TWO):
            mean = model.transformer.h[2].mlp.output.mean().save()
    return early, gradient, mean


def generation(model: Any, at: Any) -> tuple[torch.Tensor, ...]:
    with model.generate(ONE, max_new_tokens=3, backend=at) as tracer:
        logits = [].save()
        for _ in tracer.iter[:]:
            model.transformer.h[1].mlp.output *= 1.5
            logits.append(model.lm_head.output[:, -1])
        result = tracer.result.save()
    return result, *logits


RIGHT: dict[Any, Any] = {}


def right(sandbox: Sandbox, block: Any) -> int:
    """See that a block gives what it gives beside the model; how many messages it took."""
    nursery: Any = sandbox.nursery
    nursery.at, nursery.count = None, 0
    if block not in RIGHT:
        RIGHT[block] = block(sandbox.model, None)
        sandbox.model.zero_grad()
    given = block(sandbox.model, sandbox)
    assert len(given) == len(RIGHT[block]) and all(map(torch.equal, given, RIGHT[block]))
    return nursery.count


def strike(sandbox: Sandbox, block: Any, at: int, number: int) -> str:
    """What is said of a block whose sandbox gets a signal; the model is as it was."""
    nursery: Any = sandbox.nursery
    nursery.at, nursery.signal, nursery.count = at, number, 0
    before = {name: value.clone() for name, value in sandbox.model._module.state_dict().items()}
    with pytest.raises(RemoteError) as raised:
        block(sandbox.model, sandbox)
    assert hooks_on(sandbox.model._module) == []
    after = sandbox.model._module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in sandbox.model._module.parameters())
    return str(raised.value)


@pytest.mark.parametrize("block", [everything, generation])
def test_it_is_killed_before_any_message(struck: Sandbox, block: Any) -> None:
    messages = right(struck, block)
    assert messages > 10
    threads = threading.active_count()
    # all but the last, which is the result: the sandbox may have sent it already
    for at in range(0, messages - 1, 1 if block is everything else 4):
        said = strike(struck, block, at, signal.SIGKILL)
        assert "sandbox of this block ended before the block did" in said, (at, said)
        if at % 5 == 0:
            right(struck, block)
    gc.collect()
    right(struck, block)
    assert threading.active_count() <= threads + 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_stands_still_before_a_message(struck: Sandbox, share: float) -> None:
    last = right(struck, everything) - 2
    nursery: Any = struck.nursery
    bounds, nursery.bounds = nursery.bounds, process.Bounds(seconds=1.0)
    said = strike(struck, everything, round(last * share), signal.SIGSTOP)
    nursery.bounds = bounds
    assert "ran longer than the 1 s" in said
    right(struck, everything)


def test_their_parent_is_killed(struck: Sandbox) -> None:
    right(struck, everything)
    nursery: Any = struck.nursery
    nursery._process.kill()
    nursery._process.wait()
    right(struck, everything)
