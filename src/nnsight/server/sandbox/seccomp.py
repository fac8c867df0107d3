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
    truncate 76, ftruncate 77, recvmmsg 299, memfd_create 319, tgkill 234, semtimedop 220
    utime 132, utimes 235, futimesat 261, setdomainname 171, setfsuid 122, setfsgid 123
    lremovexattr 198, fremovexattr 199, kexec_file_load 320, fsconfig 431, fsmount 432
    fspick 433, fchmodat2 452
"""
_ARM = """
    io_setup 0, setxattr 5, lsetxattr 6, fsetxattr 7, removexattr 14, lremovexattr 15
    fremovexattr 16, inotify_init1 26, mknodat 33, mkdirat 34, unlinkat 35, symlinkat 36
    linkat 37, renameat 38, umount2 39, mount 40, pivot_root 41, truncate 45, ftruncate 46
    chdir 49, fchdir 50, chroot 51, fchmod 52, fchmodat 53, fchownat 54, fchown 55
    utimensat 88, acct 89, capset 91, personality 92, unshare 97, kexec_load 104
    init_module 105, delete_module 106, ptrace 117, kill 129, tkill 130, tgkill 131
    rt_sigqueueinfo 138, reboot 142, setregid 143, setgid 144, setreuid 145, setuid 146
    setresuid 147, setresgid 149, setfsuid 151, setfsgid 152, setpgid 154, setsid 157
    setgroups 159, sethostname 161, setdomainname 162, setrlimit 164, prctl 167, mq_open 180
    msgget 186, msgctl 187, msgrcv 188, msgsnd 189, semget 190, semctl 191, semtimedop 192
    semop 193, shmget 194, shmctl 195, shmat 196, socket 198, socketpair 199, bind 200
    listen 201, accept 202, connect 203, shutdown 210, sendmsg 211, recvmsg 212, add_key 217
    request_key 218, keyctl 219, execve 221, swapon 224, swapoff 225, rt_tgsigqueueinfo 240
    perf_event_open 241, accept4 242, recvmmsg 243, prlimit64 261, fanotify_init 262
    open_by_handle_at 265, setns 268, sendmmsg 269, process_vm_readv 270
    process_vm_writev 271, kcmp 272, finit_module 273, renameat2 276, memfd_create 279
    bpf 280, execveat 281, userfaultfd 282, kexec_file_load 294, pidfd_send_signal 424
    io_uring_setup 425, io_uring_enter 426, io_uring_register 427, open_tree 428
    move_mount 429, fsopen 430, fsconfig 431, fsmount 432, fspick 433, pidfd_open 434
    pidfd_getfd 438, process_madvise 440, mount_setattr 442, fchmodat2 452
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
