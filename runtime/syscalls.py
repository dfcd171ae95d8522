"""System calls of the shim and the fork server: subreaper, pidfds, sealed memory.

What mounts and namespaces need is in storage's file of the same name. Each function raises OSError
or says what its answer means. Standard library alone: the fork server preloads this file.
"""

import ctypes
import fcntl
import os
import platform
import struct
from typing import Any, Final

PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36

F_ADD_SEALS: Final = 1033
SEALS_ALL: Final = 1 | 2 | 4 | 8  # seal, shrink, grow, write: exactly what crun looks for

PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
PIDFD_INFO_EXIT: Final = 8
PIDFD_GET_INFO: Final = (3 << 30) | (PIDFD_INFO.size << 16) | (0xFF << 8) | 11

TIOCGPTN: Final = 0x80045430


# The calls of before 2011 have other numbers on each machine; the rest of them share one table.
_RENAMEAT2: Final = 316 if platform.machine() == "x86_64" else 276
_PIVOT_ROOT: Final = 155 if platform.machine() == "x86_64" else 41
_PIDFD_GETFD: Final = 438
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

_libc: Any = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes) -> int:
    # A bare int is passed as 32 bits, which leaves the upper half of a register undefined.
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"system call {number}")
    return result


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl {option}")


def become_subreaper() -> None:
    """Orphans among our descendants become our children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name of this process in ps: 15 bytes are kept."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(PR_SET_NAME, ctypes.addressof(text))


def pidfd_exit(pidfd: int) -> int | None:
    """The wait status of a reaped process, whoever reaped it; None before, or before Linux 6.15."""
    buffer = bytearray(PIDFD_INFO.size)
    struct.pack_into("=Q", buffer, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer, True)
    except OSError:
        return None
    fields = PIDFD_INFO.unpack(buffer)
    return int(fields[-1]) if fields[0] & PIDFD_INFO_EXIT else None


def pidfds_tell_exits() -> bool:
    """Whether this kernel tells by a pidfd how a process ended that was reaped."""
    child = os.fork()
    if child == 0:
        os._exit(7)
    pidfd = os.pidfd_open(child)
    try:
        os.waitpid(child, 0)
        return pidfd_exit(pidfd) == 7 << 8
    finally:
        os.close(pidfd)


def pidfd_pid(pidfd: int) -> int:
    """The pid of a process; not above 0 once it was reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """A duplicate, close-on-exec, of another process's descriptor."""
    return _syscall(_PIDFD_GETFD, pidfd, descriptor, 0)


def replace_unsynced(new: str, path: str) -> None:
    """Puts a file in the place of what may be there, at once; the old one is gone.

    Filesystems write out a new file that is renamed over an old one (ext4(5), auto_da_alloc), which
    is work for nothing where a loss of power may take both. Exchanged files they let be.
    """
    words = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
    try:
        _syscall(_RENAMEAT2, *words)
    except OSError:  # there is none, or the filesystem cannot exchange
        os.rename(new, path)
    else:
        os.unlink(new)


def is_pty_master(descriptor: int) -> bool:
    """Whether this is the master of a pseudo-terminal."""
    try:
        fcntl.ioctl(descriptor, TIOCGPTN, bytes(4))
    except OSError:
        return False
    return True


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2): `new` becomes the root of this mount namespace, `old` shows what was it."""
    _syscall(_PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def sealed_copy(path: str) -> int:
    """A sealed memory file with a program's bytes; execute it as /proc/self/fd/N.

    crun copies itself into such a file at every start unless it finds itself in one: running it
    from here saves that copy and an exec.
    """
    sealed = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as program:
            size = os.fstat(program.fileno()).st_size
            copied = 0
            while copied < size:
                copied += os.sendfile(sealed, program.fileno(), copied, size - copied)
        fcntl.fcntl(sealed, F_ADD_SEALS, SEALS_ALL)
    except BaseException:
        os.close(sealed)
        raise
    return sealed
