"""The hazards of serving gRPC over HTTP/2, each as a promise that it is answered."""

import inspect
import struct
import sys
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from holdfast.actors.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unimplemented,
)
from holdfast.api.grpc import connection
from holdfast.api.grpc.limits import STREAM_WINDOW_BYTES
from holdfast.api.grpc.server import GrpcServer
from holdfast.api.grpc.service import implement
from holdfast.api.proto.services import content_pb2 as content
from holdfast.api.proto.services import version_pb2 as version
from holdfast.api.proto.types_pb2 import Envelope
from holdfast.api.status import CallFailed, Code

VERSION = "/containerd.services.version.v1.Version/Version"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
WRITE = "/containerd.services.content.v1.Content/Write"
READ = "/containerd.services.content.v1.Content/Read"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
MIB = 1 << 20


async def ask(channel: Any, **metadata: str) -> str:
    answer = await channel.unary(VERSION, Empty(), version.VersionResponse, metadata)
    return str(answer.version)


async def test_hazard_1_a_cancelled_handler_cuts_no_frame(house: Any) -> None:
    async with house.channel() as channel:
        for attempt in range(8):
            with trio.move_on_after(0.002 * attempt):
                async with channel.stream(READ, content.ReadContentResponse) as call:
                    await call.send(content.ReadContentRequest(offset=64, size=MIB // 2))
                    await call.end()
                    async for _answer in call:
                        pass
            assert await ask(channel) == "1"


async def test_hazard_2_a_protocol_error_beside_a_busy_writer_ends_one_connection(
    house: Any,
) -> None:
    peer = await house.raw()
    # The server's writer is stuck in a send: nobody reads. Then comes a frame on stream 0.
    big_window = struct.pack(">I", 2**31 - 1 - 65535)
    await peer.send(struct.pack(">I", 4)[1:] + bytes([WINDOW_UPDATE, 0]) + bytes(4) + big_window)
    await peer.send(peer.headers(1, READ))
    request = content.ReadContentRequest(offset=64, size=MIB).SerializeToString()
    body = struct.pack(">BI", 0, len(request)) + request
    await peer.send(struct.pack(">I", len(body))[1:] + bytes([DATA, 1]) + b"\0\0\0\1" + body)
    await trio.testing.wait_all_tasks_blocked()
    await peer.send(b"\0\0\5" + bytes([DATA, 0]) + bytes(4) + b"hello")
    await house.serves()
    assert await peer.is_cut()
    await house.serves()


async def test_hazard_3_a_stalled_upload_holds_up_no_other_call(house: Any) -> None:
    async with house.channel() as channel:
        async with channel.stream(WRITE, content.WriteContentResponse, {"do": "stall"}) as call:
            sent = 0
            with trio.move_on_after(0.3):
                while True:
                    await call.send(content.WriteContentRequest(data=bytes(MIB // 4)))
                    sent += MIB // 4
            # The handler reads nothing, so the window holds the client back ...
            assert STREAM_WINDOW_BYTES <= sent <= 4 * STREAM_WINDOW_BYTES
            # ... and others on the same connection do not notice.
            with trio.fail_after(2):
                for _ in range(20):
                    assert await ask(channel) == "1"
            house.released.set()
            await call.end()
            taken = [answer.offset async for answer in call]
            assert taken[-1] >= sent


async def test_hazard_4_a_message_larger_than_the_window_arrives(house: Any) -> None:
    async with house.channel() as channel:
        async with channel.stream(WRITE, content.WriteContentResponse) as call:
            await call.send(content.WriteContentRequest(data=bytes(15 * MIB)))
            answer = await call.receive()
            assert answer is not None
            assert answer.offset == 15 * MIB


async def test_hazard_5_many_small_messages_leave_in_few_frames(house: Any) -> None:
    peer = await house.raw()
    request = content.ReadContentRequest(offset=500, size=20).SerializeToString()
    body = struct.pack(">BI", 0, len(request)) + request
    await peer.send(
        peer.headers(1, READ)
        + struct.pack(">I", len(body))[1:] + bytes([DATA, 1]) + b"\0\0\0\1" + body
    )  # fmt: skip
    frames = messages = 0
    pending = b""
    while True:
        parsed = await peer.next(DATA, HEADERS)
        if parsed.type == HEADERS:
            if "grpc-status" in parsed.fields:
                break
            continue
        frames += 1
        pending += parsed.data
        while len(pending) >= 5 and len(pending) >= 5 + int.from_bytes(pending[1:5], "big"):
            pending = pending[5 + int.from_bytes(pending[1:5], "big") :]
            messages += 1
    assert messages == 500
    assert frames <= 5
    await peer.aclose()


class Walked(dict[int, Any]):
    """Counts how often somebody looks at all of it."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()

    def values(self) -> Any:
        self.walks += 1
        return super().values()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


async def test_hazard_6_a_new_call_does_not_walk_the_open_ones(house: Any) -> None:
    async with house.channel() as channel, trio.open_nursery() as nursery:
        assert await ask(channel) == "1"
        (served,) = house.server._connections
        flows = served.http2._flows = Walked(served.http2._flows)
        served.streams = streams = Walked(served.streams)
        for _ in range(100):
            nursery.start_soon(lambda: ask(channel, do="wait"))
        await house.called(101)
        for _ in range(100):
            await ask(channel)
        assert len(flows) == len(streams) == 100
        assert flows.walks == streams.walks == 0
        house.released.set()


async def test_hazard_7_an_answer_before_the_half_close_ends_the_stream_for_both(
    house: Any,
) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1, WRITE, [("do", "refuse")]))
    await peer.send(b"\0\0\5" + bytes([DATA, 0]) + b"\0\0\0\1" + bytes(5))
    assert (await peer.status())[0] == str(int(Code.FAILED_PRECONDITION))
    reset = await peer.next(RST_STREAM)
    assert (reset.stream_id, reset.error_code) == (1, 0)
    await peer.aclose()
    async with house.channel() as channel:
        async with channel.stream(WRITE, content.WriteContentResponse, {"do": "refuse"}) as call:
            await call.send(content.WriteContentRequest())
            with pytest.raises(FailedPrecondition, match="no room"):
                await call.receive()
        assert await ask(channel) == "1"


async def test_hazard_8_draining_takes_two_steps_and_loses_no_call(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.call(1, extra=[("do", "wait")]))
    await house.entered.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.server.stop, 5.0)
        first = await peer.next(GOAWAY)
        assert (first.last_stream_id, first.error_code) == (2**31 - 1, 0)
        ping = await peer.next(PING)
        # Begun before the client knew: served.
        await peer.send(peer.call(3))
        assert (await peer.status())[0] == "0"
        await peer.send(b"\0\0\x08" + bytes([PING, 1]) + bytes(4) + ping.opaque_data)
        second = await peer.next(GOAWAY)
        assert (second.last_stream_id, second.error_code) == (3, 0)
        # Begun after: refused as not processed.
        await peer.send(peer.call(5))
        refused = await peer.next(RST_STREAM)
        assert (refused.stream_id, refused.error_code) == (5, 7)
        # Begun long before: finished, and only then is the connection closed.
        house.released.set()
        assert (await peer.status())[0] == "0"
        assert await peer.is_cut()
    assert house.server.connections == 0


async def test_hazard_8_our_own_client_finishes_its_call_while_the_server_drains(
    house: Any,
) -> None:
    async with house.channel() as channel, trio.open_nursery() as nursery:
        answers: list[str] = []

        async def wait() -> None:
            answers.append(await ask(channel, do="wait"))

        nursery.start_soon(wait)
        await house.entered.wait()
        nursery.start_soon(house.server.stop, 5.0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not channel.is_open
        house.released.set()
    assert answers == ["1"]


async def test_hazard_9_the_settings_suit_clients_with_one_connection(house: Any) -> None:
    peer = await house.raw()
    settings = await peer.next(SETTINGS)
    assert settings.settings[3] >= 10_000  # MAX_CONCURRENT_STREAMS; h2's default is 100
    assert settings.settings[4] == STREAM_WINDOW_BYTES
    assert settings.settings[5] == MIB  # MAX_FRAME_SIZE
    await peer.aclose()
    async with house.channel() as channel, trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(lambda: ask(channel, do="wait"))
        await house.called(300)
        house.released.set()


async def test_hazard_10_what_cannot_be_accepted_is_told_with_the_right_status(
    house: Any,
) -> None:
    async with house.channel() as channel:
        with pytest.raises(Unimplemented, match=r"unknown method /a\.B/C"):
            await channel.unary("/a.B/C", Empty(), Empty)
        async with channel.stream(WRITE, content.WriteContentResponse) as call:
            # Past our own check: the server's is the one to see.
            call._stream.out += struct.pack(">BI", 0, 17 * MIB)
            call._connection.schedule(call._stream)
            with pytest.raises(ResourceExhausted, match="larger than max"):
                await call.receive()
        assert await ask(channel) == "1"
    peer = await house.raw()
    await peer.send(peer.headers(1, "/no.Such/Method", end=True))
    parsed = await peer.next(HEADERS)
    assert parsed.fields["content-type"] == "application/grpc"
    assert parsed.fields["grpc-status"] == str(int(Code.UNIMPLEMENTED))
    await peer.send(peer.headers(3) + b"\0\0\x08" + bytes([DATA, 1]) + b"\0\0\0\3"
                    + b"\0\0\0\0\3\xff\xff\xff")  # fmt: skip
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await peer.send(peer.headers(5, end=True))
    assert await peer.status() == (str(int(Code.INTERNAL)), "grpc: request message missing")
    await peer.send(peer.call(7, extra=[("grpc-encoding", "gzip")]))
    assert (await peer.status())[0] == str(int(Code.UNIMPLEMENTED))
    await peer.send(peer.headers(9) + b"\0\0\5" + bytes([DATA, 1]) + b"\0\0\0\x09" + b"\1\0\0\0\0")
    assert (await peer.status())[0] == str(int(Code.UNIMPLEMENTED))
    await peer.send(peer.call(11, extra=[("do", "refuse")]))
    code, message = await peer.status()
    assert code == str(int(Code.NOT_FOUND))
    assert message == 'container "%C3%A4%25" in namespace "x": not found'
    # Offered, not used: served.
    await peer.send(peer.call(13, extra=[("grpc-accept-encoding", "gzip")]))
    assert (await peer.status())[0] == "0"
    await peer.aclose()


async def test_hazard_11_only_the_passing_of_time_is_deadline_exceeded(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.call(1, extra=[("do", "wait"), ("grpc-timeout", "20m")]))
    assert (await peer.status())[0] == str(int(Code.DEADLINE_EXCEEDED))
    assert house.left == ["cancelled"]
    # A reset: the handler is cancelled, and nothing is answered.
    await peer.send(peer.call(3, extra=[("do", "wait"), ("grpc-timeout", "10S")]))
    await house.called(2)
    await peer.send(b"\0\0\4" + bytes([RST_STREAM, 0]) + b"\0\0\0\3" + struct.pack(">I", 8))
    await peer.send(peer.call(5))
    assert (await peer.next(HEADERS)).stream_id == 5
    assert house.left == ["cancelled"] * 2
    # A lost connection: likewise.
    await peer.send(peer.call(7, extra=[("do", "wait")]))
    await house.called(4)
    await peer.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert house.left == ["cancelled"] * 3


async def test_hazard_11_our_client_raises_deadline_exceeded_for_its_timeout_alone(
    house: Any,
) -> None:
    async with house.channel() as channel:
        with pytest.raises(DeadlineExceeded):
            await channel.unary(
                VERSION, Empty(), version.VersionResponse, {"do": "wait"}, timeout_s=0.02
            )
        with trio.move_on_after(0.02) as scope:
            await ask(channel, do="wait")
        assert scope.cancelled_caught
        assert await ask(channel) == "1"
        # Both told the server how long they would wait.
        assert all(c.deadline < trio.current_time() + 1 for c in house.contexts[:2])


async def test_hazard_12_a_peer_that_floods_and_never_reads_is_not_read_either(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNSENT_BYTES_HIGH", 16 << 10)
    peer = await house.raw()
    pings = (b"\0\0\x08" + bytes([PING, 0]) + bytes(4) + b"12345678") * 1000
    taken = 0

    async def flood() -> None:
        nonlocal taken
        while True:
            await peer.send(pings)
            taken += 1000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        with trio.fail_after(20):
            while taken > before:  # until nothing more is taken
                before = taken
                await trio.testing.wait_all_tasks_blocked(0.1)
        nursery.cancel_scope.cancel()
    # Two sockets' buffers and the bound; then the server hears no more of this peer ...
    assert 1000 <= taken < 100_000
    await house.serves()
    # ... until it reads.
    while await peer.next(PING) is not None:
        taken -= 1
        if taken == 1:
            break


async def test_hazard_13_an_async_generator_is_no_handler() -> None:
    async def generator(request: Empty, call: Any) -> Any:
        yield Envelope()

    assert inspect.isasyncgenfunction(generator)
    with pytest.raises(TypeError, match="async generator"):
        implement(version.DESCRIPTOR.services_by_name["Version"], {"Version": generator})


async def test_a_fault_of_a_handler_is_internal_and_keeps_its_text_to_itself(house: Any) -> None:
    async with house.channel() as channel:
        with pytest.raises(CallFailed) as caught:
            await ask(channel, do="fault")
        assert caught.value.status.code is Code.INTERNAL
        assert "secret" not in caught.value.status.message
        assert await ask(channel) == "1"


def test_a_path_is_served_once() -> None:
    service = implement(version.DESCRIPTOR.services_by_name["Version"], {"Version": ask})
    with pytest.raises(AssertionError, match="twice"):
        GrpcServer([service, service])


async def test_sending_to_a_client_that_has_gone_is_refused(house: Any) -> None:
    async with house.channel() as channel:
        async with channel.stream(WRITE, content.WriteContentResponse) as call:
            await call.send(content.WriteContentRequest(data=b"1"))
            await call.receive()
        with pytest.raises(Cancelled):
            await call.send(content.WriteContentRequest(data=b"2"))


async def test_whoever_keeps_frames_of_the_stack_breaks_no_connection(house: Any) -> None:
    kept: list[FrameType] = []

    def keep(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/grpc/" in frame.f_code.co_filename:
            kept.append(frame)

    async with house.channel() as channel:
        sys.setprofile(keep)
        try:
            assert [await ask(channel) for _ in range(3)] == ["1"] * 3
        finally:
            sys.setprofile(None)
    assert any(frame.f_code.co_name == "send_data" for frame in kept)
