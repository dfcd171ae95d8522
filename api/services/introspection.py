"""containerd.services.introspection.v1: the parts of the daemon, and who it is."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from ...actors.errors import NotFound
from ...storage.filters import compile_filters
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import introspection_pb2 as pb
from ..proto.types_pb2 import Platform


@dataclass(frozen=True, slots=True)
class Plugin:
    """A part as containerd's clients look for it: type, id, whether it is tied to the platform."""

    type: str
    id: str
    native: bool = False


# What clients ask for before they use it. containerd's names, for what Holdfast has.
PLUGINS: Sequence[Plugin] = (
    Plugin("io.containerd.content.v1", "content"),
    Plugin("io.containerd.snapshotter.v1", "native", native=True),
    Plugin("io.containerd.snapshotter.v1", "overlayfs", native=True),
    Plugin("io.containerd.metadata.v1", "bolt"),
    Plugin("io.containerd.differ.v1", "walking", native=True),
    Plugin("io.containerd.event.v1", "exchange"),
    Plugin("io.containerd.gc.v1", "scheduler"),
    Plugin("io.containerd.service.v1", "introspection-service"),
    Plugin("io.containerd.service.v1", "containers-service"),
    Plugin("io.containerd.service.v1", "content-service"),
    Plugin("io.containerd.service.v1", "diff-service"),
    Plugin("io.containerd.service.v1", "images-service"),
    Plugin("io.containerd.service.v1", "leases-service"),
    Plugin("io.containerd.service.v1", "namespaces-service"),
    Plugin("io.containerd.service.v1", "snapshots-service"),
    Plugin("io.containerd.runtime.v2", "task", native=True),
    Plugin("io.containerd.service.v1", "tasks-service"),
    Plugin("io.containerd.internal.v1", "opt"),
    Plugin("io.containerd.grpc.v1", "introspection"),
    Plugin("io.containerd.grpc.v1", "containers"),
    Plugin("io.containerd.grpc.v1", "content"),
    Plugin("io.containerd.grpc.v1", "diff"),
    Plugin("io.containerd.grpc.v1", "events"),
    Plugin("io.containerd.grpc.v1", "healthcheck"),
    Plugin("io.containerd.grpc.v1", "images"),
    Plugin("io.containerd.grpc.v1", "leases"),
    Plugin("io.containerd.grpc.v1", "namespaces"),
    Plugin("io.containerd.grpc.v1", "snapshots"),
    Plugin("io.containerd.grpc.v1", "tasks"),
    Plugin("io.containerd.streaming.v1", "manager"),
    Plugin("io.containerd.transfer.v1", "local"),
    Plugin("io.containerd.grpc.v1", "streaming"),
    Plugin("io.containerd.grpc.v1", "transfer"),
    Plugin("io.containerd.grpc.v1", "version"),
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def service(uuid: str, opt: str) -> Service:
    """The service of a daemon with this lasting identity; images install programs into `opt`."""
    pid_namespace = Path("/proc/self/ns/pid").stat().st_ino

    async def plugins(request: pb.PluginsRequest, _: Context) -> pb.PluginsResponse:
        accepts = compile_filters(list(request.filters))
        found = [p for p in PLUGINS if accepts(partial(_field, p))]
        return pb.PluginsResponse(plugins=[message(plugin) for plugin in found])

    def message(plugin: Plugin) -> pb.Plugin:
        return to_message(plugin, {"path": opt} if plugin.id == "opt" else {})

    async def server(_request: Empty, _: Context) -> pb.ServerResponse:
        return pb.ServerResponse(uuid=uuid, pid=os.getpid(), pidns=pid_namespace)

    async def plugin_info(request: pb.PluginInfoRequest, _: Context) -> pb.PluginInfoResponse:
        for plugin in PLUGINS:
            if (plugin.type, plugin.id) == (request.type, request.id):
                return pb.PluginInfoResponse(plugin=message(plugin))
        raise NotFound(f"plugin {request.type}.{request.id}: not found")

    return implement(
        pb.DESCRIPTOR.services_by_name["Introspection"],
        {"Plugins": plugins, "Server": server, "PluginInfo": plugin_info},
    )


def to_message(plugin: Plugin, exports: Mapping[str, str]) -> pb.Plugin:
    machine = platform.machine()
    here = Platform(os="linux", architecture=ARCHITECTURES.get(machine, machine))
    platforms = [here] if plugin.native else []
    return pb.Plugin(type=plugin.type, id=plugin.id, platforms=platforms, exports=exports)


def _field(plugin: Plugin, path: Sequence[str]) -> tuple[str, bool]:
    match path:
        case ["type"]:
            return plugin.type, True
        case ["id"]:
            return plugin.id, True
        case _:
            return "", False
