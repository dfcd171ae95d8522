"""ttrpc against itself, against raw frames, and with a real shim of containerd's."""

import json
import os
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from holdfast.actors.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from holdfast.api import ttrpc
from holdfast.api.grpc.call import Context
from holdfast.api.grpc.server import listen_unix
from holdfast.api.grpc.service import implement
from holdfast.api.proto.services import containers_pb2, events_ttrpc_pb2
from holdfast.api.proto.shim import bootstrap_pb2
from holdfast.api.proto.shim import task_v2_pb2 as task
from holdfast.api.proto.ttrpc_pb2 import Request, Response
from holdfast.api.status import CallFailed, Code, status_of
from holdfast.api.ttrpc import MESSAGE_BYTES_MAX, TtrpcClient, TtrpcServer

TASK = "containerd.task.v2.Task"
METADATA = {ttrpc.NAMESPACE: "ns"}
HEADER = struct.Struct(">IIBB")


class Shim:
    """A task service that obeys the id of its request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entered = trio.Event()
        self.left: list[str] = []
        self.contexts: list[Context] = []
        handlers = {"State": self.state, "Connect": self.wrong_type}
        self.server = TtrpcServer([implement(task.DESCRIPTOR.services_by_name["Task"], handlers)])

    async def state(self, request: task.StateRequest, context: Context) -> task.StateResponse:
        self.contexts.append(context)
        match request.id:
            case "refuse":
                raise NotFound("no such task")
            case "fault":
                raise RuntimeError("secret")
            case "big":
                return task.StateResponse(bundle="x" * MESSAGE_BYTES_MAX)
            case "wait":
                self.entered.set()
                try:
                    await trio.sleep_forever()
                finally:
                    self.left.append("left")
        return task.StateResponse(id=request.id, bundle=context.namespace())

    async def wrong_type(self, request: object, context: Context) -> object:
        return task.StateResponse()


@pytest.fixture
async def shim(tmp_path: Path, nursery: trio.Nursery) -> Shim:
    shim = Shim(tmp_path / "shim.sock")
    await nursery.start(shim.server.serve, await listen_unix(shim.path))
    return shim


async def state(client: TtrpcClient, id_: str, **rest: Any) -> task.StateResponse:
    return await client.call(
        TASK, "State", task.StateRequest(id=id_), task.StateResponse, METADATA, **rest
    )


async def test_a_call_is_answered_with_its_metadata_and_peer(shim: Shim) -> None:
    async with TtrpcClient.connect(shim.path) as client:
        answer = await state(client, "a")
    assert (answer.id, answer.bundle) == ("a", "ns")
    peer = shim.contexts[0].peer
    assert peer is not None
    assert peer.pid == os.getpid()
    assert shim.contexts[0].method == f"/{TASK}/State"


async def test_refusals_and_faults_are_statuses(shim: Shim) -> None:
    async with TtrpcClient.connect(shim.path) as client:
        with pytest.raises(NotFound, match="no such task"):
            await state(client, "refuse")
        with pytest.raises(CallFailed, match="INTERNAL: internal error"):
            await state(client, "fault")
        with pytest.raises(CallFailed, match="INTERNAL"):
            await client.call(TASK, "Connect", task.ConnectRequest(), task.ConnectResponse)
        with pytest.raises(Unimplemented, match="/containerd"):
            await client.call(TASK, "Kill", task.KillRequest(), Empty)
        assert (await state(client, "b")).id == "b"


async def test_many_calls_at_once_each_get_their_own_answer(shim: Shim) -> None:
    answers: dict[str, str] = {}

    async with TtrpcClient.connect(shim.path) as client, trio.open_nursery() as nursery:

        async def ask(name: str) -> None:
            answers[name] = (await state(client, name)).id

        for number in range(500):
            nursery.start_soon(ask, str(number))
    assert answers == {str(n): str(n) for n in range(500)}


async def test_time_passes_at_both_ends(shim: Shim) -> None:
    async with TtrpcClient.connect(shim.path) as client:
        with pytest.raises(DeadlineExceeded):
            await state(client, "wait", timeout_s=0.02)
        with trio.move_on_after(0.02) as scope:
            await state(client, "wait")
        assert scope.cancelled_caught
        # The late answers belong to nobody, and harm nobody.
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert shim.left == ["left"] * 2
        assert (await state(client, "c")).id == "c"


async def test_messages_too_large_are_refused_and_the_connection_lives(shim: Shim) -> None:
    async with TtrpcClient.connect(shim.path) as client:
        with pytest.raises(ResourceExhausted, match="larger than"):
            await state(client, "x" * MESSAGE_BYTES_MAX)
        with pytest.raises(ResourceExhausted, match="too large"):
            await state(client, "big")
        # Past the client's own check: the server reads past it and answers.
        data = bytes(MESSAGE_BYTES_MAX + 1)
        frame = await client._ask(data)
        assert frame is not None
        assert frame.payload is not None
        assert Response.FromString(frame.payload).status.code == Code.RESOURCE_EXHAUSTED
        assert (await state(client, "d")).id == "d"


async def test_a_lost_connection_is_unavailable_to_all_who_wait(
    shim: Shim, nursery: trio.Nursery
) -> None:
    outcomes: list[type[Exception]] = []

    async def wait(client: TtrpcClient) -> None:
        try:
            await state(client, "wait")
        except Unavailable as error:
            outcomes.append(type(error))

    async with trio.open_nursery() as inner:
        async with TtrpcClient.connect(shim.path) as client:
            inner.start_soon(wait, client)
            inner.start_soon(wait, client)
            await shim.entered.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.aclose_forcefully(client._frames.transport)
            await client.closed.wait()
            with pytest.raises(Unavailable):
                await state(client, "late")
    assert outcomes == [Unavailable] * 2
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert shim.left == ["left"] * 2


async def test_nobody_listens() -> None:
    with pytest.raises(Unavailable, match="connect to"):
        async with TtrpcClient.connect("/nowhere/at.all"):
            raise AssertionError("connected")


async def test_what_the_block_raises_is_not_wrapped(shim: Shim) -> None:
    with pytest.raises(KeyError):
        async with TtrpcClient.connect(shim.path):
            raise KeyError("mine")


@asynccontextmanager
async def raw(shim: Shim) -> AsyncIterator[Any]:
    stream = await trio.open_unix_socket(str(shim.path))
    async with stream:

        async def exchange(data: bytes) -> tuple[int, Response]:
            await stream.send_all(data)
            got = b""
            with trio.fail_after(2):
                while len(got) < 10 or len(got) < 10 + HEADER.unpack_from(got)[0]:
                    more = await stream.receive_some(1 << 16)
                    assert more
                    got += more
            size, stream_id, kind, _flags = HEADER.unpack_from(got)
            assert kind == 2
            return stream_id, Response.FromString(got[10 : 10 + size])

        yield exchange


async def test_ids_must_be_odd_and_grow(shim: Shim) -> None:
    request = Request(
        service=TASK, method="State", payload=task.StateRequest(id="z").SerializeToString()
    )
    request.metadata.add(key=ttrpc.NAMESPACE, value="n")
    data = request.SerializeToString()
    async with raw(shim) as exchange:
        for stream_id, code in ((2, 3), (5, 0), (5, 3), (3, 3), (7, 0)):
            answer = await exchange(HEADER.pack(len(data), stream_id, 1, 0) + data)
            assert (answer[0], answer[1].status.code) == (stream_id, code)


async def test_bytes_that_are_no_request_are_told_so(shim: Shim) -> None:
    async with raw(shim) as exchange:
        _id, answer = await exchange(HEADER.pack(3, 1, 1, 0) + b"\xff\xff\xff")
        assert answer.status.code == status_of(InvalidArgument("")).code
        bad = Request(service=TASK, method="State", payload=b"\xff\xff").SerializeToString()
        _id, answer = await exchange(HEADER.pack(len(bad), 3, 1, 0) + bad)
        assert answer.status.code == Code.INTERNAL
        # Frames of unknown kinds are passed over.
        unknown = HEADER.pack(2, 5, 9, 0) + b"xx"
        _id, answer = await exchange(unknown + HEADER.pack(3, 7, 1, 0) + b"\xff\xff\xff")
        assert _id == 7


async def test_a_client_that_vanishes_amid_a_frame_is_nothing(shim: Shim) -> None:
    for data in (b"\0\0", HEADER.pack(50, 1, 1, 0) + b"x", HEADER.pack(5 << 20, 1, 1, 0) + b"x"):
        stream = await trio.open_unix_socket(str(shim.path))
        await stream.send_all(data)
        await stream.aclose()
    async with TtrpcClient.connect(shim.path) as client:
        assert (await state(client, "e")).id == "e"


async def test_a_client_that_asks_and_never_reads_is_not_read_either(shim: Shim) -> None:
    request = Request(service=TASK, method="State", payload=b"\x0a\x01z" + b"\x12\x00")
    request.metadata.add(key=ttrpc.NAMESPACE, value="n" * 60_000)
    data = request.SerializeToString()
    stream = await trio.open_unix_socket(str(shim.path))
    sent = 0
    with trio.move_on_after(0.5):
        while sent < 200 << 20:
            await stream.send_all(HEADER.pack(len(data), 2 * (sent // len(data)) + 1, 1, 0) + data)
            sent += len(data)
    assert sent < 100 << 20
    await trio.aclose_forcefully(stream)


def test_streams_are_not_served() -> None:
    service = implement(
        containers_pb2.DESCRIPTOR.services_by_name["Containers"], {"ListStream": Shim.state}
    )
    with pytest.raises(AssertionError, match="stream"):
        TtrpcServer([service])


SHIM = shutil.which("containerd-shim-runc-v2")
RUNC = shutil.which("runc")


def parse_bootstrap(raw: bytes) -> bootstrap_pb2.BootstrapResult:
    """What a shim prints when it has started: an address, JSON, or a message."""
    try:
        return bootstrap_pb2.BootstrapResult(**json.loads(raw))
    except ValueError:
        text = raw.decode(errors="replace").strip()
        if text.startswith("unix://"):
            return bootstrap_pb2.BootstrapResult(version=2, address=text, protocol="ttrpc")
        return bootstrap_pb2.BootstrapResult.FromString(raw)


@pytest.mark.root
@pytest.mark.skipif(SHIM is None or RUNC is None or os.getuid() != 0, reason="needs a shim, root")
async def test_a_real_shim_runs_a_container_at_our_word(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """containerd-shim-runc-v2, started as containerd starts it, its events sent to our server."""
    assert SHIM is not None
    topics: list[str] = []
    deleted = trio.Event()

    async def forward(request: events_ttrpc_pb2.ForwardRequest, context: Context) -> Empty:
        topics.append(request.envelope.topic)
        if request.envelope.topic == "/tasks/delete":
            deleted.set()
        return Empty()

    events = TtrpcServer(
        [implement(events_ttrpc_pb2.DESCRIPTOR.services_by_name["Events"], {"Forward": forward})]
    )
    events_path = tmp_path / "events.sock"
    await nursery.start(events.serve, await listen_unix(events_path))

    bundle = tmp_path / "bundle"
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", bundle / "rootfs/bin/sh")
    await trio.run_process(["runc", "spec"], cwd=bundle)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["/bin/sh", "-c", "exit 7"]
    (bundle / "config.json").write_text(json.dumps(spec))
    # The shim of containerd 1.6 insists on a log that somebody reads.
    os.mkfifo(bundle / "log", 0o700)
    log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
    name = f"holdfast-test-{os.getpid()}"
    environment = {**os.environ, "TTRPC_ADDRESS": str(events_path), "NAMESPACE": "t"}
    try:
        started = await trio.run_process(
            [SHIM, "-namespace", "t", "-address", str(tmp_path / "none"),
             "-publish-binary", "/bin/true", "-id", name, "start"],
            cwd=bundle, env=environment, capture_stdout=True, capture_stderr=True,
        )  # fmt: skip
        boot = parse_bootstrap(started.stdout)
        service = f"containerd.task.v{boot.version}.Task"
        with trio.fail_after(20):
            async with TtrpcClient.connect(boot.address.removeprefix("unix://")) as client:

                async def call(method: str, request: Any, answer: Any) -> Any:
                    return await client.call(
                        service, method, request, answer, {ttrpc.NAMESPACE: "t"}
                    )

                with pytest.raises(NotFound):
                    await call("State", task.StateRequest(id="nobody"), task.StateResponse)
                created = await call(
                    "Create", task.CreateTaskRequest(id=name, bundle=str(bundle)),
                    task.CreateTaskResponse,
                )  # fmt: skip
                assert created.pid > 0
                await call("Start", task.StartRequest(id=name), task.StartResponse)
                exited = await call("Wait", task.WaitRequest(id=name), task.WaitResponse)
                assert exited.exit_status == 7
                gone = await call("Delete", task.DeleteRequest(id=name), task.DeleteResponse)
                assert gone.exit_status == 7
                await deleted.wait()
                try:
                    await call("Shutdown", task.ShutdownRequest(id=name, now=True), Empty)
                except Unavailable:
                    pass  # a shim may be gone before its answer is
    finally:
        os.close(log)
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
