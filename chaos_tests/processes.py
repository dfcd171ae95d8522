"""The processes of one daemon, found by positive identity: never by a name alone.

A daemon that we start carries a mark in its environment, which every process that it forks
inherits; the containers' own processes get another environment. A process is pid and start time,
and is signalled through its pidfd, so that no other one is ever hit.
"""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

MARK = "HOLDFAST_CHAOS_MARK"
START_TIME_FIELD = 19  # counted after the command, which may hold spaces


class Role(StrEnum):
    """What a process of Holdfast is there for."""

    DAEMON = "daemon"
    FORK_SERVER = "fork-server"
    SHIM = "shim"
    SPARE = "spare"
    """A shim that has no task yet, or none any more."""
    WORKER = "worker"
    KEEPER = "keeper"
    LOGGER = "logger"
    RUNTIME = "runtime"
    """What the OCI runtime does for a moment; it dies with nobody and ends by itself."""


@dataclass(frozen=True, slots=True)
class Found:
    """A process as it was found."""

    pid: int
    start_time_ticks: int
    role: Role

    def signal(self, number: int) -> bool:
        """Signal this very process; False when it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if start_time(self.pid) != self.start_time_ticks:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


def stat(pid: int) -> tuple[int, str] | None:
    """Start time and state of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[START_TIME_FIELD]), fields[0]


def start_time(pid: int) -> int | None:
    """Start time of a process in ticks since the boot."""
    found = stat(pid)
    return None if found is None else found[0]


def find(mark: str) -> list[Found]:
    """All living processes that bear this mark."""
    return [found for pid in _pids() if (found := _look(pid, mark)) is not None]


def of_role(processes: Iterable[Found], *roles: Role) -> list[Found]:
    """Those of some roles."""
    return [process for process in processes if process.role in roles]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _look(pid: int, mark: str) -> Found | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        if f"{MARK}={mark}".encode() not in environment.split(b"\0"):
            return None
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    state = stat(pid)
    if state is None or state[1] == "Z":
        return None
    return Found(pid, state[0], role_of(comm, words))


def role_of(comm: str, words: list[str]) -> Role:
    """The role that a process's name and command line tell."""
    by_name = {
        "holdfast-fork": Role.FORK_SERVER,
        "holdfast-shim": Role.SHIM,
        "holdfast-spare": Role.SPARE,
        "holdfast-pty": Role.KEEPER,
        "holdfast-log": Role.LOGGER,
    }
    if comm in by_name:
        return by_name[comm]
    if "holdfast.storage.worker" in words:
        return Role.WORKER
    if "holdfast.api.boot" in words or any(word.endswith("/holdfastd") for word in words):
        return Role.DAEMON
    return Role.RUNTIME
