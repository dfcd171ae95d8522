"""System calls of the shim and the fork server: subreaper, pidfds, sealed memory.

What mounts and namespaces need is in storage's file of the same name. Each function raises OSError
or says what its answer means. Standard library alone: the fork server preloads this file.
"""

import ctypes
import fcntl
import os
import struct
from typing import Final

PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36

F_ADD_SEALS: Final = 1033
SEALS_ALL: Final = 1 | 2 | 4 | 8  # seal, shrink, grow, write: exactly what crun looks for

PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
PIDFD_INFO_EXIT: Final = 8
PIDFD_GET_INFO: Final = (3 << 30) | (PIDFD_INFO.size << 16) | (0xFF << 8) | 11

_libc = ctypes.CDLL(None, use_errno=True)


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
