"""containerd.services.sandbox.v1: the records of sandboxes (Store), and their life (Controller)."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from ...actors.errors import InvalidArgument, NotFound
from ...runtime.sandboxes import Sandboxes
from ...storage.containers import Runtime
from ...storage.platform import host
from ...storage.sandboxes import Sandbox, SandboxStore
from ..anys import timestamp
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto import types_pb2 as types
from ..proto.services import sandbox_pb2 as pb
from ..runcoptions import runc_options
from ..types import mounts_from
from .containers import any_to, anys_to, opaque_in, opaques_in
from .tasks import metric_to

SANDBOXER = "shim"
"""The name under which containerd's clients ask for sandboxes of the daemon's own."""

UPDATABLE = ("spec", "runtime", "labels", "extensions")


def store_service(sandboxes: SandboxStore) -> Service:
    """The service over these records."""

    async def create(request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        made = await sandboxes.create(context.namespace(), from_message(request.sandbox))
        return pb.StoreCreateResponse(sandbox=to_message(made))

    async def update(request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        given, paths = from_message(request.sandbox), tuple(request.fields)
        updated = await sandboxes.update(context.namespace(), given, paths)
        return pb.StoreUpdateResponse(sandbox=to_message(updated))

    async def delete(request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        await sandboxes.delete(context.namespace(), request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def list_(request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        found = sandboxes.list(context.namespace(), list(request.filters))
        return pb.StoreListResponse(list=[to_message(each) for each in found])

    async def get(request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        found = sandboxes.get(context.namespace(), request.sandbox_id)
        return pb.StoreGetResponse(sandbox=to_message(found))

    return implement(
        pb.DESCRIPTOR.services_by_name["Store"],
        {"Create": create, "Update": update, "Delete": delete, "List": list_, "Get": get},
    )


def controller_service(sandboxes: Sandboxes, records: SandboxStore) -> Service:
    """The service over live sandboxes; `records` has the specs of those that bring none."""

    async def create(
        request: pb.ControllerCreateRequest, context: Context
    ) -> pb.ControllerCreateResponse:
        check_sandboxer(request.sandboxer)
        namespace, id = context.namespace(), request.sandbox_id
        told = _told(request, records, namespace)
        await sandboxes.create(
            namespace,
            id,
            told.spec.value if told.spec is not None else b"",
            mounts_from(request.rootfs),
            netns_path=request.netns_path,
            annotations=dict(request.annotations),
            options=_runtime_options(told.runtime),
        )
        return pb.ControllerCreateResponse(sandbox_id=id)

    async def start(
        request: pb.ControllerStartRequest, context: Context
    ) -> pb.ControllerStartResponse:
        check_sandboxer(request.sandboxer)
        started = await sandboxes.start(context.namespace(), request.sandbox_id)
        return pb.ControllerStartResponse(
            sandbox_id=request.sandbox_id,
            pid=started.pid,
            created_at=timestamp(started.created_at_ns),
        )

    async def platform(
        request: pb.ControllerPlatformRequest, context: Context
    ) -> pb.ControllerPlatformResponse:
        check_sandboxer(request.sandboxer)
        sandboxes.check(context.namespace(), request.sandbox_id)
        here = host()
        return pb.ControllerPlatformResponse(
            platform=types.Platform(
                os=here.os, architecture=here.architecture, variant=here.variant
            )
        )

    async def stop(
        request: pb.ControllerStopRequest, context: Context
    ) -> pb.ControllerStopResponse:
        check_sandboxer(request.sandboxer)
        await sandboxes.stop(context.namespace(), request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def wait(
        request: pb.ControllerWaitRequest, context: Context
    ) -> pb.ControllerWaitResponse:
        check_sandboxer(request.sandboxer)
        status, exited_at_ns = await sandboxes.wait(context.namespace(), request.sandbox_id)
        return pb.ControllerWaitResponse(exit_status=status, exited_at=timestamp(exited_at_ns))

    async def status(
        request: pb.ControllerStatusRequest, context: Context
    ) -> pb.ControllerStatusResponse:
        check_sandboxer(request.sandboxer)
        found = await sandboxes.status(context.namespace(), request.sandbox_id)
        verbose = {"task": found.task, "exit_status": str(found.exit_status)}
        return pb.ControllerStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=found.pid,
            state=found.state,
            info=verbose if request.verbose else {},
            created_at=timestamp(found.created_at_ns),
            exited_at=timestamp(found.exited_at_ns),
        )

    async def shutdown(
        request: pb.ControllerShutdownRequest, context: Context
    ) -> pb.ControllerShutdownResponse:
        check_sandboxer(request.sandboxer)
        await sandboxes.shutdown(context.namespace(), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def metrics(
        request: pb.ControllerMetricsRequest, context: Context
    ) -> pb.ControllerMetricsResponse:
        check_sandboxer(request.sandboxer)
        used = await sandboxes.metrics(context.namespace(), request.sandbox_id)
        return pb.ControllerMetricsResponse(metrics=metric_to(used))

    async def update(
        request: pb.ControllerUpdateRequest, context: Context
    ) -> pb.ControllerUpdateResponse:
        check_sandboxer(request.sandboxer)
        if not request.HasField("sandbox"):
            raise InvalidArgument("sandbox can not be nil: invalid argument")
        fields = request.fields or UPDATABLE
        for field in fields:
            if field.partition(".")[0] not in UPDATABLE:
                raise InvalidArgument(f"cannot update {field} of a sandbox: invalid argument")
        spec = request.sandbox.spec.value if "spec" in fields else b""
        await sandboxes.update(context.namespace(), request.sandbox_id, spec or b"{}")
        return pb.ControllerUpdateResponse()

    return implement(
        pb.DESCRIPTOR.services_by_name["Controller"],
        {
            "Create": create,
            "Start": start,
            "Platform": platform,
            "Stop": stop,
            "Wait": wait,
            "Status": status,
            "Shutdown": shutdown,
            "Metrics": metrics,
            "Update": update,
        },
    )


def check_sandboxer(name: str) -> None:
    """Refuse a sandboxer that is not ours, in containerd's words."""
    if not name:
        raise InvalidArgument("invalid argument: sandbox controller name can not be empty")
    if name != SANDBOXER:
        raise NotFound(f"not found: failed to get sandbox controller by {name}")


def _told(request: pb.ControllerCreateRequest, records: SandboxStore, namespace: str) -> Sandbox:
    """The sandbox as the request has it, or else as its record has."""
    if request.HasField("sandbox"):
        return from_message(request.sandbox)
    try:
        return records.get(namespace, request.sandbox_id)
    except NotFound:
        return Sandbox(id=request.sandbox_id)


def _runtime_options(runtime: Runtime) -> Mapping[str, Any]:
    options = runtime.options
    if options is None:
        return {}
    return runc_options(AnyMessage(type_url=options.type_url, value=options.value))


def to_message(sandbox: Sandbox) -> types.Sandbox:
    runtime = types.Sandbox.Runtime(
        name=sandbox.runtime.name, options=any_to(sandbox.runtime.options)
    )
    return types.Sandbox(
        sandbox_id=sandbox.id,
        runtime=runtime,
        spec=any_to(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=timestamp(sandbox.created_at),
        updated_at=timestamp(sandbox.updated_at),
        extensions=anys_to(sandbox.extensions),
        sandboxer=sandbox.sandboxer,
    )


def from_message(message: types.Sandbox) -> Sandbox:
    return Sandbox(
        id=message.sandbox_id,
        runtime=Runtime(name=message.runtime.name, options=opaque_in(message.runtime, "options")),
        spec=opaque_in(message, "spec"),
        labels=dict(message.labels),
        extensions=opaques_in(message.extensions),
        sandboxer=message.sandboxer,
    )
