"""containerd.services.diff.v1: layers to directories and back."""

from ...actors.errors import Unimplemented
from ...storage.content import ContentStore
from ...storage.descriptor import OCI_LAYER
from ...storage.differ import make_layer
from ...storage.workers import Workers
from ..anys import nanoseconds
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import diff_pb2 as pb
from ..proto.types_pb2 import Descriptor
from ..types import descriptor_to, mounts_from


def service(content: ContentStore, workers: Workers) -> Service:
    """The service over these verbs; the work is done by worker processes."""

    async def apply(request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        layer = request.diff
        if request.payloads:
            kinds = ", ".join(sorted(request.payloads))
            raise Unimplemented(f"payloads for stream processors ({kinds[:200]}): not implemented")
        async with await content.open_blob(context.namespace(), layer.digest) as blob:
            applied = await workers.apply(
                blob.path, layer.media_type, mounts_from(request.mounts), sync=request.sync_fs
            )
        return pb.ApplyResponse(
            applied=Descriptor(
                media_type=OCI_LAYER, digest=applied.diff_id, size=applied.size_bytes
            )
        )

    async def diff(request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        epoch_ns = None
        if request.HasField("source_date_epoch"):
            epoch_ns = nanoseconds(request.source_date_epoch)
        made = await make_layer(
            content,
            workers,
            context.namespace(),
            mounts_from(request.left),
            mounts_from(request.right),
            media_type=request.media_type,
            ref=request.ref,
            labels=dict(request.labels),
            epoch_ns=epoch_ns,
            lease=context.lease() or "",
        )
        return pb.DiffResponse(diff=descriptor_to(made))

    return implement(pb.DESCRIPTOR.services_by_name["Diff"], {"Apply": apply, "Diff": diff})
