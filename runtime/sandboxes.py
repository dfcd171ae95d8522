"""Sandboxes: namespaces that live by themselves, for containers that join them.

    create --> CREATED --start--> READY --stop, or its end--> NOT READY --shutdown--> gone

A sandbox is a task: its first process holds its namespaces, a shim keeps it, an actor supervises
it, and all that is promised of tasks holds for it. It has an id that no container can have, so
that it is in nobody's way; what it tells the world are events of sandboxes. Between create and
start whoever likes puts interfaces into its network namespace.

    sandboxes = Sandboxes(ground, start_task, start_exec)
    await sandboxes.create("default", "pod", spec)
    pid, _ = await sandboxes.start("default", "pod")
    ...                                         # containers whose record names "pod" join it
    await sandboxes.stop("default", "pod")
    await sandboxes.shutdown("default", "pod")
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, NamedTuple

import trio

from ..actors.errors import AlreadyExists, DeadlineExceeded, NotFound, Refusal
from ..storage.containers import Runtime
from ..storage.labels import check_identifier, check_namespace, quoted
from ..storage.mounts import Mount
from .asking import StartChild
from .bundle import CONFIG_NAME, ROOTFS_NAME, bundle_path, parse_config
from .ground import Ground
from .pause import pause_root
from .processview import Process
from .records import sandbox_task
from .sandboxspec import needs_root, sandbox_spec, section
from .tasks import Spec, TaskMetrics, Tasks

STOP_WITHIN_S = 10.0
KILLED_WITHIN_S = 10.0

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


class Started(NamedTuple):
    """What a start answers."""

    pid: int
    created_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a sandbox is at the moment. `task` is containerd's name of its process's state."""

    pid: int
    state: str
    task: str
    created_at_ns: int
    exited_at_ns: int
    exit_status: int


@dataclass(frozen=True, slots=True)
class _Nothing:
    """Stands for the container that a sandbox's task does not have."""

    spec: Spec | None = None
    runtime: Runtime = field(default_factory=lambda: Runtime(name=""))
    sandbox: str = ""


class _NoContainers:
    def get(self, namespace: str, id: str, /) -> _Nothing:
        """A sandbox's task has no container that could be missing."""
        _ = namespace, id
        return _Nothing()


class Sandboxes:
    """The verbs. One per host; made in a running System, closed at its end."""

    def __init__(self, ground: Ground, start_task: StartChild, start_exec: StartChild) -> None:
        self._state = ground.state
        self._tasks = Tasks(ground, _NoContainers(), start_task, start_exec, sandboxes=True)

    def close(self) -> None:
        """Answer no further wait."""
        self._tasks.close()

    async def create(
        self,
        namespace: str,
        id: str,
        spec: bytes = b"",
        rootfs: Sequence[Mount] = (),
        *,
        netns_path: str = "",
        annotations: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> int:
        """Make a sandbox as its OCI spec says; its namespaces exist on return. Its process's pid.

        What the spec leaves out is filled in: `sandboxspec.py`.
        """
        check_namespace(namespace)
        check_identifier(id)
        given = parse_config(spec) if spec else {}
        root = ROOTFS_NAME
        if not rootfs and needs_root(given):
            root = str(await trio.to_thread.run_sync(pause_root, self._state))
        task_id = sandbox_task(id)
        config = sandbox_spec(
            namespace, task_id, given, root, netns_path=netns_path, annotations=annotations
        )
        try:
            return await self._tasks.create(
                namespace, task_id, rootfs, options=options, config=config
            )
        except AlreadyExists:
            raise AlreadyExists(f"sandbox {quoted(id)}: already exists") from None

    async def start(self, namespace: str, id: str) -> Started:
        """Let a created sandbox's process run."""
        self._require(namespace, id)
        pid = await self._tasks.start(namespace, sandbox_task(id))
        return Started(pid, await self._created_at_ns(namespace, id))

    async def stop(self, namespace: str, id: str, within_s: float = 0.0) -> None:
        """End a sandbox's process, by force after `within_s` (0: ten seconds). One that has
        ended, or is not there, is no refusal."""
        with suppress(NotFound):
            process = self._require(namespace, id)
            task_id = sandbox_task(id)
            if process.status == "RUNNING":
                with suppress(Refusal):  # it is just ending
                    await self._tasks.kill(namespace, task_id, "", SIGTERM)
                with trio.move_on_after(within_s or STOP_WITHIN_S):
                    await self._tasks.wait(namespace, task_id)
            if self._require(namespace, id).status != "STOPPED":
                with suppress(NotFound):  # it has just ended
                    await self._tasks.kill(namespace, task_id, "", SIGKILL, all=True)
                with trio.move_on_after(KILLED_WITHIN_S) as scope:
                    await self._tasks.wait(namespace, task_id)
                if scope.cancelled_caught:
                    text = (
                        f"sandbox {quoted(id)}: still running {KILLED_WITHIN_S:g} s after SIGKILL"
                    )
                    raise DeadlineExceeded(text)

    async def wait(self, namespace: str, id: str) -> tuple[int, int]:
        """The status and the time (ns) of its process's end; waits for it, however long."""
        self._require(namespace, id)
        return await self._tasks.wait(namespace, sandbox_task(id))

    async def status(self, namespace: str, id: str) -> Status:
        """What it is now."""
        process = self._require(namespace, id)
        return Status(
            pid=process.pid,
            state=READY if process.status == "RUNNING" else NOT_READY,
            task=process.status,
            created_at_ns=await self._created_at_ns(namespace, id),
            exited_at_ns=process.exited_at_ns,
            exit_status=process.exit_status,
        )

    def check(self, namespace: str, id: str) -> None:
        """`NotFound` when there is no such sandbox."""
        self._require(namespace, id)

    async def shutdown(self, namespace: str, id: str) -> None:
        """Remove a sandbox with all that it had; one that runs is ended first."""
        self._require(namespace, id)
        await self.stop(namespace, id)
        await self._tasks.delete(namespace, sandbox_task(id))

    async def metrics(self, namespace: str, id: str) -> TaskMetrics:
        """What it used until now."""
        self._require(namespace, id)
        found = await self._tasks.metrics(namespace, [f"id=={quoted(sandbox_task(id))}"])
        if not found:
            raise NotFound(f"sandbox {quoted(id)} has no metrics: not found")
        return found[0]._replace(id=id)

    async def update(self, namespace: str, id: str, spec: bytes) -> None:
        """Change its limits to those of an OCI spec; what else stands there is fixed."""
        self._require(namespace, id)
        resources = section(section(parse_config(spec), "linux"), "resources")
        if resources:
            text = json.dumps(resources).encode()
            await self._tasks.update(namespace, sandbox_task(id), text)

    # Inside.

    def _require(self, namespace: str, id: str) -> Process:
        check_namespace(namespace)
        try:
            return self._tasks.get(namespace, sandbox_task(id))
        except NotFound:
            raise NotFound(f"sandbox {quoted(id)}: not found") from None

    async def _created_at_ns(self, namespace: str, id: str) -> int:
        """Its bundle is as old as it is."""
        bundle = bundle_path(self._state, namespace, sandbox_task(id))

        def look(path: Path) -> int:
            try:
                return path.stat().st_mtime_ns
            except OSError:
                return 0

        return await trio.to_thread.run_sync(look, bundle / CONFIG_NAME)
