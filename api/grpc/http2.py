"""HTTP/2 as gRPC speaks it (RFC 9113): bytes in, what they mean out; no socket, no waiting.

    bytes --receive--> Side.on_headers, on_data, on_end, on_reset, on_window, ...
    send_headers, send_data, ... --> out, which the connection's writer takes

It is small and quick because gRPC asks little of HTTP/2. DATA is handed on as it arrives, never
gathered. Nothing is pushed, nothing prioritised. A GOAWAY ends no call that runs: gRPC means it so,
and what follows from it is the side's affair.

**Invariants.** (1) What ends the connection (section 5.4.1) is raised as Violation, and nothing is
received afterwards; what ends one stream (5.4.2) is answered with RST_STREAM, and the side is
told. (2) A stream is in `_flows` from its first HEADERS until both sides have ended it or one has
reset it; what still comes for one that was there is passed over. (3) Of what a peer sends, no more
is kept here than one frame and one block of headers.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from .codec import Header
from .headers import (
    EMPTY_TABLE,
    LIST_BYTES_MAX,
    BlockDecoder,
    Headers,
    HPACKError,
    Malformed,
    encode,
)
from .limits import CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_WINDOW_BYTES

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LAST_STREAM = 2**31 - 1

_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_PUSH, _STREAMS, _WINDOW, _FRAME, _LIST = 2, 3, 4, 5, 6

_HEAD = struct.Struct(">HBBBI")  # length (16 bits and 8), type, flags, stream
_SETTING = struct.Struct(">HI")
_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")

_HEAD_BYTES = 9
_BLOCK_BYTES_MAX = 256 << 10  # of headers, as they came
_BLOCK_PARTS_MAX = 64
_WINDOW_MAX = 2**31 - 1
_DEFAULT_WINDOW = 65535
_DEFAULT_FRAME = 16384
# What a connection has taken in is given back in parts of this size, whoever reads it: only the
# windows of streams hold a peer back.
_GIVE_BACK_BYTES = 16 << 20


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Violation(Exception):
    """The peer breaks the protocol, so that the connection ends."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code


class StreamGone(Exception):
    """Something was to be sent on a stream that has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The peer takes no further streams; those above `last_stream_id` it has not processed."""

    last_stream_id: int
    error_code: int


class Side(Protocol):
    """Who is told what has arrived."""

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        """A request begins, an answer begins, or trailers."""
        ...

    def on_data(self, stream_id: int, data: bytes, window_bytes: int) -> None:
        """Bytes of a stream, and how much window they took."""
        ...

    def on_end(self, stream_id: int) -> None:
        """The peer sends no more on this stream."""
        ...

    def on_reset(self, stream_id: int, error_code: int) -> None:
        """The stream is over in both directions."""
        ...

    def on_window(self, stream_id: int) -> None:
        """More may be sent: on this stream, or on any when it is 0."""
        ...

    def on_settings(self) -> None:
        """The peer has said what it allows."""
        ...

    def on_pong(self, data: bytes) -> None:
        """A ping of ours came back."""
        ...

    def on_goaway(self, goaway: GoAway) -> None:
        """The peer takes no more streams."""
        ...


class _Flow:
    """One open stream's windows, and who has ended it."""

    __slots__ = ("has_head", "peer_ended", "room", "taken", "we_ended")

    def __init__(self, room: int) -> None:
        self.room = room  # what the peer lets us send
        self.taken = 0  # what the peer has sent and we have not given back
        self.has_head = False  # the first headers are here
        self.peer_ended = False
        self.we_ended = False


class Http2:
    """One connection's protocol, as server or as client."""

    def __init__(self, side: Side, *, is_client: bool, streams_max: int) -> None:
        self.out = bytearray()  # to be sent; whoever sends it takes it away
        self.peer_streams_max: float = float("inf")  # that we may have open
        self._side = side
        self._is_client = is_client
        self._streams_max = streams_max
        self._flows: dict[int, _Flow] = {}
        self._decoder = BlockDecoder()
        self._room = _DEFAULT_WINDOW  # what the peer lets us send, on all streams together
        self._peer_window = _DEFAULT_WINDOW  # of a stream that begins
        self._peer_frame = _DEFAULT_FRAME
        self._ungiven = 0
        self._last_seen = 0  # the peer's highest stream
        self._last_ours = -1 if is_client else 0
        self._preface = b"" if is_client else PREFACE  # still to come
        self._greeted = False
        self._table_said = False  # the peer knows that its table for us is empty
        self._held = b""
        self._data_left = 0  # of the DATA frame that is arriving
        self._data_stream = 0
        self._data_ends = False
        self._block: list[bytes] | None = None  # of headers that go on in CONTINUATION
        self._block_stream = 0
        self._block_ends = False
        self._greet()

    def _greet(self) -> None:
        settings = {
            _STREAMS: 0 if self._is_client else self._streams_max,
            _LIST: LIST_BYTES_MAX,
            _WINDOW: STREAM_WINDOW_BYTES,
            _FRAME: FRAME_BYTES_MAX,
        }
        if self._is_client:
            settings[_PUSH] = 0
            self.out += PREFACE
        self._frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings.items()))
        self._frame(_WINDOW_UPDATE, 0, 0, _U32.pack(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW))

    # -- what we say

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> None:
        size = len(payload)
        self.out += _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id)
        self.out += payload

    def open(self, fields: list[Header]) -> int:
        """Begin a stream of ours; its number. Raises StreamGone when there is none left."""
        if self._last_ours + 2 > LAST_STREAM:
            raise StreamGone("the connection has no stream left")
        self._last_ours += 2
        self._flows[self._last_ours] = _Flow(self._peer_window)
        self.send_headers(self._last_ours, encode(fields))
        return self._last_ours

    def send_headers(self, stream_id: int, block: bytes, *, end_stream: bool = False) -> None:
        """Headers, encoded already. Raises StreamGone."""
        flow = self._flow(stream_id)
        if not self._table_said:
            self._table_said = True
            block = EMPTY_TABLE + block
        limit = self._peer_frame
        flags = _END_STREAM if end_stream else 0
        kind = _HEADERS
        while len(block) > limit:
            self._frame(kind, flags, stream_id, block[:limit])
            block, kind, flags = block[limit:], _CONTINUATION, 0
        self._frame(kind, flags | _END_HEADERS, stream_id, block)
        if end_stream:
            self._we_end(stream_id, flow)

    def room(self, stream_id: int) -> int:
        """How many bytes one DATA frame may have now. Raises StreamGone."""
        return min(self._room, self._flow(stream_id).room, self._peer_frame)

    def send_data(self, stream_id: int, data: memoryview, *, end_stream: bool = False) -> None:
        """One frame of no more than `room`. Raises StreamGone."""
        flow = self._flow(stream_id)
        size = len(data)
        flow.room -= size
        self._room -= size
        flags = _END_STREAM if end_stream else 0
        self.out += _HEAD.pack(size >> 8, size & 0xFF, _DATA, flags, stream_id)
        self.out += data
        if end_stream:
            self._we_end(stream_id, flow)

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream in both directions. One that has ended is left as it is."""
        if self._flows.pop(stream_id, None) is not None:
            self._frame(_RST_STREAM, 0, stream_id, _U32.pack(code))

    def give_back(self, stream_id: int, size: int) -> None:
        """So much of what has arrived on a stream is used up, and as much more may come."""
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.peer_ended:
            flow.taken -= size
            self._frame(_WINDOW_UPDATE, 0, stream_id, _U32.pack(size))

    def ping(self, data: bytes) -> None:
        """A ping of eight bytes."""
        self._frame(_PING, 0, 0, data)

    def goaway(self, last_stream_id: int, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Tell the peer that streams above this one are not processed."""
        self._frame(_GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code))

    def _flow(self, stream_id: int) -> _Flow:
        flow = self._flows.get(stream_id)
        if flow is None or flow.we_ended:
            raise StreamGone(f"stream {stream_id} has ended")
        return flow

    def _we_end(self, stream_id: int, flow: _Flow) -> None:
        flow.we_ended = True
        if flow.peer_ended:
            del self._flows[stream_id]

    # -- what the peer says

    def receive(self, data: bytes) -> None:
        """The next bytes from the peer. Raises Violation."""
        if self._held:
            data, self._held = self._held + data, b""
        at, size = 0, len(data)
        if self._preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Violation(ErrorCode.PROTOCOL_ERROR, "no preface of HTTP/2")
            if size < len(PREFACE):
                self._held = data
                return
            at, self._preface = len(PREFACE), b""
        while at < size:
            if self._data_left:
                at = self._take_data(data, at)
                continue
            if size - at < _HEAD_BYTES:
                break
            high, low, kind, flags, stream_id = _HEAD.unpack_from(data, at)
            length, stream_id = high << 8 | low, stream_id & LAST_STREAM
            if length > FRAME_BYTES_MAX:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if kind != _DATA and length > _BLOCK_BYTES_MAX:
                raise Violation(ErrorCode.ENHANCE_YOUR_CALM, f"{length} bytes that are no data")
            self._admit(kind, flags, stream_id)
            body = at + _HEAD_BYTES
            if kind == _DATA and not flags & _PADDED:
                self._begin_data(stream_id, length, flags)
                at = body
                continue
            if size - body < length:
                break
            self._take(kind, flags, stream_id, data[body : body + length])
            at = body + length
        if at < size:
            self._held = data[at:]

    def _admit(self, kind: int, flags: int, stream_id: int) -> None:
        """Whether such a frame may come now at all."""
        if self._block is not None:
            if kind != _CONTINUATION or stream_id != self._block_stream:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "headers are cut by another frame")
        elif not self._greeted and (kind != _SETTINGS or flags & _ACK):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has begun this stream yet."""
        is_theirs = (stream_id % 2 == 1) != self._is_client
        return stream_id > (self._last_seen if is_theirs else self._last_ours)

    def _known(self, stream_id: int) -> _Flow | None:
        """The open stream that a frame is for; None for one that was."""
        flow = self._flows.get(stream_id)
        if flow is None and (stream_id == 0 or self._is_idle(stream_id)):
            raise Violation(ErrorCode.PROTOCOL_ERROR, f"a frame for stream {stream_id}")
        return flow

    # DATA is taken piece by piece: `_begin_data` has the frame's length, `_take_data` a part of it.

    def _begin_data(self, stream_id: int, length: int, flags: int) -> None:
        self._open_for_data(stream_id, length)
        self._data_stream, self._data_left = stream_id, length
        self._data_ends = bool(flags & _END_STREAM)
        if not length and self._data_ends:
            self._peer_ends(stream_id)

    def _take_data(self, data: bytes, at: int) -> int:
        end = min(len(data), at + self._data_left)
        self._data_left -= end - at
        if self._data_stream in self._flows:
            piece = data if end - at == len(data) else data[at:end]
            self._side.on_data(self._data_stream, piece, end - at)
        if not self._data_left and self._data_ends:
            self._peer_ends(self._data_stream)
        return end

    def _open_for_data(self, stream_id: int, length: int) -> None:
        """Account a DATA frame; one that may not come ends its stream."""
        flow = self._known(stream_id)
        self._ungiven += length
        if self._ungiven >= _GIVE_BACK_BYTES:
            self._frame(_WINDOW_UPDATE, 0, 0, _U32.pack(self._ungiven))
            self._ungiven = 0
        if flow is None:
            return
        flow.taken += length
        if flow.peer_ended:
            self._break(stream_id, ErrorCode.STREAM_CLOSED)
        elif flow.taken > STREAM_WINDOW_BYTES:
            self._break(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        elif not flow.has_head:
            self._break(stream_id, ErrorCode.PROTOCOL_ERROR)

    def _peer_ends(self, stream_id: int) -> None:
        flow = self._flows.get(stream_id)
        if flow is None:
            return
        flow.peer_ended = True
        if flow.we_ended:
            del self._flows[stream_id]
        self._side.on_end(stream_id)

    def _break(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream for what its peer did."""
        self.reset(stream_id, code)
        self._side.on_reset(stream_id, code)

    def _take(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        """One whole frame. Kinds that nobody knows are passed over (section 4.1)."""
        if kind == _HEADERS:
            self._take_headers(stream_id, flags, body)
        elif kind == _WINDOW_UPDATE:
            self._take_window(stream_id, body)
        elif kind == _DATA:
            self._take_padded_data(stream_id, flags, body)
        elif kind == _RST_STREAM:
            self._take_reset(stream_id, body)
        elif kind == _SETTINGS:
            self._take_settings(stream_id, flags, body)
        elif kind == _PING:
            self._take_ping(stream_id, flags, body)
        elif kind == _GOAWAY:
            self._take_goaway(stream_id, body)
        elif kind == _CONTINUATION:
            self._take_continuation(flags, body)
        elif kind == _PUSH_PROMISE:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which is not allowed")

    def _take_padded_data(self, stream_id: int, flags: int, body: bytes) -> None:
        data = _unpadded(body)
        self._open_for_data(stream_id, len(body))
        if stream_id in self._flows:
            self._side.on_data(stream_id, data, len(body))
        if flags & _END_STREAM:
            self._peer_ends(stream_id)

    def _take_headers(self, stream_id: int, flags: int, body: bytes) -> None:
        if stream_id == 0:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "HEADERS for stream 0")
        if flags & _PADDED:
            body = _unpadded(body)
        if flags & _WITH_PRIORITY:
            if len(body) < 5:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without their priority")
            body = body[5:]
        self._block_stream, self._block_ends = stream_id, bool(flags & _END_STREAM)
        if flags & _END_HEADERS:
            self._take_block(body)
        else:
            self._block = []
            self._gather(body)

    def _take_continuation(self, flags: int, body: bytes) -> None:
        if self._block is None:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._gather(body)
        if flags & _END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._take_block(block)

    def _gather(self, part: bytes) -> None:
        assert self._block is not None
        self._block.append(part)
        if len(self._block) > _BLOCK_PARTS_MAX or sum(map(len, self._block)) > _BLOCK_BYTES_MAX:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "headers without an end")

    def _take_block(self, block: bytes) -> None:
        """A whole block. It is decoded in any case: the table is the connection's."""
        stream_id = self._block_stream
        try:
            headers = self._decoder.decode(block)
        except HPACKError as error:
            raise Violation(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        flow = self._flows.get(stream_id)
        if flow is None:
            if not self._is_idle(stream_id):
                return  # trailers of a stream that we have reset
            if self._is_client or stream_id % 2 == 0:
                raise Violation(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not the peer's")
            self._last_seen = stream_id
            if len(self._flows) >= self._streams_max:
                self._frame(_RST_STREAM, 0, stream_id, _U32.pack(ErrorCode.REFUSED_STREAM))
                return
            flow = self._flows[stream_id] = _Flow(self._peer_window)
        if flow.peer_ended:
            self._break(stream_id, ErrorCode.STREAM_CLOSED)
            return
        is_trailer = flow.has_head
        try:
            headers.check(of_request=not self._is_client, is_trailer=is_trailer)
            if is_trailer and not self._block_ends:
                raise Malformed("trailers that end nothing")
        except Malformed:
            self._break(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if headers.is_interim and not self._block_ends:
            return  # 100 to 199: the answer's own headers are still to come (RFC 9110, 15.2)
        flow.has_head = True
        self._side.on_headers(stream_id, headers)
        if self._block_ends:
            self._peer_ends(stream_id)

    def _take_reset(self, stream_id: int, body: bytes) -> None:
        if len(body) != 4:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is four bytes")
        if self._known(stream_id) is not None:
            del self._flows[stream_id]
            self._side.on_reset(stream_id, *_U32.unpack(body))

    def _take_settings(self, stream_id: int, flags: int, body: bytes) -> None:
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "SETTINGS for a stream")
        if len(body) % _SETTING.size or (flags & _ACK and body):
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a strange length")
        if flags & _ACK:
            return
        for name, value in _SETTING.iter_unpack(body):
            self._set(name, value)
        self._greeted = True
        self._frame(_SETTINGS, _ACK, 0)
        self._side.on_settings()

    def _set(self, name: int, value: int) -> None:
        if name == _STREAMS:
            self.peer_streams_max = value
        elif name == _PUSH:
            if value > 1:
                raise Violation(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
        elif name == _WINDOW:
            delta, self._peer_window = value - self._peer_window, value
            for flow in self._flows.values():
                flow.room += delta
            if max([value, *(flow.room for flow in self._flows.values())]) > _WINDOW_MAX:
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        elif name == _FRAME:
            if not _DEFAULT_FRAME <= value < 1 << 24:
                raise Violation(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self._peer_frame = value

    def _take_ping(self, stream_id: int, flags: int, body: bytes) -> None:
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PING for a stream")
        if len(body) != 8:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "PING is eight bytes")
        if flags & _ACK:
            self._side.on_pong(body)
        else:
            self._frame(_PING, _ACK, 0, body)

    def _take_goaway(self, stream_id: int, body: bytes) -> None:
        if stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "GOAWAY for a stream")
        if len(body) < _TWO_U32.size:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is at least eight bytes")
        last, code = _TWO_U32.unpack_from(body)
        self._side.on_goaway(GoAway(last_stream_id=last & LAST_STREAM, error_code=code))

    def _take_window(self, stream_id: int, body: bytes) -> None:
        if len(body) != 4:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is four bytes")
        more = _U32.unpack(body)[0] & _WINDOW_MAX
        if stream_id == 0:
            self._room += more
            if not more or self._room > _WINDOW_MAX:
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {self._room} bytes")
        else:
            flow = self._known(stream_id)
            if flow is None:
                return
            flow.room += more
            if not more or flow.room > _WINDOW_MAX:
                code = ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR
                self._break(stream_id, code)
                return
        self._side.on_window(stream_id)


def _unpadded(body: bytes) -> bytes:
    """A padded frame's own bytes (section 6.1)."""
    if not body or body[0] >= len(body):
        raise Violation(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return body[1 : len(body) - body[0]]
