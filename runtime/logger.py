"""The logger of a process: what reads its output, when that is a log URI that asks for one.

    process --> <slot>.log-1 (FIFO) --> logger --> files, or whatever a client's program does
                <slot>.log-2

The shim holds the FIFOs open, and pins them, as it does a client's; so the logger is just another
client, and what is in a FIFO outlives each of us. The logger is a process of its own, which lives
on when shims and daemon die. When it dies itself, another is started on the same FIFOs. EOF comes
to it when the process has ended and the FIFOs are read empty; then it ends by itself.

    <slot>.logger     who it is, by pid and start time
    <slot>.loglock    held by a logger of ours, so that never two write one file

Standard library alone: the fork server preloads this file.
"""

import fcntl
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ..actors import failpoints
from ..actors.errors import DeadlineExceeded, InvalidArgument, Unknown
from ..storage import syscalls as kernel
from . import procfs, syscalls
from .logfile import CappedFile, write_logs
from .loguri import BinaryLog, FileLog, Log
from .poller import Poller
from .stdio import log_fifo, waiting_bytes

NAME: Final = "holdfast-log"
NOTE_SUFFIX: Final = ".logger"
READY_WITHIN_S: Final = 10.0
EMPTY_WITHIN_S: Final = 10.0
"""How long a delete waits until all output is read."""
END_WITHIN_S: Final = 1.0
"""How long a logger may take after the EOF, before it is asked to end."""
TERM_WITHIN_S: Final = 10.0
AGAIN_FIRST_S: Final = 0.1
AGAIN_MAX_S: Final = 5.0
STDOUT, STDERR, WAIT = 3, 4, 5
FAILED: Final = b"!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a logger is at home."""

    bundle: str
    slot: str
    id: str
    namespace: str
    host_namespace: int


class Logger:
    """The logger of one process, from the side of the shim."""

    def __init__(self, poller: Poller, place: Place, logs: tuple[Log | None, Log | None]) -> None:
        self._poller = poller
        self._place = place
        self._logs = logs
        self._note = f"{place.bundle}/{place.slot}{NOTE_SUFFIX}"
        self._fifos = fifos_of(place.bundle, place.slot, logs)
        self._readers: list[int] = []
        self._pidfd: int | None = None
        self._wait = -1
        self._answer: bytes | None = None
        self._again_s = AGAIN_FIRST_S
        self._started_at = 0.0
        self._is_kept = False

    def make(self) -> None:
        """Makes the FIFOs anew, and holds them."""
        for path in self._fifos:
            Path(path).unlink(missing_ok=True)
            os.mkfifo(path, 0o600)
        failpoints.passed("shim.logger.made")
        self._hold()

    async def begin(self) -> None:
        """Starts it, and returns when it is ready; refused when it does not come to be."""
        self._start()
        try:
            if not await self._poller.until(lambda: self._answer is not None, READY_WITHIN_S):
                raise DeadlineExceeded(f"{self._what()}: not ready within {READY_WITHIN_S} s")
            assert self._answer is not None
            if self._answer.startswith(FAILED):
                raise InvalidArgument(f"{self._what()}: {self._answer[1:].decode()}")
            if not self._answer:  # it has closed the pipe, or has ended
                await self._poller.sleep(0.02)
                if self._has_ended():
                    raise Unknown(f"{self._what()}: ended before it was ready")
        except BaseException:
            self.end()
            raise
        self._keep()

    def take(self, ended: bool) -> None:
        """Goes on with the logger that is there, or starts one: for a shim that adopts.

        None is started for a process that has ended and of which all is read.
        """
        self._hold()
        noted = procfs.read_identity(self._note)
        self._pidfd = None if noted is None else procfs.open_pidfd(noted)
        if self._pidfd is None and not (ended and self._is_empty()):
            self._start()
        self._keep()

    async def drain(self) -> None:
        """After the end of the process: returns when all is read and the logger has ended.

        One that does not read, or does not end, is ended.
        """
        await self._poller.until(self._is_at_end, EMPTY_WITHIN_S)
        failpoints.passed("shim.logger.drained")
        if not await self._poller.until(self._has_ended, END_WITHIN_S):
            self._is_kept = False
            self._signal(signal.SIGTERM)
            await self._poller.until(self._has_ended, TERM_WITHIN_S)
        self.end()

    def end(self) -> None:
        """Lets go of all, now; what is not read is lost."""
        self._is_kept = False
        self._signal(signal.SIGKILL)
        self._forget()
        for reader in self._readers:
            os.close(reader)
        self._readers = []
        self._close_wait()
        for path in (*self._fifos, self._note, _lock_path(self._place)):
            Path(path).unlink(missing_ok=True)
        failpoints.passed("shim.logger.removed")

    def _hold(self) -> None:
        self._readers = [
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) for path in self._fifos
        ]

    def _is_at_end(self) -> bool:
        """Whether every FIFO is read empty, and nobody can write any more."""
        poll = select.poll()
        for reader in self._readers:
            poll.register(reader, select.POLLIN)
        ended = {fd for fd, events in poll.poll(0) if events & select.POLLHUP}
        return ended == set(self._readers) and self._is_empty()

    def _is_empty(self) -> bool:
        return not any(map(waiting_bytes, self._readers))

    def _has_ended(self) -> bool:
        if self._pidfd is None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _signal(self, number: int) -> None:
        if self._pidfd is not None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    def _keep(self) -> None:
        """From now on each that ends too early is followed by another."""
        self._is_kept = True
        if self._pidfd is not None:
            self._poller.watch(self._pidfd, select.EPOLLIN, lambda _: self._ended())

    def _ended(self) -> None:
        self._forget()
        if self._is_kept and not self._is_at_end():
            if time.monotonic() - self._started_at > AGAIN_MAX_S:
                self._again_s = AGAIN_FIRST_S
            self._poller.later(self._again_s, self._start_again)
            self._again_s = min(self._again_s * 2, AGAIN_MAX_S)

    def _start_again(self) -> None:
        if self._is_kept and self._pidfd is None and not self._is_at_end():
            self._start()
            self._keep()

    def _forget(self) -> None:
        if self._pidfd is not None:
            self._poller.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _start(self) -> None:
        self._close_wait()
        self._answer = None
        self._started_at = time.monotonic()
        self._wait, tell = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
            if pid == 0:
                _become(self._place, self._logs, self._fifos, tell)
            self._pidfd = os.pidfd_open(pid)
        finally:
            os.close(tell)
        failpoints.passed("shim.logger.started")
        self._poller.watch(self._wait, select.EPOLLIN, lambda _: self._on_wait())

    def _on_wait(self) -> None:
        self._answer = os.read(self._wait, 4096)
        self._close_wait()

    def _close_wait(self) -> None:
        if self._wait >= 0:
            self._poller.unwatch(self._wait)
            os.close(self._wait)
            self._wait = -1

    def _what(self) -> str:
        paths = dict.fromkeys(log.path for log in self._logs if log is not None)
        return f"stdio: logger of {', '.join(paths)}"


def fifos_of(bundle: str, slot: str, logs: tuple[Log | None, Log | None]) -> list[str]:
    """The paths of the FIFOs that a logger reads."""
    stdout, stderr = logs
    shared = isinstance(stderr, FileLog) and stderr == stdout
    wanted = (stdout is not None, stderr is not None and not shared)
    return [log_fifo(bundle, slot, n) for n, is_wanted in enumerate(wanted, 1) if is_wanted]


def end_loggers(bundle: str, names: Sequence[str]) -> None:
    """Ends every logger of a bundle, by its files, also of a process that did not come to be."""
    for name in names:
        if name.endswith(NOTE_SUFFIX):
            noted = procfs.read_identity(f"{bundle}/{name}")
            pidfd = None if noted is None else procfs.open_pidfd(noted)
            if pidfd is not None:
                procfs.kill(pidfd)
                os.close(pidfd)


def _lock_path(place: Place) -> str:
    return f"{place.bundle}/{place.slot}.loglock"


def _become(
    place: Place, logs: tuple[Log | None, Log | None], fifos: list[str], tell: int
) -> NoReturn:
    """The life of a logger, in the forked child."""
    failpoints.enter("logger")
    try:
        host = _moved(place.host_namespace)
        os.dup2(tell, WAIT, inheritable=True)
        try:
            _leave_shim(place, fifos, host)
            log = next(log for log in logs if log is not None)
            if isinstance(log, BinaryLog):
                environment = {"CONTAINER_ID": place.id, "CONTAINER_NAMESPACE": place.namespace}
                os.execve(log.path, [log.path, *log.args], environment)
            _write_files(place, logs, len(fifos))
        except Exception as error:
            os.write(WAIT, FAILED + str(error).encode())
    finally:
        os._exit(1)


def _leave_shim(place: Place, fifos: list[str], host_namespace: int) -> None:
    """Keeps the FIFOs and nothing of the shim's: its lock, its signals, its mounts."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    identity = procfs.identity(os.getpid())
    assert identity is not None
    procfs.write_identity(f"{place.bundle}/{place.slot}{NOTE_SUFFIX}", identity)
    failpoints.passed("logger.noted")
    by_number = {int(path[-1]): path for path in fifos}
    opened = [_moved(_open_reader(by_number.get(number))) for number in (1, 2)]
    for target, source in zip((STDOUT, STDERR), opened, strict=True):
        os.dup2(source, target, inheritable=True)
    null = _moved(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    for target in (0, 1, 2):
        os.dup2(null, target, inheritable=True)
    kernel.setns(host_namespace, kernel.CLONE_NEWNS)
    os.closerange(WAIT + 1, os.sysconf("SC_OPEN_MAX"))


def _open_reader(path: str | None) -> int:
    """The reading end, which waits for bytes; nothing to read where there is no FIFO."""
    if path is None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    # The open itself does not wait: after the process's end there is no writer.
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(reader, True)
    return reader


def _moved(descriptor: int) -> int:
    """A copy with a number that is in nobody's way."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


def _write_files(place: Place, logs: tuple[Log | None, Log | None], count: int) -> NoReturn:
    syscalls.set_name(NAME)
    lock = os.open(_lock_path(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    stdout, stderr = logs
    routes = [(STDOUT, CappedFile(stdout))] if isinstance(stdout, FileLog) else []
    if isinstance(stderr, FileLog) and (count == 2 or stdout is None):
        routes.append((STDERR, CappedFile(stderr)))
    failpoints.passed("logger.opened")
    os.write(WAIT, b"\0")
    os.close(WAIT)
    write_logs(routes)
    failpoints.passed("logger.done")
    os._exit(0)
