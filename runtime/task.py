"""The task actor: one container's task, whose life `tasklife.py` draws.

The truth is the shim's and the kernel's. The record in the store says what we have told the
world; an actor that starts, or whose shim was replaced, compares the two and tells what was missed.
"""

from dataclasses import replace
from pathlib import Path
from time import time_ns
from typing import Any, assert_never

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import DataLoss, NotFound, Refusal, Unavailable
from ..actors.exits import NORMAL, StopActor
from . import cgroup, ledger, procfs
from .bundle import make_bundle, remove_bundle
from .exec import ShimSaw, TaskGone, exit_record, lost
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
    exec_name,
    process_key,
    task_name,
)
from .shimclient import Exited, OutOfMemory, ShimEvent, ShimState
from .shimlink import ShimLink, insist, ride_out
from .shimverbs import Shim
from .tasklife import (
    HALFWAY,
    LIVE,
    TRANSITIONS,
    AddExec,
    BundleLost,
    Create,
    Delete,
    Frozen,
    Message,
    Pause,
    Resume,
    Seen,
    Start,
    Started,
    Thawed,
    Update,
    next_state,
    steps_to_truth,
)

SIGKILL = 9
CLEANUP_WITHIN_S = 15.0
UNASKED_S = 3.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


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

    async def _forward(self, step: Forwarded | Update) -> None:
        """What the shim does and the record does not show."""
        next_state(self._record.state, step)
        if isinstance(step, Resize) and not self._record.stdio.terminal:
            return  # containerd's clients ask it of any process
        await insist(self._client, lambda client: self._forward_to(client, step))

    async def _forward_to(self, client: Shim, step: Forwarded | Update) -> None:
        limits = self._ground.limits
        if isinstance(step, Update):
            await client.update(
                step.resources, annotations=step.annotations, timeout_s=limits.runtime_within_s
            )
        else:
            await forward(client, step, "", limits.shim_within_s)

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
