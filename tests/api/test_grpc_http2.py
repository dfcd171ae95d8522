"""HTTP/2 without a socket: against h2 as the other side, cut anywhere, and broken on purpose."""

import struct
from typing import Any

import pytest
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Decoder, Encoder
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.api.grpc.headers import BlockDecoder, Headers, Malformed, encode
from holdfast.api.grpc.http2 import PREFACE, ErrorCode, GoAway, Http2, StreamGone, Violation
from holdfast.api.grpc.limits import FRAME_BYTES_MAX, STREAM_WINDOW_BYTES

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 0x20
REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"x"),
    (b"te", b"trailers"),
]
ANSWER = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream_id) + payload


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


class Told:
    """What a side is told, in order; pieces of one stream's data as one."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        self.all.append(("headers", stream_id, headers.fields))

    def on_data(self, stream_id: int, data: bytes, window_bytes: int) -> None:
        last = self.all[-1] if self.all else ()
        if last[:2] == ("data", stream_id):
            self.all[-1] = ("data", stream_id, last[2] + data, last[3] + window_bytes)
        elif window_bytes:
            self.all.append(("data", stream_id, data, window_bytes))

    def on_end(self, stream_id: int) -> None:
        self.all.append(("end", stream_id))

    def on_reset(self, stream_id: int, error_code: int) -> None:
        self.all.append(("reset", stream_id, int(error_code)))

    def on_window(self, stream_id: int) -> None:
        self.all.append(("window", stream_id))

    def on_settings(self) -> None:
        self.all.append(("settings",))

    def on_pong(self, data: bytes) -> None:
        self.all.append(("pong", data))

    def on_goaway(self, goaway: GoAway) -> None:
        self.all.append(("goaway", goaway))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [each for each in self.all if each[0] == kind]


def server(streams_max: int = 100) -> tuple[Http2, Told]:
    told = Told()
    http2 = Http2(told, is_client=False, streams_max=streams_max)
    http2.receive(PREFACE + frame(SETTINGS, 0, 0))
    http2.out.clear()
    return http2, told


def client() -> tuple[Http2, Told]:
    told = Told()
    http2 = Http2(told, is_client=True, streams_max=0)
    http2.receive(frame(SETTINGS, 0, 0))
    http2.out.clear()
    return http2, told


def begin(stream_id: int = 1, flags: int = END_HEADERS, fields: Any = REQUEST) -> bytes:
    return frame(HEADERS, flags, stream_id, encode(fields))


def taken(http2: Http2) -> bytes:
    out, http2.out = bytes(http2.out), bytearray()
    return out


def frames_of(out: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while out:
        size = int.from_bytes(out[:3], "big")
        found.append((out[3], out[4], int.from_bytes(out[5:9], "big"), out[9 : 9 + size]))
        out = out[9 + size :]
    return found


# -- headers

FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":status", b"a", b"grpc-timeout", b"containerd-namespace"]),
        st.sampled_from([b"200", b"", b"x", b"y" * 130, b"z" * 400]),
    ),
    max_size=8,
)


@given(FIELDS)
def test_what_we_encode_anyone_decodes_whatever_came_before(fields: Any) -> None:
    decoder = Decoder()
    for _ in range(2):
        assert [tuple(each) for each in decoder.decode(encode(fields), raw=True)] == fields
    assert not decoder.header_table.dynamic_entries


DRIVES_ALL_OUT = b"z" * 400


# A table's only entry, in the very place in memory where the one before it was.
@example(
    blocks=[
        [(b":status", b"")],
        [(b"a", DRIVES_ALL_OUT), (b"a", b"200")],
        [(b":status", DRIVES_ALL_OUT), (b":status", b"")],
        [(b"a", DRIVES_ALL_OUT), (b"a", b"200")],
        [(b"a", b"200")],
    ],
    huffman=False,
)
@given(st.lists(FIELDS, max_size=12), st.booleans())
def test_blocks_are_kept_only_while_they_mean_the_same(blocks: Any, huffman: bool) -> None:
    encoder, ours, judge = Encoder(), BlockDecoder(), Decoder()
    encoder.header_table_size = 300  # so that entries are driven out again
    for fields in blocks:
        raw = encoder.encode(fields, huffman=huffman)
        expected = tuple((bytes(n), bytes(v)) for n, v in judge.decode(raw, raw=True))
        assert ours.decode(raw).fields == expected == tuple(fields)


def test_a_repeated_block_is_decoded_once() -> None:
    encoder, ours = Encoder(), BlockDecoder()
    for _ in range(2):
        ours.decode(encoder.encode(REQUEST))
    again = encoder.encode(REQUEST)
    assert ours.decode(again) is ours.decode(again)
    assert ours.decode(again).metadata is ours.decode(again).metadata
    for number in range(300):
        ours.decode(encode([(b"a", b"%d" % number)]))
    assert len(ours._kept) < 200


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        [*REQUEST, (b":path", b"/late")],
        [REQUEST[0], *REQUEST],
        [*REQUEST, (b"Upper", b"x")],
        [*REQUEST, (b"", b"x")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST[:4], (b"te", b"gzip")],
        [(b":status", b"200"), *REQUEST],
        [*REQUEST, (b"a", b"b\r\nc: d")],
        [*REQUEST, (b"a\n", b"b")],
        [*REQUEST, (b"a", b"b\0")],
    ],
)
def test_headers_that_http_forbids_end_their_stream_alone(fields: Any) -> None:
    http2, told = server()
    http2.receive(begin(1, fields=fields) + begin(3))
    assert told.of("reset") == [("reset", 1, ErrorCode.PROTOCOL_ERROR)]
    assert [each[1] for each in told.of("headers")] == [3]
    with pytest.raises(Malformed):
        Headers(fields).check(of_request=True, is_trailer=False)


# -- two sides of ours, and h2 as either side

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.booleans()),
        st.tuples(st.just("data"), st.integers(0, 5), st.integers(0, 40_000)),
        st.tuples(st.just("end"), st.integers(0, 5)),
        st.tuples(st.just("reset"), st.integers(0, 5)),
        st.tuples(st.just("trailers"), st.integers(0, 5)),
        st.tuples(st.just("ping"), st.integers(0, 255)),
        st.tuples(st.just("table"), st.sampled_from([0, 50, 4096])),
    ),
    max_size=25,
)


def h2_client() -> H2Connection:
    h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    h2.initiate_connection()
    return h2


def spoken(steps: Any) -> tuple[bytes, list[tuple[Any, ...]]]:
    """What h2 says as a client, and what that means."""
    h2, ours = h2_client(), Told()
    peer = Http2(ours, is_client=False, streams_max=100)
    h2.receive_data(taken(peer))
    open_streams: list[int] = []
    means: list[tuple[Any, ...]] = [("settings",)]
    for step, *rest in steps:
        if step == "open":
            stream_id = h2.get_next_available_stream_id()
            h2.send_headers(stream_id, REQUEST, end_stream=rest[0])
            means.append(("headers", stream_id, tuple(REQUEST)))
            means += [("end", stream_id)] if rest[0] else []
            open_streams += [] if rest[0] else [stream_id]
        elif step == "ping":
            h2.ping(bytes([rest[0]]) * 8)
        elif step == "table":
            h2.encoder.header_table_size = rest[0]
        elif open_streams:
            stream_id = open_streams[rest[0] % len(open_streams)]
            if step == "data":
                size = min(rest[1], h2.local_flow_control_window(stream_id), 16384)
                h2.send_data(stream_id, b"d" * size)
                last = means[-1]
                if last[:2] == ("data", stream_id):
                    means[-1] = ("data", stream_id, last[2] + b"d" * size, last[3] + size)
                elif size:
                    means.append(("data", stream_id, b"d" * size, size))
                continue
            open_streams.remove(stream_id)
            if step == "end":
                h2.end_stream(stream_id)
                means.append(("end", stream_id))
            elif step == "trailers":
                h2.send_headers(stream_id, [(b"a", b"b")], end_stream=True)
                means += [("headers", stream_id, ((b"a", b"b"),)), ("end", stream_id)]
            else:
                h2.reset_stream(stream_id, 8)
                means.append(("reset", stream_id, 8))
    return h2.data_to_send(), means


@given(STEPS, st.data())
def test_what_h2_says_is_understood_however_it_is_cut(steps: Any, data: st.DataObject) -> None:
    said, means = spoken(steps)
    places = sorted(data.draw(st.sets(st.integers(0, len(said)), max_size=12)))
    told = Told()
    http2 = Http2(told, is_client=False, streams_max=100)
    for start, stop in zip([0, *places], [*places, len(said)], strict=True):
        http2.receive(said[start:stop])
    assert [each for each in told.all if each[0] != "window"] == means


@given(st.lists(st.tuples(st.sampled_from("hdter"), st.integers(0, 3)), max_size=25))
def test_h2_understands_what_we_answer(steps: Any) -> None:
    h2, told = h2_client(), Told()
    http2 = Http2(told, is_client=False, streams_max=100)
    for _ in range(4):
        h2.send_headers(h2.get_next_available_stream_id(), REQUEST)
    http2.receive(h2.data_to_send())
    expected: dict[int, list[Any]] = {1: [], 3: [], 5: [], 7: []}
    over: set[int] = set()
    for step, index in steps:
        stream_id = 2 * index + 1
        mine = expected[stream_id]
        if stream_id in over or (step in "dte" and not mine) or (step == "h" and mine):
            continue
        if step == "h":
            http2.send_headers(stream_id, encode(ANSWER))
            mine.append(tuple(ANSWER))
        elif step == "d":
            http2.send_data(stream_id, memoryview(b"x" * 100))
            mine.append(b"x" * 100)
        elif step == "t":
            http2.send_headers(stream_id, encode([(b"grpc-status", b"0")]), end_stream=True)
            mine += [((b"grpc-status", b"0"),), "end"]
        elif step == "e":
            http2.send_data(stream_id, memoryview(b"last"), end_stream=True)
            mine += [b"last", "end"]
        else:
            http2.reset(stream_id, ErrorCode.CANCEL)
            mine.append("reset")
        if step in "ter":
            over.add(stream_id)
        if step != "r" and stream_id in over:
            with pytest.raises(StreamGone):
                http2.send_headers(stream_id, b"")
    heard: dict[int, list[Any]] = {1: [], 3: [], 5: [], 7: []}
    for event in h2.receive_data(taken(http2)):
        mine = heard.get(getattr(event, "stream_id", None) or 0, [])
        match event:
            case (
                events.ResponseReceived(headers=headers) | events.TrailersReceived(headers=headers)
            ):
                mine.append(tuple((bytes(n), bytes(v)) for n, v in headers or ()))
            case events.DataReceived(data=data):
                mine.append(data)
            case events.StreamEnded():
                mine.append("end")
            case events.StreamReset():
                mine.append("reset")
            case _:
                pass
    assert heard == expected


def test_headers_larger_than_a_frame_go_on_in_continuation() -> None:
    h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    h2.initiate_connection()
    h2.send_headers(1, REQUEST)
    http2 = Http2(Told(), is_client=False, streams_max=100)
    http2.receive(h2.data_to_send())
    http2.send_headers(1, encode([*ANSWER, (b"grpc-message", b"m" * 40_000)]), end_stream=True)
    heard = h2.receive_data(taken(http2))
    (answer,) = [each for each in heard if isinstance(each, events.ResponseReceived)]
    assert len(dict(answer.headers or ())[b"grpc-message"]) == 40_000
    assert any(isinstance(each, events.StreamEnded) for each in heard)


# -- windows


def test_windows_are_kept_and_given_back() -> None:
    http2, told = server()
    http2.receive(begin())
    whole = bytes(STREAM_WINDOW_BYTES // 2)
    http2.receive(frame(DATA, 0, 1, whole) * 2)
    http2.give_back(1, STREAM_WINDOW_BYTES)
    assert frames_of(taken(http2)) == [(WINDOW_UPDATE, 0, 1, u32(STREAM_WINDOW_BYTES))]
    http2.receive(frame(DATA, 0, 1, whole) * 2)
    assert not told.of("reset")
    http2.receive(frame(DATA, 0, 1, b"x"))
    assert told.of("reset") == [("reset", 1, ErrorCode.FLOW_CONTROL_ERROR)]
    # Afterwards what is given back is nobody's.
    taken(http2)
    http2.give_back(1, 10)
    assert not taken(http2)


def test_what_a_connection_has_taken_is_given_back_whoever_reads() -> None:
    http2, _ = server()
    said = b""
    for number in range(40):
        http2.receive(begin(2 * number + 1) + frame(DATA, 0, 2 * number + 1, bytes(1 << 20)))
        said += taken(http2)
    given = [int.from_bytes(body, "big") for kind, _, at, body in frames_of(said)
             if kind == WINDOW_UPDATE and at == 0]  # fmt: skip
    assert 16 << 20 <= sum(given) <= 40 << 20


def test_the_peers_windows_bind_us() -> None:
    http2, told = server()
    http2.receive(begin())
    assert http2.room(1) == 16384
    for _ in range(3):
        http2.send_data(1, memoryview(bytes(16384)))
    assert http2.room(1) == 65535 - 3 * 16384
    http2.receive(frame(SETTINGS, 0, 0, struct.pack(">HIHI", 4, 100_000, 5, 1 << 20)))
    assert http2.room(1) == 65535 - 3 * 16384  # the connection's
    http2.receive(frame(WINDOW_UPDATE, 0, 0, u32(1 << 20)))
    assert http2.room(1) == 100_000 - 3 * 16384
    http2.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    assert http2.room(1) == -3 * 16384
    http2.receive(frame(WINDOW_UPDATE, 0, 1, u32(3 * 16384 + 7)))
    assert http2.room(1) == 7
    assert told.all[-1] == ("window", 1)
    http2.receive(frame(WINDOW_UPDATE, 0, 1, u32(2**31 - 1)))
    assert told.of("reset") == [("reset", 1, ErrorCode.FLOW_CONTROL_ERROR)]


# -- what ends a stream, what ends the connection, what ends nothing


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (frame(DATA, 0, 0, b"x"), 1),
        (frame(DATA, 0, 5, b"x"), 1),  # idle
        (frame(HEADERS, END_HEADERS, 0, b""), 1),
        (begin(2), 1),  # not the client's number
        (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), 1),
        (frame(HEADERS, END_HEADERS | PADDED, 1, b""), 1),
        (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"abc"), 6),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), 9),
        (frame(HEADERS, END_HEADERS, 1, b"\xbe"), 9),  # an index that is not there
        (frame(HEADERS, 0, 1, b"\x83") + frame(PING, 0, 0, bytes(8)), 1),
        (frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, 4, 3, b""), 1),
        (frame(CONTINUATION, END_HEADERS, 1, b""), 1),
        (frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 100, 11),
        (frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(100_000)) * 3, 11),
        (frame(HEADERS, 0, 1, bytes(300_000))[:9], 11),  # by its announcement
        (frame(RST_STREAM, 0, 1, bytes(4)), 1),  # idle
        (frame(RST_STREAM, 0, 0, bytes(4)), 1),
        (begin() + frame(RST_STREAM, 0, 1, bytes(3)), 6),
        (frame(SETTINGS, 0, 1), 1),
        (frame(SETTINGS, 0, 0, bytes(5)), 6),
        (frame(SETTINGS, ACK, 0, bytes(6)), 6),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 2, 2)), 1),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)), 3),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 100)), 1),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1 << 24)), 1),
        (frame(PUSH_PROMISE, 4, 1, u32(2)), 1),
        (frame(PING, 0, 1, bytes(8)), 1),
        (frame(PING, 0, 0, bytes(7)), 6),
        (frame(GOAWAY, 0, 1, bytes(8)), 1),
        (frame(GOAWAY, 0, 0, bytes(7)), 6),
        (frame(WINDOW_UPDATE, 0, 0, u32(0)), 3),
        (frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1)), 3),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), 6),
        (frame(WINDOW_UPDATE, 0, 9, u32(1)), 1),
        (struct.pack(">I", FRAME_BYTES_MAX + 1)[1:] + bytes(6), 6),
        (begin() + frame(DATA, PADDED, 1, b"\x05abc"), 1),
    ],
)
def test_what_ends_the_connection(said: bytes, code: int) -> None:
    http2, _ = server()
    with pytest.raises(Violation) as caught:
        http2.receive(said)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (begin(flags=END_HEADERS | END_STREAM) + frame(DATA, 0, 1, b"x"), 5),
        (begin(flags=END_HEADERS | END_STREAM) + begin(fields=[(b"a", b"b")]), 5),
        (begin() + begin(fields=[(b"a", b"b")]), 1),  # trailers that end nothing
        (begin() + begin(flags=END_HEADERS | END_STREAM), 1),  # a second request in one
        (begin() + frame(WINDOW_UPDATE, 0, 1, u32(0)), 1),
    ],
)
def test_what_ends_a_stream_is_told_to_both(said: bytes, code: int) -> None:
    http2, told = server()
    http2.receive(said + begin(3))
    assert told.of("reset") == [("reset", 1, code)]
    assert (RST_STREAM, 0, 1, u32(code)) in frames_of(taken(http2))
    assert told.all[-1][:2] == ("headers", 3)


def test_frames_of_a_stream_that_was_are_passed_over() -> None:
    http2, told = server()
    http2.receive(begin())
    http2.reset(1, ErrorCode.CANCEL)
    taken(http2)
    trailers = begin(flags=END_HEADERS | END_STREAM, fields=[(b"a", b"b")])
    rest = frame(DATA, 0, 1, b"late") + frame(WINDOW_UPDATE, 0, 1, u32(1)) + trailers
    http2.receive(rest + frame(RST_STREAM, 0, 1, u32(8)) + frame(DATA, PADDED, 1, b"\0late"))
    http2.receive(frame(PRIORITY, 0, 1, bytes(5)) + frame(99, 0, 7, b"nobody knows"))
    assert [each[0] for each in told.all] == ["settings", "headers"]
    assert [each[0] for each in told.all] == ["settings", "headers"]
    assert not taken(http2)
    http2.receive(begin(3))
    assert told.all[-1][:2] == ("headers", 3)


def test_padding_and_priority_are_taken_off() -> None:
    http2, told = server()
    block = bytes([3]) + bytes(5) + encode(REQUEST) + bytes(3)
    http2.receive(frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, block))
    http2.receive(frame(DATA, PADDED | END_STREAM, 1, b"\x02data\0\0"))
    assert told.of("headers") == [("headers", 1, tuple(REQUEST))]
    assert told.of("data") == [("data", 1, b"data", 7)]
    assert told.of("end") == [("end", 1)]


def test_streams_beyond_the_allowed_are_refused() -> None:
    http2, told = server(streams_max=2)
    http2.receive(begin(1) + begin(3) + begin(5))
    assert frames_of(taken(http2)) == [(RST_STREAM, 0, 5, u32(ErrorCode.REFUSED_STREAM))]
    http2.receive(frame(RST_STREAM, 0, 1, u32(8)) + begin(7))
    assert [each[1] for each in told.of("headers")] == [1, 3, 7]


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"])
def test_no_preface_no_connection(said: bytes) -> None:
    http2 = Http2(Told(), is_client=False, streams_max=1)
    with pytest.raises(Violation):
        http2.receive(said)


def test_the_first_frame_is_settings() -> None:
    for first in (frame(PING, 0, 0, bytes(8)), frame(SETTINGS, ACK, 0)):
        http2 = Http2(Told(), is_client=False, streams_max=1)
        with pytest.raises(Violation):
            http2.receive(PREFACE + first)


def test_a_client_is_told_of_its_answers_and_of_nothing_that_it_did_not_ask() -> None:
    http2, told = client()
    assert http2.open(REQUEST) == 1
    assert http2.open(REQUEST) == 3
    http2.receive(begin(1, fields=[(b":status", b"103"), (b"link", b"x")]))
    http2.receive(begin(1, fields=ANSWER) + frame(DATA, 0, 1, b"d"))
    http2.receive(begin(1, END_HEADERS | END_STREAM, [(b"grpc-status", b"0")]))
    assert [each[0] for each in told.all][-4:] == ["headers", "data", "headers", "end"]
    http2.receive(frame(DATA, 0, 3, b"before its headers"))
    assert told.of("reset") == [("reset", 3, ErrorCode.PROTOCOL_ERROR)]
    for said in (begin(5, fields=ANSWER), begin(2, fields=ANSWER), frame(DATA, 0, 5, b"x")):
        other, _ = client()
        with pytest.raises(Violation):
            other.receive(said)


def test_a_connection_runs_out_of_streams() -> None:
    http2, _ = client()
    http2._last_ours = 2**31 - 3
    assert http2.open(REQUEST) == 2**31 - 1
    with pytest.raises(StreamGone):
        http2.open(REQUEST)


def test_farewells_and_pings_are_told() -> None:
    http2, told = server()
    http2.receive(frame(GOAWAY, 0, 0, u32(7, 2) + b"why") + frame(PING, ACK, 0, b"12345678"))
    http2.receive(frame(PING, 0, 0, b"abcdefgh") + frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 5)))
    assert told.of("goaway") == [("goaway", GoAway(last_stream_id=7, error_code=2))]
    assert told.of("pong") == [("pong", b"12345678")]
    assert frames_of(taken(http2)) == [(PING, ACK, 0, b"abcdefgh"), (SETTINGS, ACK, 0, b"")]
    assert http2.peer_streams_max == 5


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_nothing_else(said: bytes, is_server: bool) -> None:
    http2, _ = server() if is_server else client()
    try:
        http2.receive(said)
    except Violation:
        pass
