"""The task actor: one container's task, from the intent to create it until it is gone.

    CREATING --Create--> CREATED --Start--> RUNNING --Exited--> STOPPED --Delete--> GONE
        |                 |   |              |  ^                 ^                  ^
        +--Delete--> GONE |   +--Exited------|--|-----------------+                  |
                          +------Delete------|--|---------------> DELETING --Delete--+
                                       Pause |  | Thawed          |
                                             v  |                 |
                                           PAUSING ---Exited------+
                                             | Frozen             |
                                             v                    |
                         RUNNING <--Resume-- PAUSED ----Exited----+

A task that was never started must be killed to be deleted. That is one step to the world, so
DELETING is written first, and finished by whoever finds it: a client, or the next recovery.

The truth is the shim's and the kernel's. The record in the store says what we have told the
world; an actor that starts, or whose shim was replaced, compares the two and tells what was missed.

Invariants: (1) `pid` is set from CREATED on, `exit` exactly in STOPPED. (2) Every state leads to
GONE. (3) A start is told before the exit, an exec's exit before its task's. (4) An exit is told
once: the exit record is written in the transaction of its event. (5) Only the shim or the loss of
the whole bundle says that a process has ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time_ns
from typing import Any, assert_never

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    Refusal,
    Unavailable,
)
from ..actors.exits import NORMAL, StopActor
from ..actors.message import Request
from . import cgroup, ledger, procfs
from .bundle import make_bundle, remove_bundle
from .exec import ShimSaw, TaskGone, exit_record, exited, lost
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
    exec_name,
    process_key,
    task_name,
)
from .shimclient import Exited, OutOfMemory, ShimEvent, ShimState
from .shimlink import ShimLink, insist, ride_out
from .shimverbs import Shim

SIGKILL = 9
CLEANUP_WITHIN_S = 15.0
UNASKED_S = 3.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Request[int]):
    """Make the bundle, the shim and the first process. Sent by the Tasks verbs, once; answered
    with the pid. When it is refused, nothing is left and the actor ends."""

    config: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Request[int]):
    """Run the first process. Sent by the Tasks verbs; answered with the pid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first process was found running. Sent by the actor to itself after a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Request[None]):
    """Freeze the container. Sent by the Tasks verbs; answered when it is frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Request[None]):
    """Thaw the container. Sent by the Tasks verbs; answered when it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The container was found, or got, frozen. Sent by the actor to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thawed:
    """The container was found, or got, thawed, or could not be frozen. Sent by the actor to
    itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Request[None]):
    """Send a signal to the first process, or to all. Sent by the Tasks verbs."""

    signal: int
    all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Request[None]):
    """Change the limits to an OCI resources object in JSON. Sent by the Tasks verbs."""

    resources: bytes
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class AddExec:
    """May a process be added? Asked by the Tasks verbs of the table alone, never sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Request[None]):
    """Set the size of the terminal. Sent by the Tasks verbs."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStdin(Request[None]):
    """Close our end of stdin. Sent by the Tasks verbs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Request[ExitRecord]):
    """Remove all that the task has. Sent by the Tasks verbs; answered with the exit, and then
    the actor ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The shim was connected anew, and may know more than was told. Sent by the link. What it knew
    at that moment is not in here: a verb that was under way may have changed it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLost:
    """No shim can tell anything any more. Sent by the link."""


Step = (
    Create
    | Start
    | Started
    | Pause
    | Resume
    | Frozen
    | Thawed
    | Kill
    | Update
    | AddExec
    | Resize
    | CloseStdin
    | Exited
    | Delete
)
Message = Step | OutOfMemory | Seen | BundleLost

LIVE = (State.CREATED, State.RUNNING, State.PAUSING, State.PAUSED)
HALFWAY = (State.CREATING, State.DELETING)
"""What a crash may leave, and a Delete finishes."""

TRANSITIONS: Mapping[tuple[State, type[Step]], State] = {
    (State.CREATING, Create): State.CREATED,
    (State.CREATING, Delete): State.GONE,
    (State.CREATED, Start): State.RUNNING,
    (State.CREATED, Started): State.RUNNING,
    (State.CREATED, Exited): State.STOPPED,
    (State.CREATED, Delete): State.DELETING,
    (State.CREATED, AddExec): State.CREATED,
    (State.RUNNING, Pause): State.PAUSING,
    (State.RUNNING, Frozen): State.PAUSED,
    (State.RUNNING, Exited): State.STOPPED,
    (State.RUNNING, AddExec): State.RUNNING,
    (State.PAUSING, Frozen): State.PAUSED,
    (State.PAUSING, Thawed): State.RUNNING,
    (State.PAUSING, Exited): State.STOPPED,
    (State.PAUSED, Resume): State.RUNNING,
    (State.PAUSED, Thawed): State.RUNNING,
    (State.PAUSED, Exited): State.STOPPED,
    # The shim reports again what it cannot know to be told: the ledger tells it once.
    (State.STOPPED, Exited): State.STOPPED,
    (State.STOPPED, CloseStdin): State.STOPPED,
    (State.STOPPED, Resize): State.STOPPED,
    (State.STOPPED, Delete): State.GONE,
    (State.DELETING, Delete): State.GONE,
    **{(state, step): state for state in LIVE for step in (Kill, Update, Resize, CloseStdin)},
}


def next_state(state: State, step: Step) -> State:
    """The state that a step leads to; raises the refusal when the table has none."""
    found = TRANSITIONS.get((state, type(step)))
    if found is None:
        raise refusal(state, step)
    return found


def refusal(state: State, step: Step) -> Refusal:
    """Why a step is not for a state, in containerd's words where it has some."""
    if state is State.GONE:
        return NotFound(f"{type(step).__name__} of a deleted task: not found")
    match step:
        case Create():
            return AlreadyExists(f"Create while {state}: already exists")
        case Kill() if state in (State.STOPPED, State.DELETING):
            return NotFound("process already finished: not found")
        case Delete():
            text = f"task must be stopped before deletion: {state}: failed precondition"
            return FailedPrecondition(text)
        case Start():
            return FailedPrecondition(f"cannot start a {state} process")
        case Pause() | Resume() if state is State.CREATED:
            return FailedPrecondition(f"cannot {_verb(step)} task in {state} state")
        case Resume() if state is State.RUNNING:
            return FailedPrecondition("cannot resume a running process")
        case Pause() | Resume() | Update():
            return FailedPrecondition(f"cannot {_verb(step)} a {state} container")
        case AddExec():
            return FailedPrecondition(f"cannot exec in a {state} state")
        case Kill() | Resize() | CloseStdin() | Started() | Frozen() | Thawed() | Exited():
            return FailedPrecondition(f"{type(step).__name__} while {state}")
        case _:
            assert_never(step)


def steps_to_truth(state: State, shim: ShimState) -> list[Step]:
    """The steps that bring a record in `state` to what the shim knows; none when it is there."""
    if state not in LIVE:
        return []
    init = shim.processes.get("")
    if init is None:
        return [lost()]
    if init.status == "stopped":
        return [exited(init)]
    steps: list[Step] = []
    if state is State.CREATED and init.status == "running":
        steps.append(Started())
        state = State.RUNNING
    if shim.paused and state in (State.RUNNING, State.PAUSING):
        steps.append(Frozen())
    if not shim.paused and state in (State.PAUSING, State.PAUSED):
        steps.append(Thawed())
    return steps


class Task(Actor):
    """One task. Callers use the verbs of `Tasks`."""

    def __init__(self, ground: Ground, namespace: str, id: str) -> None:
        super().__init__()
        self._ground = ground
        self._namespace = namespace
        self._id = id
        self._asked = False

    async def on_start(self) -> None:
        """Reads the record, connects to the shim, and tells what was missed.

        A shim that is dead is replaced; one that hangs keeps this task's own callers waiting.
        """
        found = self._ground.store.get(TASK, self._namespace, self._id)
        if found is None:  # deleted while this actor was being restarted
            self.ref.shutdown(NORMAL)
            return
        self._record = TaskRecord.from_record(self._namespace, self._id, found)
        self._bundle = Path(self._record.bundle)
        limits = self._ground.limits
        source = self._ground.shims(self._record)
        self._link = ShimLink(self._bundle, source, limits.attach_within_s)
        self._ground.links[self._record.name] = self._link
        if self._record.state in HALFWAY:
            self.spawn_task(self._delete_unasked)
        if self._record.state is not State.CREATING:
            self.spawn_task(self._keep_link)
            try:
                client = await self._link.client(limits.attach_within_s)
                await self._catch_up(await client.state(timeout_s=limits.shim_within_s))
            except Refusal as error:
                log.warning("task.unattached", **self._fields(), reason=str(error))

    def describe_state(self) -> str:
        """Where the task is in its life, and what its shim is about when that is not well."""
        record = getattr(self, "_record", None)
        if record is None:
            return "not yet read"
        about = self._link.describe()
        return f"{record.state}, {about}" if about else str(record.state)

    async def on_stop(self) -> None:
        """Leaves the container to its shim."""
        link = self._ground.links.pop(task_name(self._namespace, self._id), None)
        if link is not None:
            await link.end()

    async def on_receive(self, message: Message) -> Any:
        """One message at a time, each with its deadline."""
        match message:
            case Create():
                return await self._create(message)
            case Start():
                return await self._start(message)
            case Pause():
                await self._pause(message)
            case Resume():
                await self._resume(message)
            case Kill() | Update() | Resize() | CloseStdin():
                await self._forward(message)
            case Delete():
                return await self._delete(message)
            case Started() | Frozen() | Thawed() | Exited():
                await self._learn(message)
            case OutOfMemory():
                await self._tell_memory_kills(message.kills)
            case Seen():
                await self._look()
            case BundleLost():
                await self._lose_bundle()
            case AddExec():
                next_state(self._record.state, message)
            case _:
                assert_never(message)
        return None

    async def _delete_unasked(self) -> None:
        """A task that is halfway, and of which nobody asks, is one over which an actor fell."""
        await trio.sleep(UNASKED_S)
        if not self._asked and self._record.state in HALFWAY:
            self.ref.cast(Delete())

    async def _create(self, step: Create) -> int:
        self._asked = True
        state = next_state(self._record.state, step)
        limits = self._ground.limits
        try:
            await trio.to_thread.run_sync(make_bundle, self._bundle, step.config)
            self.spawn_task(self._keep_link, True)
            pid = await ride_out(
                lambda: self._link.client(limits.attach_within_s + 1.0),
                self._create_in_shim,
                settle_within_s=limits.runtime_within_s,
            )
        except (Refusal, OSError) as error:
            await self._clean_up()
            await self._ground.store.write(ledger.forget_task(self._record))
            log.warning("task.not_created", **self._fields(), reason=str(error))
            self.ref.shutdown()
            if isinstance(error, Refusal):
                raise
            raise Unavailable(f"create {self._id}: {error}") from error
        failpoints.passed("task.create.made")
        record = replace(self._record, state=state, pid=pid)
        await self._ground.store.write(ledger.task_created(record))
        failpoints.passed("task.create.recorded")
        self._record = record
        return pid

    async def _create_in_shim(self, client: Shim) -> int:
        failpoints.reach("task.create.shim")
        return await client.create(
            id=self._id,
            namespace=self._namespace,
            rootfs=self._record.rootfs,
            stdio=self._record.stdio,
            options=self._record.options,
            timeout_s=self._ground.limits.runtime_within_s,
        )

    async def _start(self, step: Start) -> int:
        state = next_state(self._record.state, step)
        limits = self._ground.limits
        failpoints.passed("task.start.shim")
        pid = await ride_out(
            self._client,
            lambda client: client.start(timeout_s=limits.runtime_within_s),
            no_effect="created",
            settle_within_s=limits.runtime_within_s,
        )
        failpoints.passed("task.start.started")
        record = replace(self._record, state=state, pid=pid)
        await self._ground.store.write(ledger.task_started(record))
        failpoints.passed("task.start.recorded")
        self._record = record
        return pid

    async def _pause(self, step: Pause) -> None:
        pausing = replace(self._record, state=next_state(self._record.state, step))
        client = await self._client()
        await self._ground.store.write(ledger.task_pausing(pausing))
        self._record = pausing
        try:
            await client.pause(timeout_s=self._ground.limits.shim_within_s)
        except Refusal:
            if not client.closed.is_set():
                await self._learn(Thawed())
            elif await self._settled() is State.PAUSED:
                return
            raise
        await self._learn(Frozen())

    async def _resume(self, step: Resume) -> None:
        next_state(self._record.state, step)
        client = await self._client()
        try:
            await client.resume(timeout_s=self._ground.limits.shim_within_s)
        except Refusal:
            if client.closed.is_set() and await self._settled() is State.RUNNING:
                return
            raise
        await self._learn(Thawed())

    async def _settled(self) -> State:
        """After the shim died over a request: the state to which it led."""
        client = await self._client()
        await self._catch_up(await client.state(timeout_s=self._ground.limits.shim_within_s))
        return self._record.state

    async def _look(self) -> None:
        """Ask the shim that has just been connected; when it is lost again, the next is asked."""
        try:
            await self._settled()
        except Unavailable as error:
            log.info("task.unseen", **self._fields(), reason=str(error))

    async def _client(self) -> Shim:
        return await self._link.client(self._ground.limits.link_within_s)

    async def _forward(self, step: Kill | Update | Resize | CloseStdin) -> None:
        """What the shim does and the record does not show."""
        next_state(self._record.state, step)
        if isinstance(step, Resize) and not self._record.stdio.terminal:
            return  # containerd's clients ask it of any process
        await insist(self._client, lambda client: self._forward_to(client, step))

    async def _forward_to(self, client: Shim, step: Kill | Update | Resize | CloseStdin) -> None:
        limits = self._ground.limits
        match step:
            case Kill():
                timeout_s = limits.shim_within_s
                failpoints.passed("task.kill.shim")
                await client.kill(step.signal, all=step.all, timeout_s=timeout_s)
                failpoints.passed("task.kill.killed")
            case Update():
                await client.update(
                    step.resources,
                    annotations=step.annotations,
                    timeout_s=limits.runtime_within_s,
                )
            case Resize():
                await client.resize(step.width, step.height, timeout_s=limits.shim_within_s)
            case CloseStdin():
                await client.close_io(timeout_s=limits.shim_within_s)
            case _:
                assert_never(step)

    async def _learn(self, step: Started | Frozen | Thawed | Exited) -> None:
        """Tell the world what the shim says has happened."""
        old = self._record.state
        if (old, type(step)) not in TRANSITIONS:
            return  # told before, in another order: the record is further than the report
        record = replace(self._record, state=next_state(old, step))
        match step:
            case Started():
                job = ledger.task_started(record)
            case Frozen():
                job = ledger.task_paused(record)
            case Thawed():
                told = old is State.PAUSED
                job = ledger.task_resumed(record) if told else ledger.task_pausing(record)
            case Exited():
                if old is State.STOPPED:
                    return
                await self._execs_end()
                record = record.stopped(exit_record(step, record.pid))
                failpoints.passed("task.exit.record")
                job = ledger.task_exited(record)
            case _:
                assert_never(step)
        await self._ground.store.write(job)
        self._record = record

    async def _delete(self, step: Delete) -> ExitRecord:
        state = self._record.state
        next_state(state, step)
        if state is State.CREATING:  # a create that a crash cut short; nobody heard of it
            if not self._link.bundle_lost:
                self.spawn_task(self._keep_link)
            await self._clean_up()
            await self._ground.store.write(ledger.forget_task(self._record))
            exit = ExitRecord(pid=0, status=STATUS_LOST, exited_at_ns=time_ns())
            raise StopActor(NORMAL, answer=exit)
        self._asked = True
        if state is State.CREATED:
            deleting = replace(self._record, state=next_state(state, step))
            await self._ground.store.write(ledger.task_deleting(deleting))
            failpoints.passed("task.delete.intended")
            self._record = deleting
        exit = self._record.exit or exit_record(lost(), self._record.pid)
        if not self._link.bundle_lost:
            exit = await self._delete_in_shim(exit)
        if self._record.exit is None:
            await self._execs_end()
        self._record = self._record.stopped(exit)
        execs = [record.name for record in self._execs()]
        failpoints.passed("task.delete.record")
        await self._ground.store.write(ledger.task_deleted(self._record))
        failpoints.passed("task.delete.recorded")
        for name in execs:
            self._tell_exec(name, TaskGone())
        await self._end_shim()
        raise StopActor(NORMAL, answer=exit)

    async def _delete_in_shim(self, exit: ExitRecord) -> ExitRecord:
        """The exit is the one that was told; that of a task never started is the shim's."""
        try:
            deleted = await insist(self._client, self._delete_from)
        except NotFound:
            return exit  # an earlier delete got this far and was cut short
        return self._record.exit or exit_record(deleted, self._record.pid)

    async def _delete_from(self, client: Shim) -> Exited:
        if self._record.state is State.DELETING:
            await self._kill_created(client)
        failpoints.passed("task.delete.shim")
        deleted = await client.delete(timeout_s=self._ground.limits.runtime_within_s)
        failpoints.passed("task.delete.deleted")
        return deleted

    async def _kill_created(self, client: Shim) -> None:
        limits = self._ground.limits
        try:
            await client.kill(SIGKILL, timeout_s=limits.shim_within_s)
        except NotFound:
            return
        with trio.move_on_after(limits.shim_within_s):
            # The shim tells of the end in our own mailbox, which waits for this handler.
            while (await client.process_state()).status != "stopped":  # noqa: ASYNC110
                await trio.sleep(0.002)

    async def _clean_up(self) -> None:
        """Undo what there is of a create: the container, the shim, the bundle."""
        limits = self._ground.limits
        with trio.CancelScope(shield=True), trio.move_on_after(CLEANUP_WITHIN_S):
            try:
                client = await self._link.client(limits.link_within_s)
                if "" in (await client.state(timeout_s=limits.shim_within_s)).processes:
                    await self._kill_created(client)
                    await client.delete(timeout_s=limits.runtime_within_s)
            except Refusal as error:
                log.warning("task.cleanup", **self._fields(), reason=str(error))
            await self._end_shim()

    async def _end_shim(self) -> None:
        """The shim goes, then the bundle. What fails here is found again at the next boot."""
        limits = self._ground.limits
        try:
            client = await self._link.client(0.0)
            failpoints.passed("task.delete.shutdown")
            await client.shutdown(timeout_s=limits.shim_within_s)
            failpoints.passed("task.delete.shim_ended")
        except Refusal as error:
            log.info("task.shim_unended", **self._fields(), reason=str(error))
        await self._link.end()
        try:
            await trio.to_thread.run_sync(remove_bundle, self._bundle)
        except (Refusal, OSError) as error:
            log.warning("task.bundle_kept", **self._fields(), reason=str(error))

    async def _execs_end(self) -> None:
        """Wait, not for long, until the exits of the execs are told: the task's is the last."""
        with trio.move_on_after(self._ground.limits.execs_end_within_s):
            # Their actors write it to the store; a short poll is less than a place to wait.
            while any(e.state is ExecState.RUNNING for e in self._execs()):  # noqa: ASYNC110
                await trio.sleep(0.001)

    def _execs(self) -> list[ExecRecord]:
        """Its execs; a damaged record, which recovery reports, holds nothing up."""
        records: list[ExecRecord] = []
        for row in self._ground.store.scan(EXEC, self._namespace, process_key(self._id)):
            try:
                records.append(ExecRecord.from_record(self._namespace, row.key, row.value))
            except DataLoss:
                continue
        return records

    def _tell_exec(self, name: str, message: ShimSaw | TaskGone | Exited) -> None:
        """An exec that is not there is being restarted, and will ask by itself."""
        exec = self.system.whereis(name)
        if exec is not None:
            exec.cast(message)

    async def _tell_memory_kills(self, kills: int | None) -> None:
        """Tell of want of memory, where more was killed than anybody was told of."""
        if kills is None:
            kills = self._record.memory_kills + 1
        if kills > self._record.memory_kills:
            record = replace(self._record, memory_kills=kills)
            await self._ground.store.write(ledger.task_out_of_memory(record))
            self._record = record

    async def _catch_up(self, shim: ShimState) -> None:
        self._tell_execs(shim)
        if shim.cgroups:  # what its shim told while nobody listened, the kernel has counted
            await self._tell_memory_kills(
                await trio.to_thread.run_sync(cgroup.out_of_memory_kills, shim.cgroups)
            )
        for step in steps_to_truth(self._record.state, shim):
            match step:
                case Started() | Frozen() | Thawed() | Exited():
                    await self._learn(step)
                case _:
                    raise AssertionError(f"no truth of the shim's: {step}")

    async def _lose_bundle(self) -> None:
        if self._record.state in LIVE and procfs.stat(self._record.pid) is None:
            await self._learn(lost())
        log.error("task.bundle_lost", **self._fields(), state=self._record.state.value)

    async def _keep_link(self, fresh: bool = False) -> None:
        await self._link.keep_up(
            self._on_shim_event,
            self._on_seen,
            lambda: self.ref.cast(BundleLost()),
            fresh=fresh,
        )

    def _on_seen(self, shim: ShimState) -> None:
        # The execs at once: an exit that waits in our mailbox would wait for theirs.
        self._tell_execs(shim)
        self.ref.cast(Seen())

    def _tell_execs(self, shim: ShimState) -> None:
        for exec_id, process in shim.processes.items():
            if exec_id:
                self._tell_exec(self._exec_name(exec_id), ShimSaw(process=process))

    def _on_shim_event(self, event: ShimEvent) -> None:
        if isinstance(event, Exited) and event.exec_id:
            self._tell_exec(self._exec_name(event.exec_id), event)
        else:
            self.ref.cast(event)

    def _exec_name(self, exec_id: str) -> str:
        return exec_name(self._namespace, self._id, exec_id)

    def _fields(self) -> dict[str, str]:
        return {"namespace": self._namespace, "id": self._id}


def _verb(step: Pause | Resume | Update) -> str:
    return type(step).__name__.lower()
