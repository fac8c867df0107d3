"""The parent of the guests: `python -m nnsight.server.sandbox.nursery FD`."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import traceback

import msgspec
import torch

from nnsight.server.sandbox import confine, guest
from nnsight.server.sandbox.channel import Channel
from nnsight.server.sandbox.process import Birth, Bounds
from nnsight.server.sandbox.skeleton import Skeleton


def main(end: socket.socket) -> None:
    """Build the skeleton, then fork a guest whenever that is asked for, until nobody asks."""
    size = int.from_bytes(end.recv(8, socket.MSG_WAITALL), "little")
    birth = msgspec.msgpack.decode(end.recv(size, socket.MSG_WAITALL), type=Birth)
    try:
        skeleton = _skeleton(birth)
        layers = confine.layers()
    except Exception as error:
        traceback.print_exc()  # into the log of the model's process
        end.sendall(f"{type(error).__name__}: {error}"[:2000].encode())
        return
    gc.collect()
    gc.freeze()  # guests share what is here, as long as nothing writes to it
    end.sendall(msgspec.json.encode(layers))
    while True:
        asked, files, *_ = socket.recv_fds(end, 1, 1)
        if not asked:
            return
        with socket.socket(fileno=files[0]) as channel:
            pid = os.fork()
            if not pid:
                live(channel, skeleton, birth.bounds)
        handle = _handle(pid)
        socket.send_fds(end, [b"1"], [] if handle is None else [handle])
        if handle is not None:
            os.close(handle)


def _skeleton(birth: Birth) -> Skeleton:
    sys.path[:] = birth.path
    torch.set_num_threads(birth.threads)
    module, _, name = birth.make.partition(":")
    return Skeleton(getattr(importlib.import_module(module), name)(birth.model, birth.options))


def _handle(pid: int) -> int | None:
    """What a process is known by for as long as it lives, whoever gets its number afterwards."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def live(end: socket.socket, skeleton: Skeleton, bounds: Bounds) -> None:
    """The life of a guest; never returns."""
    try:
        confine.confine(end.fileno(), bounds.memory, bounds.seconds)
        guest.main(Channel(end), skeleton)
    finally:
        os._exit(1)


if __name__ == "__main__":
    confine.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        main(asked)
