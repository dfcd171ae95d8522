"""containerd.services.diff.v1: layers to directories and back."""

from ...storage.containers import Opaque
from ...storage.differs import Differs, Wanted
from ..anys import nanoseconds
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import diff_pb2 as pb
from ..types import descriptor_from, descriptor_to, mounts_from


def service(differs: Differs) -> Service:
    """The service over these verbs."""

    async def apply(request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        applied = await differs.apply(
            context.namespace(),
            descriptor_from(request.diff),
            mounts_from(request.mounts),
            payloads={
                kind: Opaque(type_url=payload.type_url, value=payload.value)
                for kind, payload in request.payloads.items()
            },
            sync=request.sync_fs,
        )
        return pb.ApplyResponse(applied=descriptor_to(applied))

    async def diff(request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        epoch_ns = None
        if request.HasField("source_date_epoch"):
            epoch_ns = nanoseconds(request.source_date_epoch)
        made = await differs.diff(
            context.namespace(),
            mounts_from(request.left),
            mounts_from(request.right),
            Wanted(
                media_type=request.media_type,
                ref=request.ref,
                labels=dict(request.labels),
                epoch_ns=epoch_ns,
            ),
            lease=context.lease() or "",
        )
        return pb.DiffResponse(diff=descriptor_to(made))

    return implement(pb.DESCRIPTOR.services_by_name["Diff"], {"Apply": apply, "Diff": diff})
