"""Events cannot be lost: a subscriber may go away and come back, or never read."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from bench.daemons import Daemon, running
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from holdfast.api.grpc.client import Channel
from holdfast.api.proto.services import admin_pb2, events_pb2
from holdfast.api.proto.types_pb2 import Envelope

pytestmark = [pytest.mark.root, pytest.mark.slow]

PUBLISH = "/containerd.services.events.v1.Events/Publish"
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
EVENTS = "/holdfast.admin.v1.Admin/Events"
METADATA = {"containerd-namespace": "burst"}
BURST = 1000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running("holdfast", tmp_path_factory.mktemp("events")) as started:
        yield started


async def publish(channel: Channel, number: int, size: int = 20) -> None:
    event = AnyMessage(type_url="example.Burst", value=b"%d " % number + b"x" * size)
    request = events_pb2.PublishRequest(topic="/burst/event", event=event)
    await channel.unary(PUBLISH, request, Empty, METADATA, timeout_s=30)


async def read_events(channel: Channel, since: int | None, count: int) -> list[tuple[int, int]]:
    """`count` events as pairs of sequence and published number."""
    found: list[tuple[int, int]] = []
    async with channel.stream(EVENTS, admin_pb2.EventsResponse, METADATA) as call:
        await call.send(admin_pb2.EventsRequest(since=since))
        await call.end()
        while len(found) < count:
            answer = await call.receive()
            assert answer is not None
            found.append((answer.sequence, int(answer.envelope.event.value.split()[0])))
    return found


async def test_a_subscriber_that_was_away_for_a_burst_sees_every_event_once(
    daemon: Daemon,
) -> None:
    with trio.fail_after(60):
        async with Channel.connect(str(daemon.socket)) as channel:
            await publish(channel, 0)
            ((last, _),) = await read_events(channel, 0, 1)
        async with Channel.connect(str(daemon.socket)) as channel:
            async with trio.open_nursery() as nursery:
                limit = trio.CapacityLimiter(50)

                async def one(number: int) -> None:
                    async with limit:
                        await publish(channel, number)

                for number in range(1, BURST + 1):
                    nursery.start_soon(one, number)
        async with Channel.connect(str(daemon.socket)) as channel:
            seen = await read_events(channel, last, BURST)
        assert [sequence for sequence, _ in seen] == list(range(last + 1, last + BURST + 1))
        assert sorted(number for _, number in seen) == list(range(1, BURST + 1))


async def test_the_header_replays_on_containerds_own_subscribe(daemon: Daemon) -> None:
    with trio.fail_after(30):
        async with Channel.connect(str(daemon.socket)) as channel:
            metadata = {**METADATA, "holdfast-since": "0"}
            async with channel.stream(SUBSCRIBE, Envelope, metadata) as call:
                await call.send(events_pb2.SubscribeRequest(filters=['topic=="/burst/event"']))
                await call.end()
                first = await call.receive()
                assert first is not None
                assert first.event.value.split()[0] == b"0"


async def test_a_subscriber_that_never_reads_costs_little(daemon: Daemon) -> None:
    """A gigabyte would be queued without a bound: 10,000 events of 16 KiB are 160 MiB."""
    with trio.fail_after(120):
        async with (
            Channel.connect(str(daemon.socket)) as channel,
            Channel.connect(str(daemon.socket)) as idle,
        ):
            for number in range(200):  # what any load costs once is not the subscriber's
                await publish(channel, number, 16 << 10)
            before = resident_kib(daemon.pid)
            async with idle.stream(SUBSCRIBE, Envelope, METADATA) as call:
                await call.send(events_pb2.SubscribeRequest())
                await call.end()
                async with trio.open_nursery() as nursery:
                    limit = trio.CapacityLimiter(16)

                    async def one(number: int) -> None:
                        async with limit:
                            await publish(channel, number, 16 << 10)

                    for number in range(3000):
                        nursery.start_soon(one, number)
                grown = resident_kib(daemon.pid) - before
        assert grown < 4096, f"{grown} KiB"


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_the_command_prints_what_since_takes(daemon: Daemon) -> None:
    words = [sys.executable, "-m", "holdfast", "--address", str(daemon.socket)]
    with subprocess.Popen(
        [*words, "events", "--since", "0", "--format", "json"], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        first = json.loads(listener.stdout.readline())
        listener.terminate()
    assert first["sequence"] == 1
