"""What keeps a worker from harm on the machine, layer by layer, as far as the kernel has them.

The code of a trusted user runs in the process that holds the weights; these layers are for
accidents there. A sandbox for others is a process of its own and uses the rest of them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_GET_NO_NEW_PRIVS, _PR_SET_NO_NEW_PRIVS = 1, 39, 38
_PR_GET_SECCOMP = 21
_LANDLOCK_CREATE_RULESET, _LANDLOCK_VERSION = 444, 1
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONWARNINGS"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_DEVICE_ORDER", "PYTORCH_CUDA_ALLOC_CONF"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "VIRTUAL_ENV"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "SSL_CERT_FILE", "HTTPS_PROXY"),
)
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""What loading a model may need; they are taken away before the first job."""


def clean_environment(empty: Path | None) -> dict[str, str]:
    """The environment of a worker: nothing but what Python, torch and the hub's cache need.

    Args:
        empty: its folder; None: that which this process has.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    home = os.environ.get("HF_HOME", str(cache / "huggingface"))
    kept["HF_HOME"] = home
    if "HF_HUB_CACHE" in os.environ:
        kept["HF_HUB_CACHE"] = os.environ["HF_HUB_CACHE"]
    home = os.getcwd() if empty is None else str(empty)
    return {**kept, "HOME": home, "TMPDIR": home}


def die_with_parent() -> None:
    """Have the kernel kill this process when the server is killed."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(memory: int | None) -> None:
    """Take what a job does not need from this process, for good. The model is loaded already."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def layers() -> dict[str, bool]:
    """Which layers are in force in this process."""
    import resource

    linux = sys.platform == "linux"
    return {
        "prlimit": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        "no_new_privs": linux and _prctl(_PR_GET_NO_NEW_PRIVS) == 1,
        "landlock": False,  # would keep a trusted user from files of their own
        "seccomp": linux and _prctl(_PR_GET_SECCOMP) > 0,
    }


def available() -> dict[str, str]:
    """What this machine has of each layer, in words; empty: it has none of it."""
    if sys.platform != "linux":
        return {"prlimit": "yes", "no_new_privs": "", "landlock": "", "seccomp": ""}
    libc = ctypes.CDLL(None, use_errno=True)
    landlock = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    status = Path("/proc/self/status").read_text()
    return {
        "prlimit": "yes",
        "no_new_privs": "yes" if _prctl(_PR_GET_NO_NEW_PRIVS) >= 0 else "",
        "landlock": f"ABI {landlock}" if landlock > 0 else "",
        "seccomp": "filters" if "Seccomp_filters" in status else "",
    }


def _prctl(option: int, value: int = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
