"""containerd.services.version.v1: which daemon answers."""

from google.protobuf.empty_pb2 import Empty

from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import version_pb2 as pb


def service(version: str, revision: str) -> Service:
    """The service that answers with these words."""

    async def tell(_request: Empty, _: Context) -> pb.VersionResponse:
        return pb.VersionResponse(version=version, revision=revision)

    return implement(pb.DESCRIPTOR.services_by_name["Version"], {"Version": tell})
