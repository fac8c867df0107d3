"""What is taken from a guest before it reads a byte: layers, as far as the kernel has them."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import sysconfig
from pathlib import Path

from nnsight.server.confine import die_with_parent
from nnsight.server.sandbox import landlock, namespaces, seccomp

__all__ = ["confine", "die_with_parent", "layers"]

_PR_SET_DUMPABLE = 4


def layers() -> dict[str, str]:
    """What keeps a guest from harm on this machine, in words; empty: it does not."""
    abi = landlock.version()
    own = namespaces.available()
    return {
        "prlimit": "processor time, memory, open files, no file is written",
        "landlock": f"ABI {abi}: no files but those of Python, no TCP" if abi else "",
        "namespaces": f"its own: {', '.join(own)}" if own else "",
        "seccomp": "no sockets, processes or signals" if seccomp.available() else "",
    }


def confine(end: int, memory: int, seconds: float) -> None:
    """Take everything from this process but the open file `end`, for good."""
    _close_all_but(end)
    namespaces.enter()
    die_with_parent()  # now: new rights would take that back
    os.environ.clear()
    os.chdir("/")
    _limit(memory, seconds)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    landlock.restrict(_of_python())
    seccomp.restrict()


def _limit(memory: int, seconds: float) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_AS: memory + _mapped(),
        resource.RLIMIT_CPU: (int(seconds) + 60) * (os.cpu_count() or 1),
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _mapped() -> int:
    """Bytes of address space that this process has already."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _of_python() -> set[str]:
    """Where the code of Python, of its packages and of the system's libraries lies.

    What the block imports is read from there. Nothing of a user's is.
    """
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {str(Path(__file__).parents[2]), "/usr/lib", "/usr/lib64", "/lib", "/lib64"}
    places |= {"/proc/cpuinfo", "/sys/devices/system/cpu"}  # torch chooses its kernels by them
    places |= {"/usr/share/zoneinfo", "/dev/urandom", "/dev/null", "/etc/localtime"}
    return {place for place in places if place}


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
