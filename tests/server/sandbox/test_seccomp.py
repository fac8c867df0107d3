"""The filter of system calls, run by an interpreter of its language: for both machines, on any."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from nnsight.server.sandbox import seccomp

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_TRUNC = 0, 1, 2, 0o100, 0o1000
THREAD = 0x003D0F00  # what glibc gives `clone` for a thread


def run(program: bytes, arch: int, number: int, *args: int) -> int:
    """What the kernel would answer to a call, by the rules of classic BPF."""
    given = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<iIQ6Q", number, arch, 0, *(value % 2**64 for value in given))
    steps = list(struct.iter_unpack("<HBBI", program))
    at, word = 0, 0
    for _ in range(len(steps)):
        code, so, not_so, value = steps[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            at += so if holds else not_so
    raise AssertionError("the program does not end")


def program(machine: str) -> bytes:
    return seccomp._program(*seccomp._MACHINES[machine])


ALLOWED: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {
        "read": (0,), "write": (1,), "close": (3,), "mmap": (9,), "futex": (202,),
        "recvfrom": (45,), "sendto": (44,), "exit_group": (231,), "clock_gettime": (228,),
        "open": (2, 0, O_RDONLY), "openat": (257, 0, 0, O_RDONLY), "thread": (56, THREAD),
        "madvise": (28,), "brk": (12,), "sched_yield": (24,), "rt_sigaction": (13,),
    },
    "aarch64": {
        "read": (63,), "write": (64,), "close": (57,), "mmap": (222,), "futex": (98,),
        "recvfrom": (207,), "sendto": (206,), "exit_group": (94,), "clock_gettime": (113,),
        "openat": (56, 0, 0, O_RDONLY), "thread": (220, THREAD), "madvise": (233,), "brk": (214,),
        "sched_yield": (124,), "rt_sigaction": (134,),
    },
}  # fmt: skip
REFUSED: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {
        "socket": (41,), "connect": (42,), "bind": (49,), "fork": (57,), "vfork": (58,),
        "process": (56, 17), "execve": (59,), "execveat": (322,), "kill": (62,), "tkill": (200,),
        "tgkill": (234,), "ptrace": (101,), "prctl": (157,), "setrlimit": (160,),
        "prlimit64": (302,), "unshare": (272,), "setns": (308,), "mount": (165,), "bpf": (321,),
        "unlink": (87,), "unlinkat": (263,), "rename": (82,), "truncate": (76,),
        "ftruncate": (77,), "chmod": (90,), "utimensat": (280,), "memfd_create": (319,),
        "process_vm_readv": (310,), "process_vm_writev": (311,), "pidfd_open": (434,),
        "pidfd_getfd": (438,), "pidfd_send_signal": (424,), "io_uring_setup": (425,),
        "keyctl": (250,), "perf_event_open": (298,), "userfaultfd": (323,), "sendmsg": (46,),
        "rt_sigqueueinfo": (129,), "rt_tgsigqueueinfo": (297,), "mkdir": (83,), "symlink": (88,),
        "open to write": (2, 0, O_WRONLY), "open to make": (2, 0, O_CREAT),
        "open to empty": (2, 0, O_TRUNC), "openat to write": (257, 0, 0, O_RDWR),
    },
    "aarch64": {
        "socket": (198,), "connect": (203,), "bind": (200,), "process": (220, 17),
        "execve": (221,), "execveat": (281,), "kill": (129,), "tkill": (130,), "tgkill": (131,),
        "ptrace": (117,), "prctl": (167,), "setrlimit": (164,), "prlimit64": (261,),
        "unshare": (97,), "setns": (268,), "mount": (40,), "bpf": (280,), "unlinkat": (35,),
        "renameat": (38,), "renameat2": (276,), "truncate": (45,), "ftruncate": (46,),
        "fchmod": (52,), "fchmodat": (53,), "fchown": (55,), "utimensat": (88,),
        "memfd_create": (279,), "process_vm_readv": (270,), "process_vm_writev": (271,),
        "pidfd_open": (434,), "pidfd_getfd": (438,), "pidfd_send_signal": (424,),
        "io_uring_setup": (425,), "keyctl": (219,), "perf_event_open": (241,),
        "userfaultfd": (282,), "sendmsg": (211,), "rt_sigqueueinfo": (138,),
        "rt_tgsigqueueinfo": (240,), "mkdirat": (34,), "symlinkat": (36,), "setxattr": (5,),
        "chdir": (49,), "openat to write": (56, 0, 0, O_WRONLY),
        "openat to make": (56, 0, 0, O_CREAT),
        "openat to empty": (56, 0, 0, O_TRUNC), "init_module": (105,), "reboot": (142,),
        "kexec_load": (104,), "io_setup": (0,), "inotify_init1": (26,), "fsopen": (430,),
        "move_mount": (429,), "open_tree": (428,), "mount_setattr": (442,), "shmget": (194,),
        "setreuid": (145,), "setresuid": (147,), "setgroups": (159,), "recvmmsg": (243,),
        "kcmp": (272,), "process_madvise": (440,), "finit_module": (273,), "fanotify_init": (262,),
    },
}  # fmt: skip


def cases(table: dict[str, dict[str, tuple[int, ...]]]) -> list[Any]:
    return [
        pytest.param(machine, call, id=f"{machine} {name}")
        for machine, calls in table.items()
        for name, call in calls.items()
    ]


@pytest.mark.parametrize(("machine", "call"), cases(ALLOWED))
def test_what_computing_needs_is_let_through(machine: str, call: tuple[int, ...]) -> None:
    assert run(program(machine), MACHINES[machine], *call) == ALLOW


@pytest.mark.parametrize(("machine", "call"), cases(REFUSED))
def test_what_leads_out_is_refused(machine: str, call: tuple[int, ...]) -> None:
    assert run(program(machine), MACHINES[machine], *call) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_machine_end_the_process(machine: str) -> None:
    (other,) = set(MACHINES) - {machine}
    code = program(machine)
    assert run(code, MACHINES[other], 0) == KILL
    assert run(code, 0x40000003, 11) == KILL  # 32 bits: its numbers mean other calls
    assert run(code, MACHINES[machine], 0x40000000 | 59) == KILL  # x32


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_whose_flags_are_hidden_are_not_there(machine: str) -> None:
    code = program(machine)
    assert [run(code, MACHINES[machine], number) for number in (435, 437)] == [ENOSYS] * 2


@pytest.mark.parametrize("machine", MACHINES)
def test_the_program_is_one_that_the_kernel_takes(machine: str) -> None:
    steps = list(struct.iter_unpack("<HBBI", program(machine)))
    assert len(steps) <= 4096 and steps[-1][0] == 0x06
    for at, (code, so, not_so, value) in enumerate(steps):
        assert at + 1 + max(so, not_so) < len(steps) or code == 0x06
        assert code != 0x20 or (value % 4 == 0 and value < 64)
