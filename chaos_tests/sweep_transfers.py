"""A client of Transfer: archives go in by a stream beside the call; images get further names."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.api.cli.session import Session
from holdfast.api.grpc.client import ClientCall
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.services import streaming_pb2, transfer_pb2
from holdfast.api.proto.types_pb2 import Platform
from holdfast.api.streams import packed, unpacked

from .sweep_view import SNAPSHOTTER

STREAM = "archive"
PIECE = 32 << 10
UNPACK = types.UnpackConfiguration(
    platform=Platform(os="linux", architecture="amd64"), snapshotter=SNAPSHOTTER
)


async def take_in(session: Session, archive: Path) -> None:
    """Import an archive by the names that it tells, and unpack it."""
    data = await trio.to_thread.run_sync(archive.read_bytes)
    failed: list[Exception] = []
    async with _opened(session) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(_send, stream, data)
        store = types.ImageStore(
            extra_references=[types.ImageReference(is_prefix=True)],
            unpacks=[UNPACK],
        )
        try:
            await move(session, types.ImageImportStream(stream=STREAM), store)
        except Exception as error:  # raised below, out of the nursery that would wrap it
            failed.append(error)
        nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]


async def pull(session: Session, reference: str, name: str) -> None:
    """Pull an image from a registry that speaks plain HTTP, give it a name, unpack it."""
    place = types.OCIRegistry(reference=reference)
    place.resolver.default_scheme = "http"
    await move(session, place, types.ImageStore(name=name, unpacks=[UNPACK]))


async def tag(session: Session, image: str, name: str) -> None:
    """Give an image a further name."""
    further = types.ImageStore(extra_references=[types.ImageReference(name=name)])
    await move(session, types.ImageStore(name=image), further)


async def move(session: Session, source: Message, destination: Message) -> None:
    """One transfer."""
    request = transfer_pb2.TransferRequest(source=packed(source), destination=packed(destination))
    await session.call("Transfer/Transfer", request, Empty)


@asynccontextmanager
async def _opened(session: Session) -> AsyncGenerator[ClientCall[AnyMessage]]:
    """The stream, known by its name."""
    async with session.stream("Streaming/Stream", AnyMessage) as call:
        await call.send(packed(streaming_pb2.StreamInit(id=STREAM)))
        await call.receive()
        yield call


async def _send(call: ClientCall[AnyMessage], data: bytes) -> None:
    """Send within the window that is granted."""
    window = 0
    while data:
        while window <= 0:
            message = await call.receive()
            if message is None:
                return  # whoever received is done
            window += unpacked(message, types.WindowUpdate).update
        size = min(window, PIECE)
        await call.send(packed(types.Data(data=data[:size])))
        data, window = data[size:], window - size
    await call.end()
