"""The workload: what asks. One `Life` takes one container from nothing to nothing.

    prepare, create, start, [pause | exec | gate], wait, get, delete, remove

On its way it comes to the state that its plan names, says so (`reached`), and waits there for the
harm. It goes on asking through the harm, and ends its container after it. Every answer is in the
history; what cannot be gone on with is told as Trouble.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from google.protobuf.message import Message

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal, Unknown
from holdfast.api.proto import runc_pb2, types_pb2
from holdfast.api.proto.services import containers_pb2, snapshots_pb2, tasks_pb2
from holdfast.api.proto.task_types_pb2 import Status
from holdfast.api.status import CallFailed

from . import containers
from .client import NOTHING, PAUSE_S, Client
from .containers import Plan, State
from .history import Ended, History, Process, Trouble
from .lifestreams import EXEC_ID, LifeStreams
from .patience import PATIENCE
from .streams import Gate

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
BASE = "chaos-base"
SNAPSHOTTER = "overlayfs"
ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
LIFE_WITHIN_S = 90.0 * PATIENCE
Task = tasks_pb2  # the service's module, short


@dataclass(slots=True, kw_only=True)
class Stage:
    """What the containers of one round wait for."""

    struck: trio.Event = field(default_factory=trio.Event)
    """The harm is about to begin: what is to be in flight is asked for now."""
    gone: trio.Event = field(default_factory=trio.Event)
    """The harm has been done: what is to end inside of it ends now."""
    healed: trio.Event = field(default_factory=trio.Event)
    """The daemon answers again."""
    sandbox: str = ""
    """What those in a sandbox join."""


async def prepare_base(client: Client) -> None:
    """A committed snapshot with a busybox, which every container's root stands on."""
    try:
        answer = await client.insist(
            "Snapshots.Prepare",
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=SNAPSHOTTER, key="chaos-base-work", labels=ROOTED
            ),
            snapshots_pb2.PrepareSnapshotResponse,
        )
        await trio.to_thread.run_sync(containers.make_root, Path(answer.mounts[0].source))
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=SNAPSHOTTER, name=BASE, key="chaos-base-work", labels=ROOTED
        )
        await client.insist("Snapshots.Commit", request, NOTHING)
    except AlreadyExists:
        pass


async def whole_life(client: Client, plan: Plan, folder: Path, group: str) -> None:
    """A life that waits for no harm."""
    stage = Stage()
    for event in (stage.struck, stage.gone, stage.healed):
        event.set()
    await Life(client, plan, folder, group, stage).run()


class Life:
    """One container's life."""

    def __init__(self, client: Client, plan: Plan, folder: Path, group: str, stage: Stage) -> None:
        self.plan = plan
        self.reached = trio.Event()
        self.begun = trio.Event()
        self.refusal: Exception | None = None
        self.pid = 0
        self.exited_at_s: float | None = None
        self._client = client
        self._history: History = client.history
        self._stage = stage
        self._group = group
        self._folder = folder / plan.name
        self._gates_folder = self._folder / "gates"
        self._gates_folder.mkdir(parents=True)
        self._gate = Gate(self._gates_folder / "init")
        self._exec_gate = Gate(self._gates_folder / "exec")
        self._streams = LifeStreams(plan, self._folder, self._history)
        self._waits = 0
        self._exec_ended = trio.Event()

    async def run(self, within_s: float = LIFE_WITHIN_S) -> None:
        """The whole life; never raises for what the daemon does."""
        plan = self.plan
        self._history.add(Process(subject=plan.name, status=plan.code, terminal=plan.terminal))
        try:
            with trio.fail_after(within_s):
                async with trio.open_nursery() as nursery:
                    await self._live(nursery)
                    nursery.cancel_scope.cancel()  # input that it did not want, above all
        except* trio.TooSlowError:
            self._trouble(f"no end within {within_s:.0f} s, at {self._at}")
        except* (Refusal, OSError) as group:
            self._trouble(f"at {self._at}: {group.exceptions[0]!r}")
        finally:
            self.reached.set()
            self._gate.close()
            self._exec_gate.close()
            self._streams.close()

    async def begin(self) -> None:
        """Its life up to its create, asked for once when struck; a refusal is kept."""
        try:
            await self._prepare()
            self.reached.set()
            await self._stage.struck.wait()
            request = self._create_request()
            await self._client.ask(
                "Tasks.Create", request, Task.CreateTaskResponse, subject=self.plan.name
            )
        except (Refusal, CallFailed) as error:
            self.refusal = error
        finally:
            self.begun.set()

    async def give_up(self) -> None:
        """Remove what there is of it, at whatever point it stands."""
        name = self.plan.name
        kill = Task.KillRequest(container_id=name, signal=9, all=True)
        try:
            await self._ask("Tasks.Kill", kill, NOTHING)
        except (NotFound, FailedPrecondition):
            pass  # there is none, or it never ran
        for verb, request, answer_type in self._removals():
            await self._remove(verb, request, answer_type)

    def _removals(self) -> list[tuple[str, Message, type[Any]]]:
        name = self.plan.name
        snapshot = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=name)
        return [
            ("Tasks.Delete", Task.DeleteTaskRequest(container_id=name), Task.DeleteResponse),
            ("Containers.Delete", containers_pb2.DeleteContainerRequest(id=name), NOTHING),
            ("Snapshots.Remove", snapshot, NOTHING),
        ]

    async def let_go(self) -> None:
        """Open its gates: its processes go on to their end, the exec first, for it dies with the
        container."""
        if self.plan.has_exec:
            self._exec_gate.open()
            await self._exec_ended.wait()
        self._gate.open()

    @property
    def is_running(self) -> bool:
        """Whether its first process was started, and has not been seen to end."""
        return bool(self.pid) and self.exited_at_s is None

    _at = "the beginning"

    async def _live(self, nursery: trio.Nursery) -> None:
        plan, stage = self.plan, self._stage
        await self._prepare()
        self._streams.open(nursery)
        if plan.state is State.CREATING:
            self.reached.set()
            await stage.struck.wait()
        await self._create()
        if plan.state is State.CREATED:
            await self._hold()
        self._expect_end(nursery, "")
        await self._start("")
        nursery.start_soon(self._watch, "", self.pid)
        if plan.state is State.RUNNING:
            await self._hold_running(nursery)
        elif plan.state is State.PAUSED:
            await self._settle("Tasks.Pause", Task.PauseTaskRequest, Status.PAUSED)
            await self._hold()
            await self._settle("Tasks.Resume", Task.ResumeTaskRequest, Status.RUNNING)
        elif plan.state is State.EXEC:
            await self._exec(nursery)
            self._expect_end(nursery, EXEC_ID)
            pid = await self._start(EXEC_ID)
            nursery.start_soon(self._watch, EXEC_ID, pid)
            await self._hold_running(nursery)
        elif plan.state is State.EXITING:
            await self._hold_running(nursery)
        await self._finish(nursery)

    async def _hold(self) -> None:
        """Stay as it is while the harm lasts; its reader may be away meanwhile."""
        self.reached.set()
        await self._stage.struck.wait()
        if self.plan.reader_away:
            self._streams.leave()
        await self._stage.healed.wait()
        self._streams.attach()

    async def _hold_running(self, nursery: trio.Nursery) -> None:
        """As `_hold`, while its processes come to their end, or go on."""
        plan, stage = self.plan, self._stage
        if plan.state is State.EXITING and plan.stdin:
            nursery.start_soon(self._feed, True)

        async def end_inside() -> None:
            # An exiting one is let go with the blow, the others after it.
            exiting = plan.state is State.EXITING
            await (stage.struck if exiting else stage.gone).wait()
            if not exiting and plan.stdin:
                nursery.start_soon(self._feed, True)
            await self.let_go()

        if plan.exits_inside or plan.state is State.EXITING:
            nursery.start_soon(end_inside)
        await self._hold()

    async def _finish(self, nursery: trio.Nursery) -> None:
        plan, stage = self.plan, self._stage
        if not self._gate.is_open:
            if plan.stdin:
                nursery.start_soon(self._feed, plan.terminal)
            await self.let_go()
        self._at = "waiting for its end"
        while self._waits:  # noqa: ASYNC110 - two waits, one of them perhaps
            await trio.sleep(PAUSE_S)
        await self._get()
        if plan.state is State.DELETING:
            self.reached.set()
            await stage.struck.wait()
        if plan.has_exec:
            await self._remove(
                "Tasks.DeleteProcess",
                Task.DeleteProcessRequest(container_id=plan.name, exec_id=EXEC_ID),
                Task.DeleteResponse,
                EXEC_ID,
            )
        for verb, request, answer_type in self._removals():
            await self._remove(verb, request, answer_type)
        self._at = "reading the last output"
        await self._streams.judge()

    # -- the verbs, each until it has taken effect

    async def _ask(
        self, verb: str, request: Message, answer_type: type[Any], exec_id: str = ""
    ) -> Any:
        self._at = verb
        return await self._client.insist(
            verb, request, answer_type, subject=self.plan.name, exec_id=exec_id
        )

    async def _prepare(self) -> None:
        name = self.plan.name
        try:
            answer = await self._ask(
                "Snapshots.Prepare",
                snapshots_pb2.PrepareSnapshotRequest(
                    snapshotter=SNAPSHOTTER, key=name, parent=BASE, labels=ROOTED
                ),
                snapshots_pb2.PrepareSnapshotResponse,
            )
        except AlreadyExists:
            answer = await self._ask(
                "Snapshots.Mounts",
                snapshots_pb2.MountsRequest(snapshotter=SNAPSHOTTER, key=name),
                snapshots_pb2.MountsResponse,
            )
        self._rootfs = list(answer.mounts)
        if self.plan.layer:
            self._rootfs = [_over(self.plan.layer, self._rootfs)]
        container = containers_pb2.Container(id=name, snapshotter=SNAPSHOTTER, snapshot_key=name)
        if self.plan.in_sandbox:
            container.sandbox = self._stage.sandbox
        container.runtime.name = "io.containerd.runc.v2"
        container.spec.type_url = SPEC_URL
        container.spec.value = containers.spec(self.plan, self._gates_folder, self._group)
        try:
            request = containers_pb2.CreateContainerRequest(container=container)
            await self._ask("Containers.Create", request, containers_pb2.CreateContainerResponse)
        except AlreadyExists:
            pass

    async def _create(self) -> None:
        request = self._create_request()
        while True:
            try:
                answer = await self._ask("Tasks.Create", request, Task.CreateTaskResponse)
                self.pid = answer.pid
                return
            except Unknown:
                await trio.sleep(PAUSE_S)  # it was cut short, and has been undone
            except AlreadyExists:
                # An earlier ask took effect, or is being undone.
                process = await self._process("")
                if process is not None and process.status != Status.UNKNOWN:
                    self.pid = process.pid
                    return
                await trio.sleep(PAUSE_S)

    def _create_request(self) -> Task.CreateTaskRequest:
        request = Task.CreateTaskRequest(
            container_id=self.plan.name, rootfs=self._rootfs, **self._streams.stdio
        )
        if self.plan.runtime:
            options = runc_pb2.Options(binary_name=self.plan.runtime)
            request.options.type_url = options.DESCRIPTOR.full_name
            request.options.value = options.SerializeToString()
        return request

    async def _start(self, exec_id: str) -> int:
        request = Task.StartRequest(container_id=self.plan.name, exec_id=exec_id)
        try:
            answer = await self._ask("Tasks.Start", request, Task.StartResponse, exec_id)
            return int(answer.pid)
        except FailedPrecondition:
            process = await self._process(exec_id)
            if process is None or process.status == Status.CREATED:
                raise
            return int(process.pid)

    async def _exec(self, nursery: trio.Nursery) -> None:
        plan = self.plan
        self._history.add(Process(subject=plan.name, exec_id=EXEC_ID, status=plan.exec_code))
        request = Task.ExecProcessRequest(container_id=plan.name, exec_id=EXEC_ID)
        request.spec.type_url = SPEC_URL.replace("/Spec", "/Process")
        request.spec.value = containers.exec_spec(plan)
        for stream in ("stdout", "stderr"):
            setattr(request, stream, self._streams.output(nursery, EXEC_ID, stream))
        try:
            await self._ask("Tasks.Exec", request, NOTHING, EXEC_ID)
        except AlreadyExists:
            pass

    async def _settle(self, verb: str, request_type: Any, status: int) -> None:
        """Pause or resume, which may have taken effect already."""
        try:
            await self._ask(verb, request_type(container_id=self.plan.name), NOTHING)
        except FailedPrecondition:
            process = await self._process("")
            if process is None or process.status != status:
                raise

    async def _feed(self, say_end: bool) -> None:
        """Give the first process its input, to the end; the end is a line, or the stream's own."""
        writer = self._streams.writer
        assert writer is not None
        lines = [f"{i}" for i in range(containers.INPUT_LINES)]
        if say_end:
            lines.append(containers.END_OF_INPUT)
        await writer.write("".join(f"{line}\n" for line in lines).encode())
        if not say_end:
            writer.close()
            request = Task.CloseIORequest(container_id=self.plan.name, stdin=True)
            try:
                await self._client.insist("Tasks.CloseIO", request, NOTHING, subject=self.plan.name)
            except Refusal:
                pass  # it has ended

    def _expect_end(self, nursery: trio.Nursery, exec_id: str) -> None:
        # Counted here: the answer to the start may be there before the wait has begun.
        self._waits += 1
        nursery.start_soon(self._wait, exec_id)

    async def _wait(self, exec_id: str) -> None:
        """Hear of the end of a process, through all deaths of the daemon."""
        request = Task.WaitRequest(container_id=self.plan.name, exec_id=exec_id)
        try:
            await self._client.insist(
                "Tasks.Wait",
                request,
                Task.WaitResponse,
                subject=self.plan.name,
                exec_id=exec_id,
                within_s=None,
            )
        finally:
            self._waits -= 1

    async def _get(self) -> None:
        await self._process("")
        if self.plan.has_exec:
            await self._process(EXEC_ID)

    async def _process(self, exec_id: str) -> Any:
        request = Task.GetRequest(container_id=self.plan.name, exec_id=exec_id)
        try:
            return (await self._ask("Tasks.Get", request, Task.GetResponse, exec_id)).process
        except NotFound:
            return None

    async def _remove(
        self, verb: str, request: Message, answer_type: type[Any], exec_id: str = ""
    ) -> None:
        try:
            await self._ask(verb, request, answer_type, exec_id)
        except NotFound:
            pass  # an earlier ask took effect

    # -- what is seen from outside

    async def _watch(self, exec_id: str, pid: int) -> None:
        """Note when the kernel shows the end of a process."""
        try:
            descriptor = os.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            pass  # it has ended already
        else:
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        at_s = time.monotonic()
        if exec_id:
            self._exec_ended.set()
        else:
            self.exited_at_s = at_s
        self._history.add(Ended(subject=self.plan.name, exec_id=exec_id, at_s=at_s))

    def _trouble(self, text: str) -> None:
        self._history.add(Trouble(subject=self.plan.name, text=text))


def _over(layer: str, below: Sequence[types_pb2.Mount]) -> types_pb2.Mount:
    """An overlay of a directory over what the snapshot mounts: its upper and work stay."""
    options = [option for mount in below for option in mount.options]
    lower = [f"lowerdir={layer}:{o.partition('=')[2]}" for o in options if "lowerdir=" in o]
    others = [option for option in options if "lowerdir=" not in option]
    return types_pb2.Mount(type="overlay", source="overlay", options=[*others, *lower])
