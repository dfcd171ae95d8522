"""The sockets of a host: gRPC for clients, ttrpc beside it for shims.

Both are unix sockets with a path, mode 0660 and root's unless
the configuration names another owner; there is no abstract one. They open last
and close first, so that no request meets a half-built house.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from ..actors.actor import Actor
from ..runtime.missed import Missed
from ..storage.lentcontent import LentContent
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
    mounts,
    namespaces,
    sandboxes,
    snapshots,
    streaming,
    tasks,
    transfer,
    version,
)
from .streams import Streams
from .ttrpc import TtrpcServer

Serve = Callable[[trio.SocketListener], Awaitable[None]]
"""Answers whoever connects, until cancelled."""

MODE = 0o660
# Packages of services that are made last, for they tell of all.
INTROSPECTION = "containerd.services.introspection.v1"
HEALTH = "grpc.health.v1"
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
        mounts.service(host.activations),
        diff.service(host.differs),
        tasks.service(host.tasks, host.containers),
        sandboxes.store_service(host.sandbox_store),
        sandboxes.controller_service(host.sandboxes, host.sandbox_store),
        events.service(host.events, Missed(host.store), host.tasks),
        streaming.service(streams),
        transfer.service(host, streams),
        admin.service(host),
    ]
    packages = {name.rpartition(".")[0] for name in _names(offered)}
    offered.append(introspection.service(host, packages | {INTROSPECTION, HEALTH}))
    return [*offered, health.service(_names(offered))]


def lent(host: Host) -> Mapping[Path, Sequence[Service]]:
    """What another containerd may borrow, by the socket where it finds it."""
    config = host.config
    offers: dict[Path, list[Service]] = {}
    if config.lend_snapshots:
        part = snapshots.lent(LentSnapshots(host.snapshotter()))
        offers.setdefault(Path(config.lend_snapshots), []).append(part)
    if config.lend_content:
        part = content.lent(LentContent(host.content))
        offers.setdefault(Path(config.lend_content), []).append(part)
    return offers


def _names(offered: Sequence[Service]) -> frozenset[str]:
    return frozenset(path.split("/")[1] for service in offered for path in service)


class Sockets(Actor):
    """Serves the sockets for as long as it lives; draining them is its orderly end."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        config = host.config
        self._address = Path(config.address)
        self._owner = (config.uid, config.gid)
        self._grpc = GrpcServer(services(host))
        self._ttrpc = TtrpcServer([events.ttrpc_service(host.events, host.tasks)])
        shims = Path(config.ttrpc_address or f"{config.address}{TTRPC_SUFFIX}")
        self._servers: dict[Path, Serve] = {shims: self._ttrpc.serve}
        for path, parts in lent(host).items():
            self._servers[path] = GrpcServer(parts).serve
        if config.debug_address:
            from . import debug  # what it imports, few daemons need

            self._servers[Path(config.debug_address)] = debug.serve
        # The last to open: who is answered there finds the others too.
        self._servers[self._address] = self._grpc.serve

    async def on_start(self) -> None:
        for path, serve in self._servers.items():
            self.spawn_task(serve, await self._listen(path))

    async def on_stop(self) -> None:
        await self._grpc.stop(DRAIN_WITHIN_S)
        for path in self._servers:
            path.unlink(missing_ok=True)

    async def _listen(self, path: Path) -> trio.SocketListener:
        await trio.to_thread.run_sync(
            partial(path.parent.mkdir, mode=0o711, parents=True, exist_ok=True)
        )
        listener = await listen_unix(path, MODE)
        if self._owner != (0, 0):
            os.chown(path, *self._owner)
        return listener

    def describe_state(self) -> str:
        return f"{self._address}: {self._grpc.connections} connections"
