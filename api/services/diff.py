"""containerd.services.diff.v1: layers applied to mounts."""

from typing import Any

from ...actors.errors import Unimplemented
from ...storage.content import ContentStore
from ...storage.descriptor import OCI_LAYER
from ...storage.workers import Workers
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import diff_pb2 as pb
from ..proto.types_pb2 import Descriptor
from ..types import mounts_from


def service(content: ContentStore, workers: Workers) -> Service:
    """The service over these verbs; the work is done by worker processes."""

    async def apply(request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        layer = request.diff
        async with await content.open_blob(context.namespace(), layer.digest) as blob:
            applied = await workers.apply(blob.path, layer.media_type, mounts_from(request.mounts))
        return pb.ApplyResponse(
            applied=Descriptor(
                media_type=OCI_LAYER, digest=applied.diff_id, size=applied.size_bytes
            )
        )

    async def diff(_request: pb.DiffRequest, _: Context) -> Any:
        raise Unimplemented("diff: packing layers is not implemented")

    return implement(pb.DESCRIPTOR.services_by_name["Diff"], {"Apply": apply, "Diff": diff})
