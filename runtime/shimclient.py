"""The daemon's side of a shim, and of the fork server that makes shims.

    server = await ForkServer.start()          # one per daemon; run `server.run` in a task
    await server.spawn_shim(bundle)            # returns when the shim can be connected to
    shim = await ShimClient.connect(bundle)    # run `shim.run(on_event)` in a task
    pid = await shim.create(...); await shim.start()

A shim outlives every connection, the daemon and the fork server. Who connects anew asks for
`state()` first: it holds each process with its exit, so that no exit is missed. Every verb raises
the shim's refusal, DeadlineExceeded, or Unavailable when the connection is lost; `closed` is set
then. Whether a call that was lost took effect is told by the next `state()`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

import trio

from ..actors import failpoints
from ..actors.errors import NotFound, Unavailable
from . import frames
from .connection import Connection
from .guarantee import Guarantee, Level
from .metrics import Counted
from .metrics import read as read_metrics
from .stdio import Stdio

SETTLES_SINCE = 2
"""The protocol version that brought `settle`."""

STAYS_AFTER_S = 0.2
CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 10.0
RUNTIME_TIMEOUT_S = 120.0
SOCKET_NAME = "shim.sock"


class MountLike(Protocol):
    """A mount as the snapshotter gives it."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def options(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What a client may choose about the OCI runtime. Empty means the host's default.

    `io_uid` and `io_gid` are taken and change nothing: they own the pipes that containerd's shim
    makes, and a container of ours gets the client's FIFOs, which the OCI runtime gives to the
    process's user. Without CRIU there is no use for its paths.
    """

    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    io_uid: int = 0
    io_gid: int = 0
    shim_cgroup: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A process of the container ended. Sent by the shim after its exit record is durable."""

    exec_id: str
    pid: int
    status: int
    exited_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The kernel killed in the container for want of memory, so often by now; None: once more.
    Sent by the shim."""

    kills: int | None


ShimEvent = Exited | OutOfMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One process as the shim knows it. `exec_id` is empty for the container's first process.

    status: creating, created, running, stopped. pid is 0 before the process exists. exit_status
    and exited_at_ns are of use when stopped; `lost` says that the true status is not known.
    """

    exec_id: str
    status: str
    pid: int
    stdio: Stdio
    exit_status: int
    exited_at_ns: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimState:
    """All that a shim knows of its task; `processes` is empty before create and after delete.

    cgroups maps a v1 controller's name, or "" for the unified tree, to the directory of the
    container's cgroup. runtime_spawns counts the executions of the OCI runtime so far.
    """

    id: str
    namespace: str
    paused: bool
    cgroups: Mapping[str, str]
    processes: Mapping[str, ProcessState]
    runtime_spawns: int
    operations: Sequence[str]


class ForkServer(Connection):
    """The process that forks shims. It ends with its connection; the shims live on."""

    process: subprocess.Popen[bytes]

    @classmethod
    async def start(
        cls,
        state: Path | None = None,
        *,
        tasks_per_shim: int = 1,
        pins: bool = True,
        timeout_s: float = CONNECT_TIMEOUT_S * 4,
    ) -> Self:
        """Starts the program and waits until it can fork. The vault is in the state directory.

        A shim is given up to so many tasks. Without `pins` no process is pinned, as before Linux
        6.15.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            failpoints.reach("fork_server.spawn")
            process = subprocess.Popen(  # noqa: ASYNC220 - a fork, not a wait
                [
                    *(sys.executable, "-I", "-m", "holdfast.runtime.forkserver"),
                    *(str(theirs.fileno()), str(state or ""), str(tasks_per_shim)),
                    *(() if pins else ("no-pins",)),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        ours.setblocking(False)
        try:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            self = await cls.over(stream, "fork server", timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self.process = process
        return self

    @property
    def pid(self) -> int:
        """The fork server's process id."""
        return self.process.pid

    @property
    def guarantee(self) -> Guarantee:
        """What this host's kernel keeps for us."""
        return Guarantee(Level(self.hello["guarantee"]), str(self.hello["why_no_stronger"]))

    async def spawn_shim(
        self, bundle: Path, *, adopt: bool = False, timeout_s: float = CALL_TIMEOUT_S
    ) -> int:
        """Gives the bundle to a shim, whose pid is told; its socket is listening by then.

        With `adopt` it takes over the container that a dead shim left in the bundle.
        """
        answer = await self.call("shim", timeout_s=timeout_s, bundle=str(bundle), adopt=adopt)
        return int(answer["pid"])

    async def run(self, on_event: Callable[[Mapping[str, Any]], None] = lambda _: None) -> None:
        """Runs until the fork server is gone, then reaps it."""
        try:
            await super().run(on_event)
        finally:
            # Without pins it stays for as long as its shims live.
            stays = self.guarantee.level is not Level.PINS
            within_s = STAYS_AFTER_S if stays else CONNECT_TIMEOUT_S
            with trio.CancelScope(shield=True), trio.move_on_after(within_s):
                await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


class ShimClient(Connection):
    """One connection to one shim."""

    @classmethod
    async def connect(cls, bundle: Path, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Self:
        """Connects to the shim of a bundle; Unavailable when none listens."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # By way of the directory's descriptor: a path in sockaddr_un ends at 108 bytes.
            directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with trio.fail_after(timeout_s):
                    await sock.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
            finally:
                os.close(directory)
        except (OSError, trio.TooSlowError) as error:
            sock.close()
            raise Unavailable(f"shim of {bundle}: {error}") from error
        except BaseException:
            sock.close()
            raise
        return await cls.over(trio.SocketStream(sock), f"shim of {bundle.name}", timeout_s)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, bundle: Path, on_event: Callable[[ShimEvent], None] = lambda _: None
    ) -> AsyncGenerator[Self]:
        """Connected and running for the length of a block."""
        self = await cls.connect(bundle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.serve, on_event)
            yield self
            nursery.cancel_scope.cancel()

    async def serve(self, on_event: Callable[[ShimEvent], None]) -> None:
        """Reads answers and events until the connection is lost. Run it in a task of its own."""

        def take(message: Mapping[str, Any]) -> None:
            event = _event(message)
            if event is not None:
                on_event(event)

        await self.run(take)

    async def create(
        self,
        *,
        id: str,
        namespace: str,
        rootfs: Sequence[MountLike],
        stdio: Stdio,
        options: RuntimeOptions | Mapping[str, Any] | None = None,
        timeout_s: float = RUNTIME_TIMEOUT_S,
    ) -> int:
        """Creates the container of the bundle's config.json; gives its first process's pid."""
        answer = await self.call(
            "create",
            timeout_s=timeout_s,
            task_id=id,
            namespace=namespace,
            rootfs_mounts=[
                {"type": m.type, "source": m.source, "target": m.target, "options": list(m.options)}
                for m in rootfs
            ],
            options=frames.told(_options(options)),
            within_s=timeout_s,
            **frames.told(stdio),
        )
        return int(answer["pid"])

    async def start(self, exec_id: str = "", *, timeout_s: float = RUNTIME_TIMEOUT_S) -> int:
        """Runs what was created; gives the pid. The Exited event never comes before the answer."""
        answer = await self.call("start", timeout_s=timeout_s, exec_id=exec_id, within_s=timeout_s)
        return int(answer["pid"])

    async def settle(
        self, exec_id: str = "", *, timeout_s: float = RUNTIME_TIMEOUT_S
    ) -> tuple[int, str]:
        """After the connection was lost over a create or start: its outcome, once it has one.

        The process's pid and status (`created`: the start had no effect); what made it fail is
        raised as it would have been, NotFound when there is no such process. A shim of the first
        version is asked for its state instead: it settles nothing, and undoes what was cut short.
        """
        if self.hello["holdfast"] < SETTLES_SINCE:
            process = await self.process_state(exec_id)
            return process.pid, process.status
        answer = await self.call("settle", timeout_s=timeout_s, exec_id=exec_id, within_s=timeout_s)
        return int(answer["pid"]), str(answer["status"])

    async def exec(
        self, exec_id: str, spec: bytes, stdio: Stdio, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Adds a further process from an OCI process spec in JSON; `start` runs it."""
        await self.call(
            "exec", timeout_s=timeout_s, exec_id=exec_id, spec=spec, **frames.told(stdio)
        )

    async def kill(
        self,
        signal: int,
        exec_id: str = "",
        *,
        all: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        """Sends a signal to one process, or with `all` to every process of the container."""
        await self.call("kill", timeout_s=timeout_s, exec_id=exec_id, signal=signal, all=all)

    async def pause(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Freezes the container; returns when it is frozen."""
        await self.call("pause", timeout_s=timeout_s)

    async def resume(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Thaws the container."""
        await self.call("resume", timeout_s=timeout_s)

    async def update(
        self,
        resources: bytes,
        *,
        annotations: Mapping[str, str] | None = None,
        timeout_s: float = RUNTIME_TIMEOUT_S,
    ) -> None:
        """Changes the limits to those of an OCI resources object in JSON.

        Annotations are for runtimes that heed them; ours do not.
        """
        _ = annotations
        await self.call("update", timeout_s=timeout_s, resources=resources, within_s=timeout_s)

    async def pids(self, *, timeout_s: float = CALL_TIMEOUT_S) -> list[tuple[int, str | None]]:
        """Every pid in the container; beside it the exec id where it is a process of ours."""
        answer = await self.call("pids", timeout_s=timeout_s)
        return [(int(pid), exec_id) for pid, exec_id in answer["pids"]]

    async def resize(
        self, width: int, height: int, exec_id: str = "", *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Sets the size of a process's terminal in characters."""
        await self.call("resize", timeout_s=timeout_s, exec_id=exec_id, width=width, height=height)

    async def close_io(self, exec_id: str = "", *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Closes our end of a process's stdin: it reads EOF once the client's end is closed too."""
        await self.call("close_io", timeout_s=timeout_s, exec_id=exec_id)

    async def delete(self, exec_id: str = "", *, timeout_s: float = RUNTIME_TIMEOUT_S) -> Exited:
        """Removes a stopped process; for the first process all that the container had."""
        answer = await self.call("delete", timeout_s=timeout_s, exec_id=exec_id, within_s=timeout_s)
        return Exited(
            exec_id=exec_id,
            pid=answer["pid"],
            status=answer["status"],
            exited_at_ns=answer["exited_at_ns"],
        )

    async def state(self, *, timeout_s: float = CALL_TIMEOUT_S) -> ShimState:
        """What the shim knows now; answered even while the OCI runtime hangs."""
        answer = await self.call("state", timeout_s=timeout_s)
        return ShimState(
            id=answer["id"],
            namespace=answer["namespace"],
            paused=answer["paused"],
            cgroups=answer["cgroups"],
            processes={p["exec_id"]: _process(p) for p in answer["processes"]},
            runtime_spawns=answer["runtime_spawns"],
            operations=answer["operations"],
        )

    async def process_state(self, exec_id: str = "") -> ProcessState:
        """One process out of `state()`."""
        processes = (await self.state()).processes
        if exec_id not in processes:
            raise NotFound(f'process "{exec_id}": not found')
        return processes[exec_id]

    async def metrics(self, *, timeout_s: float = CALL_TIMEOUT_S) -> Counted:
        """What the container's cgroups count."""
        state = await self.state(timeout_s=timeout_s)
        return await trio.to_thread.run_sync(read_metrics, state.cgroups)

    async def shutdown(self, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Ends the shim; refused (FailedPrecondition) while it has a live process."""
        await self.call("shutdown", timeout_s=timeout_s)


def known_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of a client's options that our runtimes heed."""
    known = {field.name for field in fields(RuntimeOptions)}
    return {name: value for name, value in options.items() if name in known}


def _options(options: RuntimeOptions | Mapping[str, Any] | None) -> RuntimeOptions:
    if isinstance(options, RuntimeOptions):
        return options
    return RuntimeOptions(**known_options(options or {}))


def _process(told: Mapping[str, Any]) -> ProcessState:
    return ProcessState(
        exec_id=told["exec_id"],
        status=told["status"],
        pid=told["pid"],
        stdio=Stdio(**told["stdio"]),
        exit_status=told["exit_status"],
        exited_at_ns=told["exited_at_ns"],
        lost=told["lost"],
    )


def _event(message: Mapping[str, Any]) -> ShimEvent | None:
    match message["event"]:
        case "exit":
            return Exited(
                exec_id=message["exec_id"],
                pid=message["pid"],
                status=message["status"],
                exited_at_ns=message["exited_at_ns"],
            )
        case "oom":
            return OutOfMemory(kills=message.get("kills", 1))  # an older shim does not count
        case _:  # a newer shim may tell more than we know
            return None
