"""The exec actor: one further process of a task, from added until it is gone.

    ADDED --Start--> RUNNING --Exited--> STOPPED --Delete--> GONE
      |  |                                  ^                 ^
      |  +--------------Exited--------------+                 |
      +------------------------Delete-------------------------+

It speaks to the shim through its task's link; the task's actor passes on what the shim reports.
Adding changes the store alone: the shim hears of the process when it is started, so that nothing
is lost with a shim that dies in between.

Invariants: (1) `pid` is set from RUNNING on, `exit` exactly in STOPPED. (2) Every state leads to
GONE. (3) A start is told before the exit, and an exit once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import time_ns
from typing import Any, assert_never

import structlog

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal
from ..actors.exits import NORMAL, StopActor
from ..actors.message import Request
from . import ledger
from .forwarded import CloseStdin, Forwarded, Kill, Resize, forward
from .ground import Ground
from .records import (
    EXEC,
    STATUS_LOST,
    TASK,
    ExecRecord,
    ExecState,
    ExitRecord,
    State,
    TaskRecord,
    process_key,
    task_name,
)
from .shimclient import Exited, ProcessState
from .shimlink import insist, ride_out
from .shimverbs import Shim

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Request[int]):
    """Run the process. Sent by the Tasks verbs; answered with the pid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The process was found running. Sent by the actor to itself after a restart."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Request[ExitRecord]):
    """Remove the process. Sent by the Tasks verbs; answered with the exit, and then the actor
    ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimSaw:
    """What the shim knows of the process. Sent by the task's actor after it connected anew."""

    process: ProcessState


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGone:
    """The task was deleted, and this process's record with it. Sent by the task's actor."""


Step = Start | Started | Forwarded | Exited | Delete
Message = Step | ShimSaw | TaskGone

TRANSITIONS: Mapping[tuple[ExecState, type[Step]], ExecState] = {
    (ExecState.ADDED, Start): ExecState.RUNNING,
    (ExecState.ADDED, Started): ExecState.RUNNING,
    (ExecState.ADDED, Resize): ExecState.ADDED,
    (ExecState.ADDED, CloseStdin): ExecState.ADDED,
    (ExecState.ADDED, Exited): ExecState.STOPPED,
    (ExecState.ADDED, Delete): ExecState.GONE,
    (ExecState.RUNNING, Kill): ExecState.RUNNING,
    (ExecState.RUNNING, Resize): ExecState.RUNNING,
    (ExecState.RUNNING, CloseStdin): ExecState.RUNNING,
    (ExecState.RUNNING, Exited): ExecState.STOPPED,
    (ExecState.STOPPED, CloseStdin): ExecState.STOPPED,
    # The shim reports again what it cannot know to be told: the ledger tells it once.
    (ExecState.STOPPED, Exited): ExecState.STOPPED,
    (ExecState.STOPPED, Delete): ExecState.GONE,
}


def next_state(state: ExecState, step: Step) -> ExecState:
    """The state that a step leads to; raises the refusal when the table has none."""
    found = TRANSITIONS.get((state, type(step)))
    if found is None:
        raise refusal(state, step)
    return found


def refusal(state: ExecState, step: Step) -> Refusal:
    """Why a step is not for a state, in containerd's words where it has some."""
    if state is ExecState.GONE:
        return NotFound(f"{type(step).__name__} of a deleted process: not found")
    match step:
        case Kill() if state is ExecState.ADDED:
            return FailedPrecondition("process not created: failed precondition")
        case Kill():
            return NotFound("process already finished: not found")
        case Resize():
            return FailedPrecondition("cannot resize a stopped container")
        case Start() | Delete():
            return FailedPrecondition(f"cannot {type(step).__name__.lower()} a {state} process")
        case Started() | CloseStdin() | Exited():
            return FailedPrecondition(f"{type(step).__name__} while {state}")
        case _:
            assert_never(step)


def steps_to_truth(state: ExecState, process: ProcessState | None) -> list[Started | Exited]:
    """The steps that bring a record in `state` to what the shim knows; none when it is there."""
    if state is ExecState.STOPPED:
        return []
    if process is None:  # not yet told to the shim; or lost with all that the shim knew
        return [] if state is ExecState.ADDED else [lost()]
    if process.status == "stopped":
        return [exited(process)]
    if state is ExecState.ADDED and process.status == "running":
        return [Started(pid=process.pid)]
    return []


def exited(process: ProcessState) -> Exited:
    """The end of a process that the shim knows as stopped; its status may be lost."""
    return Exited(
        exec_id=process.exec_id,
        pid=process.pid,
        status=STATUS_LOST if process.lost else process.exit_status,
        exited_at_ns=process.exited_at_ns,
    )


def lost() -> Exited:
    """The end of a process of which nothing is known; its time is when that is found out."""
    return Exited(exec_id="", pid=0, status=STATUS_LOST, exited_at_ns=0)


def exit_record(step: Exited, pid: int) -> ExitRecord:
    """What is written of an end; what the report leaves out is filled in."""
    return ExitRecord(
        pid=step.pid or pid, status=step.status, exited_at_ns=step.exited_at_ns or time_ns()
    )


class Exec(Actor):
    """One exec. Callers use the verbs of `Tasks`."""

    def __init__(self, ground: Ground, namespace: str, task_id: str, id: str) -> None:
        super().__init__()
        self._ground = ground
        self._namespace = namespace
        self._task_id = task_id
        self._id = id

    async def on_start(self) -> None:
        """Reads the record and asks the shim what was missed."""
        key = process_key(self._task_id, self._id)
        found = self._ground.store.get(EXEC, self._namespace, key)
        if found is None:  # deleted while this actor was being restarted
            self.ref.shutdown(NORMAL)
            return
        self._record = ExecRecord.from_record(self._namespace, key, found)
        if self._record.state is ExecState.RUNNING:
            try:
                client = await self._client()
                state = await client.state(timeout_s=self._ground.limits.shim_within_s)
                await self._catch_up(state.processes.get(self._id))
            except Refusal as error:
                log.warning("exec.unattached", **self._fields(), reason=str(error))

    async def on_receive(self, message: Message) -> Any:
        """One message at a time, each with its deadline."""
        match message:
            case Start():
                return await self._start(message)
            case Kill() | Resize() | CloseStdin():
                await self._forward(message)
            case Delete():
                return await self._delete(message)
            case Started() | Exited():
                await self._learn(message)
            case ShimSaw():
                await self._catch_up(message.process)
            case TaskGone():
                raise StopActor(NORMAL)
            case _:
                assert_never(message)
        return None

    async def _start(self, step: Start) -> int:
        state = next_state(self._record.state, step)
        self._task_must_run()
        pid = await ride_out(
            self._client,
            self._start_in_shim,
            self._id,
            no_effect="created",
            settle_within_s=self._ground.limits.runtime_within_s,
        )
        failpoints.passed("exec.start.started")
        record = replace(self._record, state=state, pid=pid)
        await self._ground.store.write(ledger.exec_started(record))
        failpoints.passed("exec.start.recorded")
        self._record = record
        return pid

    async def _start_in_shim(self, client: Shim) -> int:
        limits = self._ground.limits
        try:
            spec, stdio = self._record.spec, self._record.stdio
            failpoints.passed("exec.start.add")
            await client.exec(self._id, spec, stdio, timeout_s=limits.shim_within_s)
        except AlreadyExists:
            pass  # an earlier start got this far
        failpoints.passed("exec.start.shim")
        return await client.start(self._id, timeout_s=limits.runtime_within_s)

    def _task_must_run(self) -> None:
        found = self._ground.store.get(TASK, self._namespace, self._task_id)
        if found is None:
            raise NotFound(f"task {self._task_id} not found")
        task = TaskRecord.from_record(self._namespace, self._task_id, found)
        if task.state is State.STOPPED:
            text = f"container {self._task_id} init process is not running: failed precondition"
            raise FailedPrecondition(text)
        if task.state is not State.RUNNING:
            raise FailedPrecondition(f"cannot exec in a {task.state} state")

    async def _forward(self, step: Forwarded) -> None:
        """What the shim does and the record does not show."""
        next_state(self._record.state, step)
        if self._record.state is not ExecState.RUNNING:
            return  # there is no terminal yet, and no stdin of ours
        if isinstance(step, Resize) and not self._record.stdio.terminal:
            return  # containerd's clients ask it of any process
        within_s = self._ground.limits.shim_within_s
        await insist(self._client, lambda client: forward(client, step, self._id, within_s))

    async def _delete(self, step: Delete) -> ExitRecord:
        state = self._record.state
        next_state(state, step)
        try:
            await insist(self._client, self._delete_from)
        except NotFound:
            pass  # the shim never heard of it, or an earlier delete got this far
        except Refusal:
            if state is not ExecState.ADDED:
                raise
        await self._ground.store.write(ledger.exec_deleted(self._record))
        failpoints.passed("exec.delete.recorded")
        answer = self._record.exit or ExitRecord(pid=0, status=0, exited_at_ns=0)
        raise StopActor(NORMAL, answer=answer)

    async def _delete_from(self, client: Shim) -> None:
        failpoints.passed("exec.delete.shim")
        await client.delete(self._id, timeout_s=self._ground.limits.runtime_within_s)
        failpoints.passed("exec.delete.deleted")

    async def _learn(self, step: Started | Exited) -> None:
        """Tell the world what the shim says has happened."""
        old = self._record.state
        if (old, type(step)) not in TRANSITIONS or old is ExecState.STOPPED:
            return
        record = replace(self._record, state=next_state(old, step))
        match step:
            case Started():
                record = replace(record, pid=step.pid)
                job = ledger.exec_started(record)
            case Exited():
                record = record.stopped(exit_record(step, record.pid))
                record = replace(record, pid=record.pid or step.pid)
                failpoints.passed("exec.exit.record")
                job = ledger.exec_exited(record)
            case _:
                assert_never(step)
        await self._ground.store.write(job)
        self._record = record

    async def _catch_up(self, process: ProcessState | None) -> None:
        for step in steps_to_truth(self._record.state, process):
            await self._learn(step)

    async def _client(self) -> Shim:
        return await self._ground.client(task_name(self._namespace, self._task_id))

    def _fields(self) -> dict[str, str]:
        return {"namespace": self._namespace, "task": self._task_id, "id": self._id}
