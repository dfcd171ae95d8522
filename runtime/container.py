"""A container as its shim runs it: from create to delete, each verb of the protocol a method.

Verbs that run the OCI runtime or wait are coroutines of the poller; while one waits, the others
are answered. What the next shim would need is saved at every change (`shim.json`, `init.pid`), and
an exit is durable before anyone hears of it.

Our mounts are made in a mount namespace of our own, which is made at create, so that it sees what
the host had mounted by then, and goes with us.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import errno
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ..actors.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unknown,
)
from ..storage import mounts
from ..storage import syscalls as kernel
from . import cgroup, oci, procfs, syscalls
from .poller import Event, Poller
from .process import (
    STATUS_LOST,
    ExitRecord,
    Process,
    Status,
    exit_status,
    read_exit,
    remove_exit,
    write_durable,
    write_exit,
)
from .pty import ConsoleSocket, Terminal
from .stdio import Stdio, Streams

DRAIN_WITHIN_S: Final = 0.5
FREEZE_WITHIN_S: Final = 5.0
GONE_WITHIN_S: Final = 5.0
POLL_FIRST_S: Final = 0.001
POLL_MAX_S: Final = 0.05

SIGNALS_RESET: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

Emit = Callable[[Mapping[str, Any]], None]
Sealed = Mapping[str, int]


class Container:
    """One container. Requests come from `Shim`, exits from the poller, events go to `emit`."""

    def __init__(self, poller: Poller, bundle: str, sealed: Sealed, emit: Emit) -> None:
        """`sealed` maps the path of a runtime to a sealed memory file that holds it."""
        self.id = ""
        self.namespace = ""
        self.processes: dict[str, Process] = {}
        self.directories: dict[str, str] = {}
        self.runtime_spawns = 0
        self.paused = False
        self._bundle = bundle
        self._emit = emit
        self._poller = poller
        self._sealed = sealed
        self._config: dict[str, Any] = {}
        self._runtime: oci.Runtime | None = None
        self._memory_watch: int | None = None
        self._memory_kills = 0
        self._spawning = 0
        self._unclaimed: dict[int, tuple[int, int]] = {}
        self._log_number = 0

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
        pid_file = f"{self._bundle}/runtime.pid"
        try:
            self._runtime = self._make_runtime(options)
            self._config = self._read_config()
            self.isolate()
            os.makedirs(f"{self._bundle}/rootfs", exist_ok=True)
            self._save()
            try:
                mounts.mount_all(rootfs, f"{self._bundle}/rootfs")
            except OSError as error:
                raise Unknown(f"failed to mount rootfs: {error}") from error
            await self._run(
                process,
                "create",
                lambda console, log: self._chosen.create(id, self._bundle, pid_file, console, log),
                within_s,
            )
            self._claim(process, pid_file, Status.CREATED)
            self.directories = cgroup.directories(process.pid)
            self._watch_memory()
            self._save()
        except BaseException:
            await self._undo_create(process, pid_file)
            raise
        return process.pid

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
        remove_exit(self._bundle, exec_id)
        self.processes[exec_id] = Process(exec_id=exec_id, stdio=stdio, status=Status.CREATED)
        self._save()

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
            self._save()

    async def pause(self, within_s: float = FREEZE_WITHIN_S) -> None:
        """Freezes every process; when they do not freeze in time they are thawed again."""
        first = self.find("")
        if first.status is not Status.RUNNING:
            raise FailedPrecondition(f"cannot pause a {first.status} container")
        if not cgroup.can_freeze(self.directories):
            raise FailedPrecondition("container has no cgroup of its own to freeze")
        cgroup.set_frozen(self.directories, True)
        if not await self._until(lambda: cgroup.is_frozen(self.directories), within_s):
            cgroup.set_frozen(self.directories, False)
            raise DeadlineExceeded(f"container did not freeze in {within_s} s")
        self.paused = True
        self._save()

    async def resume(self, within_s: float = FREEZE_WITHIN_S) -> None:
        """Thaws every process."""
        if not self.paused:
            raise FailedPrecondition("container is not paused")
        cgroup.set_frozen(self.directories, False)
        await self._until(lambda: not cgroup.is_frozen(self.directories), within_s)
        self.paused = False
        self._save()

    async def update(self, resources: bytes, within_s: float) -> None:
        """Changes the limits."""
        self.find("")
        oci.parse(resources, "resources")
        descriptor = os.memfd_create("resources", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, resources)
            os.lseek(descriptor, 0, os.SEEK_SET)
            await self._run_plain("update", ["update", "-r", "-", self.id], within_s, descriptor)
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
        self._save()

    # --- to its end

    async def delete(self, exec_id: str, within_s: float) -> ExitRecord:
        """Removes a process that is not running; with the first one, all that there is."""
        process = self.find(exec_id)
        if process.status is Status.CREATED and not process.ending:
            if exec_id:
                process.exit = ExitRecord(pid=0, status=0, exited_at_ns=time.time_ns())
            elif process.pidfd is not None:
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
                process.ending = True
        if process.ending or (process.status is Status.CREATED and not exec_id):
            await self._until(lambda: process.status is Status.STOPPED, GONE_WITHIN_S)
        if process.exit is None:
            raise FailedPrecondition(f"cannot delete a {process.status} process")
        if not exec_id:
            await self._remove_all(within_s)
        process.release()
        self.processes.pop(exec_id, None)
        for name in (f"exec-{exec_id}.json", f"exec-{exec_id}.pid") if exec_id else ():
            self._unlink(name)
        self._save()
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
            "runtime_spawns": self.runtime_spawns,
        }

    def on_orphan(self, pid: int, wait_status: int) -> None:
        """A child that no coroutine waits for was reaped: a process of ours, or its orphan."""
        for process in self.processes.values():
            if process.is_live and process.pid == pid:
                self._ended(process, exit_status(wait_status))
                return
        if self._spawning:  # perhaps an exec whose pid we have not read yet
            self._unclaimed[pid] = (wait_status, time.time_ns())

    # --- adoption

    def adopt(self, orphans: Mapping[procfs.Identity, tuple[int, int]]) -> None:
        """Takes over from a shim that died: `orphans` are exits that the fork server saw."""
        try:
            saved = json.loads(Path(self._bundle, "shim.json").read_text())
        except FileNotFoundError:
            return
        self.id, self.namespace = saved["id"], saved["namespace"]
        self.directories = saved["cgroups"]
        self.paused = saved["paused"]
        self.runtime_spawns = saved["runtime_spawns"]
        if saved["runtime"] is None:
            return
        self._runtime = oci.Runtime(**saved["runtime"])
        self._config = self._read_config()
        self.isolate()
        for entry in saved["processes"]:
            self._adopt_process(entry, orphans)
        first = self.processes.get("")
        if first is not None and first.status is Status.CREATING:
            self._poller.spawn(self._undo_create(first, f"{self._bundle}/runtime.pid"))
        elif first is not None and first.is_live:
            self._watch_memory()
        self._save()

    def _adopt_process(
        self, entry: Mapping[str, Any], orphans: Mapping[procfs.Identity, tuple[int, int]]
    ) -> None:
        exec_id = entry["exec_id"]
        process = Process(
            exec_id=exec_id, stdio=Stdio(**entry["stdio"]), status=Status(entry["status"])
        )
        self.processes[exec_id] = process
        if entry["identity"] is not None:
            process.identity = procfs.Identity(**entry["identity"])
        elif process.status is Status.STARTING:
            # Its shim died between the runtime's exec and our knowing its pid.
            process.identity = self._starting_identity(exec_id)
            process.status = Status.RUNNING if process.identity is not None else Status.CREATED
        process.exit = read_exit(self._bundle, exec_id)
        if process.exit is not None:
            process.status = Status.STOPPED
        if process.exit is not None or process.identity is None:
            return
        process.pidfd = procfs.open_pidfd(process.identity)
        if process.pidfd is not None:
            if not process.stdio.terminal:
                process.streams = Streams.again(process.stdio, entry["input_closed"])
            self._poller.watch(
                process.pidfd, select.EPOLLIN, lambda events: self._adopted_ended(process)
            )
        elif process.identity in orphans:
            wait_status, at_ns = orphans[process.identity]
            self._ended(process, exit_status(wait_status), at_ns)
        else:
            self._ended(process, STATUS_LOST, lost=True)

    def _starting_identity(self, exec_id: str) -> procfs.Identity | None:
        first = self.processes[""]
        pid = _read_pid(f"{self._bundle}/exec-{exec_id}.pid")
        # The pid may be another's by now: only one in this very container is taken.
        paths = procfs.cgroup_paths(pid)
        if not paths or paths != procfs.cgroup_paths(first.pid):
            return None
        return procfs.identity(pid)

    def _adopted_ended(self, process: Process) -> None:
        """An adopted process, which is not our child, has ended: the kernel tells how."""
        assert process.pidfd is not None
        assert process.identity is not None
        self._poller.unwatch(process.pidfd)
        stat = procfs.stat(process.pid)
        if stat is not None and stat.start_time_ticks == process.identity.start_time_ticks:
            self._ended(process, exit_status(stat.exit_code))  # a zombie
            return
        wait_status = syscalls.pidfd_exit(process.pidfd)
        if wait_status is None:
            self._ended(process, STATUS_LOST, lost=True)
        else:
            self._ended(process, exit_status(wait_status))

    # --- how it is done

    @property
    def _chosen(self) -> oci.Runtime:
        assert self._runtime is not None
        return self._runtime

    def _make_runtime(self, options: Mapping[str, Any]) -> oci.Runtime:
        program = oci.find_program(options.get("binary_name", ""))
        root = options.get("root", "")
        return oci.Runtime(
            program=program,
            name=os.path.basename(program),
            # Within the bundle an id is unique, and no state outlives the bundle.
            root=f"{root}/{self.namespace}" if root else f"{self._bundle}/oci",
            systemd_cgroup=bool(options.get("systemd_cgroup")),
            no_pivot_root=bool(options.get("no_pivot_root")),
            no_new_keyring=bool(options.get("no_new_keyring")),
        )

    def _read_config(self) -> dict[str, Any]:
        try:
            text = Path(self._bundle, "config.json").read_bytes()
        except FileNotFoundError as error:
            raise InvalidArgument(f"bundle {self._bundle}: no config.json") from error
        config = oci.parse(text, "config.json")
        if oci.clamp_oom_score(config.get("process") or {}):
            self._write_json("config.json", config)
        return config

    def isolate(self) -> None:
        """Puts us into a mount namespace of our own, in which crun finds cgroups that it knows."""
        kernel.unshare(kernel.CLONE_NEWNS)
        # Slave, not private: what the host unmounts must not live on through us.
        kernel.mount(None, "/", None, kernel.MS_SLAVE | kernel.MS_REC)
        if cgroup.layout() is cgroup.Layout.HYBRID:
            # crun refuses a hybrid host where the unified tree has a controller. Unmounting it
            # would do too, but then crun makes directories in the tmpfs below, which is shared.
            kernel.mount("tmpfs", cgroup.HYBRID_MOUNT, "tmpfs", 0, "size=64k,mode=0755")

    async def _start_first(self, process: Process, within_s: float) -> None:
        fifo = self._chosen.exec_fifo(self.id)
        process.status = Status.STARTING
        self._save()
        try:
            if fifo is None or oci.hooks(self._config, "poststart"):
                await self._run_plain("start", ["start", self.id], within_s)
            else:
                _release(fifo)
        except BaseException:
            process.status = Status.CREATED
            self._save()
            raise
        if process.status is Status.STARTING:  # else it has ended already
            process.status = Status.RUNNING
            self._save()

    async def _start_exec(self, process: Process, within_s: float) -> None:
        exec_id = process.exec_id
        pid_file = f"{self._bundle}/exec-{exec_id}.pid"
        process.status = Status.STARTING
        self._save()
        try:
            await self._run(
                process,
                "exec",
                lambda console, log: self._chosen.exec(
                    self.id, f"{self._bundle}/exec-{exec_id}.json", pid_file, console, log
                ),
                within_s,
            )
            self._claim(process, pid_file, Status.RUNNING)
        except BaseException:
            process.status = Status.CREATED
            self._save()
            raise
        self._save()

    async def _run(
        self,
        process: Process,
        verb: str,
        command: Callable[[str, str], list[str]],
        within_s: float,
    ) -> None:
        """Runs the runtime so that it makes `process`, with the process's stdio."""
        console: ConsoleSocket | None = None
        streams: Streams | None = None
        try:
            if process.stdio.terminal:
                console = ConsoleSocket(self._bundle, f"console-{process.exec_id}.sock")
                streams = Streams(Stdio())
            else:
                streams = process.streams = Streams(process.stdio)
            path = console.path if console is not None else ""
            await self._spawn(verb, lambda log: command(path, log), streams.descriptors(), within_s)
            streams.handed_over()
            if console is not None:
                process.terminal = Terminal(self._poller, console.take(), process.stdio)
        except BaseException:
            if streams is not None:
                streams.close()
            process.streams = None
            raise
        finally:
            if console is not None:
                console.close()

    async def _run_plain(
        self, verb: str, words: Sequence[str], within_s: float, stdin: int | None = None
    ) -> None:
        """Runs the runtime for a verb that makes no process."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors = (null if stdin is None else stdin, null, null)
            await self._spawn(
                verb, lambda log: self._chosen.command(log, *words), descriptors, within_s
            )
        finally:
            os.close(null)

    async def _spawn(
        self,
        verb: str,
        command: Callable[[str], list[str]],
        descriptors: tuple[int, int, int],
        within_s: float,
    ) -> None:
        """Runs the runtime to its end; Unknown with its words when it fails."""
        self._log_number += 1
        log = f"{self._bundle}/runtime-{self._log_number}.log"
        pid = self._execute(verb, command(log), descriptors)
        self.runtime_spawns += 1
        self._spawning += 1
        over = False

        def expire() -> None:
            if not over:
                os.killpg(pid, signal.SIGKILL)

        self._poller.later(within_s, expire)
        try:
            status = await self._poller.child(pid)
            over = True
            if status != 0:
                text = oci.failure(log, status)
                raise Unknown(f"OCI runtime {verb} failed: {text}: unknown")
        finally:
            self._spawning -= 1
            # After the coroutine that reads the pid file has had its turn.
            self._poller.soon(self._forget_unclaimed)
            try:
                os.unlink(log)
            except FileNotFoundError:
                pass

    def _execute(self, verb: str, words: list[str], descriptors: tuple[int, int, int]) -> int:
        sealed = self._sealed.get(self._chosen.program)
        program = self._chosen.program if sealed is None else f"/proc/self/fd/{sealed}"
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in enumerate(descriptors)]
        try:
            return os.posix_spawn(
                program,
                words,
                os.environ,
                file_actions=actions,
                setpgroup=0,
                # What is ignored, by Python or us or our parent, would be by the container too.
                setsigdef=SIGNALS_RESET,
                setsigmask=(),
            )
        except OSError as error:
            raise Unknown(f"OCI runtime {verb} failed: {error}: unknown") from error

    def _forget_unclaimed(self) -> None:
        if not self._spawning:
            self._unclaimed.clear()

    def _claim(self, process: Process, pid_file: str, status: Status) -> None:
        """Takes the process that the runtime made; it may have ended already."""
        pid = int(Path(pid_file).read_text())
        os.unlink(pid_file)
        process.identity = procfs.identity(pid) or procfs.Identity(pid, 0)
        process.status = status
        if not process.exec_id:
            write_durable(
                f"{self._bundle}/init.pid", f"{pid} {process.identity.start_time_ticks}\n".encode()
            )
        if pid in self._unclaimed:
            wait_status, at_ns = self._unclaimed.pop(pid)
            # Later, so that the answer to the start goes out before the exit.
            self._poller.soon(lambda: self._ended(process, exit_status(wait_status), at_ns))
        else:
            process.pidfd = os.pidfd_open(pid)

    def _ended(
        self, process: Process, status: int, at_ns: int | None = None, lost: bool = False
    ) -> None:
        process.ending = True
        record = ExitRecord(
            pid=process.pid, status=status, exited_at_ns=at_ns or time.time_ns(), lost=lost
        )
        self._poller.spawn(self._end(process, record))

    async def _end(self, process: Process, record: ExitRecord) -> None:
        if process.terminal is not None:
            process.terminal.finish()
            drained = process.terminal.drained
            # A process left behind may hold the terminal for ever.
            await self._until(lambda: drained.is_set, DRAIN_WITHIN_S, drained)
        if not process.exec_id:
            if self.directories and not oci.has_pid_namespace(self._config):
                cgroup.kill(self.directories, signal.SIGKILL)
            # The first process's exit is the last to be told.
            others = [p for p in self.processes.values() if p is not process and p.ending]
            await self._until(
                lambda: all(p.status is Status.STOPPED for p in others), GONE_WITHIN_S
            )
        write_exit(self._bundle, process.exec_id, record)
        process.exit = record
        process.status = Status.STOPPED
        if process.streams is not None:
            process.streams.finish(self._poller)
        if process.pidfd is not None:
            self._poller.unwatch(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = None
        self._save()
        self._emit(
            {
                "event": "exit",
                "exec_id": process.exec_id,
                "pid": record.pid,
                "status": record.status,
                "exited_at_ns": record.exited_at_ns,
            }
        )

    async def _remove_all(self, within_s: float) -> None:
        """Leaves nothing of the container but its exit records."""
        if self.paused:
            cgroup.set_frozen(self.directories, False)
            self.paused = False
        await self._until(lambda: not cgroup.kill(self.directories, signal.SIGKILL), GONE_WITHIN_S)
        live = [p for p in self.processes.values() if p.is_live]
        await self._until(lambda: not any(p.is_live for p in live), GONE_WITHIN_S)
        self._unwatch_memory()
        if self._chosen.can_be_removed_by_us(self.id, self._config):
            shutil.rmtree(self._chosen.state_directory(self.id), ignore_errors=True)
        elif self._chosen.has_state(self.id):
            await self._run_plain("delete", ["delete", "--force", self.id], within_s)
        # Also after the runtime's own delete, which may leave one behind.
        await self._until(lambda: not cgroup.remove(self.directories), GONE_WITHIN_S)
        self.directories = {}
        self._forget_bundle()
        for process in list(self.processes.values()):
            if process.exec_id:
                process.release()
                del self.processes[process.exec_id]

    def _forget_bundle(self) -> None:
        mounts.unmount_all(f"{self._bundle}/rootfs")
        for name in os.listdir(self._bundle):
            if name.startswith(("exec-", "console-", "runtime")):
                self._unlink(name)
        shutil.rmtree(f"{self._bundle}/oci", ignore_errors=True)
        self._unlink("init.pid")

    async def _undo_create(self, process: Process, pid_file: str) -> None:
        """After a create that failed, or whose shim died in it: nothing remains."""
        if process.pidfd is not None:
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        directories = cgroup.directories(_read_pid(pid_file)) or dict(self.directories)
        runtime = self._runtime
        if runtime is not None and runtime.has_state(self.id):
            try:
                await self._run_plain("delete", ["delete", "--force", self.id], GONE_WITHIN_S)
            except Unknown:
                shutil.rmtree(runtime.state_directory(self.id), ignore_errors=True)
        if directories:
            await self._until(lambda: not cgroup.kill(directories, signal.SIGKILL), GONE_WITHIN_S)
            await self._until(lambda: not cgroup.remove(directories), GONE_WITHIN_S)
        self._unwatch_memory()
        process.release()
        self.directories = {}
        self.processes.clear()
        self._forget_bundle()
        self._save()

    def _watch_memory(self) -> None:
        watched = cgroup.watch_out_of_memory(self.directories)
        if watched is None:
            return
        self._memory_watch, is_eventfd = watched
        self._memory_kills = cgroup.out_of_memory_kills(self.directories)
        events = select.EPOLLIN if is_eventfd else select.EPOLLPRI
        self._poller.watch(self._memory_watch, events, self._on_memory)

    def _unwatch_memory(self) -> None:
        if self._memory_watch is not None:
            self._poller.unwatch(self._memory_watch)
            os.close(self._memory_watch)
            self._memory_watch = None

    def _on_memory(self, events: int) -> None:
        assert self._memory_watch is not None
        if events & select.EPOLLPRI:
            os.pread(self._memory_watch, 4096, 0)
        else:
            os.eventfd_read(self._memory_watch)
        # The kernel wakes us before it kills, and again when the cgroup goes.
        self._poller.spawn(self._tell_memory())

    async def _tell_memory(self) -> None:
        def killed() -> bool:
            return cgroup.out_of_memory_kills(self.directories) > self._memory_kills

        if await self._until(killed, 0.5):
            self._memory_kills = cgroup.out_of_memory_kills(self.directories)
            self._emit({"event": "oom"})

    async def _until(
        self, condition: Callable[[], bool], within_s: float, event: Event | None = None
    ) -> bool:
        """Looks until the condition holds, ever less often; False when it does not in time."""
        deadline_s = time.monotonic() + within_s
        pause_s = POLL_FIRST_S
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            await self._poller.sleep(pause_s)
            pause_s = min(pause_s * 2, POLL_MAX_S)
        return True

    def _save(self) -> None:
        self._write_json(
            "shim.json",
            {
                "id": self.id,
                "namespace": self.namespace,
                "cgroups": self.directories,
                "paused": self.paused,
                "runtime_spawns": self.runtime_spawns,
                "runtime": asdict(self._runtime) if self._runtime is not None else None,
                "processes": [process.saved() for process in self.processes.values()],
            },
        )

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        # Not synced: after a loss of power there is no container that it could be about.
        path = f"{self._bundle}/{name}"
        Path(f"{path}.tmp").write_text(json.dumps(value))
        os.rename(f"{path}.tmp", path)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(f"{self._bundle}/{name}")
        except FileNotFoundError:
            pass


def _read_pid(path: str) -> int:
    """The pid in a pid file; 0, which is no process, when there is none."""
    try:
        return int(Path(path).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _release(fifo: str) -> None:
    """Writes the byte for which crun's container waits. Once only one effect, however often."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # started already, or gone
            return
        raise
    try:
        os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
    os.unlink(fifo)
