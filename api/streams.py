"""Streams that a client opened beside its calls, found by name: containerd's core/streaming.

    client: Stream(StreamInit "x") ......... Transfer(source: stream "x")
    here:       streams.opened(...)              streams.take("ns", "x")

On a *byte stream* the receiver grants a window in bytes (WindowUpdate) and the sender stays within
it (Data); its end is the end of the call. A stream lasts as long as its own call, is known to its
namespace alone, and belongs to the one that takes it.
"""

from collections.abc import Generator
from contextlib import contextmanager

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from ..actors.errors import (
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from .anys import type_name
from .grpc.call import Call, M
from .proto.transfer_types_pb2 import Data, WindowUpdate

PIECE_BYTES = 32 << 10
WINDOW_BYTES = 8 * PIECE_BYTES
NAME_BYTES_MAX = 1024

StreamCall = Call[AnyMessage, AnyMessage]


def packed(message: Message) -> AnyMessage:
    """The message as containerd's clients expect it: by its bare name."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def unpacked(message: AnyMessage, message_type: type[M]) -> M:
    """The message of this type; another one is refused."""
    wanted = message_type.DESCRIPTOR.full_name
    if type_name(message.type_url) != wanted:
        raise InvalidArgument(f"{message.type_url[:200]!r} where {wanted} is expected")
    try:
        return message_type.FromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"{wanted}: {error}") from error


class OpenStream:
    """One stream, for whoever has taken it."""

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._ended = trio.Event()
        self.taken = False

    async def send(self, message: Message) -> None:
        """Send one message. Waits while the client is far behind; raises when it has gone."""
        await self._call.send(packed(message))

    async def receive(self) -> AnyMessage | None:
        """The client's next message; None when it has sent its last."""
        return await self._call.receive()

    def close(self) -> None:
        """Nothing more is to be sent or received: the client's call ends."""
        self._ended.set()

    async def wait_end(self) -> None:
        """Wait until whoever took it is done with it."""
        await self._ended.wait()


class Streams:
    """The streams that are open, by namespace and name."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], OpenStream] = {}

    @contextmanager
    def opened(self, namespace: str, name: str, call: StreamCall) -> Generator[OpenStream]:
        """Let the stream of this call be found, for the length of the block."""
        if not name or len(name.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument("a stream must have a name, of at most 1024 bytes")
        key = (namespace, name)
        if key in self._open:
            raise AlreadyExists(f"stream {name!r}: already exists")
        stream = self._open[key] = OpenStream(call)
        try:
            yield stream
        finally:
            del self._open[key]

    @contextmanager
    def take(self, namespace: str, name: str) -> Generator[OpenStream]:
        """The stream of that name, for the length of the block; its end ends the stream."""
        stream = self._open.get((namespace, name))
        if stream is None:
            raise NotFound(f"stream {name[:NAME_BYTES_MAX]!r}: not found")
        if stream.taken:
            raise FailedPrecondition(f"stream {name!r} is in use: failed precondition")
        stream.taken = True
        try:
            yield stream
        finally:
            stream.close()


class ByteReader:
    """The bytes that a client sends on a stream."""

    def __init__(self, stream: OpenStream) -> None:
        self._stream = stream
        self._window = 0
        self._held = b""

    async def receive_some(self, count: int) -> bytes:
        """Between 1 and `count` bytes; none at the end."""
        while not self._held:
            if self._window < WINDOW_BYTES // 2:
                # A client that has sent all may be gone; what it sent is still to be read.
                granted = WINDOW_BYTES - self._window
                try:
                    await self._stream.send(WindowUpdate(update=granted))
                except Cancelled:
                    pass
                self._window += granted
            message = await self._stream.receive()
            if message is None:
                return b""
            self._held = unpacked(message, Data).data
            self._window -= len(self._held)
            if self._window < 0:
                raise ResourceExhausted("the stream's sender does not keep to its window")
        taken = self._held[:count]
        self._held = self._held[len(taken) :]
        return taken

    def read(self, count: int, /) -> bytes:
        """The same for a thread that trio has started."""
        return trio.from_thread.run(self.receive_some, count)


class ByteWriter:
    """Sends bytes to a client on a stream."""

    def __init__(self, stream: OpenStream) -> None:
        self._stream = stream
        self._window = 0

    async def send_all(self, data: bytes) -> None:
        """Send these bytes, as fast as the client grants room for them."""
        rest = memoryview(data)
        while rest:
            while self._window <= 0:
                message = await self._stream.receive()
                if message is None:
                    raise Cancelled("the stream was closed by its receiver")
                self._window += unpacked(message, WindowUpdate).update
            piece = rest[: min(PIECE_BYTES, self._window)]
            await self._stream.send(Data(data=bytes(piece)))
            self._window -= len(piece)
            rest = rest[len(piece) :]

    def write(self, data: bytes) -> None:
        """The same for a thread that trio has started."""
        trio.from_thread.run(self.send_all, data)
