"""A client of Transfer for tests: streams beside calls, as containerd's own client has them."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.actors.errors import Cancelled, Refusal
from holdfast.api.grpc.client import Channel, ClientCall
from holdfast.api.host import Host, embedded, open_host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.services import streaming_pb2, transfer_pb2
from holdfast.api.sockets import serving
from holdfast.api.streams import packed, unpacked
from holdfast.runtime.vault import teardown

STREAM = "/containerd.services.streaming.v1.Streaming/Stream"
TRANSFER = "/containerd.services.transfer.v1.Transfer/Transfer"
NS = {"containerd-namespace": "default"}


@asynccontextmanager
async def served(base: Path) -> AsyncGenerator[tuple[Host, Channel]]:
    """A host with its socket, and a client of it."""
    config = embedded(base / "root", base / "state", {"address": str(base / "daemon.sock")})
    try:
        async with open_host(config, serving) as host:
            with trio.fail_after(10):
                while not (base / "daemon.sock").exists():
                    await trio.sleep(0.02)
            async with Channel.connect(base / "daemon.sock") as channel:
                yield host, channel
    finally:
        # A shim that is still ending gives nothing back after its host.
        teardown(str(base / "state"))


@asynccontextmanager
async def opened(
    channel: Channel, name: str, metadata: dict[str, str] = NS
) -> AsyncGenerator[ClientCall[AnyMessage]]:
    """A stream that can be found by its name."""
    async with channel.stream(STREAM, AnyMessage, metadata) as call:
        await call.send(packed(streaming_pb2.StreamInit(id=name)))
        answer = await call.receive()
        assert answer is not None
        assert answer.type_url == "google.protobuf.Empty"
        yield call


async def send_bytes(call: ClientCall[AnyMessage], data: bytes) -> None:
    """Send within the window that is granted."""
    window = 0
    while data:
        while window <= 0:
            message = await call.receive()
            if message is None:
                return  # whoever received is done
            window += unpacked(message, types.WindowUpdate).update
        piece, data = data[: min(window, 32 << 10)], data[min(window, 32 << 10) :]
        await call.send(packed(types.Data(data=piece)))
        window -= len(piece)
    await call.end()


async def receive_bytes(call: ClientCall[AnyMessage], window: int = 64 << 10) -> bytes:
    """Receive all, granting the window anew when half of it is used."""
    received = bytearray()
    room = 0
    while True:
        if room < window // 2:
            try:
                await call.send(packed(types.WindowUpdate(update=window)))
            except Cancelled:
                pass
            room += window
        message = await call.receive()
        if message is None:
            return bytes(received)
        data = unpacked(message, types.Data).data
        received += data
        room -= len(data)
        assert room >= 0


async def move(
    channel: Channel,
    source: Message,
    destination: Message,
) -> Sequence[types.Progress]:
    """Have something transferred; what was told of it on the way."""
    told: list[types.Progress] = []

    async def listen(call: ClientCall[AnyMessage]) -> None:
        async for message in call:
            told.append(unpacked(message, types.Progress))

    request = transfer_pb2.TransferRequest(source=packed(source), destination=packed(destination))
    request.options.progress_stream = f"progress-{id(request)}"
    refused: list[Refusal] = []
    async with opened(channel, request.options.progress_stream) as progress:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, progress)
            try:
                await channel.unary(TRANSFER, request, Empty, NS, 60)
            except Refusal as refusal:
                # Raised below, out of the nursery that would wrap it.
                refused.append(refusal)
                nursery.cancel_scope.cancel()
    if refused:
        raise refused[0]
    return told
