"""The client against a server that follows a script: odd endings, resets, farewells."""

import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty
from hpack import Decoder, Encoder
from hyperframe.frame import Frame

from holdfast.actors.errors import (
    Cancelled,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from holdfast.api.grpc.client import Channel, NotProcessed
from holdfast.api.grpc.limits import Limits
from holdfast.api.proto.services.version_pb2 import VersionResponse
from holdfast.api.status import CallFailed, Code

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ANSWER = VersionResponse(version="1").SerializeToString()


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream_id) + payload


class Script:
    """The server's side of one connection, frame by frame."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.encoder = Encoder()
        self.decoder = Decoder()
        self._in = b""

    async def send(self, *frames: bytes) -> None:
        await self.transport.send_all(b"".join(frames))

    def headers(self, stream_id: int, *, end: bool = False, **fields: str) -> bytes:
        names = [(name.replace("_", "-"), value) for name, value in fields.items()]
        pairs = [(":" + n if n == "status" else n, v) for n, v in names]
        return frame(HEADERS, 4 | end, stream_id, self.encoder.encode(pairs))

    def answer(self, stream_id: int, data: bytes = ANSWER) -> bytes:
        return frame(DATA, 0, stream_id, struct.pack(">BI", 0, len(data)) + data)

    def ok(self, stream_id: int) -> bytes:
        return (
            self.headers(stream_id, status="200", content_type="application/grpc")
            + self.answer(stream_id)
            + self.headers(stream_id, end=True, grpc_status="0")
        )

    async def next(self, *kinds: int) -> Any:
        with trio.fail_after(5):
            while True:
                while len(self._in) >= 9:
                    parsed: Any
                    parsed, size = Frame.parse_frame_header(memoryview(self._in[:9]))
                    if len(self._in) < 9 + size:
                        break
                    parsed.parse_body(memoryview(self._in[9 : 9 + size]))
                    self._in = self._in[9 + size :]
                    if parsed.type == HEADERS:
                        parsed.fields = dict(self.decoder.decode(parsed.data))
                    if parsed.type in kinds:
                        return parsed
                data = await self.transport.receive_some()
                if not data:
                    return None
                self._in += data


class Pair:
    def __init__(self, channel: Channel, script: Script, nursery: trio.Nursery) -> None:
        self.channel = channel
        self.script = script
        self.nursery = nursery
        self.outcome: Any = None
        self.done = trio.Event()

    async def _ask(self, rest: dict[str, Any]) -> None:
        try:
            self.outcome = await self.channel.unary("/a.B/C", Empty(), VersionResponse, **rest)
        except Exception as error:
            self.outcome = error
        self.done.set()

    async def ask(self, **rest: Any) -> Any:
        """Begin a call; returns its headers as the server sees them."""
        self.done = trio.Event()
        self.nursery.start_soon(self._ask, rest)
        return await self.script.next(HEADERS)

    async def end(self) -> Any:
        with trio.fail_after(5):
            await self.done.wait()
        return self.outcome


@pytest.fixture
async def pair(nursery: trio.Nursery) -> AsyncIterator[Pair]:
    ours, theirs = trio.testing.memory_stream_pair()
    script = Script(theirs)
    async with Channel.over(ours) as channel:
        received = await theirs.receive_some(24)
        assert received == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        await script.send(frame(SETTINGS, 0, 0))
        yield Pair(channel, script, nursery)


async def test_a_request_has_the_headers_that_grpc_wants(pair: Pair) -> None:
    asked = await pair.ask(metadata={"containerd-namespace": "n"}, timeout_s=5.0)
    fields = asked.fields
    assert fields[":method"] == "POST"
    assert fields[":path"] == "/a.B/C"
    assert fields["te"] == "trailers"
    assert fields["content-type"] == "application/grpc"
    assert fields["containerd-namespace"] == "n"
    assert fields["grpc-timeout"].endswith("u")
    await pair.script.send(pair.script.ok(asked.stream_id))
    assert (await pair.end()).version == "1"


async def test_a_call_refused_as_not_processed_is_repeated(pair: Pair) -> None:
    first = await pair.ask()
    await pair.script.send(frame(RST_STREAM, 0, first.stream_id, struct.pack(">I", 7)))
    second = await pair.script.next(HEADERS)
    assert second.stream_id == first.stream_id + 2
    await pair.script.send(pair.script.ok(second.stream_id))
    assert (await pair.end()).version == "1"


async def test_a_call_is_not_repeated_for_ever(pair: Pair) -> None:
    asked = await pair.ask()
    for attempt in range(6):
        await pair.script.send(frame(RST_STREAM, 0, asked.stream_id, struct.pack(">I", 7)))
        if attempt < 5:
            asked = await pair.script.next(HEADERS)
    assert isinstance(await pair.end(), NotProcessed)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (8, Cancelled),
        (11, ResourceExhausted),
        (12, PermissionDenied),
        (2, CallFailed),
        (0, CallFailed),
        (99, CallFailed),
    ],
)
async def test_a_reset_without_a_status_is_given_one(
    pair: Pair, code: int, outcome: type[Exception]
) -> None:
    asked = await pair.ask()
    await pair.script.send(frame(RST_STREAM, 0, asked.stream_id, struct.pack(">I", code)))
    assert type(await pair.end()) is outcome


async def test_a_reset_after_a_good_status_is_a_good_end(pair: Pair) -> None:
    async with pair.channel.stream("/a.B/C", VersionResponse) as call:
        asked = await pair.script.next(HEADERS)
        reset = frame(RST_STREAM, 0, asked.stream_id, bytes(4))
        await pair.script.send(pair.script.ok(asked.stream_id), reset)
        assert [answer.version async for answer in call] == ["1"]
        with pytest.raises(Cancelled):
            await call.send(Empty())


async def test_a_farewell_ends_what_was_not_processed_and_spares_the_rest(pair: Pair) -> None:
    first = await pair.ask()
    first_done = pair.done
    await pair.script.send(frame(GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, 0)))
    await trio.testing.wait_all_tasks_blocked()
    assert not pair.channel.is_open
    assert not first_done.is_set()
    with pytest.raises(Unavailable):
        await pair.channel.unary("/a.B/C", Empty(), VersionResponse)
    await pair.script.send(pair.script.ok(first.stream_id))
    assert (await pair.end()).version == "1"


async def test_a_farewell_before_a_call_was_processed_is_not_processed(pair: Pair) -> None:
    await pair.ask()
    await pair.script.send(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    assert isinstance(await pair.end(), NotProcessed)


async def test_endings_that_are_no_grpc_are_told_apart(pair: Pair) -> None:
    script = pair.script
    asked = await pair.ask()
    await script.send(script.headers(asked.stream_id, end=True, status="502"))
    assert isinstance(await pair.end(), Unknown)

    asked = await pair.ask()
    await script.send(script.headers(asked.stream_id, end=True, status="200"))
    outcome = await pair.end()
    assert "without a status" in str(outcome)

    asked = await pair.ask()
    await script.send(script.headers(asked.stream_id, end=True, status="200", grpc_status="0"))
    assert "without an answer" in str(await pair.end())

    asked = await pair.ask()
    await script.send(
        script.headers(asked.stream_id, status="200"),
        script.answer(asked.stream_id) * 2,
        script.headers(asked.stream_id, end=True, grpc_status="0"),
    )
    assert "two answers" in str(await pair.end())

    asked = await pair.ask()
    await script.send(
        script.headers(asked.stream_id, status="200"), script.answer(asked.stream_id, b"\xff")
    )
    outcome = await pair.end()
    assert isinstance(outcome, CallFailed)
    assert outcome.status.code is Code.INTERNAL


async def test_an_answer_too_large_is_refused_and_reset(pair: Pair) -> None:
    asked = await pair.ask()
    await pair.script.send(
        pair.script.headers(asked.stream_id, status="200"),
        frame(DATA, 0, asked.stream_id, b"\0\xff\xff\xff\xff"),
    )
    assert isinstance(await pair.end(), ResourceExhausted)
    assert (await pair.script.next(RST_STREAM)).error_code == 8
    asked = await pair.ask()
    await pair.script.send(pair.script.ok(asked.stream_id))
    assert (await pair.end()).version == "1"


async def test_a_message_too_large_is_not_even_sent(pair: Pair) -> None:
    async with pair.channel.stream("/a.B/C", VersionResponse) as call:
        with pytest.raises(ResourceExhausted, match="trying to send"):
            await call.send(VersionResponse(version="x" * (17 << 20)))


async def test_a_server_that_speaks_garbage_or_hangs_up_is_unavailable(pair: Pair) -> None:
    asked = await pair.ask()
    assert asked is not None
    await pair.script.send(b"\0\0\4" + bytes([SETTINGS, 0]) + bytes(4) + b"oops")
    assert isinstance(await pair.end(), Unavailable)
    assert await pair.script.next(GOAWAY) is not None
    with pytest.raises(Unavailable):
        await pair.channel.unary("/a.B/C", Empty(), VersionResponse)


async def test_a_server_that_announces_a_giant_frame_is_left(pair: Pair) -> None:
    await pair.ask()
    await pair.script.send(b"\xff\xff\xff\0\0\0\0\0\1")
    assert isinstance(await pair.end(), Unavailable)
    assert (await pair.script.next(GOAWAY)).error_code == 6  # FRAME_SIZE_ERROR


async def test_a_sender_who_waits_learns_that_the_call_has_failed(pair: Pair) -> None:
    async with pair.channel.stream("/a.B/C", VersionResponse) as call:
        asked = await pair.script.next(HEADERS)
        outcomes: list[Exception] = []

        async def send() -> None:
            try:
                while True:
                    await call.send(VersionResponse(version="x" * (1 << 20)))
            except PermissionDenied as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            # The script gives no window, so the sender is stuck by now.
            await trio.testing.wait_all_tasks_blocked()
            trailers = pair.script.headers(
                asked.stream_id, end=True, status="200", grpc_status="7", grpc_message="no"
            )
            await pair.script.send(trailers)
        assert [str(error) for error in outcomes] == ["no"]


async def test_waiting_for_room_ends_with_the_timeout_or_the_connection(pair: Pair) -> None:
    none_allowed = frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 0))
    await pair.script.send(none_allowed)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(DeadlineExceeded):
        await pair.channel.unary("/a.B/C", Empty(), VersionResponse, timeout_s=0.01)
    pair.nursery.start_soon(pair._ask, {})
    await trio.testing.wait_all_tasks_blocked()
    await pair.script.transport.aclose()
    assert isinstance(await pair.end(), Unavailable)


async def test_a_server_that_never_greets_is_left() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    limits = Limits(handshake_within_s=0.02)
    async with Channel.over(ours, limits=limits) as channel:
        with trio.fail_after(5):
            with pytest.raises(Unavailable):
                await channel.unary("/a.B/C", Empty(), VersionResponse)
    await theirs.aclose()


async def test_what_the_block_raises_is_not_wrapped() -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    with pytest.raises(KeyError):
        async with Channel.over(ours):
            raise KeyError("mine")
