"""grpcio, which shares no line with us, as client of our server and server of our client."""

import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty

from holdfast.actors.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
)
from holdfast.api.grpc.client import Channel
from holdfast.api.proto.services import content_pb2 as content
from holdfast.api.proto.services import version_pb2 as version
from holdfast.api.proto.services.containers_pb2 import (
    ListContainersRequest,
    ListContainersResponse,
)
from holdfast.api.proto.services.events_pb2 import SubscribeRequest
from holdfast.api.proto.types_pb2 import Envelope
from holdfast.api.status import CallFailed, details_of

VERSION = "/containerd.services.version.v1.Version/Version"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
LIST = "/containerd.services.containers.v1.Containers/List"
WRITE = "/containerd.services.content.v1.Content/Write"
READ = "/containerd.services.content.v1.Content/Read"
MIB = 1 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.use_local_subchannel_pool", 1),
]


class Client:
    """grpcio's blocking client; each method is run in a thread."""

    def __init__(self, path: Path, **options: int) -> None:
        more = [("grpc." + name, value) for name, value in options.items()]
        self.channel = grpc.insecure_channel(f"unix:{path}", options=[*OPTIONS, *more])

    def unary(self, method: str, request: Any, answer: Any, **rest: Any) -> Any:
        call = self.channel.unary_unary(
            method, request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )  # fmt: skip
        return call(request, **{"timeout": 20, **rest})

    def stream(self, method: str, request: Any, answer: Any, **rest: Any) -> Any:
        call = self.channel.unary_stream(
            method, request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )  # fmt: skip
        return call(request, **{"timeout": 20, **rest})

    def bidi(self, method: str, requests: Iterator[Any], answer: Any, **rest: Any) -> Any:
        call = self.channel.stream_stream(
            method, request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )  # fmt: skip
        return call(requests, **{"timeout": 60, **rest})

    def code(self, *arguments: Any, **rest: Any) -> tuple[grpc.StatusCode, str]:
        try:
            self.unary(*arguments, **rest)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError("the call succeeded")


async def in_thread(work: Any) -> Any:
    return await trio.to_thread.run_sync(work)


@pytest.fixture
async def client(house: Any) -> AsyncIterator[Client]:
    client = Client(house.path)
    yield client
    # In a thread: it waits for its last write, so the server must go on reading.
    await in_thread(client.channel.close)


async def test_unary_and_metadata(house: Any, client: Client) -> None:
    answer = await in_thread(
        lambda: client.unary(
            LIST, ListContainersRequest(), ListContainersResponse,
            metadata=[("containerd-namespace", "ns"), ("containerd-lease", "lease")],
        )
    )  # fmt: skip
    assert [(c.id, c.image) for c in answer.containers] == [("ns", "lease")]
    code, text = await in_thread(
        lambda: client.code(LIST, ListContainersRequest(), ListContainersResponse)
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert text == "namespace is required: failed precondition"


async def test_the_peer_and_binary_metadata_reach_the_handler(house: Any, client: Client) -> None:
    await in_thread(
        lambda: client.unary(
            VERSION, Empty(), version.VersionResponse, metadata=[("x-bin", b"\0\xff")]
        )
    )
    context = house.contexts[0]
    assert context.metadata["x-bin"] == b"\0\xff"
    assert context.peer.uid == 0
    assert context.lease() is None


async def test_refusals_and_faults_arrive_as_statuses(house: Any, client: Client) -> None:
    def ask(do: str) -> Any:
        return client.code(VERSION, Empty(), version.VersionResponse, metadata=[("do", do)])

    assert await in_thread(lambda: ask("refuse")) == (
        grpc.StatusCode.NOT_FOUND,
        'container "ä%" in namespace "x": not found',
    )
    assert await in_thread(lambda: ask("group")) == (
        grpc.StatusCode.NOT_FOUND,
        "from a nursery",
    )
    assert await in_thread(lambda: ask("fault")) == (grpc.StatusCode.INTERNAL, "internal error")
    code, _text = await in_thread(lambda: client.code("/a.B/C", Empty(), Empty))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_256_messages_of_a_mib_each_way(house: Any, client: Client) -> None:
    def upload() -> int:
        blob = bytes(MIB)
        requests = (content.WriteContentRequest(data=blob) for _ in range(256))
        last = 0
        for answer in client.bidi(WRITE, requests, content.WriteContentResponse):
            last = answer.offset
        return last

    assert await in_thread(upload) == 256 * MIB


async def test_a_message_of_15_mib_and_one_too_large(house: Any, client: Client) -> None:
    def upload(size: int) -> Any:
        requests = iter([content.WriteContentRequest(data=bytes(size))])
        return [a.offset for a in client.bidi(WRITE, requests, content.WriteContentResponse)]

    assert await in_thread(lambda: upload(15 * MIB)) == [15 * MIB]
    with pytest.raises(grpc.RpcError) as caught:
        await in_thread(lambda: upload(17 * MIB))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_server_stream_to_its_end(house: Any, client: Client) -> None:
    def read() -> list[int]:
        request = content.ReadContentRequest(offset=1000, size=300)
        return [a.offset for a in client.stream(READ, request, content.ReadContentResponse)]

    assert await in_thread(read) == list(range(1000))


async def test_a_deadline_passes_at_both_ends(house: Any, client: Client) -> None:
    code, _text = await in_thread(
        lambda: client.code(
            VERSION, Empty(), version.VersionResponse, metadata=[("do", "wait")], timeout=0.1
        )
    )
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    with trio.fail_after(2):
        while not house.left:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert house.left == ["cancelled"]


async def test_a_cancelled_stream_cancels_its_handler(house: Any, client: Client) -> None:
    def watch() -> str:
        call = client.stream(SUBSCRIBE, SubscribeRequest(), Envelope)
        first = next(call)
        call.cancel()
        return str(first.topic)

    assert await in_thread(watch) == "/first"
    with trio.fail_after(2):
        while not house.left:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert house.left == ["cancelled"]


async def test_keepalive_pings_are_answered(house: Any) -> None:
    client = Client(
        house.path,
        keepalive_time_ms=100, keepalive_timeout_ms=500, keepalive_permit_without_calls=1,
        http2_max_pings_without_data=0,
    )  # fmt: skip
    call = await in_thread(lambda: client.stream(SUBSCRIBE, SubscribeRequest(), Envelope))
    assert (await in_thread(lambda: next(call))).topic == "/first"
    await trio.sleep(0.7)
    house.released.set()
    assert await in_thread(lambda: list(call)) == []
    await in_thread(client.channel.close)


async def test_gzip_is_refused_and_identity_served(house: Any, client: Client) -> None:
    request = SubscribeRequest(filters=["x" * 2000])
    code, _text = await in_thread(
        lambda: client.code(VERSION, request, Empty, compression=grpc.Compression.Gzip)
    )
    assert code is grpc.StatusCode.UNIMPLEMENTED
    await in_thread(lambda: client.unary(VERSION, Empty(), version.VersionResponse))


async def test_500_calls_from_16_threads(house: Any, client: Client) -> None:
    def many() -> int:
        with futures.ThreadPoolExecutor(16) as pool:
            calls = [
                pool.submit(client.unary, VERSION, Empty(), version.VersionResponse)
                for _ in range(500)
            ]
            return sum(call.result().version == "1" for call in calls)

    assert await in_thread(many) == 500


# -- grpcio as the server


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The same methods as the house's, in grpcio."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def service(self, details: Any) -> Any:
        metadata = dict(details.invocation_metadata)

        def version_(request: Any, context: Any) -> Any:
            do = metadata.get("do")
            if do == "refuse":
                context.abort(grpc.StatusCode.NOT_FOUND, "nö: 100%")
            if do == "internal":
                context.abort(grpc.StatusCode.INTERNAL, "broken")
            if do == "wait":
                context.add_callback(self.cancelled.set)
                self.cancelled.wait(10)
            return version.VersionResponse(version=metadata.get("x-bin", b"1"))

        def write(requests: Any, context: Any) -> Any:
            taken = 0
            for request in requests:
                if metadata.get("do") == "refuse":
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no room")
                taken += len(request.data)
                yield content.WriteContentResponse(offset=taken)

        def read(request: Any, context: Any) -> Any:
            for number in range(request.offset):
                yield content.ReadContentResponse(offset=number, data=bytes(request.size))

        def serialize(message: Any) -> bytes:
            return bytes(message.SerializeToString())

        if details.method == VERSION:
            return grpc.unary_unary_rpc_method_handler(version_, Empty.FromString, serialize)
        if details.method == WRITE:
            return grpc.stream_stream_rpc_method_handler(
                write, content.WriteContentRequest.FromString, serialize
            )
        if details.method == READ:
            return grpc.unary_stream_rpc_method_handler(
                read, content.ReadContentRequest.FromString, serialize
            )
        return None


class Foreign:
    def __init__(self, path: Path, **options: int) -> None:
        self.path = path
        self.handlers = Handlers()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(8),
            options=[*OPTIONS, *(("grpc." + name, value) for name, value in options.items())],
        )
        self.server.add_generic_rpc_handlers((self.handlers,))
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    foreign = Foreign(tmp_path / "foreign.sock")
    yield foreign
    foreign.server.stop(0).wait()


async def test_our_client_calls_grpcio(foreign: Foreign) -> None:
    async with Channel.connect(foreign.path) as channel:
        answer = await channel.unary(
            VERSION, Empty(), version.VersionResponse, {"x-bin": b"2", "y": "z"}
        )
        assert answer.version == "2"
        with pytest.raises(NotFound, match="nö: 100%"):
            await channel.unary(VERSION, Empty(), version.VersionResponse, {"do": "refuse"})
        with pytest.raises(CallFailed, match="INTERNAL: broken"):
            await channel.unary(VERSION, Empty(), version.VersionResponse, {"do": "internal"})
        with pytest.raises(Unimplemented):
            await channel.unary("/a.B/C", Empty(), Empty)


async def test_our_client_streams_with_grpcio(foreign: Foreign) -> None:
    async with Channel.connect(foreign.path) as channel:
        async with channel.stream(WRITE, content.WriteContentResponse) as upload:
            for _ in range(32):
                await upload.send(content.WriteContentRequest(data=bytes(MIB)))
            await upload.end()
            assert [answer.offset async for answer in upload][-1] == 32 * MIB
        async with channel.stream(READ, content.ReadContentResponse) as download:
            await download.send(content.ReadContentRequest(offset=2000, size=1000))
            await download.end()
            assert [answer.offset async for answer in download] == list(range(2000))
        async with channel.stream(WRITE, content.WriteContentResponse, {"do": "refuse"}) as call:
            await call.send(content.WriteContentRequest(data=bytes(MIB)))
            with pytest.raises(FailedPrecondition, match="no room"):
                await call.receive()


async def test_our_client_cancels_and_times_out_with_grpcio(foreign: Foreign) -> None:
    async with Channel.connect(foreign.path) as channel:
        with pytest.raises(DeadlineExceeded):
            await channel.unary(
                VERSION, Empty(), version.VersionResponse, {"do": "wait"}, timeout_s=0.2
            )
        assert await trio.to_thread.run_sync(foreign.handlers.cancelled.wait, 5)
        answer = await channel.unary(VERSION, Empty(), version.VersionResponse)
        assert answer.version == "1"


async def test_our_client_waits_for_room_when_the_server_allows_few_streams(
    tmp_path: Path,
) -> None:
    foreign = Foreign(tmp_path / "few.sock", max_concurrent_streams=2)
    answers: list[str] = []
    try:
        async with Channel.connect(foreign.path) as channel, trio.open_nursery() as nursery:

            async def ask() -> None:
                answer = await channel.unary(VERSION, Empty(), version.VersionResponse)
                answers.append(answer.version)

            await ask()
            for _ in range(40):
                nursery.start_soon(ask)
    finally:
        foreign.server.stop(0).wait()
    assert answers == ["1"] * 41


async def test_our_client_learns_that_the_server_has_gone(foreign: Foreign) -> None:
    async with Channel.connect(foreign.path) as channel:
        await channel.unary(VERSION, Empty(), version.VersionResponse)
        await trio.to_thread.run_sync(foreign.server.stop(0).wait)
        with pytest.raises(Unavailable):
            await channel.unary(VERSION, Empty(), version.VersionResponse)
    with pytest.raises(Unavailable):
        async with Channel.connect(foreign.path):
            raise AssertionError("nobody listens")


async def test_details_of_a_refusal_arrive(house: Any) -> None:
    async with house.channel() as channel:
        with pytest.raises(FailedPrecondition) as caught:
            await channel.unary(VERSION, Empty(), version.VersionResponse, {"do": "detail"})
    details = details_of(caught.value)
    assert [d.type_url for d in details] == ["type.googleapis.com/google.protobuf.Timestamp"]
