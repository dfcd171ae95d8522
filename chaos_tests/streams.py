"""The client's side of a container's stdio: FIFOs as `ctr` makes them, read as it reads them.

    out = Reader(path); nursery.start_soon(out.run) ... await out.finish() ... out.data

A reader may go away and come back, as a client's terminal does; while it is away only Holdfast
keeps the bytes that the container writes.
"""

import errno
import os
from pathlib import Path

import trio

from .patience import PATIENCE

CHUNK = 65536
END_WITHIN_S = 5.0 * PATIENCE
PAUSE_S = 0.01


class Reader:
    """Reads one FIFO until its end is seen after the container's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray()
        self.ended = False
        self._over = trio.Event()
        self._done = trio.Event()
        self._descriptor: int | None = None
        os.mkfifo(path, 0o600)
        self.attach()

    def attach(self) -> None:
        """Hold the reading end."""
        if self._descriptor is None:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags)

    def leave(self) -> None:
        """Let go of the reading end, with whatever stands unread in the FIFO."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    async def run(self) -> None:
        """Read until `finish` was called and the end was seen, or its time is over."""
        try:
            while not (self._over.is_set() and self.ended):
                self.ended = not self._read_all()
                await trio.sleep(PAUSE_S)
        finally:
            self.leave()
            self._done.set()

    async def finish(self) -> None:
        """The container is gone: read what is left, and see the end."""
        self.attach()
        self._over.set()
        with trio.move_on_after(END_WITHIN_S):
            await self._done.wait()

    def _read_all(self) -> bool:
        """Take what is there; False when no writer is left."""
        while self._descriptor is not None:
            try:
                data = os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.data += data
        return True


class Writer:
    """Writes to a container's stdin FIFO; holds the writing end from the first write on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        os.mkfifo(path, 0o600)

    async def write(self, data: bytes) -> None:
        """Write all, whenever there is a reader and room."""
        while data:
            try:
                if self._descriptor is None:
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                    self._descriptor = os.open(self.path, flags)
                data = data[os.write(self._descriptor, data) :]
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.EAGAIN, errno.EPIPE):
                    raise
                if error.errno == errno.EPIPE:
                    self.close()
                await trio.sleep(PAUSE_S)

    def close(self) -> None:
        """Let go of the writing end."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Gate:
    """A FIFO inside the container; a process that reads it waits until it is opened."""

    def __init__(self, path: Path) -> None:
        self.is_open = False
        os.mkfifo(path, 0o600)
        # Both ends: what we write waits there for whoever comes to read.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def open(self) -> None:
        """Let one process pass, now or when it comes."""
        if not self.is_open:
            self.is_open = True
            os.write(self._descriptor, b"go\n")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)
