"""Terminal stdio: the shim copies between a pty's master and the client's FIFOs.

    stdin FIFO --> buffer --> master          master --> stdout FIFO, by splice
                                              master --> buffer --> stdout file

What goes by splice is nowhere in between: our death loses and doubles nothing. Where the far side
is full, the near side is not read, and whoever writes there waits. The poller never waits. Output
ends when the master reads EIO, which is when the last process that had the terminal is gone; only
then is the FIFO let go.

Standard library alone: the fork server preloads this file.
"""

import fcntl
import os
import select
import struct
import termios

from ..actors.errors import Unavailable
from .pins import Pins
from .poller import Callback, Event, Poller
from .ptykeeper import PtyKeeper
from .stdio import Input, Output, Stdio, is_fifo, open_file, output_path

MOVED_BYTES_MAX = 65536
MASTER_WITHIN_S = 5.0
SPLICE_F_NONBLOCK = 2


class Terminal:
    """One process's terminal. `drained` is set when no more output will come."""

    def __init__(
        self, poller: Poller, stdio: Stdio, pins: Pins, keeper: PtyKeeper, slot: str
    ) -> None:
        """Opens the client's side; NotFound or InvalidArgument when something is wrong with it."""
        self.drained = Event(poller)
        self.input_closed = False
        self._poller = poller
        self._keeper = keeper
        self._master: int | None = None
        self._master_full = False
        self._client_full = False
        self._input: Input | None = None
        self._output: Output | None = None
        self._file: int | None = None
        try:
            if stdio.stdin:
                self._input = Input(stdio.stdin, pins, f"{slot}.0")
                self._input.keep(os.O_RDWR)
            if stdio.stdout:
                if "://" in stdio.stdout or not is_fifo(output_path(stdio.stdout)):
                    self._file = open_file(stdio.stdout)
                else:
                    self._output = Output(stdio.stdout, pins, f"{slot}.1")
                    self._output.keep()
                    os.set_blocking(self._output.writer, False)
        except BaseException:
            self.close()
            raise

    def begin(self) -> str:
        """Makes the keeper; the path of the socket at which the OCI runtime hands the master."""
        return self._keeper.begin()

    async def attach(self) -> None:
        """Begins to copy, or goes on where a dead shim was, once the keeper has the master.

        Call it when the runtime has ended well. Unavailable when it sent no terminal, or when that
        was lost with its keeper.
        """
        await self._poller.until(lambda: self._take() or not self._keeper.lives, MASTER_WITHIN_S)
        if self._master is None and not self._take():
            raise Unavailable("the OCI runtime sent no terminal")
        assert self._master is not None
        os.set_blocking(self._master, False)
        if not self._keeper.pid:  # another's child
            self._keeper.renew(self._master)
        self._poller.step(self._keep())
        self._watch()

    def resize(self, width: int, height: int) -> None:
        """Sets the size in characters; the processes in it are told by SIGWINCH."""
        if self._master is not None:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close_input(self) -> None:
        """No more input from us; the client's own end goes on."""
        self.input_closed = True
        if self._input is not None:
            self._input.close_writer()

    def finish(self) -> None:
        """The process has ended: what output there is goes out, then EOF comes."""
        self._close_input()
        self._poller.spawn(self._finish())

    def close(self) -> None:
        """Lets go of all, now."""
        self._end()
        if self._output is not None:
            self._output.close()

    async def _finish(self) -> None:
        await self.drained
        if self._output is not None:
            await self._output.finish(self._poller)

    def _take(self) -> bool:
        self._master = self._keeper.take()
        return self._master is not None

    async def _keep(self) -> None:
        """Makes a keeper for each that dies before its time."""
        while True:
            await self._poller.child(self._keeper.pid)
            if self._master is None:
                return
            self._keeper.renew(self._master)

    def _watch(self) -> None:
        """Watches exactly what can go on; called after each move."""
        if self._master is not None:
            events = 0 if self._client_full else select.EPOLLIN
            if self._master_full:
                events |= select.EPOLLOUT
            self._set_watch(self._master, events, self._on_master)
            if self._output is not None:
                events = select.EPOLLOUT if self._client_full else 0
                self._set_watch(self._output.writer, events, self._on_output)
            if self._input is not None and self._input.reader >= 0:
                events = 0 if self._master_full else select.EPOLLIN
                self._set_watch(self._input.reader, events, self._on_input)

    def _set_watch(self, descriptor: int, events: int, callback: Callback) -> None:
        # A hangup is told even when nothing is asked for: no interest means no watch.
        if events:
            self._poller.watch(descriptor, events, callback)
        else:
            self._poller.unwatch(descriptor)

    def _on_master(self, events: int) -> None:
        if self._master_full:
            self._move_input()
        if not self._client_full:
            self._move_output()
        self._watch()

    def _on_output(self, events: int) -> None:
        self._move_output()
        self._watch()

    def _on_input(self, events: int) -> None:
        self._move_input()
        self._watch()

    def _move_output(self) -> None:
        if self._master is None:
            return
        self._client_full = False
        try:
            moved = self._move_from(self._master)
        except BlockingIOError:
            # Nothing to move, or no room for it: the far side tells which.
            self._client_full = self._output is not None and not _ready(
                self._output.writer, select.POLLOUT
            )
        except OSError:  # EIO: the last process that had the terminal is gone
            self._end()
        else:
            if not moved:
                self._end()

    def _move_from(self, master: int) -> int:
        if self._output is not None:
            return os.splice(master, self._output.writer, MOVED_BYTES_MAX, flags=SPLICE_F_NONBLOCK)
        data = os.read(master, MOVED_BYTES_MAX)
        if self._file is not None:
            os.write(self._file, data)  # a disk: it does not wait for a reader
        return len(data)

    def _move_input(self) -> None:
        if self._master is None or self._input is None or self._input.reader < 0:
            return
        reader = self._input.reader
        self._master_full = False
        try:
            moved = os.splice(reader, self._master, MOVED_BYTES_MAX, flags=SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._master_full = _ready(reader, select.POLLIN)
        except OSError:  # EIO: nobody is there who could get it
            self._close_input()
        else:
            if not moved:  # every writer is gone, we too
                self._close_input()

    def _close_input(self) -> None:
        self._master_full = False
        if self._input is not None:
            self._poller.unwatch(self._input.reader)
            self._input.close()

    def _end(self) -> None:
        """No more output will come."""
        if self._master is not None:
            self._poller.unwatch(self._master)
            os.close(self._master)
            self._master = None
        self._keeper.end()
        self._close_input()
        if self._output is not None and self._output.writer >= 0:
            self._poller.unwatch(self._output.writer)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.drained.set()


def _ready(descriptor: int, events: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, events)
    return any(told & events for _, told in poll.poll(0))
