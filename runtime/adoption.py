"""Adoption: a new shim takes over the container that a dead one left in its bundle.

Nothing is guessed. A process is ours by its pin, or where pid and start time are those that were
written down; its exit comes from its record, from the kernel by way of its pidfd, from its zombie,
or from the fork server that reaped it. When none of them knows, the exit is told as lost.

What the dead shim had begun is brought to an end: the OCI runtime, which runs on without us, has
its result pinned, so that a create or exec is taken over as if we had begun it; where it was not
begun it is undone. A delete goes on. Whoever lost the answer asks again with `settle`.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import json
import os
import select
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..actors.errors import DataLoss, InvalidArgument, NotFound, Refusal, Unavailable, Unknown
from . import cgroup, oci, procfs
from .container import RUNTIME_WITHIN_S, Container
from .isolation import isolate
from .orphans import Exit
from .pins import slot
from .process import STATUS_LOST, Process, Status, exit_status, read_exit
from .pty import Terminal
from .ptykeeper import PtyKeeper
from .removal import remove_all, undo_create
from .runner import read_pid
from .stdio import Stdio

TOLD_WITHIN_S: Final = 5.0


def adopt(container: Container) -> None:
    """Takes over what is in the bundle."""
    try:
        saved = json.loads(Path(container.bundle, "shim.json").read_text())
    except FileNotFoundError:
        return  # its shim died before it was asked for anything
    except ValueError:
        _must_have_ended(container.bundle)
        return  # a loss of power tore it, and ended what it told of
    container.id, container.namespace = saved["id"], saved["namespace"]
    container.directories = saved["cgroups"]
    container.paused = saved["paused"]
    container.runner.spawns = saved["runtime_spawns"]
    if saved["runtime"] is None:
        return
    container.runtime = oci.Runtime(**saved["runtime"])
    try:
        container.config = container.read_config()
    except InvalidArgument:
        _must_have_ended(container.bundle)
    try:
        container.join_cgroup()
    except NotFound:
        pass  # its client has removed it since
    isolate(container.host_namespace)
    container.removing = saved["removing"]
    adoption = _Adoption(container)
    for entry in saved["processes"]:
        adoption.take(entry)
    if container.removing:
        container.poller.spawn(adoption.go_on_removing())
        return
    adoption.settle_freeze()
    first = container.processes.get("")
    if first is not None and first.status is Status.CREATING:
        container.poller.spawn(adoption.settle_create(first))
    elif first is not None and first.is_live:
        container.watch_memory()
    container.save_if_room()


def _must_have_ended(bundle: str) -> None:
    """A bundle that is harmed is given up only when its first process is gone: DataLoss else."""
    first = procfs.read_identity(f"{bundle}/init.pid")
    if first is not None and procfs.identity(first.pid) == first:
        raise DataLoss(f"bundle {bundle} is damaged, and process {first.pid} lives")


class _NotBegun(Exception):
    """What a dead shim was asked for has had no effect: it may be asked for again."""


@dataclass(frozen=True, slots=True)
class _Adoption:
    """One container on its way from a dead shim to us."""

    container: Container

    def take(self, entry: Mapping[str, Any]) -> None:
        """One process as it was last written down."""
        container = self.container
        exec_id = entry["exec_id"]
        identity = entry["identity"]
        process = container.processes[exec_id] = Process(
            exec_id=exec_id,
            stdio=Stdio(**entry["stdio"]),
            status=Status(entry["status"]),
            identity=procfs.Identity(**identity) if identity is not None else None,
        )
        process.exit = read_exit(container.bundle, exec_id)
        if process.exit is not None:
            process.status = Status.STOPPED
            # Output that nobody has read yet may wait.
            self._hold_stdio(process, entry)
            if process.terminal is not None:
                process.terminal.finish()
            if process.streams is not None:
                process.streams.finish(container.poller)
            return
        match process.status:
            case Status.CREATING:
                self._hold_streams(process, entry)
                return  # settled when all are known
            case Status.STARTING if exec_id:
                self._hold_streams(process, entry)
                container.poller.spawn(self.settle_exec(process))
                return
            case Status.STARTING:
                waits = container.chosen.waits_for_start(container.id)
                process.status = Status.CREATED if waits else Status.RUNNING
            case _:
                pass
        if process.identity is not None:
            self._hold_stdio(process, entry)
            self._follow(process)

    def settle_freeze(self) -> None:
        """A pause or resume may have been under way: the kernel knows how far it came."""
        container = self.container
        if not cgroup.can_freeze(container.directories):
            return
        container.paused = cgroup.is_frozen(container.directories)
        if not container.paused:
            try:
                cgroup.set_frozen(container.directories, False)
            except OSError:  # the container has ended, and its cgroup is gone
                pass

    def _hold_stdio(self, process: Process, entry: Mapping[str, Any]) -> None:
        if self.container.removing:
            return
        self._hold_streams(process, entry)
        if process.stdio.terminal:
            self._attach(process, entry["input_closed"])

    def _hold_streams(self, process: Process, entry: Mapping[str, Any]) -> None:
        self.container.wiring.hold_again(process, entry["input_closed"])

    def _attach(self, process: Process, input_closed: bool) -> None:
        try:
            terminal = self.container.wiring.terminal(process)
        except (NotFound, InvalidArgument):
            return  # its client took a FIFO away: nobody will read
        process.terminal = terminal
        if input_closed:
            terminal.close_input()
        self.container.poller.spawn(self._attach_to(terminal))

    async def _attach_to(self, terminal: Terminal) -> None:
        try:
            await terminal.attach()
        except Unavailable:  # lost with its keeper
            terminal.finish()
            terminal.close()

    def _follow(self, process: Process) -> None:
        """A process that was there when its shim died; it may have ended since."""
        assert process.identity is not None
        pins = self.container.pins
        process.pidfd = procfs.open_pidfd(process.identity)
        if process.exec_id:
            process.waiter = pins.open_process(f"{slot(process.exec_id)}.op")
        elif process.pidfd is None:
            process.pidfd = pins.open_process("init.pid")
        watched = process.waiter if process.waiter is not None else process.pidfd
        if watched is not None:
            self._watch(process, watched)
        elif not self._ended_as_orphan(process):
            self.container.ended(process, STATUS_LOST, lost=True)

    def _watch(self, process: Process, pidfd: int) -> None:
        self.container.poller.watch(
            pidfd, select.EPOLLIN, lambda events: self._ended(process, pidfd)
        )

    async def settle_create(self, process: Process) -> None:
        """A create was begun: its result is waited for, and is ours."""
        container = self.container
        pid_file = container.pid_file("")
        try:
            await self._result(process, "create", pid_file)
            if procfs.identity(read_pid(pid_file)) != container.chosen.made(container.id):
                raise Unknown("the process that the create made is gone")
            container.claim(process, pid_file)
            assert process.pidfd is not None
            if process.stdio.terminal:
                self._attach(process, False)
            self._watch(process, process.pidfd)
            container.created(process)
        except _NotBegun:
            await undo_create(container, process)
        except (Refusal, OSError, ValueError) as error:
            container.failures[""] = str(error)
            await undo_create(container, process)

    async def settle_exec(self, process: Process) -> None:
        """The start of an exec was begun."""
        container = self.container
        pid_file = container.pid_file(process.exec_id)
        try:
            await self._result(process, "exec", pid_file)
            pid = read_pid(pid_file)
            if not pid:
                raise _NotBegun
        except (_NotBegun, Refusal, OSError) as error:
            if not isinstance(error, _NotBegun):
                container.failures[process.exec_id] = str(error)
            process.release()
            PtyKeeper(container.bundle, slot(process.exec_id)).end()
            process.status = Status.CREATED
        else:
            container.claim_exec(process, pid, self._identity_of_exec(process, pid))
            if process.stdio.terminal:
                self._attach(process, False)
            self._follow(process)
        container.save_if_room()

    def _identity_of_exec(self, process: Process, pid: int) -> procfs.Identity | None:
        """Who has the pid of a pid file, where that is certain: it may be another's by now."""
        identity = procfs.identity(pid)
        waiter = self.container.pins.open_process(f"{slot(process.exec_id)}.op")
        if waiter is None:
            return None
        try:
            # While its parent waits for it, a pid is not given to another.
            return identity if procfs.ended(waiter) is None else None
        finally:
            os.close(waiter)

    async def _result(self, process: Process, verb: str, pid_file: str) -> None:
        container = self.container
        name = slot(process.exec_id)
        # A create's runtime ends of itself; an exec's waits, as soon as its pid file is there.
        made = pid_file if process.exec_id else ""
        pidfd = await container.runner.result(verb, name, RUNTIME_WITHIN_S, made)
        if pidfd is not None:
            os.close(pidfd)
        elif container.pins.noted(f"{name}.op") is None:
            raise _NotBegun

    async def go_on_removing(self) -> None:
        """A delete was begun, which has no way back."""
        await remove_all(self.container, RUNTIME_WITHIN_S)
        self.container.save_if_room()

    def _ended(self, process: Process, pidfd: int) -> None:
        """An adopted process, or its waiter, has ended; neither is our child."""
        self.container.poller.unwatch(pidfd)
        self.container.poller.spawn(self._tell_end(process, pidfd))

    async def _tell_end(self, process: Process, pidfd: int) -> None:
        # Between the end and the reaping, the way to the status may be shut for a moment.
        await self.container.poller.until(
            lambda: procfs.ended(pidfd) is not None or self._told(process) is not None,
            TOLD_WITHIN_S,
        )
        wait_status = procfs.ended(pidfd)
        killed = wait_status is not None and os.WIFSIGNALED(wait_status)
        if killed and pidfd == process.waiter and process.pidfd is not None:
            self._watch(process, process.pidfd)  # the runtime was killed, the process was not
        elif wait_status is not None:
            self.container.ended(process, exit_status(wait_status))
        elif not self._ended_as_orphan(process):
            self.container.ended(process, STATUS_LOST, lost=True)

    def _told(self, process: Process) -> Exit | None:
        """How it ended, from who was its parent, or that of the runtime that waited for it."""
        pins = self.container.pins
        found = pins.told(f"{slot(process.exec_id)}.op") if process.exec_id else None
        if found is not None and not os.WIFSIGNALED(found[0]):
            return found
        assert process.identity is not None
        return pins.orphans.get(process.identity)

    def _ended_as_orphan(self, process: Process) -> bool:
        """Whether one who reaped it has told how it ended."""
        found = self._told(process)
        if found is None:
            return False
        wait_status, at_ns = found
        self.container.ended(process, exit_status(wait_status), at_ns)
        return True
