"""Procfs: what /proc tells about a process. A process that is gone reads as None or empty.

Standard library alone: the fork server preloads this file.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from . import files, syscalls

STAT_STATE = 0
STAT_PARENT = 1
STAT_START_TIME = 19
STAT_EXIT_CODE = 49


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from every other of this boot: pids are used again, the pair is not."""

    pid: int
    start_time_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that we use. exit_code is a wait status, of use to zombies."""

    state: str
    parent: int
    start_time_ticks: int
    exit_code: int


def parse_stat(text: str) -> Stat:
    """Parses /proc/PID/stat; the name in parentheses may hold spaces and parentheses."""
    fields = text.rsplit(")", 1)[1].split()
    return Stat(
        state=fields[STAT_STATE],
        parent=int(fields[STAT_PARENT]),
        start_time_ticks=int(fields[STAT_START_TIME]),
        exit_code=int(fields[STAT_EXIT_CODE]),
    )


def stat(pid: int) -> Stat | None:
    """The state of a process, or None when it is gone."""
    try:
        return parse_stat(files.text(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def identity(pid: int) -> Identity | None:
    """What tells this process from a later one with the same pid; None when it is gone."""
    found = stat(pid)
    return None if found is None else Identity(pid, found.start_time_ticks)


def open_pidfd(process: Identity) -> int | None:
    """A pidfd of exactly this process; None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Looked at after the open: the pidfd cannot have changed its process in between.
    if identity(process.pid) != process:
        os.close(pidfd)
        return None
    return pidfd


def children() -> list[int]:
    """The pids of this process's children."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += map(int, files.read(f"/proc/self/task/{task}/children").split())
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread that has just ended
    return found


def kill(pidfd: int) -> None:
    """SIGKILL by pidfd; one that has ended is no error."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def read_identity(path: str) -> Identity | None:
    """A process as `write_identity` wrote it down; None where nothing whole is written."""
    try:
        pid, start_time_ticks = files.read(path).split()
        return Identity(int(pid), int(start_time_ticks))
    except (FileNotFoundError, ValueError):
        return None


def identity_text(process: Identity) -> str:
    """A process as `read_identity` reads it; what follows the line may be blank."""
    return f"{process.pid} {process.start_time_ticks}\n"


def write_identity(path: str, process: Identity) -> None:
    """Writes a process down, for as long as this boot lasts: it is not synced."""
    files.write(f"{path}.tmp", identity_text(process).encode())
    os.rename(f"{path}.tmp", path)


def ended(pidfd: int) -> int | None:
    """How a process ended, whoever its parent is; None while it lives, or when nobody can know."""
    found = syscalls.pidfd_exit(pidfd)
    if found is not None:
        return found
    zombie = stat(syscalls.pidfd_pid(pidfd))
    if zombie is not None and zombie.state == "Z":
        return zombie.exit_code
    return syscalls.pidfd_exit(pidfd)  # reaped while we looked


def cgroup_paths(pid: int) -> dict[str, str]:
    """The cgroup of a process in each hierarchy: controllers as the kernel lists them -> path.

    The unified tree has the key "".
    """
    try:
        lines = files.text(f"/proc/{pid}/cgroup").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: path for _, key, path in (line.split(":", 2) for line in lines)}


def has_capability(number: int) -> bool:
    """Whether this process has a capability in its effective set."""
    for line in files.text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
