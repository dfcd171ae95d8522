"""Loop devices: a file as a block device, under a tag by which its owner knows it again.

A device is born so that it ends with its last descriptor: one whose maker dies leaves nothing.
`keep` lets it stay, once there is something by which it will be found; `release` ends it. The tag
is the device's file name, as losetup shows it; a device that bears another is somebody else's.

Everything here blocks, for as long as the disk pleases.
"""

import errno
import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager

from ..actors.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82

READ_ONLY = 1
AUTOCLEAR = 4

# device, inode, rdevice, offset, size limit; number, encryption and its key's size, flags; names.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_FLAGS_AT, _NAME_AT = 8, 9
_CONFIG = struct.Struct(f"=2I{_INFO.size}s8Q")
ATTEMPTS_MAX = 16


def tag_of(point: str) -> bytes:
    """The tag of the device that stands at `point`."""
    return b"holdfast:" + hashlib.sha256(os.fsencode(point)).hexdigest()[:48].encode()


@contextmanager
def attached(source: str, tag: bytes, *, read_only: bool) -> Generator[str]:
    """A device for the file `source`, by path; it ends with the block unless it was kept."""
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    source_fd = os.open(source, flags)
    try:
        if not stat.S_ISREG(os.fstat(source_fd).st_mode):
            raise InvalidArgument(f"loop source {source} is not a regular file: invalid argument")
        device_fd, path = _configured(source_fd, tag, read_only)
    finally:
        os.close(source_fd)
    try:
        yield path
    finally:
        os.close(device_fd)


def keep(path: str) -> None:
    """Let a device outlive its descriptors."""
    _set_autoclear(path, False)


def bears(path: str, tag: bytes) -> bool:
    """Whether the device is there and bears this tag."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _name(_status(fd)) == tag
    except OSError:
        return False  # it is free
    finally:
        os.close(fd)


def release(path: str, tag: bytes) -> None:
    """End the device, as soon as nobody has it open; nothing when it does not bear the tag."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        if _name(_status(fd)) == tag:
            fcntl.ioctl(fd, LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:  # it is free
            raise
    finally:
        os.close(fd)


def _configured(source_fd: int, tag: bytes, read_only: bool) -> tuple[int, str]:
    for _ in range(ATTEMPTS_MAX):
        try:
            control_fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FailedPrecondition("this host has no loop devices") from None
        try:
            number = fcntl.ioctl(control_fd, LOOP_CTL_GET_FREE)
        finally:
            os.close(control_fd)
        path = f"/dev/loop{number}"
        device_fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        flags = AUTOCLEAR | (READ_ONLY if read_only else 0)
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, tag, b"", b"", 0, 0)
        try:
            fcntl.ioctl(device_fd, LOOP_CONFIGURE, _CONFIG.pack(source_fd, 0, info, *[0] * 8))
        except OSError as error:
            os.close(device_fd)
            if error.errno != errno.EBUSY:  # somebody else took it first
                raise
            continue
        return device_fd, path
    raise ResourceExhausted("no free loop device")


def _set_autoclear(path: str, on: bool) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fields = list(_status(fd))
        flags = fields[_FLAGS_AT]
        fields[_FLAGS_AT] = flags | AUTOCLEAR if on else flags & ~AUTOCLEAR
        fcntl.ioctl(fd, LOOP_SET_STATUS64, _INFO.pack(*fields))
    finally:
        os.close(fd)


def _status(fd: int) -> tuple[int, ...]:
    raw = bytearray(_INFO.size)
    fcntl.ioctl(fd, LOOP_GET_STATUS64, raw)
    return _INFO.unpack(raw)


def _name(status: tuple[object, ...]) -> bytes:
    name = status[_NAME_AT]
    assert isinstance(name, bytes)
    return name.rstrip(b"\0")
