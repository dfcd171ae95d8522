"""Stdio: where a process's input comes from and its output goes.

A client's FIFO is handed to the container itself: no byte passes through us. We hold both ends as
well, so that the container sees neither EOF nor SIGPIPE while the client is away:

    stdin   our write end is closed by close_io; EOF comes once the client's is closed too
    stdout  our read end is closed when the process has ended. Our write end stays until a reader
            is there, for a FIFO without any open end forgets what is in it; then EOF comes

What we hold is pinned in the vault too, so that it holds when we are killed.

Standard library alone: the fork server preloads this file.
"""

import array
import fcntl
import os
import select
import stat
import termios
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..actors.errors import InvalidArgument, NotFound, Unimplemented
from .pins import Pins
from .poller import Poller

READER_POLL_FIRST_S = 0.005
READER_POLL_MAX_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Where a process's streams lead: "" (nowhere), the path of a FIFO, or a file:// URI."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Input:
    """Our hold on a FIFO that is a process's stdin."""

    def __init__(self, path: str, pins: Pins, name: str) -> None:
        """`name` is that of its pin, which `keep` makes."""
        # A reader first: then neither end's open waits for the other.
        self.reader = _open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._path = path
        self._pins = pins
        self._name = name
        try:
            self._writer: int | None = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self.reader)
            raise

    def keep(self, flags: int = os.O_WRONLY) -> None:
        """Pins a writing end: our death is no EOF. With O_RDWR also what nobody has read yet."""
        self._pins.keep_fifo(self._name, self._path, flags)

    def close_writer(self) -> None:
        """Lets EOF come once the client has closed its end."""
        if self._writer is not None:
            self._pins.drop(self._name)
            os.close(self._writer)
            self._writer = None

    def close_reader(self) -> None:
        """The process has an end of its own, or is gone."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def close(self) -> None:
        """Lets go of all."""
        self.close_writer()
        self.close_reader()


class Output:
    """Our hold on a FIFO that is a process's stdout or stderr."""

    def __init__(self, path: str, pins: Pins, name: str) -> None:
        """`name` is that of its pin, which `keep` makes."""
        self._path = path
        self._pins = pins
        self._name = name
        self._reader: int | None = _open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.writer = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._reader)
            raise

    def keep(self) -> None:
        """Pins both ends: our death is no SIGPIPE, and no loss of what nobody has read yet."""
        self._pins.keep_fifo(self._name, self._path, os.O_RDWR)

    def has_reader(self) -> bool:
        """Whether anyone can read, we or another."""
        poll = select.poll()
        poll.register(self.writer, 0)
        return not poll.poll(0)  # POLLERR is told unasked, and means no reader

    async def finish(self, poller: Poller) -> None:
        """After the process's end: lets EOF come as soon as there is a reader for it."""
        if is_log_fifo(self._path, self._pins.bundle):
            await self._read_empty(poller)
        if self._reader is not None:
            if waiting_bytes(self._reader):
                # A pin that is no reader takes over: a client is told from us again.
                self._pins.keep_fifo(f"{self._name}e", self._path, os.O_WRONLY)
            self._pins.drop(self._name)
            os.close(self._reader)
            self._reader = None
        pause_s = READER_POLL_FIRST_S
        while self.writer >= 0 and not self.has_reader():
            # No event tells of a reader, and its open does not wait for us: look again.
            await poller.sleep(pause_s)
            pause_s = min(pause_s * 2, READER_POLL_MAX_S)
        self.close()

    async def _read_empty(self, poller: Poller) -> None:
        """A logger of ours reads it, and may die: we hold all until it has."""
        pause_s = READER_POLL_FIRST_S
        while self._reader is not None and waiting_bytes(self._reader):
            await poller.sleep(pause_s)
            pause_s = min(pause_s * 2, READER_POLL_MAX_S)

    def close(self) -> None:
        """Lets go of all; bytes that nobody reads are lost with it."""
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None
        if self.writer >= 0:
            self._pins.drop(self._name, f"{self._name}e")
            os.close(self.writer)
            self.writer = -1


class Streams:
    """The stdio of one process without a terminal."""

    def __init__(self, stdio: Stdio, pins: Pins, slot: str) -> None:
        """Opens all that `stdio` names; NotFound or InvalidArgument when something is wrong.

        What are FIFOs is pinned, in the slot.
        """
        self.input: Input | None = None
        self.outputs: list[Output] = []
        self.input_closed = False
        self._pins = pins
        self._slot = slot
        self._handed: list[int] = []
        try:
            self._handed.append(self._open_input(stdio.stdin))
            for number, uri in ((1, stdio.stdout), (2, stdio.stderr)):
                self._handed.append(self._open_output(uri, number))
            self._keep()
        except BaseException:
            self.close()
            raise

    def descriptors(self) -> tuple[int, int, int]:
        """What the process gets as 0, 1 and 2."""
        stdin, stdout, stderr = self._handed
        return stdin, stdout, stderr

    def handed_over(self) -> None:
        """The process has its descriptors: closes ours of the same open files."""
        for descriptor in self._handed:
            os.close(descriptor)
        self._handed = []
        if self.input is not None:
            self.input.close_reader()

    def close_input(self) -> None:
        """See Input.close_writer."""
        self.input_closed = True
        if self.input is not None:
            self.input.close_writer()

    def finish(self, poller: Poller) -> None:
        """The process has ended."""
        if self.input is not None:
            self.input.close()
        for output in self.outputs:
            poller.spawn(output.finish(poller))

    def close(self) -> None:
        """Lets go of all, now."""
        self.handed_over()
        if self.input is not None:
            self.input.close()
        for output in self.outputs:
            output.close()

    @classmethod
    def again(cls, stdio: Stdio, input_closed: bool, pins: Pins, slot: str) -> "Streams":
        """Holds the FIFOs of a process that has its ends already: for a shim that adopts it."""
        self = cls(Stdio(), pins, slot)
        self.handed_over()
        self.input_closed = input_closed
        try:
            if stdio.stdin and not input_closed and is_fifo(stdio.stdin):
                self.input = Input(stdio.stdin, pins, f"{slot}.0")
                self.input.close_reader()
            for number, uri in ((1, stdio.stdout), (2, stdio.stderr)):
                if uri and is_fifo(output_path(uri)):
                    self.outputs.append(Output(output_path(uri), pins, f"{slot}.{number}"))
        except (NotFound, InvalidArgument):
            pass  # its client took a FIFO away: nobody will read
        return self

    def _keep(self) -> None:
        if self.input is not None:
            self.input.keep()
        for output in self.outputs:
            output.keep()

    def _open_input(self, path: str) -> int:
        if not path:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if not is_fifo(path):
            return _open(path, os.O_RDONLY)
        self.input = Input(path, self._pins, f"{self._slot}.0")
        # An open file of its own: O_NONBLOCK is a trait of the open file, not of the descriptor.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _open_output(self, uri: str, number: int) -> int:
        if not uri:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        path = output_path(uri)
        if "://" in uri or not is_fifo(path):
            return open_file(uri)
        self.outputs.append(Output(path, self._pins, f"{self._slot}.{number}"))
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def log_fifo(bundle: str, slot: str, number: int) -> str:
    """The FIFO by which a logger of ours gets a stream; `number` is the stream's, 1 or 2."""
    return f"{bundle}/{slot}.log-{number}"


def is_log_fifo(path: str, bundle: str) -> bool:
    """Whether `log_fifo` gave the path, and it is no client's."""
    return os.path.dirname(path) == bundle and path.endswith((".log-1", ".log-2"))


def output_path(uri: str, scheme: str = "file") -> str:
    """The path that an output's URI or plain path names."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    if parts.scheme == "fifo":
        return unquote(parts.path)
    if parts.scheme != scheme:
        raise Unimplemented(f"stdio {uri}: scheme {parts.scheme} is not supported")
    if not parts.path.startswith("/") or parts.netloc not in ("", "localhost"):
        raise InvalidArgument(f"stdio {uri}: not an absolute path")
    return unquote(parts.path)


def open_file(uri: str) -> int:
    """A log file, for appending; made, with its directory, when it is named by a URI."""
    path = output_path(uri)
    if "://" in uri:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return _open(path, os.O_WRONLY | os.O_APPEND)


def is_fifo(path: str) -> bool:
    """Whether the path is a FIFO; NotFound when it is nothing."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError as error:
        raise NotFound(f"stdio {path}: not found") from error


def waiting_bytes(reader: int) -> int:
    """How many bytes in a FIFO nobody has read yet."""
    count = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, count)
    return count[0]


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except FileNotFoundError as error:
        raise NotFound(f"stdio {path}: not found") from error
    except OSError as error:
        raise InvalidArgument(f"stdio {path}: {error.strerror}") from error
