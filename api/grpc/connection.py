"""One HTTP/2 connection, for the server and for the client.

    reader   bytes -> http2 -> streams; waits for nobody but a peer that does not read
    writer   streams' output -> http2 -> bytes; the only task that waits for the peer to read

**Invariants.** (1) Whoever wants something said puts it in `http2.out` and wakes the writer; while
the writer sleeps, and has nothing half said, `send_now` may speak in its place. (2) Whatever a peer
sends, only its own connection ends.
"""

from collections import deque
from math import inf

import trio

from ...actors.eager import EagerStream
from ...actors.errors import Refusal, Unavailable
from ...actors.logger import get_logger
from ..status import CallFailed
from .headers import Headers
from .http2 import ErrorCode, GoAway, Http2, StreamGone, Violation
from .limits import READ_BYTES, READ_BYTES_MAX, UNSENT_BYTES_HIGH, Limits
from .stream import Stream

log = get_logger(__name__)

_CLOSE_WITHIN_S = 1.0
# Who has spoken a moment ago has more to say, which is cheaper said together.
_BURST_S = 0.0002
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Connection:
    """The machinery of both sides. `run` returns when the connection is over.

    A subclass answers what only its side is told: `on_headers`, `on_reset`, and more if it likes.
    """

    def __init__(self, transport: trio.abc.Stream, limits: Limits, *, is_client: bool) -> None:
        self.transport = transport
        self.limits = limits
        # It has its first words ready: a stream that is opened before `run` follows them.
        self.http2 = Http2(self, is_client=is_client, streams_max=limits.streams_max)
        self.streams: dict[int, Stream] = {}
        self.closed = False  # nothing will be sent any more
        self.greeted = False  # the peer's settings are here
        self._ready: deque[Stream] = deque()
        self._blocked: dict[int, Stream] = {}
        self._wake = trio.Event()
        self._sleeps = False  # the writer, with all said that was to be said
        self._spoke_at_s = -inf
        self._unsent_low: trio.Event | None = None
        self._leaving = False  # close when the last stream has ended
        self._over = trio.Event()  # reader or writer has reached the end
        self._failed = False  # close when the last words are said
        self._held_bytes = 0
        self._quiet_since_s = trio.current_time()  # no bytes, no streams: for the limits of silence

    # -- for streams

    def schedule(self, stream: Stream) -> None:
        """Put the stream in the writer's queue."""
        if not stream.scheduled:
            stream.scheduled = True
            self._ready.append(stream)
            self._wake.set()

    def send_now(self, stream: Stream) -> None:
        """As `schedule`, and say it before anybody else has a turn, where the peer has room."""
        now_s = trio.current_time()
        is_burst, self._spoke_at_s = now_s - self._spoke_at_s < _BURST_S, now_s
        if is_burst or not self._sleeps or not isinstance(self.transport, EagerStream):
            self.schedule(stream)
            return
        if not stream.scheduled:
            stream.scheduled = True
            self._ready.append(stream)
        self._fill()
        try:
            del self.http2.out[: self.transport.send_now(self.http2.out)]
        except GONE:
            pass  # the writer finds out
        if self.http2.out or self._ready:
            self._wake.set()

    def credit(self, stream_id: int, size: int) -> None:
        """Give received bytes back to the peer as window."""
        self.http2.give_back(stream_id, size)
        if self.http2.out:
            self._wake.set()

    def hold(self, delta_bytes: int) -> bool:
        """Account bytes held for unread messages; False when there are too many."""
        self._held_bytes += delta_bytes
        return delta_bytes <= 0 or self._held_bytes <= self.limits.buffered_bytes_max

    def forget(self, stream_id: int) -> None:
        """The stream has nothing further to send. The server's side is done with it then."""

    # -- for the sides

    def reset_stream(self, stream_id: int, code: ErrorCode) -> None:
        """End one stream from our side."""
        self.http2.reset(stream_id, code)
        self._wake.set()

    def say_goaway(self, last_stream_id: int, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Queue a GOAWAY behind everything that is to be said already."""
        self.http2.goaway(last_stream_id, code)
        self._wake.set()

    def leave(self) -> None:
        """Close when the streams that are open have ended."""
        self._leaving = True
        self._wake.set()

    def fail(self) -> None:
        """Send what is queued, then close; streams that are open are lost."""
        self._failed = True
        self._wake.set()

    def on_silence(self) -> None:
        """The peer has said nothing for as long as it may."""
        self.fail()

    def silence_allowed_s(self) -> float:
        """How long the peer may say nothing from now on."""
        return inf if self.greeted else self.limits.handshake_within_s

    def last_stream(self) -> int:
        """The peer's last stream that is or was processed."""
        return 0

    def on_bad_input(self, stream: Stream, error: Refusal | CallFailed) -> None:
        """What arrived on a stream cannot be accepted; its input is closed already."""
        stream.failure = error

    def drop(self, stream: Stream, failure: Refusal | CallFailed | None) -> None:
        """The peer has ended the stream: forget its output, tell who waits on it."""
        self._blocked.pop(stream.stream_id, None)
        stream.abort(failure)

    # -- http2 tells

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        """Headers or trailers of a stream."""
        raise NotImplementedError

    def on_reset(self, stream_id: int, error_code: int) -> None:
        """A stream is over in both directions."""
        raise NotImplementedError

    def on_goaway(self, goaway: GoAway) -> None:
        """The peer takes no more streams."""

    def on_pong(self, data: bytes) -> None:
        """A ping of ours came back."""

    def on_data(self, stream_id: int, data: bytes, window_bytes: int) -> None:
        """Bytes for a stream; what it cannot accept is its side's to answer."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self.http2.give_back(stream_id, window_bytes)
            return
        try:
            stream.feed(data, window_bytes)
        except (Refusal, CallFailed) as error:
            stream.close_input()
            self.on_bad_input(stream, error)

    def on_end(self, stream_id: int) -> None:
        """The peer sends no more on a stream."""
        if (stream := self.streams.get(stream_id)) is not None:
            stream.finish_input()

    def on_window(self, stream_id: int) -> None:
        """What waited for the peer's window goes on."""
        if stream_id:
            if (stream := self._blocked.pop(stream_id, None)) is not None:
                self._ready.append(stream)
        else:
            self._ready.extend(self._blocked.values())
            self._blocked.clear()
        self._wake.set()

    def on_settings(self) -> None:
        """The peer has greeted; its windows may be larger now."""
        self.greeted = True
        self.on_window(0)

    # -- running

    async def run(self) -> None:
        """Read and write until either side is through. Closes the transport."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.closed = True
            lost = Unavailable("grpc: the connection is closed")
            for stream in list(self.streams.values()):
                stream.abort(lost)
            with trio.move_on_after(_CLOSE_WITHIN_S, shield=True):
                await self.transport.aclose()

    async def _write(self) -> None:
        try:
            with trio.CancelScope() as sending:
                await self._write_all(sending)
            if sending.cancelled_caught:
                log.info("grpc.write_stalled", within_s=self.limits.write_within_s)
        except GONE:
            pass
        finally:
            self._over.set()

    async def _write_all(self, sending: trio.CancelScope) -> None:
        http2 = self.http2
        while True:
            self._fill()
            data, http2.out = http2.out, bytearray()
            if self._unsent_low is not None:
                self._unsent_low.set()
            if data:
                if isinstance(self.transport, EagerStream):
                    del data[: self.transport.send_now(data)]
                if data:
                    sending.deadline = trio.current_time() + self.limits.write_within_s
                    await self.transport.send_all(data)
                    sending.deadline = inf
            elif self._failed or (self._leaving and not self.streams):
                return
            else:
                self._wake = trio.Event()
                self._sleeps = True
                await self._wake.wait()
                self._sleeps = False

    def _fill(self) -> None:
        """Take one frame from each stream in turn, so that none starves another."""
        ready, budget = self._ready, UNSENT_BYTES_HIGH
        while ready and budget > 0:
            stream = ready.popleft()
            stream.scheduled = False
            if not stream.has_output:
                continue
            try:
                taken = stream.emit()
            except StreamGone:
                stream.abort(Unavailable("grpc: the peer has ended the stream"))
                self.forget(stream.stream_id)
                continue
            budget -= taken
            if not taken:
                stream.scheduled = True
                self._blocked[stream.stream_id] = stream
            elif stream.has_output:
                self.schedule(stream)

    async def _read(self) -> None:
        try:
            while not self._failed:
                # Looked at when the time is over, and not moved with every byte.
                due_s = self._quiet_since_s + self.silence_allowed_s()
                if due_s <= trio.current_time():
                    self.on_silence()
                    self._quiet_since_s = trio.current_time()
                    continue
                if due_s == inf:
                    due_s = trio.current_time() + self.limits.idle_within_s
                with trio.CancelScope(deadline=due_s) as silence:
                    await self._read_all()
                if not silence.cancelled_caught:
                    break
            if self._failed:
                # A moment for the writer to say the last words.
                with trio.move_on_after(_CLOSE_WITHIN_S):
                    await self._over.wait()
        except GONE:
            pass
        finally:
            self._over.set()

    async def _read_all(self) -> None:
        """Until the peer has hung up, or the connection has failed."""
        http2, room = self.http2, READ_BYTES
        while data := await self.transport.receive_some(room):
            room = READ_BYTES_MAX if len(data) >= READ_BYTES else READ_BYTES
            try:
                http2.receive(bytes(data))
            except Violation as error:
                log.debug("grpc.protocol_error", error=str(error))
                self.say_goaway(self.last_stream(), error.code)
                self.fail()
            if self._failed:
                return
            self._quiet_since_s = trio.current_time()
            if http2.out:  # acknowledgements and window updates
                self._wake.set()
            if len(http2.out) > UNSENT_BYTES_HIGH:
                # A peer that asks and does not read: hear no more until it has read.
                self._unsent_low = trio.Event()
                await self._unsent_low.wait()
                self._unsent_low = None
