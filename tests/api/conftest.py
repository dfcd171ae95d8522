"""A small gRPC server with handlers of every kind, and a raw HTTP/2 peer to trouble it."""

import struct
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from hpack import Decoder, Encoder
from hyperframe.frame import Frame

from holdfast.actors.errors import FailedPrecondition, NotFound
from holdfast.api.grpc.call import Call, Context
from holdfast.api.grpc.client import Channel
from holdfast.api.grpc.limits import Limits
from holdfast.api.grpc.server import GrpcServer, listen_unix
from holdfast.api.grpc.service import Service, implement
from holdfast.api.proto.services import containers_pb2 as containers
from holdfast.api.proto.services import content_pb2 as content
from holdfast.api.proto.services import events_pb2 as events
from holdfast.api.proto.services import streaming_pb2 as streaming
from holdfast.api.proto.services import version_pb2 as version
from holdfast.api.proto.types_pb2 import Envelope
from holdfast.api.status import with_details

VERSION = "/containerd.services.version.v1.Version/Version"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
WRITE = "/containerd.services.content.v1.Content/Write"
READ = "/containerd.services.content.v1.Content/Read"


class House:
    """A server on a unix socket. What a handler does, the metadata `do` tells it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.server = GrpcServer(self.services(), limits)
        self.entered = trio.Event()  # a handler that waits is waiting
        self.released = trio.Event()  # lets it go on
        self.left: list[str] = []  # how handlers that waited have ended
        self.contexts: list[Context] = []
        self.next_call = trio.Event()
        self.peers: list[RawPeer] = []

    def services(self) -> list[Service]:
        def of(module: Any, name: str, **handlers: Any) -> Service:
            return implement(module.DESCRIPTOR.services_by_name[name], handlers)

        return [
            of(version, "Version", Version=self.version),
            of(containers, "Containers", List=self.list, Delete=self.wrong_type),
            of(content, "Content", Write=self.write, Read=self.read),
            of(events, "Events", Subscribe=self.subscribe),
            of(streaming, "Streaming", Stream=self.echo),
        ]

    async def version(self, request: Empty, context: Context) -> version.VersionResponse:
        self.contexts.append(context)
        self.next_call.set()
        self.next_call = trio.Event()
        match context.text("do"):
            case "refuse":
                raise NotFound('container "ä%" in namespace "x": not found')
            case "detail":
                raise with_details(FailedPrecondition("no"), Timestamp(seconds=7))
            case "fault":
                raise RuntimeError("a secret of ours")
            case "group":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._refuse)
            case "wait":
                await self._wait()
        return version.VersionResponse(version="1", revision="r")

    async def _refuse(self) -> None:
        raise NotFound("from a nursery")

    async def _wait(self) -> None:
        self.entered.set()
        try:
            await self.released.wait()
        except trio.Cancelled:
            self.left.append("cancelled")
            raise
        self.left.append("released")

    async def list(
        self, request: containers.ListContainersRequest, context: Context
    ) -> containers.ListContainersResponse:
        one = containers.Container(id=context.namespace(), image=context.lease() or "none")
        return containers.ListContainersResponse(containers=[one])

    async def wrong_type(self, request: object, context: Context) -> object:
        return containers.Container()

    async def write(
        self, call: Call[content.WriteContentRequest, content.WriteContentResponse]
    ) -> None:
        match call.text("do"):
            case "stall":
                await self._wait()
            case "refuse":
                await call.receive()
                raise FailedPrecondition("no room")
        taken = 0
        async for request in call:
            taken += len(request.data)
            await call.send(content.WriteContentResponse(offset=taken))

    async def read(
        self,
        request: content.ReadContentRequest,
        call: Call[content.ReadContentRequest, content.ReadContentResponse],
    ) -> None:
        """`offset` messages of `size` bytes each."""
        answer = content.ReadContentResponse(data=bytes(request.size))
        for number in range(request.offset):
            answer.offset = number
            await call.send(answer)

    async def subscribe(
        self, request: events.SubscribeRequest, call: Call[events.SubscribeRequest, Envelope]
    ) -> None:
        await call.send(Envelope(topic="/first"))
        await self._wait()

    async def echo(self, call: Call[Any, Any]) -> None:
        while (message := await call.recv()) is not None:
            await call.send(message)

    async def called(self, times: int) -> None:
        """Wait until Version has been called so often."""
        with trio.fail_after(5):
            while len(self.contexts) < times:
                await self.next_call.wait()

    def channel(self) -> Any:
        return Channel.connect(self.path)

    async def serves(self) -> None:
        """Somebody else is served, now."""
        with trio.fail_after(5):
            async with Channel.connect(self.path) as channel:
                answer = await channel.unary(VERSION, Empty(), version.VersionResponse)
                assert answer.version == "1"

    async def raw(self, *, greet: bool = True) -> "RawPeer":
        peer = RawPeer(await trio.open_unix_socket(str(self.path)))
        self.peers.append(peer)
        if greet:
            await peer.greet()
        return peer


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream_id) + payload


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class RawPeer:
    """Speaks frames, and nothing on its own: no acknowledgement, no window."""

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    def __init__(self, transport: trio.SocketStream) -> None:
        self.transport = transport
        self.encoder = Encoder()
        self.decoder = Decoder()
        self._in = b""

    async def greet(self, settings: bytes = b"") -> None:
        await self.send(self.PREFACE + frame(SETTINGS, 0, 0, settings))

    async def send(self, data: bytes) -> None:
        await self.transport.send_all(data)

    def headers(
        self,
        stream_id: int,
        path: str = VERSION,
        extra: Iterable[tuple[str, str]] = (),
        *,
        end: bool = False,
        method: str = "POST",
        content_type: str = "application/grpc",
    ) -> bytes:
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", content_type),
            ("te", "trailers"),
            *extra,
        ]
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(HEADERS, flags, stream_id, self.encoder.encode(fields, huffman=False))

    def call(self, stream_id: int, path: str = VERSION, **rest: Any) -> bytes:
        """A whole unary request: headers, an empty message, the end."""
        return self.headers(stream_id, path, **rest) + frame(DATA, END_STREAM, stream_id, bytes(5))

    async def frame(self) -> Any:
        """The server's next frame, as hyperframe has it; None when it has hung up."""
        while True:
            if len(self._in) >= 9:
                parsed: Any
                parsed, size = Frame.parse_frame_header(memoryview(self._in[:9]))
                if len(self._in) >= 9 + size:
                    parsed.parse_body(memoryview(self._in[9 : 9 + size]))
                    self._in = self._in[9 + size :]
                    if parsed.type == HEADERS:
                        parsed.fields = dict(self.decoder.decode(parsed.data))
                    return parsed
            try:
                data = await self.transport.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._in += data

    async def next(self, *kinds: int) -> Any:
        """The server's next frame of these kinds; None when it has hung up."""
        with trio.fail_after(5):
            while True:
                parsed = await self.frame()
                if parsed is None or parsed.type in kinds:
                    return parsed

    async def status(self) -> tuple[str, str]:
        """The next grpc-status and grpc-message."""
        while True:
            parsed = await self.next(HEADERS)
            assert parsed is not None, "the server has hung up"
            if "grpc-status" in parsed.fields:
                assert "END_STREAM" in parsed.flags
                return parsed.fields["grpc-status"], parsed.fields.get("grpc-message", "")

    async def is_cut(self) -> bool:
        with trio.move_on_after(5):
            while await self.frame() is not None:
                pass
            return True
        return False

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.transport)


@pytest.fixture
def house_limits() -> Limits:
    return Limits()


@pytest.fixture
async def house(
    tmp_path: Path, nursery: trio.Nursery, house_limits: Limits
) -> AsyncIterator[House]:
    house = House(tmp_path / "grpc.sock", house_limits)
    await nursery.start(house.server.serve, await listen_unix(house.path))
    yield house
    house.released.set()
    for peer in house.peers:
        await peer.aclose()
    await house.server.stop(0.5)
