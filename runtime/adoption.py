"""Adoption: a new shim takes over the container that a dead one left in its bundle.

Nothing is guessed. A process is ours only where pid and start time are those that were written
down; its exit comes from its record, from the kernel by way of its pidfd, from its zombie, or from
the fork server that reaped it. When none of them knows, the exit is told as lost. A create that
died half-way is undone.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import json
import select
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import oci, procfs, syscalls
from .container import Container, read_pid
from .process import STATUS_LOST, Process, Status, exit_status, read_exit
from .stdio import Stdio, Streams

Orphans = Mapping[procfs.Identity, tuple[int, int]]


def adopt(container: Container, orphans: Orphans) -> None:
    """Takes over what is in the bundle; `orphans` are exits that the fork server saw."""
    try:
        saved = json.loads(Path(container.bundle, "shim.json").read_text())
    except FileNotFoundError:
        return  # its shim died before it was asked for anything
    container.id, container.namespace = saved["id"], saved["namespace"]
    container.directories = saved["cgroups"]
    container.paused = saved["paused"]
    container.runner.spawns = saved["runtime_spawns"]
    if saved["runtime"] is None:
        return
    container.runtime = oci.Runtime(**saved["runtime"])
    container.config = container.read_config()
    container.isolate()
    adoption = _Adoption(container, orphans)
    for entry in saved["processes"]:
        adoption.take(entry)
    first = container.processes.get("")
    if first is not None and first.status is Status.CREATING:
        container.poller.spawn(container.undo_create(first))
    elif first is not None and first.is_live:
        container.watch_memory()
    container.save()


@dataclass(frozen=True, slots=True)
class _Adoption:
    container: Container
    orphans: Orphans

    def take(self, entry: Mapping[str, Any]) -> None:
        """One process, from what was saved of it."""
        container = self.container
        exec_id = entry["exec_id"]
        process = Process(
            exec_id=exec_id, stdio=Stdio(**entry["stdio"]), status=Status(entry["status"])
        )
        container.processes[exec_id] = process
        if entry["identity"] is not None:
            process.identity = procfs.Identity(**entry["identity"])
        process.exit = read_exit(container.bundle, exec_id)
        if process.exit is not None:
            process.status = Status.STOPPED
            return
        if process.status is Status.STARTING:
            self._settle_start(process)
        if process.identity is None:
            return
        process.pidfd = procfs.open_pidfd(process.identity)
        if process.pidfd is not None:
            if not process.stdio.terminal:
                process.streams = Streams.again(process.stdio, entry["input_closed"])
            container.poller.watch(
                process.pidfd, select.EPOLLIN, lambda events: self._ended(process)
            )
        elif process.identity in self.orphans:
            wait_status, at_ns = self.orphans[process.identity]
            container.ended(process, exit_status(wait_status), at_ns)
        else:
            container.ended(process, STATUS_LOST, lost=True)

    def _settle_start(self, process: Process) -> None:
        """Its shim died between the start and our knowing of it: the start may be tried again."""
        if not process.exec_id:
            waits = self.container.chosen.waits_for_start(self.container.id)
            process.status = Status.CREATED if waits else Status.RUNNING
            return
        pid = read_pid(f"{self.container.bundle}/exec-{process.exec_id}.pid")
        first = self.container.processes[""]
        paths = procfs.cgroup_paths(pid)
        # The pid may be another's by now: only one in this very container is taken.
        if paths and paths == procfs.cgroup_paths(first.pid):
            process.identity = procfs.identity(pid)
        process.status = Status.CREATED if process.identity is None else Status.RUNNING

    def _ended(self, process: Process) -> None:
        """An adopted process, which is not our child, has ended: the kernel tells how."""
        assert process.pidfd is not None
        assert process.identity is not None
        self.container.poller.unwatch(process.pidfd)
        stat = procfs.stat(process.pid)
        if stat is not None and stat.start_time_ticks == process.identity.start_time_ticks:
            self.container.ended(process, exit_status(stat.exit_code))  # a zombie
            return
        wait_status = syscalls.pidfd_exit(process.pidfd)
        if wait_status is None:
            self.container.ended(process, STATUS_LOST, lost=True)
        else:
            self.container.ended(process, exit_status(wait_status))
