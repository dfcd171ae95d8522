"""containerd.services.mounts.v1: mounts that the daemon makes and keeps under a name."""

from google.protobuf.empty_pb2 import Empty

from ...storage.activations import Activation, Activations
from ..anys import timestamp
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..proto import types_pb2 as types
from ..proto.services import mounts_pb2 as pb
from ..types import mounts_from, mounts_to


def service(activations: Activations) -> Service:
    """The service over these verbs."""

    async def activate(request: pb.ActivateRequest, context: Context) -> pb.ActivateResponse:
        made = await activations.activate(
            context.namespace(),
            request.name,
            mounts_from(request.mounts),
            dict(request.labels),
            temporary=request.temporary,
            lease=context.lease() or "",
        )
        return pb.ActivateResponse(info=to_message(made))

    async def deactivate(request: pb.DeactivateRequest, context: Context) -> Empty:
        await activations.deactivate(context.namespace(), request.name)
        return Empty()

    async def info(request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        found = activations.info(context.namespace(), request.name)
        return pb.InfoResponse(info=to_message(found))

    async def update(request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        changed = Activation(name=request.info.name, labels=dict(request.info.labels))
        paths = tuple(request.update_mask.paths)
        updated = await activations.update(context.namespace(), changed, paths)
        return pb.UpdateResponse(info=to_message(updated))

    async def list_(request: pb.ListRequest, call: Call[pb.ListRequest, pb.ListMessage]) -> None:
        for each in activations.list(call.namespace(), list(request.filters)):
            await call.send(pb.ListMessage(info=to_message(each)))

    return implement(
        pb.DESCRIPTOR.services_by_name["Mounts"],
        {
            "Activate": activate,
            "Deactivate": deactivate,
            "Info": info,
            "Update": update,
            "List": list_,
        },
    )


def to_message(activation: Activation) -> types.ActivationInfo:
    return types.ActivationInfo(
        name=activation.name,
        active=[
            types.ActiveMount(
                mount=mounts_to([each.mount])[0],
                mounted_at=timestamp(each.mounted_at),
                mount_point=each.point,
            )
            for each in activation.active
        ],
        system=mounts_to(activation.system),
        labels=dict(activation.labels),
    )
