"""The server's life: listening, stopping; and Debian's ctr as a client."""

import os
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from holdfast.actors.errors import Cancelled, Unavailable
from holdfast.api.grpc.call import Context, peer_of
from holdfast.api.grpc.client import Channel
from holdfast.api.grpc.limits import Limits
from holdfast.api.grpc.server import Allowance, GrpcServer, listen_unix
from holdfast.api.grpc.service import Kind, Method, implement, kind_of
from holdfast.api.proto.services import content_pb2 as content
from holdfast.api.proto.services import events_pb2 as events
from holdfast.api.proto.services import version_pb2 as version
from holdfast.api.status import CallFailed

VERSION = "/containerd.services.version.v1.Version/Version"
WRITE = "/containerd.services.content.v1.Content/Write"


async def test_a_listener_has_its_mode_and_replaces_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = await listen_unix(path, 0o660)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    async with await listen_unix(path) as second:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert second.socket.getsockname() == str(path)
    await first.aclose()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(FileExistsError):
        await listen_unix(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"
    with pytest.raises(OSError, match="path too long"):
        await listen_unix(tmp_path / ("x" * 200))


async def test_stop_ends_what_does_not_end_in_time(house: Any) -> None:
    outcomes: list[str] = []

    async def ask(channel: Channel) -> None:
        try:
            await channel.unary(VERSION, Empty(), version.VersionResponse, {"do": "wait"})
        except Unavailable:
            outcomes.append("unavailable")

    async with house.channel() as channel, trio.open_nursery() as nursery:
        nursery.start_soon(ask, channel)
        await house.entered.wait()
        await house.server.stop(0.02)
    assert outcomes == ["unavailable"]
    await trio.testing.wait_all_tasks_blocked()
    assert house.left == ["cancelled"]
    assert house.server.connections == 0
    with pytest.raises(Unavailable):
        async with house.channel():
            raise AssertionError("connected")


async def test_a_stopped_server_serves_no_listener_and_no_connection(tmp_path: Path) -> None:
    server = GrpcServer([])
    await server.stop(0)
    await server.serve(await listen_unix(tmp_path / "s"))
    ours, theirs = trio.testing.memory_stream_pair()
    await server.serve_connection(ours)
    assert await theirs.receive_some() == b""


async def test_a_connection_need_not_be_a_socket(nursery: trio.Nursery) -> None:
    async def answer(request: Empty, context: Context) -> version.VersionResponse:
        assert context.peer is None
        return version.VersionResponse(version="memory")

    service = implement(version.DESCRIPTOR.services_by_name["Version"], {"Version": answer})
    server = GrpcServer([service], Limits())
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve_connection, ours)
    async with Channel.over(theirs) as channel:
        got = await channel.unary(VERSION, Empty(), version.VersionResponse)
        assert got.version == "memory"


async def test_client_stream_handlers_answer_once(nursery: trio.Nursery) -> None:
    async def total(call: Any) -> content.WriteContentResponse:
        taken = 0
        async for request in call:
            taken += len(request.data)
        return content.WriteContentResponse(offset=taken)

    method = Method(
        total, Kind.CLIENT_STREAM, content.WriteContentRequest, content.WriteContentResponse
    )
    server = GrpcServer([{WRITE: method}])
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(server.serve_connection, ours)
    async with Channel.over(theirs) as channel:
        async with channel.stream(WRITE, content.WriteContentResponse) as call:
            for _ in range(3):
                await call.send(content.WriteContentRequest(data=b"abc"))
            await call.end()
            assert [answer.offset async for answer in call] == [9]


async def test_an_answer_of_the_wrong_type_is_a_fault(house: Any) -> None:
    async with house.channel() as channel:
        with pytest.raises(CallFailed, match="INTERNAL"):
            await channel.unary("/containerd.services.containers.v1.Containers/Delete",
                                Empty(), Empty)  # fmt: skip


async def test_a_call_that_is_left_early_is_cancelled_at_the_server(house: Any) -> None:
    async with house.channel() as channel:
        async with channel.stream(
            "/containerd.services.events.v1.Events/Subscribe", events.SubscribeRequest
        ) as call:
            await call.send(events.SubscribeRequest())
            await call.receive()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert house.left == ["cancelled"]
        with pytest.raises(Cancelled):
            await call.receive()


def test_handlers_need_a_method_and_kinds_come_from_the_descriptor() -> None:
    services = content.DESCRIPTOR.services_by_name
    kinds = {name: kind_of(m) for name, m in services["Content"].methods_by_name.items()}
    assert kinds["Info"] is Kind.UNARY
    assert kinds["Read"] is Kind.SERVER_STREAM
    assert kinds["Write"] is Kind.BIDI
    with pytest.raises(KeyError):
        implement(services["Content"], {"NoSuch": listen_unix})


async def test_an_allowance_refills_with_time(autojump_clock: Any) -> None:
    allowance = Allowance(2, 1.0)
    assert [allowance.spend() for _ in range(3)] == [True, True, False]
    await trio.sleep(3)
    assert [allowance.spend() for _ in range(3)] == [True, True, False]


async def test_a_peer_is_known_by_its_credentials() -> None:
    one, two = socket.socketpair()
    async with (
        trio.SocketStream(trio.socket.from_stdlib_socket(one)) as ours,
        trio.SocketStream(trio.socket.from_stdlib_socket(two)),
    ):
        peer = peer_of(ours)
        assert peer is not None
        assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())


@pytest.mark.skipif(shutil.which("ctr") is None, reason="needs ctr")
async def test_ctr_lists_what_the_server_has(house: Any) -> None:
    async def ctr(*arguments: str) -> tuple[int, str]:
        done = await trio.run_process(
            ["ctr", "--address", str(house.path), "--namespace", "ns", *arguments],
            capture_stdout=True, capture_stderr=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode() + done.stderr.decode()

    with trio.fail_after(20):
        code, output = await ctr("containers", "ls")
        assert code == 0, output
        assert output.splitlines()[1].split() == ["ns", "none"]
        code, output = await ctr("images", "ls")
        assert code == 1
        assert "unknown method /containerd.services.images.v1.Images/List" in output
        _code, output = await ctr("version")
        assert "Version:  1" in output
