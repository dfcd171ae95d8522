"""The keeper of a pty's master: a process that does nothing but hold it.

A master cannot be opened again and the kernel pins none, so that it would go with the shim, and
the container be hung up. The keeper is forked before the OCI runtime makes the terminal and takes
the master from it; a shim takes a duplicate from the keeper, by pidfd_getfd, as does the shim that
comes after it. Only the death of the keeper and of the shim together loses a terminal.

    <bundle>/<slot>.pty    the keeper, by pid and start time
    <bundle>/<slot>.tty    where the runtime sends the master

Standard library alone: the fork server preloads this file.
"""

import array
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from . import procfs, syscalls

MASTER: Final = 0
"""Its number in a keeper: there is /dev/null before it comes, never another terminal."""

RUNTIME_WITHIN_S: Final = 150.0
"""How long a keeper waits for the runtime, which is killed sooner when it hangs."""

READY: Final = b"1"
NOTE_SUFFIX: Final = ".pty"


class PtyKeeper:
    """The keeper of one slot, from the side of the shim."""

    def __init__(self, bundle: str, slot: str) -> None:
        self._bundle = bundle
        self._note = f"{bundle}/{slot}{NOTE_SUFFIX}"
        self._console = f"{slot}.tty"
        self.pid = 0
        """Of the keeper that we began, which is our child."""

    def begin(self) -> str:
        """Starts a keeper that waits for a master; the path of its console socket."""
        # A path in sockaddr_un ends at 108 bytes; by way of a directory of /proc each is short.
        directory = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
                Path(self._bundle, self._console).unlink(missing_ok=True)
                console.bind(f"/proc/self/fd/{directory}/{self._console}")
                console.listen(1)
                self._fork(lambda: _take_from_runtime(self._bundle, self._note, console))
        finally:
            os.close(directory)
        return f"/proc/{self.pid}/cwd/{self._console}"

    def renew(self, master: int) -> None:
        """Starts a keeper for a master that we hold, in place of any other of this slot."""
        old = self._open()
        self._fork(lambda: _take_over(self._note, master, old))
        if old is not None:
            os.close(old)

    def take(self) -> int | None:
        """A duplicate of the master; None while there is none, or no keeper."""
        keeper = self._open()
        if keeper is None:
            return None
        try:
            master = syscalls.pidfd_getfd(keeper, MASTER)
        except OSError:  # the keeper has just ended
            return None
        finally:
            os.close(keeper)
        if syscalls.is_pty_master(master):
            return master
        os.close(master)
        return None

    @property
    def lives(self) -> bool:
        """Whether there is a keeper."""
        keeper = self._open()
        if keeper is not None:
            os.close(keeper)
        return keeper is not None

    def end(self) -> None:
        """Lets the terminal go; there may be no keeper any more."""
        keeper = self._open()
        if keeper is not None:
            procfs.kill(keeper)
            os.close(keeper)
        for path in (self._note, f"{self._bundle}/{self._console}"):
            Path(path).unlink(missing_ok=True)

    def _open(self) -> int | None:
        noted = procfs.read_identity(self._note)
        return None if noted is None else procfs.open_pidfd(noted)

    def _fork(self, become_keeper: Callable[[], Callable[[], None] | None]) -> None:
        """Returns when the new keeper is the one that the note names, or has failed."""
        ready, tell = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _keep(become_keeper, tell)
            os.close(tell)
            tell = -1
            os.read(ready, 1)
        finally:
            os.close(ready)
            if tell >= 0:
                os.close(tell)


def end_keepers(bundle: str, names: Sequence[str]) -> None:
    """Ends every keeper of a bundle, by its files, also of a process that did not come to be."""
    for name in names:
        if name.endswith(NOTE_SUFFIX):
            PtyKeeper(bundle, name.removesuffix(NOTE_SUFFIX)).end()


def _keep(become_keeper: Callable[[], Callable[[], None] | None], tell: int) -> NoReturn:
    """The life of a keeper, in the forked child."""
    try:
        syscalls.set_name("holdfast-pty")
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        wait_for_master = become_keeper()
        os.write(tell, READY)
        if wait_for_master is not None:
            os.close(tell)
            wait_for_master()
        os.closerange(MASTER + 1, os.sysconf("SC_OPEN_MAX"))
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _take_over(note: str, master: int, old: int | None) -> None:
    os.dup2(master, MASTER)
    _write_note(note)
    if old is not None:
        procfs.kill(old)


def _take_from_runtime(bundle: str, note: str, console: socket.socket) -> Callable[[], None]:
    os.chdir(bundle)
    # Whoever follows a shim that was killed at its fork finds us by this.
    _write_note(note)

    def wait_for_master() -> None:
        os.dup2(_receive(console), MASTER)

    return wait_for_master


def _write_note(note: str) -> None:
    identity = procfs.identity(os.getpid())
    assert identity is not None
    procfs.write_identity(note, identity)


def _receive(console: socket.socket) -> int:
    """The master that the runtime sends; OSError or TimeoutError when it sends none."""
    os.closerange(MASTER + 1, console.fileno())
    os.closerange(console.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    console.settimeout(RUNTIME_WITHIN_S)
    connection, _ = console.accept()
    with connection:
        connection.settimeout(RUNTIME_WITHIN_S)
        space = socket.CMSG_SPACE(struct.calcsize("i"))
        _, ancillary, _, _ = connection.recvmsg(4096, space)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return array.array("i", data)[0]
    raise OSError("the OCI runtime sent no terminal")
