"""What the kernel takes from a process that is to run a program nobody has read: Landlock for files, seccomp for system calls.

Both need no privileges, hold for the rest of the process's life, and can be had inside containers. Where the kernel lets it, the process
gets namespaces of its own as well (user, network, IPC). Standard library alone: jail.py imports it, in a bare interpreter.
Numbers are those of linux/landlock.h, linux/seccomp.h, asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

# Landlock, the same numbers on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
RIGHTS = (13, 14, 15, 15, 16)  # how many rights to files each version of Landlock knows; the last holds for later ones too
TCP, SCOPES = 0b11, 0b11  # bind and connect, since version 4; abstract sockets and signals, since version 6
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER_MODE, DEATH_SIGNAL = 38, 22, 2, 1
NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, IPC; in one call, so that all or none are had

# System calls that a Python program needs which computes and reads its library: name, number on x86-64, number on arm64. All others are
# refused, among them: fork, exec, kill, ptrace, socket, mount, chmod, setrlimit, memfd_create, io_uring.
CALLS = """
    read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
    rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -, sched_yield 24 124,
    mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, dup3 292 24, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, exit 60
    93, uname 63 160, getcwd 79 17, chdir 80 49, fchdir 81 50, readlink 89 -, readlinkat 267 78, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179,
    times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getpgid 121 155, getsid 124 156,
    sigaltstack 131 132, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, statfs 137 43, fstatfs 138 44, gettid 186 178, futex 202 98,
    sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120, get_mempolicy 239 236, set_tid_address 218 96, clock_gettime 228 113, clock_getres 229
    114, clock_nanosleep 230 115, exit_group 231 94, openat 257 56, newfstatat 262 79, faccessat 269 48, faccessat2 439 439, pselect6 270 72, ppoll 271 73,
    set_robust_list 273 99, get_robust_list 274 100, pipe2 293 59, getrandom 318 278, membarrier 324 283, statx 332 291, rseq 334 293, getdents 78 -, getdents64 217 61,
    close_range 436 436, getcpu 309 168, wait4 61 260, waitid 247 95, arch_prctl 158 -,
    fcntl 72 25, ioctl 16 29, tgkill 234 131, clone 56 220, clone3 435 435, prlimit64 302 261
"""
ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}  # what seccomp calls it, and its column above
# (numbers, offset of the argument, what it may be): fcntl not to ask for signals to others, ioctl for what open() asks, tgkill for itself.
FCNTL = (0, 1, 2, 3, 4, 1030)  # duplicate a descriptor, its flags, duplicate it closed on exec
IOCTL = (0x5401, 0x5450, 0x5451)  # is it a terminal; closed on exec or not
THREAD = 0x10000  # CLONE_THREAD
ALLOW, REFUSE, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000  # errno EPERM, ENOSYS
LOAD, AND, EQUAL, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST, SECOND, THIRD = 0, 4, 16, 24, 32  # offsets in seccomp_data; arguments are 64 bits, low half first

libc = ctypes.CDLL(None, use_errno=True)


def confine(readable: Sequence[str]) -> dict[str, object]:
    """Take from this process all but reading `readable` and computing. Returns what is in force: Landlock's version (0 for none), and
    whether system calls are filtered and namespaces its own."""
    libc.prctl(DEATH_SIGNAL, 9, 0, 0, 0)  # with the process that waits for it
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    apart = libc.unshare(NAMESPACES) == 0
    return {"landlock": _landlock(readable), "namespaces": apart, "seccomp": _drop_capabilities() and _filter()}


def _landlock(readable: Sequence[str]) -> int:
    """Version of Landlock in force; 0 where the kernel has none."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return 0
    handled = (1 << RIGHTS[min(version, len(RIGHTS)) - 1]) - 1
    words = (handled, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)[: 3 if version >= 6 else 2 if version >= 4 else 1]
    rules = struct.pack(f"={len(words)}Q", *words)
    ruleset = libc.syscall(CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    for path in readable:
        _may_read(ruleset, path)
    done = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return version if done else 0


def _may_read(ruleset: int, path: str) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not every system has every folder
        return
    rights = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE | WRITE_FILE if path == os.devnull else READ_FILE
    libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, opened), 0)
    os.close(opened)


def _drop_capabilities() -> bool:
    """Without them root is a user like others, who owns root's files: Landlock and the filter keep it from those."""
    return libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0


def _filter() -> bool:
    """Let through the calls of CALLS alone. False on an architecture that has no column there, or a kernel that has no filters."""
    if platform.machine() not in ARCHITECTURES:
        return False
    code = _program(*ARCHITECTURES[platform.machine()])
    buffer = ctypes.create_string_buffer(b"".join(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(buffer)))
    return libc.prctl(SET_SECCOMP, FILTER_MODE, header, 0, 0) == 0


def _program(architecture: int, column: int) -> list[bytes]:
    """The filter in BPF, eight bytes an instruction."""
    table = {words[0]: words[column] for words in (line.split() for line in CALLS.replace("\n", " ").split(","))}
    number = {name: int(value) for name, value in table.items() if value != "-"}
    code = [_step(LOAD, ARCHITECTURE), _step(EQUAL, architecture, 1, 0), _step(RETURN, KILL), _step(LOAD, NUMBER)]
    for name, value in number.items():
        code += [] if name in _SPECIAL else [_step(EQUAL, value, 0, 1), _step(RETURN, ALLOW)]
    for name, block in ((one, made) for one, made in _SPECIAL.items() if one in number):
        inside = block(os.getpid())
        code += [_step(EQUAL, number[name], 0, len(inside)), *inside]
    return [*code, _step(RETURN, REFUSE)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _one_of(offset: int, values: Sequence[int]) -> list[bytes]:
    """Allow the call where its argument is one of `values`."""
    return [_step(LOAD, offset), *(step for value in values for step in (_step(EQUAL, value, 0, 1), _step(RETURN, ALLOW))), _step(RETURN, REFUSE)]


def _without_truncation(offset: int) -> list[bytes]:
    """Open a file, but not to empty it without asking to write (O_TRUNC with access mode 0 or 3), which Landlock does not see before version 3."""
    return [_step(LOAD, offset), _step(AND, 0o1003), _step(EQUAL, 0o1000, 2, 0), _step(EQUAL, 0o1003, 1, 0), _step(RETURN, ALLOW), _step(RETURN, REFUSE)]


_SPECIAL = {  # name -> (this process's id) -> instructions, each of which ends in a verdict
    "open": lambda own: _without_truncation(SECOND),
    "openat": lambda own: _without_truncation(THIRD),
    "fcntl": lambda own: _one_of(SECOND, FCNTL),
    "ioctl": lambda own: _one_of(SECOND, IOCTL),
    "tgkill": lambda own: _one_of(FIRST, (own,)),
    "clone": lambda own: [_step(LOAD, FIRST), _step(ANY_BIT, THREAD, 0, 1), _step(RETURN, ALLOW), _step(RETURN, REFUSE)],
    "clone3": lambda own: [_step(RETURN, NO_SUCH_CALL)],  # its flags lie in memory, where a filter cannot look; the C library then takes clone
    # Limits may be read and not set: the new ones, a pointer, are to be null.
    "prlimit64": lambda own: [_step(LOAD, THIRD), _step(EQUAL, 0, 0, 3), _step(LOAD, THIRD + 4), _step(EQUAL, 0, 0, 1), _step(RETURN, ALLOW), _step(RETURN, REFUSE)],
}
