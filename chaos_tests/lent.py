"""A daemon for tests that are no trio programs: it is started, harmed and ended by plain calls."""

import signal
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from . import nemeses
from .daemon import EVERYONE, Daemon
from .history import History
from .processes import Found, Role


class LentDaemon:
    """A running daemon; `address` is containerd's API, for any client of it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def address(self) -> str:
        """The API's socket."""
        return self._daemon.address

    @property
    def pid(self) -> int:
        """The pid of its present, or last, life."""
        return self._daemon.pid

    @property
    def log(self) -> Path:
        """What it said, in all its lives."""
        return self._daemon.log

    def processes(self, *roles: Role) -> list[Found]:
        """Its living processes, of these roles or all."""
        return self._daemon.processes(*roles)

    def kill(self, *roles: Role) -> int:
        """SIGKILL for all of these roles at once, or of all; how many there were."""
        count = nemeses.kill(self.processes(*(roles or EVERYONE)))
        if not roles or Role.DAEMON in roles:
            self.wait_dead()
        return count

    def wait_dead(self) -> None:
        """Return when it has died, of whatever."""
        trio.run(self._daemon.wait_gone)

    def start_again(self) -> float:
        """Start it after a death; the seconds until it answered."""
        return trio.run(self._daemon.start)


@contextmanager
def lend(
    history: History, environment: Mapping[str, str], settings: str = ""
) -> Generator[LentDaemon]:
    """A daemon for the time of a block; ended after it with all that it had. `settings` are
    TOML."""
    # Not below pytest's own directory, whose names may be too long for a socket's.
    with tempfile.TemporaryDirectory(prefix="holdfast-lent-") as folder:
        Path(folder, "config.toml").write_text(settings)
        daemon = Daemon(base=Path(folder), history=history, environment=environment)
        try:
            trio.run(daemon.start)
            yield LentDaemon(daemon)
        finally:
            nemeses.kill(daemon.processes(), signal.SIGCONT)
            trio.run(daemon.stop)
            daemon.clean()
