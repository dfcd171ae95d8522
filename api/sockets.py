"""The sockets of a host: gRPC for clients, ttrpc beside it for shims.

Both are unix sockets with a path, mode 0660 and root's; there is no abstract one. They open last
and close first, so that no request meets a half-built house.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from ..actors.actor import Actor
from ..storage.lentsnapshots import LentSnapshots
from ..supervision.spec import ChildSpec
from .grpc.server import GrpcServer, listen_unix
from .grpc.service import Service
from .host import Host
from .identity import REVISION, VERSION
from .services import (
    admin,
    containers,
    content,
    diff,
    events,
    health,
    images,
    introspection,
    leases,
    namespaces,
    snapshots,
    streaming,
    tasks,
    transfer,
    version,
)
from .streams import Streams
from .ttrpc import TtrpcServer

MODE = 0o660
TTRPC_SUFFIX = ".ttrpc"
DRAIN_WITHIN_S = 1.0


def serving(host: Host) -> ChildSpec:
    """The sockets' place in the host's tree."""
    return ChildSpec("sockets", Sockets, args=(host,), name="sockets", stop_within_s=5.0)


def services(host: Host) -> Sequence[Service]:
    """Every service that this host answers."""
    streams = Streams()
    offered: list[Service] = [
        version.service(VERSION, REVISION),
        namespaces.service(host.namespaces),
        containers.service(host.containers, host.image_keeper),
        content.service(host.content),
        images.service(host.images, host.collector),
        leases.service(host.leases, host.collector),
        snapshots.service(host.snapshotter),
        diff.service(host.content, host.workers),
        tasks.service(host.tasks, host.containers),
        events.service(host.events),
        streaming.service(streams),
        transfer.service(host.transfers, streams),
        introspection.service(host.uuid),
        admin.service(host),
    ]
    names = frozenset(path.split("/")[1] for service in offered for path in service)
    return [*offered, health.service(names)]


class Sockets(Actor):
    """Serves the sockets for as long as it lives; draining them is its orderly end."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._address = Path(host.config.address)
        self._grpc = GrpcServer(services(host))
        self._ttrpc = TtrpcServer([events.ttrpc_service(host.events, host.tasks)])
        self._servers: dict[Path, GrpcServer | TtrpcServer] = {
            self._address: self._grpc,
            Path(f"{self._address}{TTRPC_SUFFIX}"): self._ttrpc,
        }
        if host.config.lend_snapshots:
            lent = snapshots.lent(LentSnapshots(host.snapshotter()))
            self._servers[Path(host.config.lend_snapshots)] = GrpcServer([lent])

    async def on_start(self) -> None:
        for path, server in self._servers.items():
            await trio.to_thread.run_sync(
                partial(path.parent.mkdir, mode=0o711, parents=True, exist_ok=True)
            )
            self.spawn_task(server.serve, await listen_unix(path, MODE))

    async def on_stop(self) -> None:
        await self._grpc.stop(DRAIN_WITHIN_S)
        for path in self._servers:
            path.unlink(missing_ok=True)

    def describe_state(self) -> str:
        return f"{self._address}: {self._grpc.connections} connections"
