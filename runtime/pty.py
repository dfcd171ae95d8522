"""The terminal: bytes between a pty's master and the client's FIFOs.

    stdin FIFO --> buffer --> master          master --> buffer --> stdout FIFO or file

Each buffer is bounded: when the far side is full, the near side is not read, and whoever writes
there waits. The poller never waits. Output ends when the master reads EIO, which is when the last
process that had the terminal is gone, and when all of it is written; only then is the FIFO let go.

Standard library alone: the fork server preloads this file.
"""

import array
import fcntl
import os
import select
import socket
import struct
import termios

from ..actors.errors import Unavailable
from .poller import Callback, Event, Poller
from .stdio import Input, Output, Stdio, is_fifo, open_file, output_path

BUFFER_BYTES_MAX = 65536


class ConsoleSocket:
    """Where the OCI runtime sends the master of the terminal that it made."""

    def __init__(self, directory: str, name: str) -> None:
        self._file = f"{directory}/{name}"
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # A path in sockaddr_un ends at 108 bytes; by way of our descriptor every path is short.
        self.path = f"/proc/{os.getpid()}/fd/{self._directory}/{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(self.path)
        self._socket.listen(1)

    def take(self) -> int:
        """The master; call it once the runtime has ended well, for then it is here."""
        try:
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                space = socket.CMSG_SPACE(struct.calcsize("i"))
                _, ancillary, _, _ = connection.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError as error:
            raise Unavailable("the OCI runtime sent no terminal") from error
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return array.array("i", data)[0]
        raise Unavailable("the OCI runtime sent no terminal")

    def close(self) -> None:
        """Removes the socket."""
        self._socket.close()
        os.close(self._directory)
        try:
            os.unlink(self._file)
        except FileNotFoundError:
            pass


class Terminal:
    """One process's terminal. `drained` is set when no more output will come."""

    def __init__(self, poller: Poller, stdio: Stdio) -> None:
        """Opens the client's side; NotFound or InvalidArgument when something is wrong with it."""
        self.drained = Event(poller)
        self.input_closed = False
        self._poller = poller
        self._master: int | None = None
        self._to_client = bytearray()
        self._to_master = bytearray()
        self._input: Input | None = None
        self._output: Output | None = None
        self._file: int | None = None
        try:
            if stdio.stdin:
                self._input = Input(stdio.stdin)
            if stdio.stdout:
                if "://" in stdio.stdout or not is_fifo(output_path(stdio.stdout)):
                    self._file = open_file(stdio.stdout)
                else:
                    self._output = Output(stdio.stdout)
                    os.set_blocking(self._output.writer, False)
        except BaseException:
            self.close()
            raise

    def attach(self, master: int) -> None:
        """Begins to copy."""
        os.set_blocking(master, False)
        self._master = master
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
        self._to_client.clear()
        self._close_master()
        self._close_input()
        self._end_output()
        if self._output is not None:
            self._output.close()

    async def _finish(self) -> None:
        await self.drained
        if self._output is not None:
            await self._output.finish(self._poller)

    def _watch(self) -> None:
        """Watches exactly what can go on; called after each change of a buffer."""
        if self._master is not None:
            events = select.EPOLLOUT if self._to_master else 0
            if len(self._to_client) < BUFFER_BYTES_MAX:
                events |= select.EPOLLIN
            self._set_watch(self._master, events, self._on_master)
        if self._output is not None and self._output.writer >= 0:
            events = select.EPOLLOUT if self._to_client else 0
            self._set_watch(self._output.writer, events, self._on_output)
        if self._input is not None and self._input.reader >= 0:
            room = len(self._to_master) < BUFFER_BYTES_MAX
            self._set_watch(self._input.reader, select.EPOLLIN if room else 0, self._on_input)

    def _set_watch(self, descriptor: int, events: int, callback: Callback) -> None:
        # A hangup is told even when nothing is asked for: no interest means no watch.
        if events:
            self._poller.watch(descriptor, events, callback)
        else:
            self._poller.unwatch(descriptor)

    def _on_master(self, events: int) -> None:
        assert self._master is not None
        if self._to_master:
            self._write(self._master, self._to_master)
        if len(self._to_client) < BUFFER_BYTES_MAX:
            try:
                data = os.read(self._master, BUFFER_BYTES_MAX)
            except BlockingIOError:
                data = None
            except OSError:  # EIO: the last process that had the terminal is gone
                data = b""
            if data == b"":
                self._close_master()
                self._close_input()
            elif data is not None:
                self._to_client += data
        self._flush()

    def _on_output(self, events: int) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._file is not None:
            os.write(self._file, self._to_client)  # a disk: it does not wait for a reader
            self._to_client.clear()
        elif self._output is None:
            self._to_client.clear()
        elif self._to_client:
            self._write(self._output.writer, self._to_client)
        if self._master is None and not self._to_client:
            self._end_output()
        self._watch()

    def _on_input(self, events: int) -> None:
        assert self._input is not None
        try:
            data = os.read(self._input.reader, BUFFER_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:  # every writer is gone, we too
            self._close_input()
            return
        self._to_master += data
        if self._master is not None:
            self._write(self._master, self._to_master)
        self._watch()

    def _write(self, descriptor: int, buffer: bytearray) -> None:
        try:
            written = os.write(descriptor, buffer)
        except BlockingIOError:
            return
        except OSError:  # EIO, EPIPE: nobody is there who could get it
            written = len(buffer)
        del buffer[:written]

    def _close_master(self) -> None:
        if self._master is not None:
            self._poller.unwatch(self._master)
            os.close(self._master)
            self._master = None
        self._to_master.clear()

    def _close_input(self) -> None:
        if self._input is not None:
            self._poller.unwatch(self._input.reader)
            self._input.close()

    def _end_output(self) -> None:
        if self._output is not None and self._output.writer >= 0:
            self._poller.unwatch(self._output.writer)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.drained.set()
