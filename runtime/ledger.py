"""The ledger: every change of a task or exec in the store, with its event, as one transaction.

Each function makes a job for `Store.write`. A job refuses when the record is not as it must be,
and then nothing has changed. The order of the events follows from the order of the jobs, which
the one actor of each process gives: created, started, exited, deleted.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..actors.errors import AlreadyExists
from ..storage.transaction import Transaction
from .records import (
    EXEC,
    EXIT,
    TASK,
    ExecRecord,
    ExecState,
    ExitRecord,
    State,
    TaskRecord,
    exit_event,
    process_key,
    sandbox_of,
    stdio_to_record,
    timestamp,
)

Job = Callable[[Transaction], None]

EXIT_TOPIC = "/tasks/exit"
EXIT_TYPE = "containerd.events.TaskExit"
OOM_TOPIC = "/tasks/oom"
OOM_TYPE = "containerd.events.TaskOOM"


def put_task(record: TaskRecord, tx: Transaction) -> None:
    """Write a task's record whole."""
    tx.put(TASK, record.namespace, record.id, record.to_record())


def put_exec(record: ExecRecord, tx: Transaction) -> None:
    """Write an exec's record whole."""
    tx.put(EXEC, record.namespace, record.key, record.to_record())


def intend_task(record: TaskRecord) -> Job:
    """A task is about to be created. AlreadyExists when there is one."""

    def job(tx: Transaction) -> None:
        if tx.get(TASK, record.namespace, record.id) is not None:
            raise AlreadyExists(f"task {record.id}: already exists")
        put_task(record, tx)

    return job


def forget_task(record: TaskRecord) -> Job:
    """A task was never created after all; nobody heard of it."""

    def job(tx: Transaction) -> None:
        tx.delete(TASK, record.namespace, record.id)

    return job


def task_created(record: TaskRecord) -> Job:
    """The first process stands, created and not started."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)
        payload = {
            "container_id": record.id,
            "bundle": record.bundle,
            "rootfs": [mount.to_record() for mount in record.rootfs],
            "io": stdio_to_record(record.stdio),
            "checkpoint": "",
            "pid": record.pid,
        }
        _tell(tx, record.namespace, "/tasks/create", "containerd.events.TaskCreate", payload)

    return job


def task_started(record: TaskRecord) -> Job:
    """The first process runs."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)
        payload = {"container_id": record.id, "pid": record.pid}
        _tell(tx, record.namespace, "/tasks/start", "containerd.events.TaskStart", payload)

    return job


def task_pausing(record: TaskRecord) -> Job:
    """The container is about to be frozen, or was not frozen after all; nobody is told."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)

    return job


def task_paused(record: TaskRecord) -> Job:
    """The container is frozen."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)
        payload = {"container_id": record.id}
        _tell(tx, record.namespace, "/tasks/paused", "containerd.events.TaskPaused", payload)

    return job


def task_resumed(record: TaskRecord) -> Job:
    """The container runs again."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)
        payload = {"container_id": record.id}
        _tell(tx, record.namespace, "/tasks/resumed", "containerd.events.TaskResumed", payload)

    return job


def task_out_of_memory(record: TaskRecord) -> Job:
    """The kernel killed a process of the container for want of memory."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)
        payload = {"container_id": record.id}
        _tell(tx, record.namespace, OOM_TOPIC, OOM_TYPE, payload)

    return job


def task_exited(record: TaskRecord) -> Job:
    """The first process ended; written and told once, however often it is reported."""
    assert record.state is State.STOPPED
    assert record.exit is not None

    def job(tx: Transaction) -> None:
        _put_task_exit(record, tx)

    return job


def task_deleting(record: TaskRecord) -> Job:
    """A task that was never started is about to be killed and deleted; nobody is told yet."""

    def job(tx: Transaction) -> None:
        put_task(record, tx)

    return job


def task_deleted(record: TaskRecord) -> Job:
    """The task is gone with all that it had. An exit that nobody saw is told first."""
    assert record.exit is not None
    exit = record.exit

    def job(tx: Transaction) -> None:
        _put_task_exit(record, tx)
        for kind in (EXEC, EXIT):
            for row in tx.scan(kind, record.namespace, process_key(record.id)):
                tx.delete(kind, record.namespace, row.key)
        tx.delete(TASK, record.namespace, record.id)
        payload = {
            "container_id": record.id,
            "pid": record.pid,
            "exit_status": exit.status,
            "exited_at": timestamp(exit.exited_at_ns),
        }
        _tell(tx, record.namespace, "/tasks/delete", "containerd.events.TaskDelete", payload)

    return job


def exec_added(record: ExecRecord) -> Job:
    """A process was added, not started. AlreadyExists when its id is taken."""

    def job(tx: Transaction) -> None:
        if tx.get(EXEC, record.namespace, record.key) is not None:
            raise AlreadyExists(f"id {record.id}: already exists")
        put_exec(record, tx)
        payload = {"container_id": record.task_id, "exec_id": record.id}
        _tell(tx, record.namespace, "/tasks/exec-added", "containerd.events.TaskExecAdded", payload)

    return job


def exec_started(record: ExecRecord) -> Job:
    """The added process runs."""

    def job(tx: Transaction) -> None:
        put_exec(record, tx)
        payload = {"container_id": record.task_id, "exec_id": record.id, "pid": record.pid}
        topic, kind = "/tasks/exec-started", "containerd.events.TaskExecStarted"
        _tell(tx, record.namespace, topic, kind, payload)

    return job


def exec_exited(record: ExecRecord) -> Job:
    """The added process ended; written and told once, however often it is reported."""
    assert record.state is ExecState.STOPPED
    assert record.exit is not None
    exit = record.exit

    def job(tx: Transaction) -> None:
        if not _put_exit(record.namespace, record.key, exit, tx):
            return
        put_exec(record, tx)
        payload = exit_event(record.task_id, record.id, exit)
        _tell(tx, record.namespace, EXIT_TOPIC, EXIT_TYPE, payload)

    return job


def exec_deleted(record: ExecRecord) -> Job:
    """The added process is gone; containerd tells nobody."""

    def job(tx: Transaction) -> None:
        tx.delete(EXIT, record.namespace, record.key)
        tx.delete(EXEC, record.namespace, record.key)

    return job


# What a sandbox's task tells, and under which name; of all else containerd tells nobody.
SANDBOX_TOPICS = {
    "/tasks/create": ("/sandboxes/create", "containerd.events.SandboxCreate"),
    "/tasks/start": ("/sandboxes/start", "containerd.events.SandboxStart"),
    "/tasks/exit": ("/sandboxes/exit", "containerd.events.SandboxExit"),
}


def _tell(
    tx: Transaction, namespace: str, topic: str, kind: str, payload: Mapping[str, Any]
) -> None:
    sandbox_id = sandbox_of(str(payload["container_id"]))
    if not sandbox_id:
        tx.emit(namespace, topic, kind, payload)
    elif topic in SANDBOX_TOPICS:
        told = {key: payload[key] for key in ("exit_status", "exited_at") if key in payload}
        tx.emit(namespace, *SANDBOX_TOPICS[topic], {"sandbox_id": sandbox_id, **told})


def _put_task_exit(record: TaskRecord, tx: Transaction) -> None:
    assert record.exit is not None
    if _put_exit(record.namespace, process_key(record.id), record.exit, tx):
        put_task(replace(record, state=State.STOPPED), tx)
        payload = exit_event(record.id, record.id, record.exit)
        _tell(tx, record.namespace, EXIT_TOPIC, EXIT_TYPE, payload)


def _put_exit(namespace: str, key: str, exit: ExitRecord, tx: Transaction) -> bool:
    """False when the exit was written before: the first one stands."""
    if tx.get(EXIT, namespace, key) is not None:
        return False
    tx.put(EXIT, namespace, key, exit.to_record())
    return True
