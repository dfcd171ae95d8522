"""A process as clients see it: its record in containerd's words."""

from collections.abc import Mapping
from dataclasses import dataclass

from .records import ExecRecord, ExecState, State, TaskRecord
from .stdio import Stdio

# containerd's names of states; a CREATING task is not seen, a DELETING one was never started.
STATUSES: Mapping[State, str] = {
    State.CREATING: "UNKNOWN",
    State.CREATED: "CREATED",
    State.RUNNING: "RUNNING",
    State.PAUSING: "PAUSING",
    State.PAUSED: "PAUSED",
    State.STOPPED: "STOPPED",
    State.DELETING: "CREATED",
}
EXEC_STATUSES: Mapping[ExecState, str] = {
    ExecState.ADDED: "CREATED",
    ExecState.RUNNING: "RUNNING",
    ExecState.STOPPED: "STOPPED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process, as clients see it. `id` is the exec id, or the container's for its first."""

    container_id: str
    id: str
    pid: int
    status: str
    stdio: Stdio
    exit_status: int
    exited_at_ns: int


def process_of_task(record: TaskRecord) -> Process:
    """The first process of a task."""
    return Process(
        container_id=record.id,
        id=record.id,
        pid=record.pid,
        status=STATUSES[record.state],
        stdio=record.stdio,
        exit_status=0 if record.exit is None else record.exit.status,
        exited_at_ns=0 if record.exit is None else record.exit.exited_at_ns,
    )


def process_of_exec(record: ExecRecord, owner: TaskRecord) -> Process:
    """A further process of a task."""
    # A container is frozen as a whole, with every process in it.
    frozen = owner.state in (State.PAUSING, State.PAUSED)
    return Process(
        container_id=record.task_id,
        id=record.id,
        pid=record.pid,
        status=STATUSES[owner.state] if frozen else EXEC_STATUSES[record.state],
        stdio=record.stdio,
        exit_status=0 if record.exit is None else record.exit.status,
        exited_at_ns=0 if record.exit is None else record.exit.exited_at_ns,
    )
