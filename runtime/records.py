"""Records: what the store keeps of a task, of its execs, and of each exit.

    task   <id>              one per container task, from the intent to create it until its delete
    exec   <id>/<exec id>    one per added process
    exit   <id>/<exec id>    one per ended process; the first process's has an empty exec id

An exit record is written once, in one transaction with the new state and the `/tasks/exit` event,
and goes with the record of its process. Nothing else may say that a process has ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self, cast

from ..actors.errors import DataLoss
from ..storage.mounts import Mount
from .stdio import Stdio

TASK = "task"
EXEC = "exec"
EXIT = "exit"

STATUS_LOST = 255
SANDBOX_MARK = "_"


class State(StrEnum):
    """Where a task is in its life. GONE has no record."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETING = "deleting"
    GONE = "gone"


class ExecState(StrEnum):
    """Where an exec is in its life. GONE has no record."""

    ADDED = "added"
    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How a process ended. `status` is its code, or 128 + the signal that killed it."""

    pid: int
    status: int
    exited_at_ns: int

    def to_record(self) -> dict[str, int]:
        """For the store."""
        return {"pid": self.pid, "status": self.status, "exited_at_ns": self.exited_at_ns}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From the store."""
        return cls(
            pid=int(record["pid"]),
            status=int(record["status"]),
            exited_at_ns=int(record["exited_at_ns"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A task. `exit` is set exactly in STOPPED; `pid` from CREATED on.

    `runtime` is the name in the container's record, or the path of a shim's binary; it is empty for
    a task that was recorded before names were heeded, and means our own shim.
    """

    namespace: str
    id: str
    state: State
    bundle: str
    stdio: Stdio
    rootfs: Sequence[Mount] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    runtime: str = ""
    pid: int = 0
    exit: ExitRecord | None = None
    memory_kills: int = 0
    """How many of the kernel's kills for want of memory were told."""

    @property
    def name(self) -> str:
        """The name of the task's actor."""
        return task_name(self.namespace, self.id)

    def stopped(self, exit: ExitRecord) -> Self:
        """The same task after its end."""
        return replace(self, state=State.STOPPED, exit=exit)

    def to_record(self) -> dict[str, Any]:
        """For the store."""
        return {
            "state": self.state.value,
            "bundle": self.bundle,
            "stdio": stdio_to_record(self.stdio),
            "rootfs": [mount.to_record() for mount in self.rootfs],
            "options": dict(self.options),
            "runtime": self.runtime,
            "pid": self.pid,
            "exit": None if self.exit is None else self.exit.to_record(),
            "memory_kills": self.memory_kills,
        }

    @classmethod
    def from_record(cls, namespace: str, id: str, record: Mapping[str, Any]) -> Self:
        """From the store; DataLoss when it is no task record."""
        try:
            return cls(
                namespace=namespace,
                id=id,
                state=State(record["state"]),
                bundle=str(record["bundle"]),
                stdio=Stdio(**record["stdio"]),
                rootfs=[Mount.from_record(mount) for mount in record["rootfs"]],
                options=cast(Mapping[str, Any], record["options"]),
                runtime=str(record.get("runtime", "")),
                pid=int(record["pid"]),
                exit=_exit(record["exit"]),
                memory_kills=int(record.get("memory_kills", 0)),  # an older record has none
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"task {id}: record is damaged: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRecord:
    """A further process of a task. `spec` is its OCI process in JSON."""

    namespace: str
    task_id: str
    id: str
    state: ExecState
    spec: bytes
    stdio: Stdio
    pid: int = 0
    exit: ExitRecord | None = None

    @property
    def name(self) -> str:
        """The name of the exec's actor."""
        return exec_name(self.namespace, self.task_id, self.id)

    @property
    def key(self) -> str:
        """Its key in the store, as an exec and as an exit."""
        return process_key(self.task_id, self.id)

    def stopped(self, exit: ExitRecord) -> Self:
        """The same exec after its end."""
        return replace(self, state=ExecState.STOPPED, exit=exit)

    def to_record(self) -> dict[str, Any]:
        """For the store."""
        return {
            "state": self.state.value,
            "spec": self.spec,
            "stdio": stdio_to_record(self.stdio),
            "pid": self.pid,
            "exit": None if self.exit is None else self.exit.to_record(),
        }

    @classmethod
    def from_record(cls, namespace: str, key: str, record: Mapping[str, Any]) -> Self:
        """From the store; DataLoss when it is no exec record."""
        task_id, _, id = key.partition("/")
        try:
            return cls(
                namespace=namespace,
                task_id=task_id,
                id=id,
                state=ExecState(record["state"]),
                spec=bytes(record["spec"]),
                stdio=Stdio(**record["stdio"]),
                pid=int(record["pid"]),
                exit=_exit(record["exit"]),
            )
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"exec {key}: record is damaged: {error!r}") from error


def stdio_to_record(stdio: Stdio) -> dict[str, Any]:
    """The field names are containerd.events.TaskIO's."""
    return {
        "stdin": stdio.stdin,
        "stdout": stdio.stdout,
        "stderr": stdio.stderr,
        "terminal": stdio.terminal,
    }


def task_name(namespace: str, id: str) -> str:
    """The name under which a task's actor is found."""
    return f"task:{namespace}/{id}"


def exec_name(namespace: str, task_id: str, id: str) -> str:
    """The name under which an exec's actor is found."""
    return f"exec:{namespace}/{task_id}/{id}"


def sandbox_task(sandbox_id: str) -> str:
    """The id of the task that a sandbox is. No identifier ends so: no container's task has it."""
    return sandbox_id + SANDBOX_MARK


def sandbox_of(task_id: str) -> str:
    """The sandbox that a task is; "" for a container's."""
    return task_id.removesuffix(SANDBOX_MARK) if task_id.endswith(SANDBOX_MARK) else ""


def process_key(task_id: str, exec_id: str = "") -> str:
    """The key of an exec or exit record. Identifiers hold no slash, so that it is unique."""
    return f"{task_id}/{exec_id}"


def timestamp(at_ns: int) -> dict[str, int]:
    """A google.protobuf.Timestamp, for events."""
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    return {"seconds": seconds, "nanos": nanos}


def exit_event(task_id: str, process_id: str, exit: ExitRecord) -> dict[str, Any]:
    """The payload of `/tasks/exit`; `process_id` is the task's own for its first process."""
    return {
        "container_id": task_id,
        "id": process_id,
        "pid": exit.pid,
        "exit_status": exit.status,
        "exited_at": timestamp(exit.exited_at_ns),
    }


def _exit(record: Mapping[str, Any] | None) -> ExitRecord | None:
    return None if record is None else ExitRecord.from_record(record)
