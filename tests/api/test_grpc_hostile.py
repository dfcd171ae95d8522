"""Hostile and awkward peers: whatever they send, everybody else is served right after."""

import os
import random
import struct
from typing import Any

import pytest
import trio
import trio.testing

from holdfast.api.grpc.limits import Limits
from holdfast.api.status import Code

VERSION = "/containerd.services.version.v1.Version/Version"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream_id) + payload


async def test_http_1_is_hung_up_on(house: Any) -> None:
    peer = await house.raw(greet=False)
    await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await peer.is_cut()
    await house.serves()


async def test_half_a_preface_is_nothing(house: Any) -> None:
    peer = await house.raw(greet=False)
    await peer.send(b"PRI * HT")
    await peer.aclose()
    await house.serves()


async def test_garbage_ends_its_connection(house: Any) -> None:
    for seed in range(5):
        peer = await house.raw()
        await peer.send(random.Random(seed).randbytes(5000))
        await house.serves()
    peer = await house.raw()
    await peer.send(b"\xff" * 5000)
    assert await peer.is_cut()
    await house.serves()


async def test_rapid_resets_are_cut_off(house: Any) -> None:
    peer = await house.raw()
    sent = 0
    try:
        for number in range(5000):
            stream_id = 2 * number + 1
            reset = frame(RST_STREAM, 0, stream_id, struct.pack(">I", 8))
            await peer.send(peer.headers(stream_id) + reset)
            sent += 1
    except trio.BrokenResourceError:
        pass
    await house.serves()
    goaway = await peer.next(GOAWAY)
    assert goaway is None or goaway.error_code == 11  # ENHANCE_YOUR_CALM
    assert goaway is not None or sent < 5000


async def test_a_ping_flood_that_is_never_read_hurts_its_sender(house: Any) -> None:
    peer = await house.raw()
    with trio.move_on_after(0.5):
        for _ in range(20_000):
            await peer.send(frame(PING, 0, 0, b"12345678"))
    await house.serves()


async def test_a_message_length_of_4_gib_is_refused_by_its_prefix(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1) + frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"))
    code, message = await peer.status()
    assert code == str(int(Code.RESOURCE_EXHAUSTED))
    assert "4294967295" in message
    await house.serves()


async def test_a_truncated_message_is_internal(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1) + frame(DATA, 1, 1, b"\0\0\0"))
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await house.serves()


async def test_bytes_that_are_no_protobuf_are_internal(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1) + frame(DATA, 1, 1, b"\0\0\0\0\3\xff\xff\xff"))
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await house.serves()


@pytest.mark.parametrize("timeout", ["zzz", "1", "S", "-1S", "123456789S", "1 S"])
async def test_a_malformed_timeout_is_internal(house: Any, timeout: str) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1, extra=[("grpc-timeout", timeout)], end=True))
    code, message = await peer.status()
    assert code == str(int(Code.INTERNAL))
    assert "malformed grpc-timeout" in message
    await house.serves()


async def test_a_unary_call_without_a_message_is_internal(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1, end=True))
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await house.serves()


async def test_a_client_that_vanishes_amid_a_stream_leaves_nothing_behind(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.call(1, SUBSCRIBE))
    await peer.next(DATA)
    await peer.aclose()
    await house.serves()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert house.left == ["cancelled"]
    assert house.server.connections == 0


async def test_a_server_stream_without_a_message_is_internal(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1, SUBSCRIBE, end=True))
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await house.serves()


async def test_megabytes_of_headers_end_their_connection(house: Any) -> None:
    for count in (8, 200):  # past the header list that we allow; past the frame
        peer = await house.raw()
        try:
            await peer.send(peer.headers(1, extra=[("x", "y" * 9000)] * count))
        except trio.BrokenResourceError:
            pass  # cut before it had sent all of it
        assert await peer.is_cut()
        await house.serves()


async def test_a_header_block_that_never_ends_is_cut_off(house: Any) -> None:
    peer = await house.raw()
    head = peer.encoder.encode([(":method", "POST")])
    try:
        await peer.send(frame(HEADERS, 0, 1, head))
        for _ in range(100_000):
            await peer.send(frame(CONTINUATION, 0, 1, b"\x82"))
    except trio.BrokenResourceError:
        pass
    assert await peer.is_cut()
    await house.serves()


async def test_mutated_requests_are_survived(house: Any) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        peer = await house.raw()
        good = bytearray(
            peer.headers(1) + frame(DATA, 1, 1, bytes(5)) + frame(8, 0, 0, b"\0\0\1\0")
        )
        for _ in range(3):
            good[chance.randrange(len(good))] = chance.randrange(256)
        await peer.send(bytes(good))
        with trio.move_on_after(0.005):
            await peer.frame()
        await peer.aclose()
    await house.serves()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"method": "GET"}, "405"),
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpc-web"}, "415"),
    ],
)
async def test_http_that_is_no_grpc_is_told_so_in_http(
    house: Any, fields: dict[str, str], status: str
) -> None:
    peer = await house.raw()
    await peer.send(peer.headers(1, end=True, **fields))
    assert (await peer.next(HEADERS)).fields[":status"] == status
    await peer.send(peer.call(3, content_type="application/grpc+proto"))
    assert (await peer.status())[0] == "0"


async def test_an_undecodable_binary_header_is_internal(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.call(1, extra=[("x-bin", "a")]))
    assert (await peer.status())[0] == str(int(Code.INTERNAL))
    await house.serves()


async def test_a_goaway_from_the_client_lets_its_calls_finish(house: Any) -> None:
    peer = await house.raw()
    await peer.send(peer.call(1, extra=[("do", "wait")]))
    await house.entered.wait()
    await peer.send(frame(GOAWAY, 0, 0, bytes(8)))
    house.released.set()
    assert (await peer.status())[0] == "0"
    await peer.send(frame(GOAWAY, 0, 0, bytes(7) + b"\1"))
    assert await peer.is_cut()


class TestSmallLimits:
    @pytest.fixture
    def house_limits(self) -> Limits:
        return Limits(
            connections_max=2,
            handshake_within_s=0.05,
            idle_within_s=0.05,
            write_within_s=0.05,
            buffered_bytes_max=3 << 20,
        )

    async def test_a_client_that_never_greets_is_cut(self, house: Any) -> None:
        peer = await house.raw(greet=False)
        assert await peer.is_cut()
        await house.serves()

    async def test_an_idle_client_is_asked_to_leave_then_cut(self, house: Any) -> None:
        peer = await house.raw()
        goaway = await peer.next(GOAWAY)
        assert (goaway.last_stream_id, goaway.error_code) == (2**31 - 1, 0)
        assert await peer.is_cut()

    async def test_a_client_is_idle_once_its_last_call_has_ended(self, house: Any) -> None:
        peer = await house.raw()
        await peer.send(peer.call(1, extra=[("do", "wait")]))
        await trio.sleep(0.1)
        assert house.server.connections == 1
        house.released.set()
        assert (await peer.status())[0] == "0"
        assert (await peer.next(GOAWAY)).last_stream_id == 2**31 - 1

    async def test_a_client_beyond_the_last_is_hung_up_on(self, house: Any) -> None:
        peers = [await house.raw(greet=False) for _ in range(3)]
        assert await peers[2].is_cut()

    async def test_a_client_that_reads_nothing_is_cut(self, house: Any) -> None:
        peer = await house.raw()
        pings = frame(PING, 0, 0, b"12345678") * 1000
        with trio.fail_after(5):
            try:
                while True:
                    await peer.send(pings)
            except trio.BrokenResourceError:
                pass

    async def test_all_calls_together_hold_no_more_than_the_connection_may(
        self, house: Any
    ) -> None:
        peer = await house.raw()
        prefix = struct.pack(">BI", 0, 1 << 20)
        for stream_id in (1, 3, 5, 7):
            await peer.send(peer.headers(stream_id) + frame(DATA, 0, stream_id, prefix))
        with trio.fail_after(5):
            for stream_id in (1, 3, 5, 7):
                await peer.send(frame(DATA, 0, stream_id, os.urandom(1 << 20)[: (1 << 20) - 5]))
            assert (await peer.status())[0] == str(int(Code.RESOURCE_EXHAUSTED))
        await house.serves()
