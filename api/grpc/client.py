"""The gRPC client: one Channel is one connection.

    async with Channel.connect("/run/plugin.sock") as channel:
        answer = await channel.unary("/pkg.Svc/Method", request, Answer, timeout_s=5.0)
        async with channel.stream("/pkg.Svc/Watch", Answer) as call:
            await call.send(request)
            await call.end()
            async for answer in call: ...

A status that is not OK is raised as the Refusal that it means, else as CallFailed. A channel does
not reconnect: when its connection is gone every call raises Unavailable, and whoever owns the
channel opens another.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from math import inf
from os import PathLike, fspath
from typing import Any, Generic, TypeVar

import trio
from google.protobuf.message import Message

from ...actors.errors import Cancelled, DeadlineExceeded, Refusal, Unavailable
from ..status import CallFailed, Code, Status, error_of, internal
from .call import parse
from .codec import Header, Metadata, encode_metadata, format_timeout, parse_status
from .connection import Connection
from .headers import Headers
from .http2 import ErrorCode, GoAway, StreamGone
from .limits import Limits
from .stream import Stream

Answer = TypeVar("Answer", bound=Message)

_CONNECT_WITHIN_S = 10.0

_ATTEMPTS_MAX = 6
_ATTEMPTS_PAUSE_S = 0.002


class NotProcessed(Unavailable):
    """The server has not begun the call, so that it may be repeated whatever it does."""


# What a stream's reset means when it comes instead of a status.
_RESETS: Mapping[int, Code] = {
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class ClientConnection(Connection):
    """The machinery of a channel."""

    def __init__(self, transport: trio.abc.Stream, limits: Limits) -> None:
        super().__init__(transport, limits, is_client=True)
        self.calls: dict[int, ClientCall[Any]] = {}
        self.leaving: GoAway | None = None  # the server takes no further calls
        self.room = trio.Event()  # set when a stream has ended, or the server allows more

    @property
    def has_room(self) -> bool:
        """Whether the server allows one more stream."""
        return len(self.streams) < self.http2.peer_streams_max

    async def run(self) -> None:
        """As Connection; whoever waits for room learns that none will come."""
        try:
            await super().run()
        finally:
            self.room.set()

    async def wait_room(self) -> None:
        """Return when something has changed for those who wait to begin a stream."""
        if self.room.is_set():
            self.room = trio.Event()
        await self.room.wait()

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        """Hand headers and trailers to their call."""
        if (call := self.calls.get(stream_id)) is not None:
            call.on_headers(headers.by_name)

    def on_reset(self, stream_id: int, error_code: int) -> None:
        """Tell the call."""
        if (call := self.calls.get(stream_id)) is not None:
            call.on_reset(error_code)

    def on_settings(self) -> None:
        """The server may allow more streams now."""
        super().on_settings()
        self.room.set()

    def on_goaway(self, goaway: GoAway) -> None:
        """Calls above the last stream were not processed; the others finish."""
        self.leaving = goaway
        lost = NotProcessed("grpc: the server is leaving and has not processed the call")
        for stream in list(self.streams.values()):
            if stream.stream_id > goaway.last_stream_id:
                self.drop(stream, lost)
        self.room.set()

    def on_bad_input(self, stream: Stream, error: Refusal | CallFailed) -> None:
        """The call fails; the server is told to stop."""
        self.drop(stream, error)
        self.reset_stream(stream.stream_id, ErrorCode.CANCEL)

    def begin(self, headers: list[Header]) -> Stream:
        """Open a stream. Raises Unavailable when the connection has had all that it can."""
        try:
            stream_id = self.http2.open(headers)
        except StreamGone as error:
            raise Unavailable(f"grpc: {error}") from error
        stream = Stream(self, stream_id, head=b"", message_bytes_max=self.limits.message_bytes_max)
        self.streams[stream_id] = stream
        self._wake.set()
        return stream

    def end(self, stream: Stream) -> None:
        """The call is over for its task; what the server still does is not wanted."""
        stream_id = stream.stream_id
        if not stream.reset and not (stream.input_ended and stream.end_sent):
            self.drop(stream, Cancelled("grpc: the call was left"))
            self.reset_stream(stream_id, ErrorCode.CANCEL)
        stream.close_input()
        self.streams.pop(stream_id, None)
        self.calls.pop(stream_id, None)
        self.room.set()


class ClientCall(Generic[Answer]):
    """One call from our side: send, end, receive."""

    def __init__(
        self, connection: ClientConnection, stream: Stream, answer_type: type[Answer]
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._answer_type = answer_type
        self._status: Status | None = None

    # -- the reader's side

    def on_headers(self, headers: Mapping[bytes, bytes]) -> None:
        """Response headers or trailers arrived."""
        status = parse_status(headers)
        http_status = headers.get(b":status")
        if status is not None:
            self._status = status
        elif http_status is not None and http_status != b"200":
            self._status = Status(Code.UNKNOWN, f"grpc: HTTP status {http_status.decode()}")
        if self._status is not None and self._status.code is not Code.OK:
            self._stream.fail(error_of(self._status))

    def on_reset(self, error_code: int) -> None:
        """The server has reset the stream. After a status that is only its way to end."""
        stream = self._stream
        if self._status is None and error_code == ErrorCode.REFUSED_STREAM:
            # A server may still count a stream that we have seen the end of.
            self._connection.drop(stream, NotProcessed("grpc: the server refused the stream"))
            return
        if self._status is None:
            code = _RESETS.get(error_code, Code.INTERNAL)
            name = ErrorCode(error_code).name if error_code in set(ErrorCode) else error_code
            self._status = Status(code, f"grpc: the server has reset the stream ({name})")
        is_ok = self._status.code is Code.OK
        self._connection.drop(stream, None if is_ok else error_of(self._status))

    # -- the task's side

    async def send(self, message: Message) -> None:
        """Send one message. Waits while the server is far behind.

        When the server has ended the call already, the status is raised that it ended with.
        """
        await self._stream.send(message.SerializeToString())

    async def end(self) -> None:
        """Tell the server that no further message follows."""
        self._stream.finish(b"")
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Answer | None:
        """The next answer; None at a good end, else the status is raised."""
        data = await self._stream.receive()
        if data is not None:
            return parse(self._answer_type, data)
        if self._status is None:
            raise internal("grpc: the server ended the stream without a status")
        return None

    def __aiter__(self) -> "ClientCall[Answer]":
        return self

    async def __anext__(self) -> Answer:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message


class Channel:
    """One connection to a server, for any number of calls at once."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, path: str | PathLike[str], *, limits: Limits | None = None
    ) -> AsyncGenerator["Channel"]:
        """A channel to a unix socket. Raises Unavailable when nobody listens there."""
        try:
            with trio.fail_after(_CONNECT_WITHIN_S):
                transport = await trio.open_unix_socket(fspath(path))
        except (OSError, trio.TooSlowError) as error:
            raise Unavailable(f"connect to {fspath(path)!r}: {error}") from error
        async with cls.over(transport, limits=limits) as channel:
            yield channel

    @classmethod
    @asynccontextmanager
    async def over(
        cls, transport: trio.abc.Stream, *, limits: Limits | None = None
    ) -> AsyncGenerator["Channel"]:
        """A channel over a stream that is connected already. Closes it at the end."""
        connection = ClientConnection(transport, limits or Limits())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                try:
                    yield cls(connection)
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # What the caller's block raised reaches the caller as it was raised.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from group.exceptions[0].__cause__
            raise

    @property
    def is_open(self) -> bool:
        """Whether a call has a chance: the connection stands and the server is not leaving."""
        return not self._connection.closed and self._connection.leaving is None

    async def unary(
        self,
        method: str,
        request: Message,
        answer_type: type[Answer],
        metadata: Metadata | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request, one answer.

        A call that the server has refused as not processed is repeated, a few times.
        """
        ends_at = trio.current_time() + (inf if timeout_s is None else timeout_s)
        for attempt in range(_ATTEMPTS_MAX):
            left_s = None if timeout_s is None else ends_at - trio.current_time()
            try:
                return await self._unary(method, request, answer_type, metadata, left_s)
            except NotProcessed:
                if not self.is_open or attempt == _ATTEMPTS_MAX - 1:
                    raise
            await trio.sleep(_ATTEMPTS_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _unary(
        self,
        method: str,
        request: Message,
        answer_type: type[Answer],
        metadata: Metadata | None,
        timeout_s: float | None,
    ) -> Answer:
        async with self.stream(method, answer_type, metadata, timeout_s) as call:
            await call.send(request)
            await call.end()
            answer = await call.receive()
            if answer is None:
                raise internal("grpc: the server ended the call without an answer")
            if await call.receive() is not None:
                raise internal("grpc: the server sent two answers to a unary call")
            return answer

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        answer_type: type[Answer],
        metadata: Metadata | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ClientCall[Answer]]:
        """A call of any kind. Left before its end, it is cancelled at the server.

        The server is told the time that is left: `timeout_s`, or the scope around this one. Only
        the passing of `timeout_s` is raised as DeadlineExceeded.
        """
        connection = self._connection
        with trio.move_on_after(inf if timeout_s is None else timeout_s) as scope:
            while self.is_open and not connection.has_room:
                await connection.wait_room()
            if not self.is_open:
                raise Unavailable("grpc: the connection is closed, or its server is leaving")
            left_s = trio.current_effective_deadline() - trio.current_time()
            stream = connection.begin(request_headers(method, metadata or {}, left_s))
            call = ClientCall(connection, stream, answer_type)
            connection.calls[stream.stream_id] = call
            try:
                yield call
            finally:
                connection.end(stream)
        if scope.cancelled_caught:
            raise DeadlineExceeded("context deadline exceeded")


def request_headers(method: str, metadata: Metadata, left_s: float = inf) -> list[Header]:
    """The headers that begin a call; `left_s` is the time that the server is told, if any."""
    headers: list[Header] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"holdfast"),
    ]
    if left_s != inf:
        headers.append((b"grpc-timeout", format_timeout(left_s)))
    return headers + encode_metadata(metadata)
