"""Namespaces of its own (Linux): no network, no memory that others share, no mounts to be changed.

There is none for process numbers: a process can give one to its children only, and a guest has no
children. It sees no other process either way, since `/proc` is closed to it.
"""

from __future__ import annotations

import ctypes
import os
import sys

_USER = 0x10000000
_OTHERS = {"network": 0x40000000, "IPC": 0x08000000, "host name": 0x04000000, "mounts": 0x00020000}


def enter() -> list[str]:
    """Leave those of the server, as far as the kernel lets this process; names of the new ones.

    It must have one thread only.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    entered = ["user"] if libc.unshare(_USER) == 0 else []  # in it, the others need no rights
    return entered + [name for name, flag in _OTHERS.items() if libc.unshare(flag) == 0]


def available() -> list[str]:
    """Which of them a process that this one forks can have."""
    if sys.platform != "linux":
        return []
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, ",".join(enter()).encode())
        finally:
            os._exit(0)
    os.close(write)
    try:
        with open(read, "rb") as told:
            names = told.read().decode()
    finally:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:  # the kernel buries them, in the parent of the guests
            pass
    return [name for name in names.split(",") if name]
