"""What is taken from a guest before it reads a byte: layers, as far as the kernel has them."""

from __future__ import annotations

import os
import resource
import sys

from nnsight.server.confine import die_with_parent

__all__ = ["confine", "die_with_parent", "layers"]


def layers() -> dict[str, str]:
    """What a guest is kept from, by each layer that this machine has."""
    return {"prlimit": "yes"}


def confine(end: int, memory: int, seconds: float) -> None:
    """Take everything from this process but the open file `end`, for good."""
    die_with_parent()
    _close_all_but(end)
    os.environ.clear()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CPU: int(seconds) + 60,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _close_all_but(end: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else range(3, 4096):
        if (number := int(name)) > 2 and number != end:
            try:
                os.close(number)
            except OSError:  # that of the listing itself
                pass
    sys.stdin = None  # type: ignore[assignment]
