"""One connection to a daemon, in one namespace, for the length of a command.

`holdfast run` works where no daemon answers: the session then embeds a host, which serves a
private socket, and is a client of that. Every other command needs the daemon.
"""

import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ...actors.errors import NotFound, Unavailable
from ..config import Config, load
from ..grpc.client import Channel, ClientCall
from ..proto.services import (
    admin_pb2,
    containers_pb2,
    snapshots_pb2,
    tasks_pb2,
)

A = TypeVar("A", bound=Message)

CALL_WITHIN_S = 60.0
RETRY_S = 0.05
FOREVER = None


@dataclass(frozen=True)
class Session:
    """Calls in one namespace over one channel. Refusals are raised as the classes they are."""

    channel: Channel
    namespace: str

    @property
    def metadata(self) -> dict[str, str]:
        return {"containerd-namespace": self.namespace}

    async def call(
        self,
        path: str,
        request: Message,
        answer: type[A],
        within_s: float | None = CALL_WITHIN_S,
        metadata: Mapping[str, str] | None = None,
    ) -> A:
        """A unary call; `path` is Service/Method of containerd, or admin's in full."""
        return await self.channel.unary(
            _full(path), request, answer, {**self.metadata, **(metadata or {})}, within_s
        )

    @asynccontextmanager
    async def stream(
        self, path: str, answer: type[A], metadata: Mapping[str, str] | None = None
    ) -> AsyncGenerator[ClientCall[A]]:
        """A streaming call: send, end, receive."""
        told = {**self.metadata, **(metadata or {})}
        async with self.channel.stream(_full(path), answer, metadata=told) as call:
            yield call

    # -- what several commands do

    async def container(self, name: str) -> containers_pb2.Container:
        request = containers_pb2.GetContainerRequest(id=name)
        answer = await self.call("Containers/Get", request, containers_pb2.GetContainerResponse)
        return answer.container

    async def task(self, name: str, exec_id: str = "") -> tasks_pb2.GetResponse:
        request = tasks_pb2.GetRequest(container_id=name, exec_id=exec_id)
        return await self.call("Tasks/Get", request, tasks_pb2.GetResponse)

    async def start(self, name: str, exec_id: str = "") -> None:
        """Let a created task or exec run."""
        request = tasks_pb2.StartRequest(container_id=name, exec_id=exec_id)
        await self.call("Tasks/Start", request, tasks_pb2.StartResponse)

    async def wait(self, name: str, exec_id: str = "") -> int:
        """Wait, as long as it takes, for the exit status of a task or an exec."""
        request = tasks_pb2.WaitRequest(container_id=name, exec_id=exec_id)
        return (await self.call("Tasks/Wait", request, tasks_pb2.WaitResponse, FOREVER)).exit_status

    async def mounts(self, container: containers_pb2.Container) -> snapshots_pb2.MountsResponse:
        request = snapshots_pb2.MountsRequest(
            snapshotter=container.snapshotter, key=container.snapshot_key
        )
        return await self.call("Snapshots/Mounts", request, snapshots_pb2.MountsResponse)

    async def delete_task(self, name: str) -> tasks_pb2.DeleteResponse:
        request = tasks_pb2.DeleteTaskRequest(container_id=name)
        return await self.call("Tasks/Delete", request, tasks_pb2.DeleteResponse)

    async def delete_container(self, container: containers_pb2.Container) -> None:
        """Its snapshot, then the record: without the record the snapshot would be garbage, and
        the collector may be faster."""
        if container.snapshot_key:
            removed = snapshots_pb2.RemoveSnapshotRequest(
                snapshotter=container.snapshotter, key=container.snapshot_key
            )
            with suppress(NotFound):  # an earlier removal was cut short
                await self.call("Snapshots/Remove", removed, Empty)
        gone = containers_pb2.DeleteContainerRequest(id=container.id)
        await self.call("Containers/Delete", gone, Empty)

    async def info(self) -> admin_pb2.InfoResponse:
        return await self.call("admin/Info", admin_pb2.InfoRequest(), admin_pb2.InfoResponse)


def _full(path: str) -> str:
    service, _, method = path.partition("/")
    if service == "admin":
        return f"/holdfast.admin.v1.Admin/{method}"
    return f"/containerd.services.{service.lower()}.v1.{service}/{method}"


@dataclass(frozen=True)
class Where:
    """The command line's global options: which daemon, which namespace."""

    address: str
    namespace: str
    wait_s: float = 0.0

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """A session with the daemon; Unavailable where none answers."""
        try:
            transport = await self._reach()
        except OSError as error:
            raise Unavailable(
                f"no daemon answers at {self.address} ({error.strerror}): start holdfastd,"
                " or name its socket with --address"
            ) from error
        async with Channel.over(transport) as channel:
            yield Session(channel, self.namespace)

    @asynccontextmanager
    async def session_or_host(self) -> AsyncGenerator[Session]:
        """A session with the daemon, or with a host of our own where none answers."""
        try:
            transport = await self._reach()
        except OSError:
            async with self._embedded() as session:
                yield session
            return
        async with Channel.over(transport) as channel:
            yield Session(channel, self.namespace)

    async def _reach(self) -> trio.SocketStream:
        """Connect; a daemon that is just starting is given `wait_s` to appear."""
        deadline = trio.current_time() + self.wait_s
        while True:
            try:
                return await trio.open_unix_socket(self.address)
            except OSError:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(RETRY_S)

    @asynccontextmanager
    async def _embedded(self) -> AsyncGenerator[Session]:
        # The host is heavy to import and only this path needs it.
        from ..host import open_host
        from ..log import set_up_logging
        from ..sockets import serving

        path = os.environ.get("HOLDFAST_CONFIG")
        with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
            address = str(Path(folder) / "holdfast.sock")
            config: Config = replace(
                load(Path(path) if path else None, {"log_level": "error"}), address=address
            )
            set_up_logging(config.log_level)
            async with open_host(config, serving):
                async with Channel.connect(address) as channel:
                    yield Session(channel, self.namespace)
