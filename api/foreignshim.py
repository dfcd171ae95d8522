"""The wire of foreign shims: containerd's shim contract in ttrpc and protobuf, for the runtime.

`runtime/foreign.py` decides when a shim is started, asked and buried; here its words are those of
the task service, version 2 or 3, which differ in their name alone. Exits come from a Wait for each
process, not from the events that the shim publishes: those may be lost with a connection.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from ..actors.errors import AlreadyExists, NotFound, Refusal, Unavailable, Unimplemented, Unknown
from ..runtime import cgroup, foreign
from ..runtime.foreign import Birth, Listening
from ..runtime.metrics import V1, V2, Counted
from ..runtime.shimclient import Exited, MountLike, ProcessState, ShimEvent, ShimState
from ..runtime.stdio import Stdio
from .anys import PROCESS_URL, nanoseconds, type_name
from .identity import VERSION
from .proto import cgroups_v1_pb2, cgroups_v2_pb2, runc_pb2, task_types_pb2
from .proto.shim import bootstrap_pb2 as boot
from .proto.shim import task_v3_pb2 as pb
from .proto.types_pb2 import Mount
from .status import CallFailed
from .ttrpc import NAMESPACE, TtrpcClient

A = TypeVar("A", bound=Message)

RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
UNIX = "unix://"
CONNECT_WITHIN_S = 5.0
CALL_WITHIN_S = 10.0
STATUSES: Mapping[int, str] = {
    task_types_pb2.CREATED: "created",
    task_types_pb2.RUNNING: "running",
    task_types_pb2.PAUSED: "running",
    task_types_pb2.PAUSING: "running",
    task_types_pb2.STOPPED: "stopped",
}
COUNTED: Mapping[str, int] = {
    cgroups_v1_pb2.Metrics.DESCRIPTOR.full_name: V1,
    cgroups_v2_pb2.Metrics.DESCRIPTOR.full_name: V2,
}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ShimWire:
    """A `runtime.foreign.Wire`."""

    def options(self, birth: Birth) -> bytes:
        return options_any(birth.options).SerializeToString() if birth.options else b""

    def params(self, birth: Birth) -> bytes:
        params = boot.BootstrapParams(
            instance_id=birth.id,
            namespace=birth.namespace,
            containerd_version=VERSION,
            containerd_ttrpc_address=birth.ttrpc_address,
            containerd_grpc_address=birth.address,
            containerd_binary=birth.publish_binary,
        )
        if birth.options:
            params.extensions.add(value=options_any(birth.options))
        return params.SerializeToString()

    def listening(self, said: bytes) -> Listening:
        text = said.strip()
        try:
            if text.startswith(b"{"):
                told = json.loads(text)
                where = Listening(
                    address=str(told["address"]),
                    protocol=str(told.get("protocol") or "ttrpc"),
                    version=int(told.get("version") or 2),
                )
            elif text.startswith((b"unix://", b"/", b"vsock://")):
                where = Listening(address=text.decode())
            else:
                result = boot.BootstrapResult.FromString(said)
                where = Listening(
                    address=result.address,
                    protocol=result.protocol or "ttrpc",
                    version=result.version or 2,
                )
        except (DecodeError, KeyError, TypeError, ValueError) as error:
            raise Unavailable(f"the shim told no address: {said[:200]!r}") from error
        path = where.address.removeprefix(UNIX)
        if where.protocol != "ttrpc" or not path.startswith("/") or where.version not in (2, 3):
            text_of = f"{where.protocol}, version {where.version}, at {where.address!r}"
            raise Unimplemented(f"a shim that speaks {text_of}: not implemented")
        return where

    def deleted(self, said: bytes) -> Exited:
        try:
            return _exited(pb.DeleteResponse.FromString(said), "")
        except DecodeError as error:
            raise Unavailable(f"the shim's delete told no exit: {said[:200]!r}") from error

    async def connect(
        self, listening: Listening, namespace: str, id: str, bundle: Path
    ) -> "ForeignShim":
        path = listening.address.removeprefix(UNIX)
        try:
            with trio.fail_after(CONNECT_WITHIN_S):
                transport = await trio.open_unix_socket(path)
        except (OSError, trio.TooSlowError) as error:
            raise Unavailable(f"shim of {id} at {path}: {error}") from error
        service = f"containerd.task.v{listening.version}.Task"
        return ForeignShim(TtrpcClient(transport), service, namespace, id, bundle)


class ForeignShim:
    """A `runtime.shimverbs.Shim` over one connection."""

    def __init__(
        self, client: TtrpcClient, service: str, namespace: str, id: str, bundle: Path
    ) -> None:
        self._client = client
        self._service = service
        self._namespace = namespace
        self._id = id
        self._bundle = bundle
        self._nursery: trio.Nursery | None = None
        self._on_event: Callable[[ShimEvent], None] = lambda _: None
        self._watched: set[str] = set()

    @property
    def closed(self) -> trio.Event:
        return self._client.closed

    async def serve(self, on_event: Callable[[ShimEvent], None]) -> None:
        self._on_event = on_event
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._greet)
            await self._client.run()
            nursery.cancel_scope.cancel()

    async def aclose(self) -> None:
        self._client.closed.set()
        await self._client.aclose()

    async def create(
        self,
        *,
        id: str,
        namespace: str,
        rootfs: Sequence[MountLike],
        stdio: Stdio,
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        _ = namespace
        request = pb.CreateTaskRequest(
            id=id,
            bundle=str(self._bundle),
            rootfs=[
                Mount(type=m.type, source=m.source, target=m.target, options=list(m.options))
                for m in rootfs
            ],
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            options=options_any(options) if options else None,
        )
        created = await self._ask("Create", request, pb.CreateTaskResponse, timeout_s)
        self._watch("")
        return created.pid

    async def start(self, exec_id: str = "", *, timeout_s: float) -> int:
        request = pb.StartRequest(id=self._id, exec_id=exec_id)
        started = await self._ask("Start", request, pb.StartResponse, timeout_s)
        self._watch(exec_id)
        return started.pid

    async def settle(self, exec_id: str = "", *, timeout_s: float) -> tuple[int, str]:
        process = _process(await self._state_of(exec_id, timeout_s))
        self._watch(exec_id)
        return process.pid, process.status

    async def exec(self, exec_id: str, spec: bytes, stdio: Stdio, *, timeout_s: float) -> None:
        await trio.to_thread.run_sync(foreign.note_exec, self._bundle, exec_id)
        request = pb.ExecProcessRequest(
            id=self._id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=AnyMessage(type_url=PROCESS_URL, value=spec),
        )
        try:
            await self._ask("Exec", request, Empty, timeout_s)
        except AlreadyExists:
            raise
        except Refusal:
            if not self.closed.is_set():
                await trio.to_thread.run_sync(foreign.forget_exec, self._bundle, exec_id)
            raise

    async def kill(
        self, signal: int, exec_id: str = "", *, all: bool = False, timeout_s: float
    ) -> None:
        request = pb.KillRequest(id=self._id, exec_id=exec_id, signal=signal, all=all)
        await self._ask("Kill", request, Empty, timeout_s)

    async def pause(self, *, timeout_s: float) -> None:
        await self._ask("Pause", pb.PauseRequest(id=self._id), Empty, timeout_s)

    async def resume(self, *, timeout_s: float) -> None:
        await self._ask("Resume", pb.ResumeRequest(id=self._id), Empty, timeout_s)

    async def update(
        self, resources: bytes, *, annotations: Mapping[str, str], timeout_s: float
    ) -> None:
        request = pb.UpdateTaskRequest(
            id=self._id,
            resources=AnyMessage(type_url=RESOURCES_URL, value=resources),
            annotations=dict(annotations),
        )
        await self._ask("Update", request, Empty, timeout_s)

    async def pids(self, *, timeout_s: float) -> list[tuple[int, str | None]]:
        request = pb.PidsRequest(id=self._id)
        found = await self._ask("Pids", request, pb.PidsResponse, timeout_s)
        return [(each.pid, _exec_id(each.info)) for each in found.processes]

    async def resize(self, width: int, height: int, exec_id: str = "", *, timeout_s: float) -> None:
        request = pb.ResizePtyRequest(id=self._id, exec_id=exec_id, width=width, height=height)
        await self._ask("ResizePty", request, Empty, timeout_s)

    async def close_io(self, exec_id: str = "", *, timeout_s: float) -> None:
        request = pb.CloseIORequest(id=self._id, exec_id=exec_id, stdin=True)
        await self._ask("CloseIO", request, Empty, timeout_s)

    async def delete(self, exec_id: str = "", *, timeout_s: float) -> Exited:
        request = pb.DeleteRequest(id=self._id, exec_id=exec_id)
        deleted = await self._ask("Delete", request, pb.DeleteResponse, timeout_s)
        if exec_id:
            await trio.to_thread.run_sync(foreign.forget_exec, self._bundle, exec_id)
        return _exited(deleted, exec_id)

    async def state(self, *, timeout_s: float) -> ShimState:
        added = await trio.to_thread.run_sync(foreign.execs, self._bundle)
        processes: dict[str, ProcessState] = {}
        paused = False
        for exec_id in ("", *added):
            try:
                told = await self._state_of(exec_id, timeout_s)
            except NotFound:
                continue
            processes[exec_id] = _process(told)
            paused = paused or (not exec_id and told.status == task_types_pb2.PAUSED)
            if processes[exec_id].status != "stopped":
                self._watch(exec_id)
        init = processes.get("")
        pid = init.pid if init is not None and init.status != "stopped" else 0
        return ShimState(
            id=self._id,
            namespace=self._namespace,
            paused=paused,
            cgroups=await trio.to_thread.run_sync(cgroup.directories, pid) if pid else {},
            processes=processes,
            runtime_spawns=0,
            operations=[],
        )

    async def process_state(self, exec_id: str = "") -> ProcessState:
        return _process(await self._state_of(exec_id, CALL_WITHIN_S))

    async def metrics(self, *, timeout_s: float) -> Counted:
        found = await self._ask("Stats", pb.StatsRequest(id=self._id), pb.StatsResponse, timeout_s)
        kind = type_name(found.stats.type_url)
        return COUNTED.get(kind, kind), found.stats.value

    async def shutdown(self, *, timeout_s: float) -> None:
        try:
            await self._ask("Shutdown", pb.ShutdownRequest(id=self._id), Empty, timeout_s)
        except Unavailable:
            if not self.closed.is_set():
                raise  # it may be gone before its answer is

    async def _greet(self) -> None:
        try:
            request = pb.ConnectRequest(id=self._id)
            told = await self._ask("Connect", request, pb.ConnectResponse, CALL_WITHIN_S)
        except Refusal as error:
            log.info("shim.unknown", id=self._id, reason=str(error))
            return
        try:
            await trio.to_thread.run_sync(foreign.note_pid, self._bundle, told.shim_pid)
        except OSError as error:
            log.warning("shim.unnoted", id=self._id, pid=told.shim_pid, reason=str(error))

    def _watch(self, exec_id: str) -> None:
        """Wait for the end of a process, once a connection."""
        if exec_id not in self._watched and self._nursery is not None:
            self._watched.add(exec_id)
            self._nursery.start_soon(self._wait, exec_id)

    async def _wait(self, exec_id: str) -> None:
        try:
            request = pb.WaitRequest(id=self._id, exec_id=exec_id)
            ended = await self._ask("Wait", request, pb.WaitResponse, None)
        except Refusal as error:
            self._watched.discard(exec_id)
            log.debug("shim.unwaited", id=self._id, exec_id=exec_id, reason=str(error))
            return
        at_ns = nanoseconds(ended.exited_at)
        self._on_event(Exited(exec_id=exec_id, pid=0, status=ended.exit_status, exited_at_ns=at_ns))

    async def _state_of(self, exec_id: str, timeout_s: float) -> pb.StateResponse:
        request = pb.StateRequest(id=self._id, exec_id=exec_id)
        return await self._ask("State", request, pb.StateResponse, timeout_s)

    async def _ask(
        self, method: str, request: Message, answer: type[A], timeout_s: float | None
    ) -> A:
        metadata = {NAMESPACE: self._namespace}
        try:
            return await self._client.call(
                self._service, method, request, answer, metadata, timeout_s
            )
        except CallFailed as error:
            raise Unknown(f"shim of {self._id}: {method}: {error}") from error


def options_any(options: Mapping[str, Any]) -> AnyMessage:
    """The options of a task whose shim is foreign: as its client gave them."""
    return AnyMessage(type_url=str(options["type_url"]), value=bytes(options["value"]))


def _exited(response: pb.DeleteResponse, exec_id: str) -> Exited:
    return Exited(
        exec_id=exec_id,
        pid=response.pid,
        status=response.exit_status,
        exited_at_ns=nanoseconds(response.exited_at),
    )


def _process(told: pb.StateResponse) -> ProcessState:
    return ProcessState(
        exec_id=told.exec_id,
        status=STATUSES.get(told.status, "creating"),
        pid=told.pid,
        stdio=Stdio(
            stdin=told.stdin, stdout=told.stdout, stderr=told.stderr, terminal=told.terminal
        ),
        exit_status=told.exit_status,
        exited_at_ns=nanoseconds(told.exited_at),
        lost=False,
    )


def _exec_id(info: AnyMessage) -> str | None:
    if type_name(info.type_url) != runc_pb2.ProcessDetails.DESCRIPTOR.full_name:
        return None
    return runc_pb2.ProcessDetails.FromString(info.value).exec_id
