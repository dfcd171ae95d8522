"""containerd.services.streaming.v1: streams that other calls take up by their names.

The first message names the stream; an Empty answers once it can be found. The call ends when
whoever took the stream up is done with it, or the client leaves.
"""

from google.protobuf.empty_pb2 import Empty

from ..grpc.service import Service, implement
from ..proto.services import streaming_pb2 as pb
from ..streams import StreamCall, Streams, packed, unpacked


def service(streams: Streams) -> Service:
    """The service that opens streams among these."""

    async def stream(call: StreamCall) -> None:
        first = await call.receive()
        if first is None:
            return
        name = unpacked(first, pb.StreamInit).id
        with streams.opened(call.namespace(), name, call) as opened:
            await call.send(packed(Empty()))
            await opened.wait_end()

    return implement(pb.DESCRIPTOR.services_by_name["Streaming"], {"Stream": stream})
