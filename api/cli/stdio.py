"""The client's half of a container's stdio: FIFOs, the terminal, window sizes, signals.

The client makes FIFOs in a private directory and names them to the daemon; the container gets
them as its own. We hold each open for reading and writing, so that opening never waits and a
process that has not started yet is no end of file. The end is the task's exit: whatever was
written by then lies in the FIFO, is drained, and no byte is lost.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import sys
import tempfile
import termios
import tty
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from .output import write_all

CHUNK_BYTES = 65536
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Pipes:
    """The FIFOs' paths; empty for a stream that is not wanted."""

    stdin: str
    stdout: str
    stderr: str


@contextmanager
def pipes(*, interactive: bool, terminal: bool) -> Generator[Pipes]:
    """Fresh FIFOs for one process, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-stdio-"))
    try:
        wanted = Pipes(
            stdin=str(folder / "stdin") if interactive else "",
            stdout=str(folder / "stdout"),
            stderr="" if terminal else str(folder / "stderr"),
        )
        for path in (wanted.stdin, wanted.stdout, wanted.stderr):
            if path:
                os.mkfifo(path, 0o700)
        yield wanted
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def copied(
    names: Pipes, close_stdin: Callable[[], Awaitable[None]]
) -> AsyncGenerator[trio.Event]:
    """Copy between our own stdio and the FIFOs within the block.

    Our stdin is read once the given event is set: a FIFO keeps no byte unless the process has
    its end. Leaving the block drains what the process wrote before it ended. `close_stdin` is
    called once our own stdin has ended and its last byte is in the FIFO.
    """
    running = trio.Event()
    outputs = [
        (_open(path), target) for path, target in ((names.stdout, 1), (names.stderr, 2)) if path
    ]
    inward = _open(names.stdin) if names.stdin else -1
    try:
        async with trio.open_nursery() as nursery:
            for fifo, target in outputs:
                nursery.start_soon(_copy_out, fifo, target)
            if inward >= 0:
                nursery.start_soon(_copy_in, inward, running, close_stdin)
            yield running
            nursery.cancel_scope.cancel()
        for fifo, target in outputs:
            await _drain(fifo, target)
    finally:
        for fifo, _ in outputs:
            os.close(fifo)
        if inward >= 0:
            with contextlib.suppress(OSError):
                os.close(inward)


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


async def _copy_out(fifo: int, target: int) -> None:
    while True:
        await trio.lowlevel.wait_readable(fifo)
        with trio.CancelScope(shield=True):  # what was read is written, or it would be lost
            await _drain(fifo, target)


async def _drain(fifo: int, target: int) -> None:
    while True:
        try:
            data = os.read(fifo, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            return
        await trio.to_thread.run_sync(write_all, target, data)


async def _copy_in(
    fifo: int, running: trio.Event, close_stdin: Callable[[], Awaitable[None]]
) -> None:
    """Our stdin may be a file, a pipe or a terminal: a thread reads it, given up when we end."""
    await running.wait()
    while True:
        data = await trio.to_thread.run_sync(os.read, 0, CHUNK_BYTES, abandon_on_cancel=True)
        if not data:
            break
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fifo, view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(fifo)
    os.close(fifo)
    await close_stdin()


@contextmanager
def raw_terminal() -> Generator[None]:
    """Give every key to the container while the block lasts; our own terminal is restored."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def window() -> tuple[int, int] | None:
    """Our terminal's (columns, rows), or None where we have none."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (columns, rows) if columns and rows else None


async def follow_window(resize: Callable[[int, int], Awaitable[None]]) -> None:
    """Pass each change of our window on, for ever."""
    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        async for _ in changes:
            size = window()
            if size is not None:
                await resize(*size)


async def forward_signals(kill: Callable[[int], Awaitable[None]]) -> None:
    """Pass the signals that would end us to the container instead, for ever."""
    with trio.open_signal_receiver(*FORWARDED) as received:
        async for number in received:
            await kill(number)
