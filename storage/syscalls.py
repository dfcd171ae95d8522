"""System calls that the standard library lacks, as plain functions that raise `OSError`.

Everything here is synchronous and may block for as long as the kernel pleases: on the loop
only calls on descriptors that are known to be quick are allowed, the rest belongs to a worker
process. Paths are bytes or str as in `os`; descriptors are close-on-exec.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Any

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000

CLONE_NEWNS = 0x20000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

FICLONE = 0x40049409

# Since Linux 5.2 every architecture numbers its new calls alike.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_OPENAT2 = 437

_libc: Any = ctypes.CDLL(None, use_errno=True)
_syscall: Callable[..., int] = _libc.syscall
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, *names: bytes | str | None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        shown = [os.fsdecode(name) for name in names if name]
        raise OSError(number, os.strerror(number), *shown[:1])
    return result


def _long(value: int) -> ctypes.c_long:
    # A bare int is passed as 32 bits, which leaves the upper half of a register undefined.
    return ctypes.c_long(value)


def _bytes(value: bytes | str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def openat2(dir_fd: int, path: bytes | str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below `dir_fd`, resolved by the rules in `resolve`; a descriptor."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    while True:
        fd = _syscall(_long(_OPENAT2), _long(dir_fd), raw, how, _long(len(how)))
        # EAGAIN says that a rename raced with the walk, and to try again.
        if fd >= 0 or ctypes.get_errno() not in (11, 4):
            return _checked(fd, raw)


def open_tree(dir_fd: int, path: bytes | str, flags: int) -> int:
    """A descriptor of the mount at `path`; with OPEN_TREE_CLONE of a detached copy of it."""
    raw = os.fsencode(path)
    # O_CLOEXEC doubles as OPEN_TREE_CLOEXEC.
    number = _long(_OPEN_TREE)
    return _checked(_syscall(number, _long(dir_fd), raw, _long(flags | os.O_CLOEXEC)), raw)


def move_mount(from_fd: int, target: bytes | str) -> None:
    """Attach the detached mount `from_fd` at `target`."""
    raw = os.fsencode(target)
    _checked(
        _syscall(
            _long(_MOVE_MOUNT),
            _long(from_fd),
            b"",
            _long(AT_FDCWD),
            raw,
            _long(MOVE_MOUNT_F_EMPTY_PATH),
        ),
        raw,
    )


def fsopen(filesystem: str) -> int:
    """A descriptor on which a new filesystem of that type is configured."""
    raw = os.fsencode(filesystem)
    return _checked(_syscall(_long(_FSOPEN), raw, _long(FSOPEN_CLOEXEC)), raw)


def fsconfig(fs_fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set one parameter of the filesystem under construction, or create it."""
    _checked(
        _syscall(
            _long(_FSCONFIG), _long(fs_fd), _long(command), _bytes(key), _bytes(value), _long(0)
        ),
        key,
    )


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """A descriptor of the created filesystem, mounted nowhere; closing it unmounts it."""
    return _checked(
        _syscall(_long(_FSMOUNT), _long(fs_fd), _long(FSMOUNT_CLOEXEC), _long(attributes))
    )


def mount(
    source: bytes | str | None,
    target: bytes | str,
    filesystem: str | None,
    flags: int,
    data: bytes | str | None = None,
) -> None:
    """mount(2)."""
    raw = os.fsencode(target)
    _checked(
        _libc.mount(_bytes(source), raw, _bytes(filesystem), ctypes.c_ulong(flags), _bytes(data)),
        raw,
    )


def umount2(target: bytes | str, flags: int) -> None:
    """umount2(2)."""
    raw = os.fsencode(target)
    _checked(_libc.umount2(raw, ctypes.c_int(flags)), raw)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    """setns(2), for the calling thread."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def syncfs(fd: int) -> None:
    """Write the whole filesystem that holds `fd` to its disk."""
    _checked(_libc.syncfs(ctypes.c_int(fd)))
