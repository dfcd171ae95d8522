"""`containerd publish`: an event from a shim to the daemon, packed as an Any on standard input.

It says that it comes from a shim: what shims tell of tasks, the daemon tells by itself, once.
"""

import os
import shutil
import sys
import sysconfig

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from ...actors.errors import InvalidArgument, Unavailable
from ..grpc.call import FROM_SHIM, NAMESPACE
from ..grpc.client import Channel
from ..proto.services.events_pb2 import PublishRequest

PUBLISH = "/containerd.services.events.v1.Events/Publish"
WITHIN_S = 60.0
PROGRAM = "holdfast-containerd"


def publish_binary() -> str:
    """The program that has this command, for shims: installed with us, or the first in PATH."""
    ours = [sysconfig.get_path("scripts"), os.path.dirname(os.path.abspath(sys.argv[0]))]
    return shutil.which(PROGRAM, path=os.pathsep.join(ours)) or shutil.which(PROGRAM) or PROGRAM


def publish(address: str, namespace: str, topic: str, payload: bytes) -> None:
    """Publish one event and wait until the daemon has it."""
    if not topic:
        raise InvalidArgument("topic required to publish event")
    event = AnyMessage()
    try:
        event.ParseFromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"publish: standard input is no event: {error}") from error
    trio.run(_publish, address, namespace, PublishRequest(topic=topic, event=event))


async def _publish(address: str, namespace: str, request: PublishRequest) -> None:
    try:
        transport = await trio.open_unix_socket(address)
    except OSError as error:
        raise Unavailable(f'failed to dial "{address}": {error.strerror}') from error
    async with Channel.over(transport) as channel:
        metadata = {NAMESPACE: namespace, FROM_SHIM: "yes"}
        await channel.unary(PUBLISH, request, Empty, metadata=metadata, timeout_s=WITHIN_S)
