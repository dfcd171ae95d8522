"""One HTTP/2 stream that carries one call: what has arrived, what is to go out.

    reader --feed--> inbox --receive--> the call's task --send--> out --emit--> writer

The reader never waits for the task, the task never touches the socket: a task that is cancelled
anywhere cannot cut a frame in two, and a task that is slow holds up no other stream.

Invariants: (1) only the connection calls `emit`. (2) `unacked_bytes` have been received
and not been given back as window; they go back when the task has read, so a slow task stops
its own sender after STREAM_WINDOW_BYTES and nobody else. (3) A message that is not whole is
always given back, or one larger than the window would never arrive.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from ...actors.errors import Cancelled, Refusal, ResourceExhausted
from ..status import CallFailed, internal
from .codec import PREFIX, MessageBuffer
from .http2 import ErrorCode, Http2
from .limits import CREDIT_BYTES_MIN, SEND_BYTES_HIGH, STREAM_WINDOW_BYTES


class Wire(Protocol):
    """What a stream needs of its connection."""

    http2: Http2
    closed: bool

    def schedule(self, stream: "Stream") -> None:
        """Put the stream in the writer's queue."""
        ...

    def send_now(self, stream: "Stream") -> None:
        """The same, and let it speak at once where the writer sleeps."""
        ...

    def credit(self, stream_id: int, size: int) -> None:
        """Give received bytes back to the peer as window."""
        ...

    def hold(self, delta_bytes: int) -> bool:
        """Account bytes held for unread messages; False when the connection holds too many."""
        ...

    def forget(self, stream_id: int) -> None:
        """The stream has nothing further to send."""
        ...


class Stream:
    """Both directions of one stream. See the module for who calls what."""

    def __init__(self, wire: Wire, stream_id: int, *, head: bytes, message_bytes_max: int) -> None:
        self.stream_id = stream_id
        self.wire = wire
        self.head = head  # a block of headers, sent before the first byte of output
        self.end: bytes | None = None  # trailers; empty means a bare END_STREAM
        self.end_sent = False
        self.out = bytearray()
        self.scheduled = False  # in the writer's queue, or parked until the window opens
        self.input_ended = False
        self.input_closed = False  # nobody will read: drop and give back what arrives
        self.reset = False
        self.failure: Refusal | CallFailed | None = None  # what `receive` raises
        self._message_bytes_max = message_bytes_max
        self._buffer = MessageBuffer(message_bytes_max)
        self._inbox: deque[bytes] = deque()
        self._queued_bytes = 0
        self._held_bytes = 0
        self._unacked_bytes = 0
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self.on_abort: Callable[[], None] | None = None  # for the task that owns the stream

    # -- the reader's side: never waits

    def feed(self, data: bytes, window_bytes: int) -> None:
        """Bytes arrived. Raises the refusal that ends the call when they cannot be accepted."""
        self._unacked_bytes += window_bytes
        if self.input_closed:
            self._credit()
            return
        messages = self._buffer.feed(data)
        self._inbox.extend(messages)
        self._queued_bytes += sum(map(len, messages))
        if not self._account():
            raise ResourceExhausted("grpc: the connection holds too many unread bytes")
        if self._queued_bytes <= STREAM_WINDOW_BYTES and self._unacked_bytes >= CREDIT_BYTES_MIN:
            self._credit()
        if messages:
            self._wake_reader()

    def finish_input(self) -> None:
        """The peer sends no more."""
        self.input_ended = True
        self._wake_reader()

    def fail(self, failure: Refusal | CallFailed) -> None:
        """Whoever receives or sends is told; what has arrived before is still delivered."""
        self.failure = self.failure or failure
        self._wake()

    def abort(self, failure: Refusal | CallFailed | None) -> None:
        """The stream is gone: nothing more is sent. Without a failure its input ended well."""
        self.reset = True
        self.failure = self.failure or failure
        self.out.clear()
        self.end = None
        self.input_ended = True
        self._wake()
        if self.on_abort is not None:
            self.on_abort()

    def close_input(self) -> None:
        """Nobody reads any more: drop what is unread, give back what comes."""
        self.input_closed = True
        self._inbox.clear()
        self._queued_bytes = 0
        self._buffer = MessageBuffer(self._message_bytes_max)
        self._account()
        self._credit()

    def _account(self) -> bool:
        held = self._queued_bytes + self._buffer.held_bytes
        delta, self._held_bytes = held - self._held_bytes, held
        return self.wire.hold(delta)

    def _credit(self) -> None:
        size, self._unacked_bytes = self._unacked_bytes, 0
        if size:
            self.wire.credit(self.stream_id, size)

    def _wake(self) -> None:
        self._wake_reader()
        if self._writable is not None:
            self._writable.set()

    def _wake_reader(self) -> None:
        if self._readable is not None:
            self._readable.set()

    # -- the task's side

    async def receive(self) -> bytes | None:
        """The next message; None when the peer has ended its side; raises when the stream failed.

        Messages that arrived before a failure are still delivered.
        """
        while not self._inbox:
            if self.failure is not None:
                raise self.failure
            if self.input_ended:
                if self._buffer.held_bytes:
                    raise internal("grpc: the stream ended inside a message")
                return None
            self._readable = trio.Event()
            try:
                await self._readable.wait()
            finally:
                self._readable = None
        message = self._inbox.popleft()
        self._queued_bytes -= len(message)
        self._account()
        if self._queued_bytes <= STREAM_WINDOW_BYTES and self._unacked_bytes >= CREDIT_BYTES_MIN:
            self._credit()
        return message

    async def send(self, message: bytes) -> None:
        """Send one message, or queue it; waits while more than SEND_BYTES_HIGH are unsent."""
        self.check_size(message)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        self._put(message)
        while len(self.out) > SEND_BYTES_HIGH:
            self._writable = trio.Event()
            try:
                await self._writable.wait()
            finally:
                self._writable = None
            self._check_open()

    def send_at_once(self, message: bytes) -> bool:
        """Send one message without waiting; False, and nothing is sent, where `send` might wait
        or would raise."""
        gone = self.failure is not None or self.reset or self.wire.closed
        if gone or len(message) > self._message_bytes_max or len(self.out) > SEND_BYTES_HIGH:
            return False
        self._put(message)
        return True

    def check_size(self, message: bytes) -> None:
        """Raises ResourceExhausted for what the peer would refuse."""
        if len(message) > self._message_bytes_max:
            raise ResourceExhausted(
                "grpc: trying to send message larger than max"
                f" ({len(message)} vs. {self._message_bytes_max})"
            )

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.reset or self.wire.closed:
            raise Cancelled("grpc: the peer has closed the stream")

    def finish(self, end: bytes) -> None:
        """Nothing more is sent after this block of trailers (none: a bare half-close)."""
        if not self.reset and not self.wire.closed:
            self.end = end
            self.wire.schedule(self)

    def answer(self, message: bytes, end: bytes) -> None:
        """Queue the only message and the trailers, and have them sent at once if they can be."""
        if not self.reset and not self.wire.closed:
            self.end = end
            self._put(message)

    def _put(self, message: bytes) -> None:
        self.out += PREFIX.pack(0, len(message))
        self.out += message
        self.wire.send_now(self)

    # -- the writer's side

    @property
    def has_output(self) -> bool:
        """Whether `emit` would have something to do."""
        return bool(self.out) or self.end is not None

    def emit(self) -> int:
        """Move one frame's worth of output to the wire; 0 when the peer's window is shut.

        Raises StreamGone when the stream has ended.
        """
        http2, out, room = self.wire.http2, self.out, 0
        if out:
            if self.head:
                http2.send_headers(self.stream_id, self.head)
                self.head = b""
            room = min(http2.room(self.stream_id), len(out))
            if room <= 0:
                return 0
            # Many small messages leave as one frame: a frame costs more than a message.
            is_last = self.end == b"" and room == len(out)
            # Both given back here: whoever looks at the stack, as the watchdog does, keeps a frame
            # and what it was called with, and `out` cannot be cut while a view of it is there.
            with memoryview(out) as view, view[:room] as part:
                http2.send_data(self.stream_id, part, end_stream=is_last)
            del out[:room]
            if self._writable is not None and len(out) <= SEND_BYTES_HIGH // 2:
                self._writable.set()
            if is_last:
                self._has_ended()
        if not out and self.end is not None:
            self._emit_end(self.end)
        return max(room, 64)

    def _emit_end(self, end: bytes) -> None:
        http2 = self.wire.http2
        if end:
            http2.send_headers(self.stream_id, self.head + end, end_stream=True)
            if not self.input_ended:
                # Answered before the peer has half-closed: let both sides forget the stream.
                http2.reset(self.stream_id, ErrorCode.NO_ERROR)
        else:
            http2.send_data(self.stream_id, memoryview(b""), end_stream=True)
        self._has_ended()

    def _has_ended(self) -> None:
        self.head, self.end = b"", None
        self.end_sent = True
        self.wire.forget(self.stream_id)
