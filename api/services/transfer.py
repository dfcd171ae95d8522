"""containerd.services.transfer.v1: images moved between archives, registries and names."""

from google.protobuf.empty_pb2 import Empty

from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..host import Host
from ..proto.services import transfer_pb2 as pb
from ..streams import Streams


def service(host: Host, streams: Streams) -> Service:
    """The service over the verbs of a host, with the streams that clients have opened."""

    async def transfer(request: pb.TransferRequest, context: Context) -> Empty:
        # Imported when the first is asked for: the daemon should be up at once.
        from ..moves import Move, reporting

        async with reporting(streams, context, request.options.progress_stream) as report:
            move = Move(host.transfers, streams, context, report)
            await move.run(request.source, request.destination)
        return Empty()

    return implement(pb.DESCRIPTOR.services_by_name["Transfer"], {"Transfer": transfer})
