"""Frames and the connection on them."""

import cbor2
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import (
    Aborted,
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from holdfast.runtime import frames
from holdfast.runtime.connection import Connection
from holdfast.runtime.shimclient import ShimClient

values = st.dictionaries(st.text(), st.integers() | st.binary() | st.text() | st.none())


@given(st.lists(values), st.integers(1, 7))
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    messages: list[dict[str, object]], size: int
) -> None:
    stream = b"".join(map(frames.encode, messages))
    decoder = frames.Decoder()
    cut = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [message for piece in cut for message in decoder.feed(piece)] == messages


@pytest.mark.parametrize(
    "data",
    [
        frames.HEADER.pack(frames.FRAME_BYTES_MAX + 1),
        frames.HEADER.pack(1) + b"\xff",
        frames.HEADER.pack(2) + cbor2.dumps([1]),
    ],
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(frames.FrameError):
        list(frames.Decoder().feed(data))


def test_a_message_too_large_is_not_sent() -> None:
    with pytest.raises(ResourceExhausted):
        frames.encode({"": bytes(frames.FRAME_BYTES_MAX)})


def test_a_refusal_crosses_with_its_class_and_text() -> None:
    there = frames.refusal(frames.refused(Aborted("why")))
    assert type(there) is Aborted
    assert str(there) == "why"
    assert type(frames.refusal({"code": "Newer", "text": "x"})) is Unknown


async def connected(nursery: trio.Nursery) -> tuple[Connection, trio.abc.Stream, list[object]]:
    ours, theirs = trio.testing.memory_stream_pair()
    # The hello and an event in one piece: the event must not be lost.
    await theirs.send_all(
        frames.encode({"holdfast": 1, "pid": 1}) + frames.encode({"event": "early"})
    )
    connection = await Connection.over(ours, "peer", 1)
    events: list[object] = []
    nursery.start_soon(connection.run, lambda event: events.append(event["event"]))
    return connection, theirs, events


async def test_answers_find_their_callers_in_any_order(autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        connection, theirs, events = await connected(nursery)
        got: dict[str, object] = {}

        async def ask(do: str) -> None:
            try:
                got[do] = (await connection.call(do, timeout_s=1))["value"]
            except NotFound as error:
                got[do] = str(error)

        for do in ("one", "two"):
            nursery.start_soon(ask, do)
        await trio.testing.wait_all_tasks_blocked()
        asked = {m["do"]: m["id"] for m in frames.Decoder().feed(await theirs.receive_some())}
        for answer in (
            {"id": 99, "ok": {}},  # whose caller has left
            {"event": "late"},
            {"id": asked["two"], "error": {"code": "NotFound", "text": "no two"}},
            {"id": asked["one"], "ok": {"value": 1}},
        ):
            await theirs.send_all(frames.encode(answer))
        await trio.testing.wait_all_tasks_blocked()
        assert got == {"one": 1, "two": "no two"}
        assert events == ["early", "late"]
        with pytest.raises(DeadlineExceeded):
            await connection.call("three", timeout_s=1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["eof", "garbage", "ours"])
async def test_no_call_outlives_its_connection(how: str, autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        connection, theirs, _ = await connected(nursery)

        async def lose() -> None:
            await trio.sleep(0.1)
            if how == "ours":
                await connection.aclose()
            elif how == "garbage":
                await theirs.send_all(b"\xff" * 8)
            else:
                await theirs.aclose()

        nursery.start_soon(lose)
        with pytest.raises(Unavailable):
            await connection.call("anything", timeout_s=10)
        assert connection.closed.is_set()
        with pytest.raises(Unavailable):
            await connection.call("anything", timeout_s=10)


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        b"\xff" * 8,
        frames.encode({"holdfast": frames.PROTOCOL_VERSION + 1, "pid": 1}),
        frames.encode({"holdfast": frames.PROTOCOL_OLDEST - 1, "pid": 1}),
        frames.encode({"pid": 1}),
        None,
    ],
)
async def test_a_peer_without_a_proper_hello_is_unavailable(hello, autojump_clock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    if hello:
        await theirs.send_all(hello)
    elif hello is not None:
        await theirs.aclose()
    with pytest.raises(Unavailable):
        await Connection.over(ours, "peer", 1)


async def test_a_shim_of_the_version_before_is_accepted(autojump_clock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(frames.encode({"holdfast": frames.PROTOCOL_OLDEST, "pid": 7}))
    shim = await ShimClient.over(ours, "shim", 1)
    asked: list[str] = []

    async def answer() -> None:
        async for data in theirs:
            for request in frames.Decoder().feed(data):
                asked.append(request["do"])
                process = {"exec_id": "", "status": "running", "pid": 9, "stdio": {}}
                process |= {"exit_status": 0, "exited_at_ns": 0, "lost": False}
                ok = {"id": "c", "namespace": "n", "paused": False, "cgroups": {}}
                ok |= {"processes": [process], "runtime_spawns": 1, "operations": []}
                await theirs.send_all(frames.encode({"id": request["id"], "ok": ok}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        nursery.start_soon(shim.serve, lambda event: None)
        assert shim.hello["pid"] == 7
        # It does not know the verb: it is asked for what it does know.
        assert await shim.settle() == (9, "running")
        nursery.cancel_scope.cancel()
    assert asked == ["state"]
