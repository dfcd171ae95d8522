"""What a handler sees of its call.

A unary handler is given the request and a `Context`; a streaming handler a `Call`, which is a
Context that also sends and receives. Handlers use `receive()` and `send()` and are never async
generators: a cancel scope inside a generator may be left in another task than it was entered in.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from ...actors.eager import EagerStream
from ...actors.errors import FailedPrecondition, InvalidArgument
from ..status import internal
from .stream import Stream

NAMESPACE = "containerd-namespace"
LEASE = "containerd-lease"
FROM_SHIM = "holdfast-from-shim"
# Ours: what is not there is to be looked up nowhere else. Two daemons that are each other's
# source of content would wait for one another.
LOCAL = "holdfast-local"
# Ours: what one pull may bring, in bytes a second.
PULL_RATE = "holdfast-pull-bytes-per-s"

M = TypeVar("M", bound=Message)
Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer", bound=Message)

_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as the kernel knew it when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(transport: trio.abc.Stream) -> Peer | None:
    """Who is at the other end; None when it is no unix socket."""
    if isinstance(transport, EagerStream):
        transport = transport.inner
    if not isinstance(transport, trio.SocketStream):
        return None
    if transport.socket.family != trio.socket.AF_UNIX:
        return None
    raw = transport.socket.getsockopt(
        trio.socket.SOL_SOCKET, trio.socket.SO_PEERCRED, _CREDENTIALS.size
    )
    return Peer(*_CREDENTIALS.unpack(raw))


class Context:
    """Where a call comes from: method, metadata, peer, and the time that it has."""

    def __init__(
        self,
        method: str,
        metadata: Mapping[str, str | bytes],
        *,
        peer: Peer | None = None,
        deadline: float = inf,
        namespace_key: str = NAMESPACE,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.deadline = deadline  # on trio's clock
        self._namespace_key = namespace_key

    def namespace(self) -> str:
        """The namespace that the caller named; refused when it named none."""
        namespace = self.text(self._namespace_key)
        if not namespace:
            raise FailedPrecondition("namespace is required: failed precondition")
        return namespace

    def lease(self) -> str | None:
        """The lease under which the call's resources are to be kept; None without one."""
        return self.text(LEASE) or None

    def is_local(self) -> bool:
        """Whether the caller wants to know what is here, and not what could be brought."""
        return bool(self.text(LOCAL))

    def pull_rate(self) -> int:
        """What the call's pull may bring, in bytes a second; 0 for as much as comes."""
        said = self.text(PULL_RATE) or "0"
        if not (said.isascii() and said.isdigit()):
            raise InvalidArgument(
                f"{PULL_RATE} {said[:100]!r}: a number of bytes: invalid argument"
            )
        return int(said)

    def text(self, name: str) -> str:
        """One value of the metadata, empty when it is absent."""
        value = self.metadata.get(name, "")
        return value if isinstance(value, str) else value.decode(errors="replace")


def parse(message_type: type[M], data: bytes) -> M:
    """The message in these bytes; bytes that are none are INTERNAL, as in grpc-go."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        raise internal(f"grpc: error unmarshalling message: {error}") from error


class Call(Context, Generic[Request, Answer]):
    """A streaming call, for its handler."""

    def __init__(
        self,
        stream: Stream,
        request_type: type[Request],
        method: str,
        metadata: Mapping[str, str | bytes],
        *,
        peer: Peer | None,
        deadline: float,
    ) -> None:
        super().__init__(method, metadata, peer=peer, deadline=deadline)
        self._stream = stream
        self._request_type = request_type

    async def receive(self) -> Request | None:
        """The client's next message; None when it has sent its last."""
        data = await self._stream.receive()
        return None if data is None else parse(self._request_type, data)

    async def recv(self) -> Request | None:
        """The same as `receive`."""
        return await self.receive()

    async def receive_one(self) -> Request:
        """The single request of a unary or server-streaming call."""
        request = await self.receive()
        if request is None:
            raise internal("grpc: request message missing")
        return request

    async def send(self, message: Answer) -> None:
        """Send one message. Waits while the client is far behind; raises when it has gone."""
        await self.send_packed(message.SerializeToString())

    async def send_packed(self, data: bytes) -> None:
        """The same, for a message that is bytes already."""
        await self._stream.send(data)

    def send_at_once(self, data: bytes) -> bool:
        """As `send_packed`, without waiting; False when that is not possible just now."""
        return self._stream.send_at_once(data)

    def packed(self, message: Answer) -> bytes:
        """The bytes of a message that may be sent; ResourceExhausted where it is too large."""
        data = message.SerializeToString()
        self._stream.check_size(data)
        return data

    def __aiter__(self) -> AsyncIterator[Request]:
        return _Messages(self)


class _Messages(AsyncIterator[Request]):
    """`async for` over a call's requests; a plain class, no generator."""

    def __init__(self, call: Call[Request, Any]) -> None:
        self._call = call

    async def __anext__(self) -> Request:
        message = await self._call.receive()
        if message is None:
            raise StopAsyncIteration
        return message


AnyCall = Call[Any, Any]


def typed(message: object, message_type: type[M]) -> M:
    """The handler's answer, held to the type that the method promises."""
    assert isinstance(message, message_type), f"{type(message).__name__} is not the answer's type"
    return message
