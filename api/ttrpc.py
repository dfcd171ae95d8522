"""ttrpc on trio: the small RPC between a daemon and its shims, client and server.

A frame is ten bytes of header (length, stream id, kind, flags) and a Request or Response. Each
call takes the next odd id. Only unary calls are spoken; DATA frames of ttrpc streams are not.

**Invariants.** (1) One task a connection writes: a caller that is cancelled cannot cut a frame.
(2) A client takes its id and queues its frame with no await between, so that ids leave in order.
(3) A frame too large is read past and answered RESOURCE_EXHAUSTED; the connection lives.
"""

import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from os import PathLike, fspath
from typing import TypeVar

import structlog
import trio
from google.protobuf.message import DecodeError, Message

from ..actors.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from .grpc.call import Context, Peer, parse, peer_of, typed
from .grpc.codec import Metadata
from .grpc.service import Kind, Method, Service
from .proto.ttrpc_pb2 import KeyValue, Request, Response
from .status import FAULT, OK, CallFailed, Code, Status, code_from_number, error_of, status_of

log = structlog.get_logger(__name__)

NAMESPACE = "containerd-namespace-ttrpc"
MESSAGE_BYTES_MAX = 4 << 20
CALLS_MAX = 10_000  # that one client may have running at once

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_READ_BYTES = 64 << 10
_UNSENT_BYTES_HIGH = 8 << 20
_WRITE_WITHIN_S = 60.0
_CONNECT_WITHIN_S = 10.0
_CLOSE_WITHIN_S = 1.0
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `payload` is None when it was larger than MESSAGE_BYTES_MAX."""

    stream_id: int
    kind: int
    payload: bytes | None


class _Frames:
    """Frames over a stream: `get` reads one, `put` queues one for `write`."""

    def __init__(self, transport: trio.abc.Stream) -> None:
        self.transport = transport
        self._in = bytearray()
        self._out = bytearray()
        self._wake = trio.Event()
        self._unsent_low = trio.Event()

    def put(self, stream_id: int, kind: int, payload: bytes) -> None:
        """Queue one frame."""
        self._out += _HEADER.pack(len(payload), stream_id, kind, 0)
        self._out += payload
        self._wake.set()

    async def has_room(self) -> None:
        """Wait while the peer is far behind in reading what is queued."""
        while len(self._out) > _UNSENT_BYTES_HIGH:
            self._unsent_low = trio.Event()
            await self._unsent_low.wait()

    async def write(self) -> None:
        """Send what is queued, for ever. Closes the transport when the peer takes nothing."""
        try:
            while True:
                if not self._out:
                    self._wake = trio.Event()
                    await self._wake.wait()
                data, self._out = self._out, bytearray()
                self._unsent_low.set()
                with trio.fail_after(_WRITE_WITHIN_S):
                    await self.transport.send_all(data)
        except trio.TooSlowError:
            log.info("ttrpc.write_stalled", within_s=_WRITE_WITHIN_S)
            await trio.aclose_forcefully(self.transport)
        except _GONE:
            pass  # whoever reads sees it too, and ends the connection

    async def get(self) -> Frame | None:
        """The next frame; None when the connection is over."""
        if not await self._fill(_HEADER.size):
            return None
        size, stream_id, kind, _flags = _HEADER.unpack_from(self._in)
        del self._in[: _HEADER.size]
        if size > MESSAGE_BYTES_MAX:
            return Frame(stream_id, kind, None) if await self._skip(size) else None
        if not await self._fill(size):
            return None
        payload = bytes(self._in[:size])
        del self._in[:size]
        return Frame(stream_id, kind, payload)

    async def _fill(self, size: int) -> bool:
        while len(self._in) < size:
            try:
                data = await self.transport.receive_some(_READ_BYTES)
            except _GONE:
                return False
            if not data:
                return False
            self._in += data
        return True

    async def _skip(self, size: int) -> bool:
        while size:
            if not await self._fill(1):
                return False
            taken = min(size, len(self._in))
            del self._in[:taken]
            size -= taken
        return True


class _Pending:
    """A call that waits for its response."""

    __slots__ = ("answered", "frame")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.frame: Frame | None = None


class TtrpcClient:
    """One connection to a ttrpc server, for any number of calls at once.

    It does not reconnect: `closed` is set when the connection is over, and every call that
    waits, or comes later, raises Unavailable.
    """

    def __init__(self, transport: trio.abc.Stream) -> None:
        self.closed = trio.Event()
        self._frames = _Frames(transport)
        self._next_id = 1
        self._pending: dict[int, _Pending] = {}

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: str | PathLike[str]) -> AsyncGenerator["TtrpcClient"]:
        """A client of the server at a unix socket. Raises Unavailable when nobody listens."""
        try:
            with trio.fail_after(_CONNECT_WITHIN_S):
                transport = await trio.open_unix_socket(fspath(path))
        except (OSError, trio.TooSlowError) as error:
            raise Unavailable(f"connect to {fspath(path)!r}: {error}") from error
        client = cls(transport)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                try:
                    yield client
                finally:
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # What the caller's block raised reaches the caller as it was raised.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from group.exceptions[0].__cause__
            raise

    async def run(self) -> None:
        """Read and write until the connection is over. For callers that keep their own nursery."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._frames.write)
                while (frame := await self._frames.get()) is not None:
                    # ttrpc has no cancel: an answer may come for a call that was given up.
                    pending = self._pending.get(frame.stream_id)
                    if pending is not None and frame.kind == _RESPONSE:
                        pending.frame = frame
                        pending.answered.set()
                nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            for pending in self._pending.values():
                pending.answered.set()
            with trio.move_on_after(_CLOSE_WITHIN_S, shield=True):
                await self._frames.transport.aclose()

    async def aclose(self) -> None:
        """End the connection; what waits for an answer is told that it will not come."""
        await trio.aclose_forcefully(self._frames.transport)

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        answer_type: type[Answer],
        metadata: Metadata | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request, one answer. The server is told the time that is left.

        A status that is not OK is raised as the Refusal that it means, else as CallFailed.
        """
        with trio.move_on_after(inf if timeout_s is None else timeout_s):
            await self._frames.has_room()
            frame = await self._ask(_request_bytes(service, method, request, metadata or {}))
            if frame is None:
                raise Unavailable("ttrpc: the connection is closed")
            return _answer(frame, answer_type)
        raise DeadlineExceeded("context deadline exceeded")

    async def _ask(self, data: bytes) -> Frame | None:
        if self.closed.is_set():
            return None
        stream_id, self._next_id = self._next_id, self._next_id + 2
        pending = self._pending[stream_id] = _Pending()
        self._frames.put(stream_id, _REQUEST, data)
        try:
            await pending.answered.wait()
        finally:
            del self._pending[stream_id]
        return pending.frame


def _request_bytes(service: str, method: str, request: Message, metadata: Metadata) -> bytes:
    message = Request(service=service, method=method, payload=request.SerializeToString())
    for key, value in metadata.items():
        text = value if isinstance(value, str) else value.decode()
        message.metadata.append(KeyValue(key=key, value=text))
    left_s = trio.current_effective_deadline() - trio.current_time()
    if left_s != inf:
        message.timeout_nano = max(1, int(left_s * 1e9))
    data = message.SerializeToString()
    if len(data) > MESSAGE_BYTES_MAX:
        raise ResourceExhausted(
            f"ttrpc: message of {len(data)} bytes is larger than {MESSAGE_BYTES_MAX}"
        )
    return data


def _answer(frame: Frame, answer_type: type[Answer]) -> Answer:
    if frame.payload is None:
        raise ResourceExhausted(f"ttrpc: the response is larger than {MESSAGE_BYTES_MAX} bytes")
    response = parse(Response, frame.payload)
    if response.status.code:
        code = code_from_number(response.status.code)
        details = tuple(response.status.details)
        raise error_of(Status(code, response.status.message, details))
    return parse(answer_type, response.payload)


class TtrpcServer:
    """Serves the unary methods of services to any number of clients."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._methods: dict[str, Method] = {}
        for service in services:
            for path, method in service.items():
                assert method.kind is Kind.UNARY, f"{path} is a stream, which ttrpc here is not"
                assert path not in self._methods, f"{path} is served twice"
                self._methods[path] = method

    async def serve(
        self,
        listener: trio.SocketListener,
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one listener until cancelled; closes it."""
        async with listener:
            await trio.serve_listeners(self.serve_connection, [listener], task_status=task_status)

    async def serve_connection(self, transport: trio.abc.Stream) -> None:
        """Serve one connection to its end. Nothing that it does is an error of the server's."""
        try:
            async with trio.open_nursery() as nursery:
                await _ServerConnection(transport, self._methods, nursery).run()
                nursery.cancel_scope.cancel()
        except Exception:  # a supervisor of connections
            log.exception("ttrpc.connection_fault")
        finally:
            with trio.move_on_after(_CLOSE_WITHIN_S, shield=True):
                await transport.aclose()


class _ServerConnection:
    def __init__(self, transport: trio.abc.Stream, methods: Service, nursery: trio.Nursery) -> None:
        self._frames = _Frames(transport)
        self._methods = methods
        self._nursery = nursery
        self._peer: Peer | None = peer_of(transport)
        self._last_id = 0
        self._running = 0

    async def run(self) -> None:
        self._nursery.start_soon(self._frames.write)
        while (frame := await self._frames.get()) is not None:
            if frame.kind == _REQUEST:
                try:
                    self._begin(frame)
                except (Refusal, CallFailed) as error:
                    self._tell(frame.stream_id, status_of(error))
            await self._frames.has_room()

    def _begin(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if stream_id % 2 != 1 or stream_id <= self._last_id:
            raise InvalidArgument("StreamID must be odd, new and larger than the last")
        self._last_id = stream_id
        if frame.payload is None:
            raise ResourceExhausted(f"message length exceeds maximum of {MESSAGE_BYTES_MAX}")
        if self._running >= CALLS_MAX:
            raise ResourceExhausted(f"{self._running} calls are running")
        try:
            request = Request.FromString(frame.payload)
        except DecodeError as error:
            raise InvalidArgument(f"unmarshalling request: {error}") from error
        self._running += 1
        self._nursery.start_soon(self._run, stream_id, request)

    async def _run(self, stream_id: int, request: Request) -> None:
        path = f"/{request.service}/{request.method}"
        status, payload = OK, b""
        try:
            status, payload = await self._answer(path, request)
        except Exception as error:  # a supervisor of handlers: a fault is told and logged
            status = status_of(error)
            if status is FAULT:
                log.exception("ttrpc.fault", method=path, peer=self._peer)
        finally:
            self._running -= 1
        log.debug("ttrpc.call", method=path, code=status.code.name)
        self._tell(stream_id, status, payload)

    async def _answer(self, path: str, request: Request) -> tuple[Status, bytes]:
        method = self._methods.get(path)
        if method is None:
            raise Unimplemented(path)
        left_s = request.timeout_nano / 1e9 if request.timeout_nano > 0 else inf
        metadata: dict[str, str | bytes] = {}
        for pair in request.metadata:
            metadata.setdefault(pair.key, pair.value)
        with trio.move_on_after(left_s) as scope:
            context = Context(
                path, metadata, peer=self._peer, deadline=scope.deadline, namespace_key=NAMESPACE
            )
            answer = await method.handler(parse(method.request, request.payload), context)
            return OK, typed(answer, method.answer).SerializeToString()
        return Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded"), b""

    def _tell(self, stream_id: int, status: Status, payload: bytes = b"") -> None:
        response = Response(payload=payload)
        if len(payload) > MESSAGE_BYTES_MAX - 64:
            response = Response()
            status = Status(Code.RESOURCE_EXHAUSTED, f"answer of {len(payload)} bytes is too large")
        if status.code is not Code.OK:
            response.status.code = status.code
            response.status.message = status.message
            response.status.details.extend(status.details)
        self._frames.put(stream_id, _RESPONSE, response.SerializeToString())
