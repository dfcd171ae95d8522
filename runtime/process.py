"""A process of a container as its shim keeps it: its state, what it holds, its exit record.

    CREATING --> CREATED --> STARTING --> RUNNING --> STOPPED
                    +------------------------------------^

A container's first process has the exec id "" and, being made by the OCI runtime's create, has a
pid from CREATED on; a further one has its pid from RUNNING on.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import cbor2

from ..actors import failpoints
from . import files, frames
from .logger import Logger
from .procfs import Identity
from .pty import Terminal
from .stdio import Stdio, Streams

STATUS_LOST: Final = 255


class Status(StrEnum):
    """Where a process is in its life."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How a process ended: its exit status, or 128 and the signal. `lost`: nobody can know."""

    pid: int
    status: int
    exited_at_ns: int
    lost: bool = False


def exit_status(wait_status: int) -> int:
    """The status that clients are told."""
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def write_exit(bundle: str, exec_id: str, record: ExitRecord) -> None:
    """Makes the record durable: it outlives us and a loss of power once this returns."""
    directory = f"{bundle}/exits"
    os.makedirs(directory, exist_ok=True)
    write_durable(f"{directory}/{_file_name(exec_id)}", cbor2.dumps(frames.told(record)))


def read_exit(bundle: str, exec_id: str) -> ExitRecord | None:
    """The record of a process that has ended; None while there is none."""
    try:
        data = files.read(f"{bundle}/exits/{_file_name(exec_id)}")
    except FileNotFoundError:
        return None
    return ExitRecord(**cbor2.loads(data))


def remove_exit(bundle: str, exec_id: str) -> None:
    """Forgets a record: its exec id may come again."""
    files.unlink(f"{bundle}/exits/{_file_name(exec_id)}")


def write_durable(path: str, data: bytes) -> None:
    """Replaces a file so that after any crash it holds all of the old or all of the new."""
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        files.write_all(descriptor, data)
        failpoints.reach("shim.file.fsync")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    failpoints.reach("shim.file.rename")
    os.rename(temporary, path)
    failpoints.passed("shim.file.renamed")
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _file_name(exec_id: str) -> str:
    # An exec may well be called "init".
    return f"exec-{exec_id}.cbor" if exec_id else "init.cbor"


@dataclass(slots=True, kw_only=True)
class Process:
    """One process. `pidfd` is open while it lives, `streams` and `terminal` while it has stdio.

    `waiter` is, after an adoption, the pidfd of the OCI runtime that waits for a further process.
    """

    exec_id: str
    stdio: Stdio
    status: Status
    identity: Identity | None = None
    pidfd: int | None = None
    waiter: int | None = None
    streams: Streams | None = None
    terminal: Terminal | None = None
    logger: Logger | None = None
    # Invariant: set exactly when STOPPED.
    exit: ExitRecord | None = None
    ending: bool = False

    @property
    def pid(self) -> int:
        """Its pid, 0 before it has one."""
        if self.identity is not None:
            return self.identity.pid
        return self.exit.pid if self.exit is not None else 0

    @property
    def is_live(self) -> bool:
        """Whether a kernel process stands behind it."""
        return self.identity is not None and self.exit is None

    def close_input(self) -> None:
        """Lets its stdin end when the client's end does."""
        if self.terminal is not None:
            self.terminal.close_input()
        if self.streams is not None:
            self.streams.close_input()

    def descriptors(self) -> tuple[int, int, int]:
        """What the OCI runtime is given as its own stdio."""
        assert self.streams is not None
        return self.streams.descriptors()

    async def handed_over(self) -> None:
        """The runtime has made the process, which has its stdio; Unavailable without terminal."""
        if self.streams is not None:
            self.streams.handed_over()
        if self.terminal is not None:
            await self.terminal.attach()

    def release(self) -> None:
        """Lets go of all descriptors."""
        if self.terminal is not None:
            self.terminal.close()
            self.terminal = None
        if self.streams is not None:
            self.streams.close()
            self.streams = None
        if self.logger is not None:
            self.logger.end()
            self.logger = None
        self.forget_pidfds()

    def forget_pidfds(self) -> None:
        """It has ended, or is nobody's any more."""
        for pidfd in (self.pidfd, self.waiter):
            if pidfd is not None:
                os.close(pidfd)
        self.pidfd = self.waiter = None

    def told(self) -> dict[str, Any]:
        """What a client is told of it."""
        return {
            "exec_id": self.exec_id,
            "status": "created" if self.status is Status.STARTING else str(self.status),
            "pid": self.pid,
            "stdio": frames.told(self.stdio),
            "exit_status": self.exit.status if self.exit is not None else 0,
            "exited_at_ns": self.exit.exited_at_ns if self.exit is not None else 0,
            "lost": self.exit is not None and self.exit.lost,
        }

    def saved(self) -> dict[str, Any]:
        """What the next shim needs, should we die."""
        holder = self.terminal or self.streams
        return {
            "exec_id": self.exec_id,
            "stdio": frames.told(self.stdio),
            "status": str(self.status),
            "identity": frames.told(self.identity) if self.identity is not None else None,
            "input_closed": holder.input_closed if holder is not None else False,
        }
