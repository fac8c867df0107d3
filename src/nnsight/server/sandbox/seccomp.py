"""A filter of system calls: what is not needed to compute and to talk over one socket is refused.

A small program for the kernel (classic BPF), for x86-64 and ARM64. A call on the list gives EPERM,
so that Python raises `PermissionError` and the block sees an error of its own.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_GET_SECCOMP, _FILTER = 38, 22, 21, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL, _NOT_THERE = 0x7FFF0000, 0x00050001, 0x80000000, 0x00050026
_CLONE_THREAD = 0x10000
_FOREIGN = 0x40000000  # calls of another ABI begin here

# what is refused, with its number, by machine
_X86 = """
    socket 41, connect 42, accept 43, sendmsg 46, recvmsg 47, shutdown 48, bind 49, listen 50
    socketpair 53, fork 57, vfork 58, execve 59, kill 62, semget 64, semop 65, semctl 66
    shmget 29, shmat 30, shmctl 31, msgget 68, msgsnd 69, msgrcv 70, msgctl 71, chdir 80
    fchdir 81, rename 82, mkdir 83, rmdir 84, creat 85, link 86, unlink 87, symlink 88, chmod 90
    fchmod 91, chown 92, fchown 93, lchown 94, ptrace 101, setuid 105, setgid 106, setpgid 109
    setsid 112, setreuid 113, setregid 114, setgroups 116, setresuid 117, setresgid 119
    capset 126, mknod 133, personality 135, pivot_root 155, prctl 157, chroot 161, acct 163
    mount 165, umount2 166, swapon 167, reboot 169, sethostname 170, init_module 175
    delete_module 176, setxattr 188, lsetxattr 189, fsetxattr 190, removexattr 197, tkill 200
    io_setup 206, mq_open 240, kexec_load 246, add_key 248, request_key 249, keyctl 250
    inotify_init 253, mkdirat 258, mknodat 259, fchownat 260, unlinkat 263, renameat 264
    linkat 265, symlinkat 266, fchmodat 268, unshare 272, accept4 288, inotify_init1 294
    perf_event_open 298, fanotify_init 300, open_by_handle_at 304, setns 308
    process_vm_readv 310, process_vm_writev 311, kcmp 312, finit_module 313, renameat2 316
    bpf 321, execveat 322, userfaultfd 323, io_uring_setup 425, io_uring_enter 426
    io_uring_register 427, open_tree 428, move_mount 429, fsopen 430, pidfd_open 434
    pidfd_getfd 438, process_madvise 440, mount_setattr 442, sendmmsg 307, pidfd_send_signal 424
    rt_sigqueueinfo 129, rt_tgsigqueueinfo 297, prlimit64 302, setrlimit 160, utimensat 280
    truncate 76, ftruncate 77, recvmmsg 299, memfd_create 319
"""
_ARM = """
    socket 198, socketpair 199, bind 200, listen 201, accept 202, connect 203, shutdown 210
    sendmsg 211, recvmsg 212, kill 129, tkill 130, ptrace 117, execve 221, execveat 281
    setuid 146, setgid 144, setpgid 154, setsid 157, capset 91, prctl 167, unshare 97, setns 268
    mount 40, umount2 39, chroot 51, pivot_root 41, bpf 280, mkdirat 34, mknodat 33, unlinkat 35
    renameat 38, linkat 37, symlinkat 36, fchmodat 53, fchownat 54, renameat2 276
    process_vm_readv 270, process_vm_writev 271, accept4 242, userfaultfd 282
    perf_event_open 241, io_uring_setup 425, io_uring_enter 426, io_uring_register 427
    pidfd_open 434, pidfd_getfd 438, pidfd_send_signal 424, add_key 217, request_key 218
    keyctl 219, open_by_handle_at 265, sendmmsg 269, prlimit64 261, personality 92, shmget 194
    msgget 186, semget 190, mq_open 180
"""
_UNSEEN = (435, 437)
"""`clone3` and `openat2`, whose flags a filter cannot see: glibc goes on with the older ones."""
_WRITES = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_MACHINES = {  # with the number of `clone`, and of those that open files: where their flags are
    "x86_64": (0xC000003E, _X86, 56, {2: 24, 257: 32}),
    "aarch64": (0xC00000B7, _ARM, 220, {56: 32}),
}


def available() -> bool:
    """Whether this machine takes a filter."""
    return sys.platform == "linux" and platform.machine() in _MACHINES and _mode() >= 0


def restrict() -> bool:
    """Refuse those calls from here on, in all threads of this process. Whether that is in force."""
    if not available():
        return False
    code = _program(*_MACHINES[platform.machine()])
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    return libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), program, 0, 0) == 0


def _mode() -> int:
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)


def _program(arch: int, calls: str, clone: int, opens: dict[int, int]) -> bytes:
    """The filter: each step is an operation, two jumps (if so, if not) and a number."""
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 0, 1, _FOREIGN),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in _UNSEEN:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOT_THERE)]
    for number in sorted({int(word) for word in calls.replace(",", " ").split()[1::2]}):
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for number, flags in opens.items():  # to read, and not to write
        steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, flags), (_ANY_OF, 0, 1, _WRITES)]
        steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    steps += [
        (_EQUAL, 0, 3, clone),  # a thread, and no process
        (_LOAD, 0, 0, 16),
        (_ANY_OF, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
