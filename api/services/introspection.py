"""containerd.services.introspection.v1: the parts of the daemon, and who it is."""

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from ...actors.errors import FailedPrecondition, NotFound, Unimplemented, Unknown
from ...runtime.foreign import find_binary, is_foreign, shim_info
from ...storage.filters import compile_filters
from ...storage.platform import host as host_platform
from ..anys import type_name, unpack
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..host import Host
from ..plugins import RUNTIME, Plugin, plugins_of
from ..proto import types_pb2 as types
from ..proto.rpc_status_pb2 import Status
from ..proto.services import introspection_pb2 as pb
from ..runtimeinfo import runtime_info
from ..status import code_of
from .words import said_first

RUNTIME_NAME = "io.containerd.runc.v2"
"""Under which name containerd's clients ask for a container's runtime."""


def service(host: Host, packages: Collection[str]) -> Service:
    """The service of a host that serves these packages."""
    pid_namespace = Path("/proc/self/ns/pid").stat().st_ino
    every = plugins_of(host, packages)

    async def plugins(request: pb.PluginsRequest, _: Context) -> pb.PluginsResponse:
        accepts = compile_filters(list(request.filters))
        found = [plugin for plugin in every if accepts(partial(_field, plugin))]
        return pb.PluginsResponse(plugins=[to_message(plugin) for plugin in found])

    async def server(_request: Empty, _: Context) -> pb.ServerResponse:
        # Nothing that clients may use is on its way out: there are no deprecations to tell.
        return pb.ServerResponse(uuid=host.uuid, pid=os.getpid(), pidns=pid_namespace)

    async def plugin_info(request: pb.PluginInfoRequest, _: Context) -> pb.PluginInfoResponse:
        for plugin in every:
            if (plugin.type, plugin.id) == (request.type, request.id):
                break
        else:
            raise NotFound(f"plugin {request.type}.{request.id} not found: not found")
        answer = pb.PluginInfoResponse(plugin=to_message(plugin))
        if request.HasField("options"):
            info = await _extra(plugin, request.options)
            name = types.RuntimeInfo.DESCRIPTOR.full_name
            answer.extra.CopyFrom(AnyMessage(type_url=name, value=info.SerializeToString()))
        return answer

    return implement(
        pb.DESCRIPTOR.services_by_name["Introspection"],
        {"Plugins": plugins, "Server": server, "PluginInfo": plugin_info},
    )


async def _extra(plugin: Plugin, options: AnyMessage) -> types.RuntimeInfo:
    """What a part tells of itself when it is asked with options."""
    if plugin.fault is not None:
        raise FailedPrecondition(
            "cannot get extra info, plugin not successfully loaded: failed precondition"
        )
    if plugin.type != RUNTIME:
        raise Unimplemented("plugin does not provided extra information: not implemented")
    if type_name(options.type_url) != types.RuntimeRequest.DESCRIPTOR.full_name:
        raise Unimplemented(f"unknown request type {options.type_url}: not implemented")
    request = unpack(options, types.RuntimeRequest)
    assert isinstance(request, types.RuntimeRequest)
    given = request.options if request.HasField("options") else None
    if not is_foreign(request.runtime_path):
        name = request.runtime_path or RUNTIME_NAME
        return await trio.to_thread.run_sync(runtime_info, name, given)
    with said_first("failed to resolve runtime path"):
        binary = await trio.to_thread.run_sync(find_binary, request.runtime_path)
    said = await shim_info(binary, given.SerializeToString() if given is not None else b"")
    try:
        return types.RuntimeInfo.FromString(said)
    except DecodeError as error:
        raise Unknown(
            f"failed to unmarshal stdout from [{binary} -info] into *types.RuntimeInfo: {error}"
        ) from error


def to_message(plugin: Plugin) -> pb.Plugin:
    here = host_platform()
    platform = types.Platform(os=here.os, architecture=here.architecture, variant=here.variant)
    fault = plugin.fault
    status = Status(code=int(code_of(type(fault))), message=str(fault)) if fault else None
    return pb.Plugin(
        type=plugin.type,
        id=plugin.id,
        requires=list(plugin.requires),
        platforms=[platform] if plugin.native else [],
        exports=dict(plugin.exports),
        capabilities=list(plugin.capabilities),
        init_err=status,
    )


def _field(plugin: Plugin, path: Sequence[str]) -> tuple[str, bool]:
    match path:
        case ["type", *_]:
            return plugin.type, True
        case ["id", *_]:
            return plugin.id, True
        case _:
            return "", False
