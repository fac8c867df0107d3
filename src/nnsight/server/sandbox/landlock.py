"""Landlock: the files that this process may still read, and no network (Linux 5.13 and later)."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT, _VERSION = 444, 445, 446, 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_PR_SET_NO_NEW_PRIVS = 38
_FILES = {1: 13, 2: 14, 3: 15, 4: 15}  # how many rights of files each ABI knows; later ones 16
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


def version() -> int:
    """Which ABI this kernel has; 0: none."""
    if sys.platform != "linux":
        return 0
    return max(_libc().syscall(_CREATE, None, 0, _VERSION), 0)


def restrict(readable: Iterable[str]) -> bool:
    """Keep this process, and what it starts, from all files but those below `readable`, from the
    network (TCP), and from processes outside. Whether the kernel does so."""
    abi = version()
    if not abi:
        return False
    libc = _libc()
    files = (1 << _FILES.get(abi, 16)) - 1
    network = _BIND_AND_CONNECT if abi >= 4 else 0
    scope = _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    rules = struct.pack("QQQ", files, network, scope)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall(_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(libc, ruleset, path)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
        return libc.syscall(_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        folder = os.path.isdir(path)
        rights = (_READ_FILE | _READ_DIR) if folder else _READ_FILE
        rule = struct.pack("=Qi", rights, place)
        libc.syscall(_ADD, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
