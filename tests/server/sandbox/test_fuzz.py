"""Bytes that no sandbox of ours sends: the model's side says so, and lives."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nnsight.server.sandbox import process
from nnsight.server.sandbox.channel import Channel
from nnsight.server.sandbox.errors import Broken, Gone
from nnsight.server.sandbox.host import Host
from tests.server.sandbox.apart import Sandbox
from tests.server.sandbox.blocks import BLOCKS

LIMIT = 1 << 24


class Recorder(Channel):
    """Keeps what it receives."""

    messages: list[bytes] = []  # noqa: RUF012 - of all, for the test to read

    def _read(self, size: int) -> Any:
        found = super()._read(size)
        if size != 8:
            self.messages.append(bytes(found[1]))
        return found


@pytest.fixture(scope="module")
def recorded(sandbox: Sandbox) -> list[list[bytes]]:
    """What guests send for some blocks."""
    found: list[list[bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "Channel", Recorder)
        for name in ("writes", "invokes", "calls", "caches", "operations", "generates"):
            Recorder.messages = []
            BLOCKS[name](sandbox.model, sandbox)
            found.append(Recorder.messages)
    return found


def served(sandbox: Sandbox, messages: list[bytes], seconds: float = 10.0) -> str:
    """How serving a sandbox that says this ends."""
    ours, theirs = socket.socketpair()

    def speak() -> None:
        try:
            for message in messages:
                theirs.sendall(len(message).to_bytes(8, "little") + message)
            theirs.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def listen() -> None:
        try:
            while theirs.recv(1 << 16):
                pass
        except OSError:
            pass

    threads = [threading.Thread(target=act) for act in (speak, listen)]
    for thread in threads:
        thread.start()
    channel = Channel(ours, LIMIT, time.monotonic() + seconds)
    try:
        Host(channel, sandbox.model, lambda text: None, LIMIT).serve()
        return "ended"
    except (Gone, Broken) as error:
        assert "time is over" not in str(error)
        return type(error).__name__
    finally:
        channel.close()
        theirs.close()
        for thread in threads:
            thread.join()


def mutants(messages: list[bytes], seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    struck = draw.randrange(len(messages))
    for index, message in enumerate(messages):
        if index == struck:
            changed = bytearray(message)
            for _ in range(draw.choice((1, 1, 3, 20))):
                at = draw.randrange(min(len(changed), 4096))
                changed[at] = draw.choice((0, 255, draw.randrange(256), changed[at] ^ 1))
            yield bytes(changed[: draw.randrange(1, len(changed))] if seed % 7 == 0 else changed)
        else:
            yield message


@pytest.mark.timeout(60)
def test_what_was_said_before_is_taken_and_flipped_bytes_are_not_believed(
    sandbox: Sandbox, recorded: list[list[bytes]]
) -> None:
    before = {name: value.clone() for name, value in sandbox.model._module.state_dict().items()}
    assert [served(sandbox, messages) for messages in recorded] == ["ended"] * len(recorded)
    ends = [
        served(sandbox, list(mutants(recorded[seed % len(recorded)], seed))) for seed in range(150)
    ]
    assert "Broken" in ends and set(ends) <= {"Broken", "Gone", "ended"}
    after = sandbox.model._module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("seed", range(5))
def test_noise(sandbox: Sandbox, seed: int) -> None:
    draw = random.Random(seed)
    noise = [draw.randbytes(draw.randrange(1, 2000)) for _ in range(3)]
    assert served(sandbox, noise) == "Broken"


def test_a_message_that_says_it_is_huge(sandbox: Sandbox) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall((1 << 60).to_bytes(8, "little"))
        channel = Channel(ours, LIMIT)
        with pytest.raises(Broken, match="is the most"):
            Host(channel, sandbox.model, print, LIMIT).serve()
        channel.close()


def test_a_guest_that_asks_and_does_not_read(sandbox: Sandbox, recorded: list[list[bytes]]) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as small as the kernel has it
    with theirs:
        for message in recorded[1][:6]:
            theirs.sendall(len(message).to_bytes(8, "little") + message)
        began = time.monotonic()
        channel = Channel(ours, LIMIT, began + 1)
        with pytest.raises(Gone, match="time is over"):
            Host(channel, sandbox.model, print, LIMIT).serve()
        assert time.monotonic() - began < 5
        channel.close()
