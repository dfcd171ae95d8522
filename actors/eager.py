"""A socket's stream and locks that take fewer turns of the loop than trio's own.

trio tries to read first, fails, and waits; and after a write, a close, or a lock that was free, it
gives way to others. A peer that answers questions is read from when it has spoken, and has room for
what is written: here reading waits first, and the others give way only where they must wait.
"""

import os

import trio


class Holding:
    """`async with` for a lock or a place of a semaphore."""

    def __init__(self, lock: trio.Lock | trio.Semaphore) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class EagerStream(trio.abc.Stream):
    """The stream of a connected, non-blocking socket. One task reads, one at a time writes.

    Errors are those of trio.SocketStream, which does what cannot be done at once.
    """

    def __init__(self, inner: trio.SocketStream) -> None:
        self.inner = inner

    def send_now(self, data: bytes | bytearray | memoryview) -> int:
        """How many of the bytes could be written at once, 0 to all.

        Raises trio.BrokenResourceError or trio.ClosedResourceError.
        """
        try:
            return os.write(self._descriptor(), data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all; a checkpoint only where the socket is full."""
        sent = self.send_now(data)
        if sent < len(data):
            with memoryview(data) as view:
                await self.inner.send_all(view[sent:])

    async def wait_send_all_might_not_block(self) -> None:
        """As trio's."""
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes, and read them; none at the end of the stream. Always a checkpoint."""
        while True:
            await trio.lowlevel.wait_readable(self._descriptor())
            try:
                return os.read(self._descriptor(), max_bytes or 65536)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"socket connection broken: {error}") from error

    async def aclose(self) -> None:
        """Close the socket; whoever waits for it is told."""
        self.inner.socket.close()

    def _descriptor(self) -> int:
        descriptor = self.inner.socket.fileno()
        if descriptor < 0:
            raise trio.ClosedResourceError("this socket was closed")
        return descriptor
