"""A container as its shim runs it: from create to delete, each verb of the protocol a method.

Verbs that run the OCI runtime or wait are coroutines of the poller; while one waits, the others
are answered. What the next shim would need is saved at every change (`shim.json`, `init.pid`), and
an exit is durable before anyone hears of it.

Our mounts are made in a mount namespace of our own, which is made at create, so that it sees what
the host had mounted by then, and goes with us.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from ..actors import failpoints
from ..actors.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from ..storage import mounts
from . import cgroup, files, frames, oci, procfs, syscalls
from .isolation import isolate
from .memorywatch import MemoryWatch
from .pins import Pins, slot
from .poller import Poller
from .process import (
    ExitRecord,
    Process,
    Status,
    exit_status,
    remove_exit,
    write_exit,
)
from .removal import GONE_WITHIN_S, remove_all, undo_create
from .runner import Command, Execution, Runner, read_pid
from .stdio import Stdio
from .wiring import Wiring

DRAIN_WITHIN_S: Final = 0.5
FREEZE_WITHIN_S: Final = 5.0
EXIT_AGAIN_S: Final = 0.2
RUNTIME_WITHIN_S: Final = 120.0

Emit = Callable[[Mapping[str, Any]], None]
Sealed = Mapping[str, int]


class Container:
    """One container. Requests come from `Shim`, exits from the poller, events go to `emit`."""

    def __init__(
        self,
        poller: Poller,
        bundle: str,
        sealed: Sealed,
        host_namespace: int,
        emit: Emit,
        pins: Pins,
    ) -> None:
        """`sealed` maps the path of a runtime to a sealed memory file that holds it."""
        self.id = ""
        self.namespace = ""
        self.processes: dict[str, Process] = {}
        self.directories: dict[str, str] = {}
        self.paused = False
        # Invariant: once saved, nothing but the removal is done with what the bundle holds.
        self.removing = False
        self.bundle = bundle
        self._emit = emit
        self.poller = poller
        self.config: dict[str, Any] = {}
        self.runtime: oci.Runtime | None = None
        self.pins = pins
        self.runner = Runner(poller, bundle, sealed, pins)
        self._memory: MemoryWatch | None = None
        self._deleting: set[str] = set()
        self._home_cgroups: list[str] = []
        self.host_namespace = host_namespace
        # What a dead shim began and we saw fail, by exec id: for `settle`.
        self.failures: dict[str, str] = {}

    # --- from nothing to running

    async def create(
        self,
        id: str,
        namespace: str,
        rootfs: Sequence[mounts.Mount],
        stdio: Stdio,
        options: Mapping[str, Any],
        within_s: float,
    ) -> int:
        """Makes the container and its first process, which waits for `start`."""
        if self.processes:
            raise AlreadyExists(f'task "{id}": already exists')
        self.id, self.namespace = id, namespace
        process = self.processes[""] = Process(exec_id="", stdio=stdio, status=Status.CREATING)
        pid_file = self.pid_file("")
        try:
            self.runtime = oci.choose(options, namespace, self.bundle)
            self.config = self.read_config()
            self.join_cgroup()
            isolate(self.host_namespace)
            os.makedirs(f"{self.bundle}/rootfs", exist_ok=True)
            self.save()
            try:
                failpoints.reach("shim.create.mount")
                mounts.mount_all(rootfs, f"{self.bundle}/rootfs")
                failpoints.passed("shim.create.mounted")
            except OSError as error:
                raise Unknown(f"failed to mount rootfs: {error}") from error
            console = await self.wiring.make(process)
            await self.runner.run(
                Command(
                    runtime=self.chosen,
                    verb="create",
                    words=partial(self.chosen.create, id, self.bundle, pid_file, console),
                    descriptors=process.descriptors(),
                    within_s=within_s,
                    slot=slot(""),
                )
            )
            await process.handed_over()
            self.claim(process, pid_file)
            self.created(process)
        except BaseException:
            await undo_create(self, process)
            raise
        return process.pid

    def created(self, process: Process) -> None:
        """The container is there, its first process claimed."""
        self.directories = cgroup.directories(process.pid)
        self.watch_memory()
        self.save()
        self.unlink("runtime.pid")

    async def settle(self, exec_id: str, within_s: float) -> Process:
        """Waits until what a dead shim began with a process is done, by us, or has failed."""
        await self.poller.until(lambda: self._settled(exec_id), within_s)
        if exec_id in self.failures:
            raise Unknown(self.failures.pop(exec_id))
        return self.find(exec_id)

    def _settled(self, exec_id: str) -> bool:
        process = self.processes.get(exec_id)
        return process is None or process.status not in (Status.CREATING, Status.STARTING)

    async def start(self, exec_id: str, within_s: float) -> int:
        """Runs what was created."""
        process = self.find(exec_id)
        if process.status is not Status.CREATED or process.ending:
            raise FailedPrecondition(f"cannot start a {process.status} process")
        if exec_id:
            await self._start_exec(process, within_s)
        else:
            await self._start_first(process, within_s)
        return process.pid

    def exec(self, exec_id: str, spec: bytes, stdio: Stdio) -> None:
        """Adds a process; `start` runs it."""
        if exec_id in self.processes:
            raise AlreadyExists(f'process "{exec_id}": already exists')
        first = self.find("")
        if first.status not in (Status.CREATED, Status.RUNNING) or first.ending:
            raise FailedPrecondition(f"cannot exec in a {first.status} container")
        if self.paused:
            raise FailedPrecondition("cannot exec in a paused container")
        process_spec = oci.parse(spec, "process spec")
        oci.clamp_oom_score(process_spec)
        # The runtime looks here, not at its flags.
        process_spec["terminal"] = stdio.terminal
        self._write_json(f"exec-{exec_id}.json", process_spec)
        remove_exit(self.bundle, exec_id)
        self.processes[exec_id] = Process(exec_id=exec_id, stdio=stdio, status=Status.CREATED)
        self.save()

    # --- while it runs

    def kill(self, exec_id: str, number: int, all: bool) -> None:
        """Sends a signal; NotFound when the process has ended."""
        process = self.find(exec_id)
        if all and self.directories:
            cgroup.kill(self.directories, number)
        elif process.status is Status.STOPPED or process.ending:
            raise NotFound("process already finished")
        elif process.pidfd is None:
            raise FailedPrecondition("process not created")
        else:
            try:
                signal.pidfd_send_signal(process.pidfd, number)
            except ProcessLookupError as error:
                raise NotFound("process already finished") from error
            except OSError as error:
                raise InvalidArgument(f"signal {number}: {error.strerror}") from error
        if number == signal.SIGKILL and self.paused and cgroup.UNIFIED_KEY not in self.directories:
            # A frozen v1 cgroup delivers nothing, not even this.
            cgroup.set_frozen(self.directories, False)
            self.paused = False
            self.save()

    async def pause(self, within_s: float = FREEZE_WITHIN_S) -> None:
        """Freezes every process; when they do not freeze in time they are thawed again."""
        first = self.find("")
        if first.status is not Status.RUNNING:
            raise FailedPrecondition(f"cannot pause a {first.status} container")
        if not cgroup.can_freeze(self.directories):
            raise FailedPrecondition("container has no cgroup of its own to freeze")
        cgroup.set_frozen(self.directories, True)
        if not await self.poller.until(lambda: cgroup.is_frozen(self.directories), within_s):
            cgroup.set_frozen(self.directories, False)
            raise DeadlineExceeded(f"container did not freeze in {within_s} s")
        self.paused = True
        self.save()

    async def resume(self, within_s: float = FREEZE_WITHIN_S) -> None:
        """Thaws every process."""
        if not self.paused:
            raise FailedPrecondition("container is not paused")
        cgroup.set_frozen(self.directories, False)
        await self.poller.until(lambda: not cgroup.is_frozen(self.directories), within_s)
        self.paused = False
        self.save()

    async def update(self, resources: bytes, within_s: float) -> None:
        """Changes the limits."""
        self.find("")
        oci.parse(resources, "resources")
        descriptor = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, resources)
            os.lseek(descriptor, 0, os.SEEK_SET)
            await self.runner.run_plain(
                self.chosen, ["update", "-r", "-", self.id], within_s, descriptor
            )
        finally:
            os.close(descriptor)

    def pids(self) -> list[tuple[int, str | None]]:
        """Every pid in the container, with the exec id of those that we started."""
        self.find("")
        ours = {p.pid: p.exec_id for p in self.processes.values() if p.is_live}
        found = cgroup.pids(self.directories) if self.directories else sorted(ours)
        return [(pid, ours.get(pid)) for pid in found]

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Sets the size of a terminal."""
        process = self.find(exec_id)
        if process.terminal is not None:
            process.terminal.resize(width, height)
        elif not process.stdio.terminal:
            raise FailedPrecondition("process has no terminal")

    def close_io(self, exec_id: str) -> None:
        """Lets a process's stdin end."""
        self.find(exec_id).close_input()
        self.save()

    # --- to its end

    async def delete(self, exec_id: str, within_s: float) -> ExitRecord:
        """Removes a process that is not running; with the first one, all that there is."""
        process = self.find(exec_id)
        if exec_id in self._deleting:
            raise Unavailable("a delete of this process is under way")
        self._deleting.add(exec_id)
        try:
            exit = await self._exit_for_delete(process)
            if exec_id:
                if process.logger is not None:
                    await process.logger.drain()
                self.processes.pop(exec_id, None)
                self.save_if_room()
                remove_exit(self.bundle, exec_id)
                self.unlink(f"exec-{exec_id}.json")
                self.unlink(f"exec-{exec_id}.pid")
                process.release()
                self.pins.drop(f"exec-{exec_id}.op")
            else:
                # From here on there is no way back: who adopts after us goes on with this.
                self.removing = True
                self.save_if_room()
                await remove_all(self, within_s)
                self.save_if_room()
        finally:
            self._deleting.discard(exec_id)
        return exit

    async def _exit_for_delete(self, process: Process) -> ExitRecord:
        """How a process ended; one that was never started is ended first."""
        if process.status is Status.CREATED and not process.ending:
            if process.pidfd is None:
                return ExitRecord(pid=0, status=0, exited_at_ns=time.time_ns())
            procfs.kill(process.pidfd)
            process.ending = True
        if process.ending:
            await self.poller.until(lambda: process.status is Status.STOPPED, GONE_WITHIN_S)
        if process.exit is None:
            raise FailedPrecondition(f"cannot delete a {process.status} process")
        return process.exit

    def find(self, exec_id: str) -> Process:
        """A process, or NotFound."""
        process = self.processes.get(exec_id)
        if process is None:
            about = f'process "{exec_id}"' if exec_id else f'task "{self.id}"'
            raise NotFound(f"{about}: not found")
        return process

    def state(self) -> dict[str, Any]:
        """What a client is told."""
        return {
            "id": self.id,
            "namespace": self.namespace,
            "paused": self.paused,
            "cgroups": self.directories,
            "processes": [process.told() for process in self.processes.values()],
            "runtime_spawns": self.runner.spawns,
            "unpinned": self.pins.faults,
        }

    def is_end_of(self, pid: int, wait_status: int) -> bool:
        """A child that no coroutine waits for was reaped: takes it when it is a process of ours."""
        for process in self.processes.values():
            if process.is_live and process.pid == pid:
                self.ended(process, exit_status(wait_status))
                return True
        return False

    # --- how it is done

    @property
    def wiring(self) -> Wiring:
        """What gives its processes their stdio."""
        return Wiring(
            poller=self.poller,
            pins=self.pins,
            bundle=self.bundle,
            id=self.id,
            namespace=self.namespace,
            host_namespace=self.host_namespace,
        )

    @property
    def chosen(self) -> oci.Runtime:
        """The OCI runtime of this container, once it has one."""
        assert self.runtime is not None
        return self.runtime

    def join_cgroup(self) -> None:
        """Takes us into the cgroup that the client has for the shim, if it has one."""
        if self.chosen.shim_cgroup:
            self._home_cgroups = cgroup.join(self.chosen.shim_cgroup, os.getpid())

    def leave_cgroup(self) -> None:
        """Takes us back to where we were."""
        cgroup.leave(self._home_cgroups, os.getpid())
        self._home_cgroups = []

    def read_config(self) -> dict[str, Any]:
        """The bundle's config, its oom score made one that may be set."""
        try:
            text = files.read(f"{self.bundle}/config.json")
        except FileNotFoundError as error:
            raise InvalidArgument(f"bundle {self.bundle}: no config.json") from error
        config = oci.parse(text, "config.json")
        if oci.clamp_oom_score(config.get("process") or {}):
            self._write_json("config.json", config)
        return config

    async def _start_first(self, process: Process, within_s: float) -> None:
        fifo = self.chosen.exec_fifo(self.id)
        process.status = Status.STARTING
        self.save()
        try:
            if fifo is None or oci.hooks(self.config, "poststart"):
                await self.runner.run_plain(self.chosen, ["start", self.id], within_s)
            else:
                failpoints.reach("shim.start.release")
                oci.release(fifo)
                failpoints.passed("shim.start.released")
        except BaseException:
            process.status = Status.CREATED
            self.save()
            raise
        if process.status is Status.STARTING:  # else it has ended already
            process.status = Status.RUNNING
            self.save()

    async def _start_exec(self, process: Process, within_s: float) -> None:
        exec_id = process.exec_id
        pid_file = self.pid_file(exec_id)
        self.unlink(f"exec-{exec_id}.pid")
        process.status = Status.STARTING
        self.save()
        try:
            console = await self.wiring.make(process)
            spec = f"{self.bundle}/exec-{exec_id}.json"
            command = Command(
                runtime=self.chosen,
                verb="exec",
                words=partial(self.chosen.exec, self.id, spec, pid_file, console),
                descriptors=process.descriptors(),
                within_s=within_s,
                slot=slot(exec_id),
            )
            execution = await self.runner.run_beside(command, pid_file)
            await process.handed_over()
        except BaseException:
            if (pid := read_pid(pid_file)) > 0:  # it runs, but without its terminal
                os.kill(pid, signal.SIGKILL)
            process.release()
            process.status = Status.CREATED
            self.save()
            raise
        pid = read_pid(pid_file)
        self.claim_exec(process, pid, procfs.identity(pid))
        self.save()
        self.unlink(f"exec-{exec_id}.pid")
        self.poller.spawn(self._follow(process, execution))

    async def _follow(self, process: Process, execution: Execution) -> None:
        """The end of an exec is that of the runtime, its parent."""
        await execution.ended
        if os.WIFSIGNALED(execution.wait_status) and _lives(process.pidfd):
            return  # the runtime was killed, so that the process is our orphan, and child
        self.ended(process, exit_status(execution.wait_status))

    def pid_file(self, exec_id: str) -> str:
        """Where the OCI runtime writes the pid of what it has made."""
        return f"{self.bundle}/{slot(exec_id)}.pid" if exec_id else f"{self.bundle}/runtime.pid"

    def claim(self, process: Process, pid_file: str) -> None:
        """Takes the first process, which the runtime made; it may have ended already."""
        pid = int(files.read(pid_file))
        process.identity = procfs.identity(pid) or procfs.Identity(pid, 0)
        process.status = Status.CREATED
        procfs.write_identity(f"{self.bundle}/init.pid", process.identity)
        exit = self.runner.claim(pid)
        if exit is not None:
            wait_status, at_ns = exit
            # Later, so that the answer to the start goes out before the exit.
            self.poller.soon(lambda: self.ended(process, exit_status(wait_status), at_ns))
        else:
            process.pidfd = os.pidfd_open(pid)
            self.pins.keep_process("init.pid", process.pidfd)

    def claim_exec(self, process: Process, pid: int, identity: procfs.Identity | None) -> None:
        """Takes a further process, whose end the runtime tells; no identity when it has ended."""
        process.identity = identity or procfs.Identity(pid, 0)
        process.pidfd = procfs.open_pidfd(process.identity)
        process.status = Status.RUNNING

    def ended(
        self, process: Process, status: int, at_ns: int | None = None, lost: bool = False
    ) -> None:
        """A process has ended: everything that follows from it is begun."""
        process.ending = True
        record = ExitRecord(
            pid=process.pid, status=status, exited_at_ns=at_ns or time.time_ns(), lost=lost
        )
        self.poller.spawn(self._end(process, record))

    async def _end(self, process: Process, record: ExitRecord) -> None:
        if process.terminal is not None:
            process.terminal.finish()
            drained = process.terminal.drained
            # A process left behind may hold the terminal for ever.
            await self.poller.until(lambda: drained.is_set, DRAIN_WITHIN_S)
        if not process.exec_id:
            if self.directories and not oci.has_pid_namespace(self.config):
                cgroup.kill(self.directories, signal.SIGKILL)
            # The first process's exit is the last to be told; the others end with it.
            others = [p for p in self.processes.values() if p is not process and p.is_live]
            await self.poller.until(
                lambda: all(p.status is Status.STOPPED for p in others), GONE_WITHIN_S
            )
        while not self._write_exit(process, record):
            # A full disk: nobody is told before it is written.
            await self.poller.sleep(EXIT_AGAIN_S)
        process.exit = record
        process.status = Status.STOPPED
        if process.streams is not None:
            process.streams.finish(self.poller)
        for pidfd in (process.pidfd, process.waiter):
            if pidfd is not None:
                self.poller.unwatch(pidfd)
        process.forget_pidfds()
        self.save_if_room()
        self._emit(
            {
                "event": "exit",
                "exec_id": process.exec_id,
                "pid": record.pid,
                "status": record.status,
                "exited_at_ns": record.exited_at_ns,
            }
        )

    def _write_exit(self, process: Process, record: ExitRecord) -> bool:
        try:
            failpoints.reach("shim.exit.write")
            write_exit(self.bundle, process.exec_id, record)
        except OSError:
            return False
        failpoints.passed("shim.exit.written")
        return True

    def watch_memory(self) -> None:
        """Tells `oom` from now on."""
        self._memory = MemoryWatch(self.poller, self.directories, self._tell_memory_kills)

    def _tell_memory_kills(self, kills: int) -> None:
        self._emit({"event": "oom", "kills": kills})

    def unwatch_memory(self) -> None:
        """Tells it no more."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def save(self) -> None:
        """Writes down what the next shim needs."""
        self._write_json(
            "shim.json",
            {
                "id": self.id,
                "namespace": self.namespace,
                "cgroups": self.directories,
                "paused": self.paused,
                "removing": self.removing,
                "runtime_spawns": self.runner.spawns,
                "runtime": frames.told(self.runtime) if self.runtime is not None else None,
                "processes": [process.saved() for process in self.processes.values()],
            },
        )

    def save_if_room(self) -> None:
        """The same, for what must go on with a full disk: the next shim finds out for itself."""
        try:
            self.save()
        except OSError:
            self.unlink("shim.json.tmp")

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        # Not synced: after a loss of power there is no container that it could be about.
        path = f"{self.bundle}/{name}"
        files.write(f"{path}.tmp", json.dumps(value).encode())
        failpoints.reach("shim.save.rename")
        syscalls.replace_unsynced(f"{path}.tmp", path)
        failpoints.passed("shim.save.renamed")

    def unlink(self, name: str) -> None:
        """Removes a file of the bundle, if it is there."""
        files.unlink(f"{self.bundle}/{name}")


def _lives(pidfd: int | None) -> bool:
    """Whether a process lives; its pidfd can be read once it has ended."""
    if pidfd is None:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)
