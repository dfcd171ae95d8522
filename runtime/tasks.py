"""Tasks: the verbs of the runtime for every way in, with containerd's refusals.

    CREATING -> CREATED -> RUNNING <-> PAUSED -> STOPPED -> gone     a task
                ADDED   -> RUNNING            -> STOPPED -> gone     an exec

    tasks = Tasks(ground, containers, start_task, start_exec)
    pid = await tasks.create("default", "web", rootfs, stdio)
    await tasks.start("default", "web")
    status, exited_at_ns = await tasks.wait("default", "web")
    await tasks.delete("default", "web")

Reads are answered from the store. A change is done by the process's own actor, one at a time, and
is on disk with its event when the verb returns. A verb that meets an actor in its restart waits
for the new one. A hung shim holds up the verbs of its own task, each until its deadline.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from time import time_ns
from typing import Any, NamedTuple, Protocol

import trio

from ..actors import failpoints
from ..actors.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
    Unavailable,
)
from ..actors.exits import ActorExited, CallTimeout, StartFailed
from ..actors.system import System
from ..storage.filters import compile_filters
from ..storage.labels import check_identifier
from ..storage.mounts import Mount
from ..supervision.spec import ChildSpec, Restart
from . import exec, ledger, task, tasklife
from .asking import Asking, StartChild
from .bundle import bundle_path, parse_config
from .exits import Exits
from .foreign import FOREIGN_TOPICS, is_foreign
from .forwarded import CloseStdin, Kill, Resize
from .ground import Ground
from .loguri import check_binaries, logs_of
from .processview import Process, process_of_exec, process_of_task
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
    sandbox_of,
    sandbox_task,
    task_name,
)
from .sandboxspec import join_sandbox
from .shimclient import OutOfMemory
from .shimverbs import Shim
from .stdio import Stdio

CREATE_SLACK_S = 20.0
METRICS_WITHIN_S = 2.0


class Spec(Protocol):
    """The Any value in a container record that holds its OCI spec."""

    @property
    def value(self) -> bytes: ...


class Runtime(Protocol):
    """Which runtime a container record asks for."""

    @property
    def name(self) -> str: ...


class Container(Protocol):
    """What a task needs of a container record."""

    @property
    def spec(self) -> Spec | None: ...
    @property
    def runtime(self) -> Runtime: ...

    @property
    def sandbox(self) -> str: ...


class ContainerSource(Protocol):
    """Where containers are looked up; raises containerd's NotFound."""

    def get(self, namespace: str, id: str, /) -> Container: ...


class Exited(NamedTuple):
    """What a delete answers."""

    id: str
    pid: int
    status: int
    exited_at_ns: int


class TaskMetrics(NamedTuple):
    """What a task used until now."""

    id: str
    collected_at_ns: int
    version: int | str
    """metrics.V1 or metrics.V2: which of containerd's messages the fields make. A shim that is not
    ours gives a message of that name, in bytes."""
    fields: Mapping[str, Any] | bytes


class Tasks:
    """The verbs. One per host; made in a running System, closed at its end."""

    def __init__(
        self,
        ground: Ground,
        containers: ContainerSource,
        start_task: StartChild,
        start_exec: StartChild,
        *,
        sandboxes: bool = False,
    ) -> None:
        self._ground = ground
        self._sandboxes = sandboxes
        self._store = ground.store
        self._containers = containers
        self._start_task = start_task
        self._start_exec = start_exec
        self._system = System.current()
        self._asking = Asking(self._system, ground.limits.shim_within_s)
        self._exits = Exits(ground.store)

    def close(self) -> None:
        """Answer no further wait."""
        self._exits.close()

    # The life of a task.

    async def create(
        self,
        namespace: str,
        id: str,
        rootfs: Sequence[Mount] = (),
        stdio: Stdio | None = None,
        options: Mapping[str, Any] | None = None,
        runtime: str = "",
        *,
        config: bytes | None = None,
    ) -> int:
        """Make the task, created and not started; its pid. The intent is on disk first.

        `runtime` replaces the one of the container's record. The options are for it. The spec is
        the container's, unless `config` is one; a container of a sandbox joins it.
        """
        if config is None:
            config = await self._spec(namespace, id)
        await self._check_stdio(stdio)
        runtime = runtime or self._containers.get(namespace, id).runtime.name
        await self._ground.check_runtime(runtime)
        record = TaskRecord(
            namespace=namespace,
            id=id,
            state=State.CREATING,
            bundle=str(bundle_path(self._ground.state, namespace, id)),
            stdio=stdio or Stdio(),
            rootfs=rootfs,
            options=self._options(options or {}, runtime),
            runtime=runtime,
        )
        # Shielded: a create that is withdrawn halfway would leave an intent without an owner.
        with trio.CancelScope(shield=True):
            return await self._create(record, config)
        raise AssertionError("nobody cancels the shield's own scope")

    async def start(self, namespace: str, id: str, exec_id: str = "") -> int:
        """Run the first process, or an exec; its pid."""
        name = self._name(namespace, id, exec_id)
        request = exec.Start() if exec_id else tasklife.Start()
        within_s = self._ground.limits.runtime_within_s
        started = partial(self._pid, namespace, id, exec_id)
        return await self._asking.ask(name, request, within_s, started)

    async def delete(self, namespace: str, id: str) -> Exited:
        """Remove a task that has stopped, or was never started, with all that it had."""
        record = self._task(namespace, id)
        within_s = self._ground.limits.runtime_within_s + CREATE_SLACK_S
        exit = await self._asking.ask(
            record.name, tasklife.Delete(), within_s, lambda: self._gone(record)
        )
        await self._asking.ended(record.name)
        return Exited(id, exit.pid, exit.status, exit.exited_at_ns)

    async def kill(
        self, namespace: str, id: str, exec_id: str, signal: int, all: bool = False
    ) -> None:
        """Send a signal to one process, or to every process of the container."""
        step = Kill(signal=signal, all=all and not exec_id)
        await self._asking.ask(self._name(namespace, id, exec_id), step, self._shim_within_s)

    async def pause(self, namespace: str, id: str) -> None:
        """Freeze the container."""
        await self._asking.ask(
            self._task(namespace, id).name, tasklife.Pause(), self._shim_within_s
        )

    async def resume(self, namespace: str, id: str) -> None:
        """Thaw the container."""
        await self._asking.ask(
            self._task(namespace, id).name, tasklife.Resume(), self._shim_within_s
        )

    async def update(
        self,
        namespace: str,
        id: str,
        resources: bytes,
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        """Change the limits to an OCI resources object in JSON. Annotations are for runtimes
        that heed them; ours does not."""
        name = self._task(namespace, id).name
        parse_config(resources)
        within_s = self._ground.limits.runtime_within_s
        step = tasklife.Update(resources=resources, annotations=annotations or {})
        await self._asking.ask(name, step, within_s)

    async def resize_pty(
        self, namespace: str, id: str, exec_id: str, width: int, height: int
    ) -> None:
        """Set the size of a process's terminal; nothing where it has none."""
        step = Resize(width=width, height=height)
        await self._asking.ask(self._name(namespace, id, exec_id), step, self._shim_within_s)

    async def close_io(self, namespace: str, id: str, exec_id: str = "") -> None:
        """Close our end of a process's stdin."""
        name = self._name(namespace, id, exec_id)
        await self._asking.ask(name, CloseStdin(), self._shim_within_s)

    # Further processes.

    async def exec(
        self, namespace: str, id: str, exec_id: str, spec: bytes, stdio: Stdio | None = None
    ) -> None:
        """Add a process, an OCI process in JSON; `start` runs it."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty")
        owner = self._task(namespace, id)
        try:
            check_identifier(exec_id)
        except Refusal as error:
            raise InvalidArgument(f"invalid exec id {exec_id}: {error}") from error
        if self._store.get(EXEC, namespace, process_key(id, exec_id)) is not None:
            raise AlreadyExists(f"id {exec_id}: already exists")
        tasklife.next_state(owner.state, tasklife.AddExec())
        parse_config(spec)
        await self._check_stdio(stdio)
        record = ExecRecord(
            namespace=namespace,
            task_id=id,
            id=exec_id,
            state=ExecState.ADDED,
            spec=spec,
            stdio=stdio or Stdio(),
        )
        with trio.CancelScope(shield=True):
            await self._store.write(ledger.exec_added(record))
            failpoints.passed("exec.added")
            await self._asking.start(self._start_exec, exec_child(self._ground, record))

    async def delete_process(self, namespace: str, id: str, exec_id: str) -> Exited:
        """Remove an exec that has stopped, or was never started."""
        if not exec_id:
            return await self.delete(namespace, id)
        record = self._exec(namespace, id, exec_id)
        within_s = self._ground.limits.runtime_within_s
        exit = await self._asking.ask(
            record.name, exec.Delete(), within_s, lambda: self._gone(record)
        )
        await self._asking.ended(record.name)
        return Exited(exec_id, exit.pid, exit.status, exit.exited_at_ns)

    # Questions.

    def get(self, namespace: str, id: str, exec_id: str = "") -> Process:
        """One process, as it was told last."""
        owner = self._task(namespace, id)
        if not exec_id:
            return process_of_task(owner)
        return process_of_exec(self._exec(namespace, id, exec_id), owner)

    def list(self, namespace: str, filter: str = "") -> Sequence[Process]:
        """The first process of every task. containerd heeds no filter here, nor do we."""
        _ = filter
        return [process_of_task(record) for record in self._tasks(namespace)]

    async def wait(self, namespace: str, id: str, exec_id: str = "") -> tuple[int, int]:
        """The status and the time (ns) of a process's end; waits for it, however long."""
        self._name(namespace, id, exec_id)  # refuses what is not there
        exit = await self._exits.wait(namespace, id, exec_id)
        return exit.status, exit.exited_at_ns

    async def list_pids(self, namespace: str, id: str) -> Sequence[tuple[int, str | None]]:
        """Every pid in the container, with the exec id of those that are ours."""
        client = await self._client(self._task(namespace, id))
        return await client.pids(timeout_s=self._ground.limits.shim_within_s)

    async def metrics(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[TaskMetrics]:
        """What each matching task used until now; a task without a cgroup is left out."""
        accepts = compile_filters(filters)
        chosen = [
            record for record in self._tasks(namespace) if accepts(partial(_metrics_field, record))
        ]
        found: dict[str, TaskMetrics] = {}

        async def read(record: TaskRecord) -> None:
            try:
                client = await self._client(record)
                version, used = await client.metrics(timeout_s=METRICS_WITHIN_S)
            except (Refusal, OSError):
                return
            found[record.id] = TaskMetrics(record.id, time_ns(), version, used)

        async with trio.open_nursery() as nursery:
            for record in chosen:
                nursery.start_soon(read, record)
        return [found[record.id] for record in chosen if record.id in found]

    # What shims tell that are not ours.

    def hear(self, namespace: str, topic: str, id: str) -> bool:
        """Takes in what a shim published; False when it is for the world as it stands.

        Of a task's life the world hears from the task's actor, once and in order.
        """
        if topic == "/tasks/oom":
            actor = self._system.whereis(task_name(namespace, id))
            if actor is not None:
                actor.cast(OutOfMemory(kills=None))
        return topic in FOREIGN_TOPICS

    # Inside.

    def _options(self, options: Mapping[str, Any], runtime: str) -> Mapping[str, Any]:
        """The client's, with the host's choice of an OCI runtime where it names none."""
        ours = self._ground.oci_runtime
        if not ours or is_foreign(runtime) or options.get("binary_name"):
            return options
        return {**options, "binary_name": ours}

    @property
    def _shim_within_s(self) -> float:
        return self._ground.limits.shim_within_s

    async def _spec(self, namespace: str, id: str) -> bytes:
        container = self._containers.get(namespace, id)
        spec = container.spec
        if spec is None or not spec.value:
            raise InvalidArgument(f"container {id} has no spec: invalid argument")
        config = parse_config(spec.value)
        if not container.sandbox:
            return spec.value
        pid = self._sandbox_pid(namespace, container.sandbox)
        return await trio.to_thread.run_sync(join_sandbox, config, pid)

    def _sandbox_pid(self, namespace: str, sandbox_id: str) -> int:
        found = self._store.get(TASK, namespace, sandbox_task(sandbox_id))
        if found is None:
            raise NotFound(f"can't find sandbox {sandbox_id}: not found")
        record = TaskRecord.from_record(namespace, sandbox_id, found)
        if record.state is not State.RUNNING:
            raise FailedPrecondition(f"sandbox {sandbox_id} is not running: {record.state}")
        return record.pid

    async def _check_stdio(self, stdio: Stdio | None) -> None:
        """Refuse log URIs that make no sense, and programs that may not be run."""
        if stdio is not None and logs_of(stdio) != (None, None):
            folder = str(self._ground.log_binaries)
            await trio.to_thread.run_sync(check_binaries, stdio, folder)

    def _task(self, namespace: str, id: str) -> TaskRecord:
        self._containers.get(namespace, id)
        found = self._store.get(TASK, namespace, id)
        if found is None:
            raise NotFound(f"task {id} not found")
        return TaskRecord.from_record(namespace, id, found)

    def _exec(self, namespace: str, id: str, exec_id: str) -> ExecRecord:
        self._task(namespace, id)
        key = process_key(id, exec_id)
        found = self._store.get(EXEC, namespace, key)
        if found is None:
            raise NotFound(f"process does not exist {exec_id}: not found")
        return ExecRecord.from_record(namespace, key, found)

    def _name(self, namespace: str, id: str, exec_id: str) -> str:
        """The name of a process's actor."""
        if exec_id:
            return self._exec(namespace, id, exec_id).name
        return self._task(namespace, id).name

    def _tasks(self, namespace: str) -> Iterator[TaskRecord]:
        for row in self._store.scan(TASK, namespace):
            if bool(sandbox_of(row.key)) is not self._sandboxes:
                continue
            try:
                record = TaskRecord.from_record(namespace, row.key, row.value)
            except DataLoss:
                continue  # reported when it was recovered; one bad record hides no other
            if record.state is not State.CREATING:
                yield record

    def _pid(self, namespace: str, id: str, exec_id: str) -> int | None:
        """The pid of a start that took effect before its actor fell."""
        if not exec_id:
            record = self._task(namespace, id)
            return None if record.state is State.CREATED else record.pid
        added = self._exec(namespace, id, exec_id)
        return None if added.state is ExecState.ADDED else added.pid

    def _gone(self, record: TaskRecord | ExecRecord) -> ExitRecord | None:
        """The exit of a delete that took effect before its actor fell."""
        kind, key = (TASK, record.id) if isinstance(record, TaskRecord) else (EXEC, record.key)
        if self._store.get(kind, record.namespace, key) is not None:
            return None
        return record.exit or ExitRecord(pid=record.pid, status=STATUS_LOST, exited_at_ns=time_ns())

    async def _client(self, record: TaskRecord) -> Shim:
        return await self._ground.client(record.name)

    async def _create(self, record: TaskRecord, config: bytes) -> int:
        await self._store.write(ledger.intend_task(record))
        failpoints.passed("task.create.intended")
        try:
            try:
                ref = await self._asking.start(self._start_task, task_child(self._ground, record))
            except AlreadyExists:
                await self._store.write(ledger.forget_task(record))
                raise
            within_s = self._ground.limits.runtime_within_s + CREATE_SLACK_S
            return await ref.call(tasklife.Create(config=config), timeout_s=within_s)
        except (ActorExited, StartFailed, CallTimeout) as error:
            await self._abandon(record)
            raise Unavailable(f"create {record.id}: {error}") from error

    async def _abandon(self, record: TaskRecord) -> None:
        """A create's actor fell: its successor, if there is one, cleans up."""
        if self._store.get(TASK, record.namespace, record.id) is None:
            return
        try:
            await self._asking.ask(record.name, tasklife.Delete(), task.CLEANUP_WITHIN_S)
        except Refusal:
            pass  # the next start's recovery finds it


def task_child(ground: Ground, record: TaskRecord) -> ChildSpec:
    """The actor of a recorded task; it is ready once it has caught up with its shim."""
    return ChildSpec(
        record.name,
        task.Task,
        Restart.TRANSIENT,
        args=(ground, record.namespace, record.id),
        name=record.name,
    )


def exec_child(ground: Ground, record: ExecRecord) -> ChildSpec:
    """The actor of a recorded exec; it is ready once it has caught up with its shim."""
    return ChildSpec(
        record.name,
        exec.Exec,
        Restart.TRANSIENT,
        args=(ground, record.namespace, record.task_id, record.id),
        name=record.name,
    )


def _metrics_field(record: TaskRecord, path: Sequence[str]) -> tuple[str, bool]:
    match path[0]:
        case "id":
            return record.id, True
        case "namespace":
            return record.namespace, True
        case _:
            return "", False
