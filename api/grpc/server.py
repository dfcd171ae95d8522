"""The gRPC server: accepts, starts handlers, tells statuses, drains.

    client --HEADERS--> Call, its handler in the connection's nursery
    handler returns, refuses, fails; deadline passes; client resets --> one status, one access line

A Refusal is answered with its code and text (api/status.py). Any other exception is logged and
answered INTERNAL: one handler's fault never takes the connection down, and one connection's
fault never the server.

**Draining** has two steps, as grpc-go expects: GOAWAY for all streams and a ping; when the ping is
acknowledged every stream that the client had begun has arrived, and a second GOAWAY names the
last one. Later streams are refused as not processed, so the client may repeat them elsewhere.
With one step, clients saw running calls fail.
"""

import errno
import os
import stat
from collections.abc import Iterable
from math import inf

import structlog
import trio

from ...actors.eager import EagerStream
from ...actors.errors import Cancelled, DeadlineExceeded, Refusal, Unimplemented
from ..status import FAULT, OK, CallFailed, Status, status_of
from .call import AnyCall, Peer, peer_of, typed
from .codec import parse_timeout, status_trailers
from .connection import Connection
from .headers import Headers, encode
from .http2 import LAST_STREAM, ErrorCode, GoAway
from .limits import Limits
from .service import Kind, Method, Service
from .stream import Stream

log = structlog.get_logger(__name__)

_HEAD = encode(((b":status", b"200"), (b"content-type", b"application/grpc")))
_DONE = encode(status_trailers(OK))
_NO_BODY = encode(((b"content-length", b"0"),))
_DRAIN_PING = b"draining"
_BACKLOG = 128


class Allowance:
    """So many at once, so many a second after that."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at = trio.current_time()

    def spend(self) -> bool:
        """Take one; False when there is none left."""
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        self._left -= 1
        return self._left >= 0


def check_http(headers: Headers) -> bytes | None:
    """The HTTP status that refuses a request which is no gRPC call; None for one that is."""
    if headers.by_name.get(b":method") != b"POST":
        return b"405"
    content_type = headers.by_name.get(b"content-type", b"")
    if content_type[:16] != b"application/grpc" or content_type[16:17] not in (b"", b"+", b";"):
        return b"415"
    return None


class ServerConnection(Connection):
    """One client's connection. Handlers run in a nursery that ends with it."""

    def __init__(
        self, transport: trio.abc.Stream, limits: Limits, methods: Service, nursery: trio.Nursery
    ) -> None:
        super().__init__(transport, limits, is_client=False)
        self.peer: Peer | None = peer_of(transport)
        self._methods = methods
        self._nursery = nursery
        self._announced = False  # the first GOAWAY is out
        self._draining = False  # the second is
        self._last_stream_id = 0
        self._resets = Allowance(limits.resets_burst, limits.resets_per_s)

    # -- Connection asks

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        """Begin a call. Trailers of a request say nothing to gRPC."""
        if stream_id > self._last_stream_id:
            self._begin(stream_id, headers)

    def on_reset(self, stream_id: int, error_code: int) -> None:
        """Cancel a call. Who begins and takes back too much is sent away."""
        if (stream := self.streams.get(stream_id)) is not None:
            self.drop(stream, Cancelled("context canceled"))
            self.forget(stream_id)
        if not self._resets.spend():
            log.info("grpc.too_many_resets", peer=repr(self.peer))
            self.say_goaway(self._last_stream_id, ErrorCode.ENHANCE_YOUR_CALM)
            self.fail()

    def on_pong(self, data: bytes) -> None:
        """Take the second step of draining."""
        if data == _DRAIN_PING and not self._draining:
            self._draining = True
            self.say_goaway(self._last_stream_id)
            self.leave()

    def last_stream(self) -> int:
        """The last call that has begun."""
        return self._last_stream_id

    def on_goaway(self, goaway: GoAway) -> None:
        """The client is leaving; its running calls still get their answers."""
        if goaway.error_code:
            self.fail()

    def on_silence(self) -> None:
        """A client that never greets is cut; one that is idle is asked to leave, then cut."""
        if self.greeted and not self._announced:
            self.drain()
        else:
            self.fail()

    def silence_allowed_s(self) -> float:
        """No bound while calls run: they may wait for as long as they like."""
        if not self.greeted:
            return self.limits.handshake_within_s
        return inf if self.streams else self.limits.idle_within_s

    def on_bad_input(self, stream: Stream, error: Refusal | CallFailed) -> None:
        """The call is answered with what was wrong; the connection lives."""
        stream.failure = error
        if stream.on_abort is not None:
            stream.on_abort()

    def forget(self, stream_id: int) -> None:
        """The call is over on the wire."""
        self.streams.pop(stream_id, None)
        if not self.streams:
            self._quiet_since_s = trio.current_time()
            if self._leaving:
                self._wake.set()

    # -- draining

    def drain(self) -> None:
        """Take no further calls, finish those that run, then close. May be repeated."""
        if not self._announced:
            self._announced = True
            self.say_goaway(LAST_STREAM)
            self.http2.ping(_DRAIN_PING)

    # -- calls

    def _begin(self, stream_id: int, headers: Headers) -> None:
        if self._draining:
            # Not processed: the client may repeat it on another connection.
            self.reset_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return
        self._last_stream_id = stream_id
        refused = check_http(headers)
        head = encode(((b":status", refused),)) if refused else _HEAD
        stream = Stream(self, stream_id, head=head, message_bytes_max=self.limits.message_bytes_max)
        self.streams[stream_id] = stream
        if refused:
            stream.close_input()
            stream.finish(_NO_BODY)
            return
        try:
            method, call = self._admit(stream, headers)
        except (Refusal, CallFailed) as error:
            stream.close_input()
            stream.finish(encode(status_trailers(status_of(error))))
            return
        scope = trio.CancelScope(deadline=call.deadline)
        stream.on_abort = scope.cancel
        self._nursery.start_soon(self._run, method, call, stream, scope)

    def _admit(self, stream: Stream, headers: Headers) -> tuple[Method, AnyCall]:
        named = headers.by_name
        path = named[b":path"].decode(errors="replace")
        method = self._methods.get(path)
        if method is None:
            raise Unimplemented(f"unknown method {path}")
        encoding = named.get(b"grpc-encoding", b"identity")
        if encoding != b"identity":
            raise Unimplemented(
                f"grpc: Decompressor is not installed for grpc-encoding {encoding.decode()!r}"
            )
        timeout = named.get(b"grpc-timeout")
        deadline = inf if timeout is None else trio.current_time() + parse_timeout(timeout)
        call = AnyCall(
            stream, method.request, path, headers.metadata, peer=self.peer, deadline=deadline
        )
        return method, call

    async def _run(
        self, method: Method, call: AnyCall, stream: Stream, scope: trio.CancelScope
    ) -> None:
        begun_at = trio.current_time()
        status, answer = OK, None
        try:
            with scope:
                answer = await self._answer(method, call)
            if scope.cancelled_caught:
                status = self._why_cancelled(call, stream)
        except (Refusal, CallFailed) as error:
            status = status_of(error)
        except Exception as error:  # a supervisor of handlers: a fault is told and logged
            status = status_of(error)
            if status is FAULT:
                log.exception("grpc.fault", method=call.method, peer=repr(self.peer))
        stream.close_input()
        if status is OK and answer is not None:
            stream.answer(answer, _DONE)
        else:
            stream.finish(_DONE if status is OK else encode(status_trailers(status)))
        log.debug(
            "grpc.call",
            method=call.method,
            code=status.code.name,
            duration_ms=round((trio.current_time() - begun_at) * 1e3, 3),
            peer_pid=self.peer.pid if self.peer is not None else None,
            namespace=call.text("containerd-namespace"),
        )

    async def _answer(self, method: Method, call: AnyCall) -> bytes | None:
        """Have the call handled; a unary one's answer is still to be sent."""
        match method.kind:
            case Kind.UNARY:
                answer = await method.handler(await call.receive_one(), call)
                return call.packed(typed(answer, method.answer))
            case Kind.SERVER_STREAM:
                await method.handler(await call.receive_one(), call)
            case Kind.CLIENT_STREAM:
                await call.send(typed(await method.handler(call), method.answer))
            case Kind.BIDI:
                await method.handler(call)
        return None

    def _why_cancelled(self, call: AnyCall, stream: Stream) -> Status:
        if stream.failure is not None:
            return status_of(stream.failure)
        assert trio.current_time() >= call.deadline
        return status_of(DeadlineExceeded("context deadline exceeded"))


class GrpcServer:
    """Serves services on listeners until cancelled, or until `stop` has drained it."""

    def __init__(self, services: Iterable[Service], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.methods: dict[str, Method] = {}
        for service in services:
            for path, method in service.items():
                assert path not in self.methods, f"{path} is served twice"
                self.methods[path] = method
        self._connections: set[ServerConnection] = set()
        self._accepting: set[trio.CancelScope] = set()
        self._serving: set[trio.CancelScope] = set()
        self._stopping = False
        self._empty = trio.Event()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def serve(
        self,
        listener: trio.SocketListener,
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one listener, which is closed at the end. Returns after `stop`."""
        accepting, serving = trio.CancelScope(), trio.CancelScope()
        self._accepting.add(accepting)
        self._serving.add(serving)
        if self._stopping:
            accepting.cancel()
        try:
            with serving:
                async with trio.open_nursery() as nursery:
                    with accepting:
                        async with listener:
                            await trio.serve_listeners(
                                self.serve_connection,
                                [listener],
                                handler_nursery=nursery,
                                task_status=task_status,
                            )
        finally:
            self._accepting.discard(accepting)
            self._serving.discard(serving)

    async def serve_connection(self, transport: trio.abc.Stream) -> None:
        """Serve one connection to its end. Nothing that it does is an error of the server's."""
        if self._stopping:
            await trio.aclose_forcefully(transport)
            return
        if len(self._connections) >= self.limits.connections_max:
            log.warning("grpc.too_many_connections", connections=len(self._connections))
            await trio.aclose_forcefully(transport)
            return
        connection: ServerConnection | None = None
        if isinstance(transport, trio.SocketStream):
            transport = EagerStream(transport)
        try:
            async with trio.open_nursery() as nursery:
                connection = ServerConnection(transport, self.limits, self.methods, nursery)
                self._connections.add(connection)
                await connection.run()
                nursery.cancel_scope.cancel()
        except Exception:  # a supervisor of connections
            log.exception("grpc.connection_fault")
        finally:
            if connection is not None:
                self._connections.discard(connection)
            if not self._connections:
                self._empty.set()

    async def stop(self, within_s: float) -> None:
        """Accept no more, let running calls finish for so long, then end what is left."""
        self._stopping = True
        for accepting in list(self._accepting):
            accepting.cancel()
        for connection in list(self._connections):
            connection.drain()
        with trio.move_on_after(within_s):
            while self._connections:
                self._empty = trio.Event()
                await self._empty.wait()
        for serving in list(self._serving):
            serving.cancel()


async def listen_unix(path: str | os.PathLike[str], mode: int = 0o600) -> trio.SocketListener:
    """A listener at `path`, which nobody can connect to before it has its mode.

    A socket that is there is replaced; that no other daemon listens is the caller's to know.
    Raises FileExistsError when something other than a socket is in the way.
    """
    target = os.fspath(path)
    try:
        if not stat.S_ISSOCK(os.lstat(target).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        os.unlink(target)
    except FileNotFoundError:
        pass
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        # bind() gives the new inode the mode of the socket's own, less the umask: narrow it
        # first, so that there is no moment in which others may connect.
        os.fchmod(sock.fileno(), mode)
        await sock.bind(target)
        os.chmod(target, mode)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)
