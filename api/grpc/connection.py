"""One HTTP/2 connection, for the server and for the client.

    reader   bytes -> h2 -> events -> streams; waits for nobody but a peer that does not read
    writer   streams' output -> h2 -> bytes; the only task that sends

**Invariants.** (1) Only the writer calls `send_all`; whoever wants something said puts it in h2 or
in `_out` and wakes the writer. (2) All bytes leave in the order in which h2 made them, because
the header compression of both sides depends on it. (3) Whatever a peer sends, only its own
connection ends.
"""

from collections import deque
from math import inf

import trio
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame

from ...actors.errors import Refusal, Unavailable
from ...actors.logger import get_logger
from ..status import CallFailed
from .goaway import PREFACE_BYTES, FrameTooLarge, GoAway, GoAwayFilter, serialize
from .limits import (
    CONNECTION_WINDOW_BYTES,
    FRAME_BYTES_MAX,
    READ_BYTES,
    STREAM_WINDOW_BYTES,
    UNSENT_BYTES_HIGH,
    Limits,
)
from .stream import Stream

log = get_logger(__name__)

_DEFAULT_WINDOW_BYTES = 65535
_CLOSE_WITHIN_S = 1.0
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
# What h2 raises when a stream has ended meanwhile: an answer that comes too late.
TOO_LATE = (ProtocolError, KeyError)


def _short(frame: DataFrame) -> str:
    return f"DataFrame(stream_id={frame.stream_id}, {len(frame.data)} bytes)"


# h2 formats every frame for a log that nobody keeps, and hyperframe's text of a DATA frame is
# made from a hexadecimal copy of all of it: a third of the cost of an upload.
DataFrame.__repr__ = _short  # type: ignore[assignment]  # changes a debugging text, no more


class _H2(H2Connection):
    """Counts open streams on one in 64 occasions only.

    h2 walks all streams whenever one opens; beside a thousand open waits that walk is most of a
    call's cost. The count also sweeps closed streams, so it must still happen now and then.
    """

    _occasion = 0

    @property
    def open_inbound_streams(self) -> int:
        return super().open_inbound_streams if self._is_time() else 0

    @property
    def open_outbound_streams(self) -> int:
        return super().open_outbound_streams if self._is_time() else 0

    def _is_time(self) -> bool:
        self._occasion += 1
        return self._occasion % 64 == 0


def _make_h2(limits: Limits, *, client_side: bool) -> H2Connection:
    h2 = _H2(
        H2Configuration(
            client_side=client_side,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    initial = {
        SettingCodes.MAX_CONCURRENT_STREAMS: 0 if client_side else limits.streams_max,
        SettingCodes.MAX_HEADER_LIST_SIZE: h2.DEFAULT_MAX_HEADER_LIST_SIZE,
        SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
        SettingCodes.MAX_FRAME_SIZE: FRAME_BYTES_MAX,
    }
    if client_side:
        initial[SettingCodes.ENABLE_PUSH] = 0
    h2.local_settings = Settings(client=client_side, initial_values=initial)
    h2.max_inbound_frame_size = FRAME_BYTES_MAX
    return h2


class Connection:
    """The machinery of both sides. `run` returns when the connection is over.

    A subclass answers `on_event` for the events that only its side has, and `on_end`.
    """

    def __init__(self, transport: trio.abc.Stream, limits: Limits, *, client_side: bool) -> None:
        self.transport = transport
        self.limits = limits
        self.h2: H2Connection = _make_h2(limits, client_side=client_side)
        self.streams: dict[int, Stream] = {}
        self.closed = False  # nothing will be sent any more
        self.greeted = False  # the peer's settings are here
        self._filter = GoAwayFilter(
            skip_bytes=0 if client_side else PREFACE_BYTES, frame_bytes_max=FRAME_BYTES_MAX
        )
        self._ready: deque[Stream] = deque()
        self._blocked: dict[int, Stream] = {}
        self._out = bytearray()
        self._wake = trio.Event()
        self._unsent_low: trio.Event | None = None
        self._leaving = False  # close when the last stream has ended
        self._over = trio.Event()  # reader or writer has reached the end
        self._failed = False  # close when the last words are said
        self._held_bytes = 0
        # First of all: a stream that is opened before `run` must not precede the preface.
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
        self._silence = trio.CancelScope()  # around the reader's wait: handshake and idle limits

    # -- for streams

    def schedule(self, stream: Stream) -> None:
        """Put the stream in the writer's queue."""
        if not stream.scheduled:
            stream.scheduled = True
            self._ready.append(stream)
            self._wake.set()

    def credit(self, stream_id: int, size: int) -> None:
        """Give received bytes back to the peer as window."""
        try:
            self.h2.acknowledge_received_data(size, stream_id)
        except TOO_LATE:
            pass  # the stream has ended; h2 has credited the connection
        self._collect()

    def hold(self, delta_bytes: int) -> bool:
        """Account bytes held for unread messages; False when there are too many."""
        self._held_bytes += delta_bytes
        return delta_bytes <= 0 or self._held_bytes <= self.limits.buffered_bytes_max

    def forget(self, stream_id: int) -> None:
        """The stream has nothing further to send. The server's side is done with it then."""

    # -- for the sides

    def reset_stream(self, stream_id: int, code: ErrorCodes) -> None:
        """End one stream from our side."""
        try:
            self.h2.reset_stream(stream_id, code)
        except TOO_LATE:
            pass
        self._wake.set()

    def say_goaway(self, last_stream_id: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Queue a GOAWAY behind everything that h2 has to say already."""
        self._out += self.h2.data_to_send() + serialize(last_stream_id, code)
        self._wake.set()

    def leave(self) -> None:
        """Close when the streams that are open have ended."""
        self._leaving = True
        self._wake.set()

    def fail(self) -> None:
        """Send what is queued, then close; streams that are open are lost."""
        self._failed = True
        self._wake.set()

    def on_event(self, event: events.Event) -> None:
        """An event that only one side has."""

    def on_goaway(self, goaway: GoAway) -> None:
        """The peer takes no more streams."""

    def on_silence(self) -> None:
        """The peer has said nothing for as long as it may."""
        self.fail()

    def silence_allowed_s(self) -> float:
        """How long the peer may say nothing from now on."""
        return inf if self.greeted else self.limits.handshake_within_s

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

    def _collect(self) -> None:
        """Take what h2 has to say; wake the writer only when that is something."""
        data = self.h2.data_to_send()
        if data:
            self._out += data
            self._wake.set()

    async def _write(self) -> None:
        try:
            while True:
                self._fill()
                self._out += self.h2.data_to_send()
                data, self._out = self._out, bytearray()
                if self._unsent_low is not None:
                    self._unsent_low.set()
                if data:
                    with trio.fail_after(self.limits.write_within_s):
                        await self.transport.send_all(data)
                elif self._failed or (self._leaving and not self.streams):
                    self._over.set()
                    return
                else:
                    self._wake = trio.Event()
                    await self._wake.wait()
        except trio.TooSlowError:
            log.info("grpc.write_stalled", within_s=self.limits.write_within_s)
            self._over.set()
        except GONE:
            self._over.set()

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
            except TOO_LATE:
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
            await self._read_all()
        finally:
            self._over.set()

    async def _read_all(self) -> None:
        while True:
            data: bytes | bytearray = b""
            with trio.move_on_after(self.silence_allowed_s()) as self._silence:
                try:
                    data = await self.transport.receive_some(READ_BYTES)
                except GONE:
                    return
            if self._silence.cancelled_caught:
                self.on_silence()
            elif not data:
                return
            else:
                try:
                    self._take(bytes(data))
                except FrameTooLarge:
                    self.say_goaway(0, ErrorCodes.FRAME_SIZE_ERROR)
                    self.fail()
                except Exception as error:  # h2 and hpack raise many classes on hostile bytes
                    log.debug("grpc.protocol_error", error=str(error))
                    self.fail()
            if self._failed:
                await self._linger()
                return
            self._collect()  # acknowledgements and window updates
            if len(self._out) > UNSENT_BYTES_HIGH:
                # A peer that asks and does not read: hear no more until it has read.
                self._unsent_low = trio.Event()
                await self._unsent_low.wait()
                self._unsent_low = None

    async def _linger(self) -> None:
        """Give the writer a moment to say the last words."""
        with trio.move_on_after(_CLOSE_WITHIN_S):
            await self._over.wait()

    def _take(self, data: bytes) -> None:
        for piece in self._filter.split(data):
            if isinstance(piece, GoAway):
                self.on_goaway(piece)
                continue
            for event in self.h2.receive_data(piece):
                self._handle(event)

    def _handle(self, event: events.Event) -> None:
        match event:
            case events.DataReceived(stream_id=stream_id, data=data):
                self._feed(stream_id or 0, data or b"", event.flow_controlled_length or 0)
            case events.StreamEnded(stream_id=stream_id):
                if (stream := self.streams.get(stream_id or 0)) is not None:
                    stream.finish_input()
            case events.WindowUpdated(stream_id=stream_id):
                self._unblock(stream_id or 0)
            case events.RemoteSettingsChanged():
                self.greeted = True
                self._unblock(0)
                self.on_event(event)
            case _:
                self.on_event(event)

    def _feed(self, stream_id: int, data: bytes, window_bytes: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self.credit(stream_id, window_bytes)
            return
        try:
            stream.feed(data, window_bytes)
        except (Refusal, CallFailed) as error:
            stream.close_input()
            self.on_bad_input(stream, error)

    def on_bad_input(self, stream: Stream, error: Refusal | CallFailed) -> None:
        """What arrived on a stream cannot be accepted; its input is closed already."""
        stream.failure = error

    def _unblock(self, stream_id: int) -> None:
        if stream_id:
            stream = self._blocked.pop(stream_id, None)
            if stream is not None:
                self._ready.append(stream)
        else:
            self._ready.extend(self._blocked.values())
            self._blocked.clear()
        self._wake.set()

    def drop(self, stream: Stream, failure: Refusal | CallFailed | None) -> None:
        """The peer has ended the stream: forget its output, tell who waits on it."""
        self._blocked.pop(stream.stream_id, None)
        stream.abort(failure)
