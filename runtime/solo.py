"""Solo: one task of our shim under somebody else's daemon.

    CREATED --start--> RUNNING --it ends--> STOPPED --delete--> gone

What a daemon of ours keeps in its store and tells by its event log is kept here, in memory, and
told by `tell`: for a daemon that starts such a process for each task, asks it, and runs
`end_bundle` when it has died. Our shim below may die meanwhile, and is replaced.

Invariants: (1) A start is told before the exit, an exec's exit before its task's. (2) An exit is
told once, and before whoever waits for it is answered.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from ..actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal
from ..storage.mounts import Mount
from .exec import exit_record, exited, lost
from .ground import Limits
from .metrics import Counted
from .records import ExitRecord, exit_event, stdio_to_record, timestamp
from .shimclient import Exited, ProcessState, ShimEvent, ShimState
from .shimlink import ShimLink, insist, ride_out
from .shimverbs import OwnShims, Shim
from .soloend import fork_server
from .stdio import Stdio

R = TypeVar("R")

Tell = Callable[[str, Mapping[str, Any]], None]
"""Takes the name of one of containerd's task events and its fields."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Known:
    """One process: what it was given, what was told of it."""

    stdio: Stdio
    pid: int = 0
    starting: trio.Event | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    exit: ExitRecord | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and its end is not told yet."""
        return self.starting is not None and self.exit is None


class Solo:
    """One task, by its verbs. Run `run` in a task of its own; it returns after `shutdown`."""

    def __init__(self, bundle: Path, namespace: str, id: str, tell: Tell) -> None:
        self.id = id
        self.ended = trio.Event()
        """It was shut down."""
        self._bundle = bundle
        self._namespace = namespace
        self._tell = tell
        self._limits = Limits()
        self._known: dict[str, Known] = {}
        self._nursery: trio.Nursery | None = None
        self._link: ShimLink | None = None
        self._ready = trio.Event()

    async def run(self) -> None:
        """Keep a shim for the task until the end."""
        async with fork_server() as spawn, trio.open_nursery() as nursery:
            self._nursery = nursery
            link = ShimLink(self._bundle, OwnShims(spawn), self._limits.attach_within_s)
            self._link = link
            self._ready.set()
            nursery.start_soon(self._keep_up, link)
            await self.ended.wait()
            await link.end()
            nursery.cancel_scope.cancel()

    # The life of the task.

    async def create(
        self, rootfs: Sequence[Mount], stdio: Stdio, options: Mapping[str, Any]
    ) -> int:
        """Make the container; its first process's pid."""
        if "" in self._known:
            raise AlreadyExists(f"task {self.id}: already exists")
        known = self._known[""] = Known(stdio=stdio)
        within_s = self._limits.runtime_within_s

        async def create(shim: Shim) -> int:
            return await shim.create(
                id=self.id,
                namespace=self._namespace,
                rootfs=rootfs,
                stdio=stdio,
                options=options,
                timeout_s=within_s,
            )

        try:
            known.pid = await ride_out(self._shim, create, settle_within_s=within_s)
        except BaseException:
            del self._known[""]
            raise
        event = {
            "container_id": self.id,
            "bundle": str(self._bundle),
            "rootfs": [mount.to_record() for mount in rootfs],
            "io": stdio_to_record(stdio),
            "checkpoint": "",
            "pid": known.pid,
        }
        self._tell("TaskCreate", event)
        return known.pid

    async def start(self, exec_id: str = "") -> int:
        """Run the first process, or an added one; its pid."""
        known = self._find(exec_id)
        if known.starting is not None:
            raise FailedPrecondition("cannot start a process twice")
        within_s = self._limits.runtime_within_s
        starting = known.starting = trio.Event()
        try:
            known.pid = await ride_out(
                self._shim,
                lambda shim: shim.start(exec_id, timeout_s=within_s),
                exec_id,
                no_effect="created",
                settle_within_s=within_s,
            )
        except BaseException:
            known.starting = None
            raise
        else:
            about = {"container_id": self.id, "pid": known.pid}
            if exec_id:
                self._tell("TaskExecStarted", about | {"exec_id": exec_id})
            else:
                self._tell("TaskStart", about)
        finally:
            starting.set()
        return known.pid

    async def exec(self, exec_id: str, spec: bytes, stdio: Stdio) -> None:
        """Add a process; `start` runs it."""
        self._find("")
        if exec_id in self._known:
            raise AlreadyExists(f"id {exec_id}: already exists")

        async def add(shim: Shim) -> None:
            try:
                await shim.exec(exec_id, spec, stdio, timeout_s=self._limits.shim_within_s)
            except AlreadyExists:
                pass  # the shim died over it, and the next one knows it

        await insist(self._shim, add)
        self._known[exec_id] = Known(stdio=stdio)
        self._tell("TaskExecAdded", {"container_id": self.id, "exec_id": exec_id})

    async def delete(self, exec_id: str = "") -> ExitRecord:
        """Remove a process that has ended, or never ran; how it ended."""
        known = self._find(exec_id)
        deleted = await insist(
            self._shim,
            lambda shim: shim.delete(exec_id, timeout_s=self._limits.runtime_within_s),
        )
        exit = known.exit or exit_record(deleted, known.pid)
        if exec_id:
            self._known.pop(exec_id, None)
        else:
            await self._execs_end()
            self._told("", known, exit)
            self._known.clear()  # its execs went with it
            event = {
                "container_id": self.id,
                "pid": exit.pid,
                "exit_status": exit.status,
                "exited_at": timestamp(exit.exited_at_ns),
            }
            self._tell("TaskDelete", event)
        return exit

    async def shutdown(self, now: bool = False) -> None:
        """End, when there is nothing left to serve."""
        if self._known and not now:
            return
        try:
            shim = await self._shim()
            await shim.shutdown(timeout_s=self._limits.shim_within_s)
        except Refusal as error:
            log.info("task.shim_unended", id=self.id, reason=str(error))
        self.ended.set()

    # While it runs.

    async def kill(self, exec_id: str, signal: int, all: bool) -> None:
        """Send a signal to a process, or to every process."""
        self._find(exec_id)
        within_s = self._limits.shim_within_s
        await self._ask(lambda shim: shim.kill(signal, exec_id, all=all, timeout_s=within_s))

    async def pause(self) -> None:
        """Freeze the container."""
        self._find("")
        await self._ask(lambda shim: shim.pause(timeout_s=self._limits.shim_within_s))
        self._tell("TaskPaused", {"container_id": self.id})

    async def resume(self) -> None:
        """Thaw the container."""
        self._find("")
        await self._ask(lambda shim: shim.resume(timeout_s=self._limits.shim_within_s))
        self._tell("TaskResumed", {"container_id": self.id})

    async def update(self, resources: bytes) -> None:
        """Change the limits to an OCI resources object in JSON."""
        self._find("")
        within_s = self._limits.runtime_within_s
        await self._ask(lambda shim: shim.update(resources, annotations={}, timeout_s=within_s))

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        """Set the size of a process's terminal; nothing where it has none."""
        if self._find(exec_id).stdio.terminal:
            within_s = self._limits.shim_within_s
            await self._ask(lambda shim: shim.resize(width, height, exec_id, timeout_s=within_s))

    async def close_io(self, exec_id: str) -> None:
        """Close our end of a process's stdin."""
        self._find(exec_id)
        within_s = self._limits.shim_within_s
        await self._ask(lambda shim: shim.close_io(exec_id, timeout_s=within_s))

    async def pids(self) -> list[tuple[int, str | None]]:
        """Every pid in the container, with the exec id of those that are ours."""
        self._find("")
        return await self._ask(lambda shim: shim.pids(timeout_s=self._limits.shim_within_s))

    async def metrics(self) -> Counted:
        """What the container used until now."""
        self._find("")
        return await self._ask(lambda shim: shim.metrics(timeout_s=self._limits.shim_within_s))

    async def wait(self, exec_id: str) -> ExitRecord:
        """How a process ended; waits for it, however long."""
        known = self._find(exec_id)
        await known.ended.wait()
        assert known.exit is not None
        return known.exit

    async def state(self, exec_id: str) -> tuple[ProcessState, bool]:
        """One process, and whether it is frozen. It has not ended before that was told."""
        known = self._find(exec_id)
        state = await self._ask(lambda shim: shim.state(timeout_s=self._limits.shim_within_s))
        found = state.processes.get(exec_id)
        if found is None:
            raise NotFound(f"process {exec_id or self.id}: not found")
        if found.status == "stopped" and known.exit is None:
            with trio.move_on_after(self._limits.execs_end_within_s):
                await known.ended.wait()
        return found, state.paused and found.status == "running"

    def pid(self) -> int:
        """The first process's pid; 0 before there is one."""
        return self._known[""].pid if "" in self._known else 0

    def stdio(self, exec_id: str) -> Stdio:
        """What a process was given."""
        return self._find(exec_id).stdio

    # Inside.

    def _find(self, exec_id: str) -> Known:
        if exec_id not in self._known:
            about = f"process {exec_id}" if exec_id else f"container {self.id}"
            raise NotFound(f"{about}: not found")
        return self._known[exec_id]

    async def _shim(self) -> Shim:
        await self._ready.wait()
        assert self._link is not None
        return await self._link.client(self._limits.attach_within_s + self._limits.link_within_s)

    async def _ask(self, ask: Callable[[Shim], Awaitable[R]]) -> R:
        return await insist(self._shim, ask)

    async def _keep_up(self, link: ShimLink) -> None:
        await link.keep_up(self._on_event, self._on_seen, self._on_lost, fresh=True)

    def _on_event(self, event: ShimEvent) -> None:
        if not isinstance(event, Exited):
            self._tell("TaskOOM", {"container_id": self.id})
        elif event.exec_id in self._known:
            assert self._nursery is not None
            self._nursery.start_soon(self._learn, event)

    def _on_seen(self, state: ShimState) -> None:
        for process in state.processes.values():
            if process.status == "stopped":
                self._on_event(exited(process))

    def _on_lost(self) -> None:
        log.error("task.bundle_lost", id=self.id)
        self.ended.set()

    async def _learn(self, event: Exited) -> None:
        known = self._known[event.exec_id]
        if known.starting is not None:
            await known.starting.wait()
        if not event.exec_id:
            await self._execs_end()
        self._told(event.exec_id, known, exit_record(event, known.pid))

    async def _execs_end(self) -> None:
        """Wait, not for long, until the exits of the execs are told: the task's is the last."""
        running = [(id, other) for id, other in self._known.items() if id and other.runs]
        with trio.move_on_after(self._limits.execs_end_within_s):
            for _, other in running:
                await other.ended.wait()
        for exec_id, other in running:
            self._told(exec_id, other, exit_record(lost(), other.pid))

    def _told(self, exec_id: str, known: Known, exit: ExitRecord) -> None:
        if known.exit is None:
            known.exit = exit
            self._tell("TaskExit", exit_event(self.id, exec_id or self.id, exit))
            known.ended.set()
