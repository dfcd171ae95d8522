"""An archive that a client brings: in its messages, or in a file that it lets us read.

A client on this machine need not send what it has in a file. It tells with its call which of its
descriptors that is, and which file; we open it by way of /proc, if we are let and it is that file.
Whoever may ask us for an import is root, and could name any file by its path as well.
"""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO, cast

import trio

from ..grpc.call import Call, Context
from ..proto.services import admin_pb2 as pb

LENT_FILE = "holdfast-file"
"""In a call's metadata: `descriptor:device:inode` of the file that the caller lends."""

ImportCall = Call[pb.ImportRequest, pb.ImportResponse]


def lend(fd: int) -> dict[str, str]:
    """What a caller tells to lend a plain file; nothing when it is none."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return {}
    return {LENT_FILE: f"{fd}:{status.st_dev}:{status.st_ino}"}


@contextmanager
def lent(context: Context) -> Generator[BinaryIO | None, None, None]:
    """The file that the caller lends; None when there is none that we could read."""
    fd = _opened(context)
    if fd is None:
        yield None
        return
    with os.fdopen(fd, "rb", buffering=0) as file:
        yield cast("BinaryIO", file)


def _opened(context: Context) -> int | None:
    try:
        number, device, inode = map(int, context.text(LENT_FILE).split(":"))
        pid = context.peer.pid if context.peer is not None else 0
        # Anew, so that our place in it is not the caller's; not waiting for who writes to a FIFO.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(f"/proc/{pid}/fd/{number}", flags)
    except (ValueError, OSError):
        return None
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) == (device, inode) and stat.S_ISREG(status.st_mode):
        return fd
    os.close(fd)
    return None


class Sent:
    """The archive's bytes as the messages bring them; read by a thread that trio started."""

    def __init__(self, first: bytes, call: ImportCall) -> None:
        self._held = first
        self._call = call

    def read(self, count: int = -1) -> bytes:
        """Between 1 and `count` bytes; none at the end."""
        while not self._held:
            message = trio.from_thread.run(self._call.receive)
            if message is None:
                return b""
            self._held = message.data
        taken = self._held if count < 0 else self._held[:count]
        self._held = self._held[len(taken) :]
        return taken
