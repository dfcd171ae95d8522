"""Pulls that are cut off, killed, out of room, metered and shared; from docker-registry."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from google.protobuf.empty_pb2 import Empty

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import busybox_layers
from bench.daemons import running
from faultproxy import Asked, Fault, FaultProxy, Script
from servers import Server, registry
from transfers import NS, TRANSFER, move, served
from uploads import Made, make, make_of, upload

from holdfast.actors.errors import InvalidArgument, Refusal, ResourceExhausted, Unavailable
from holdfast.actors.exits import KILL
from holdfast.api.grpc.call import PULL_RATE
from holdfast.api.grpc.client import Channel
from holdfast.api.host import Host, embedded, open_host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.services import transfer_pb2
from holdfast.api.streams import packed
from holdfast.runtime.vault import teardown
from holdfast.storage.expiry import left_ns, read_clock
from holdfast.storage.platform import host as platform_of_host
from holdfast.storage.registry.auth import no_credentials
from holdfast.storage.registry.download import Download
from holdfast.storage.registry.fetches import RATE_LABEL
from holdfast.storage.snapshotter import Kind
from holdfast.storage.transfer import ImageStore, Progress, RegistryPlace, Unpack
from holdfast.supervision.verbs import which_children

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="a host keeps snapshots as root")
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("registry") / "r") as started:
        yield started


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    async with trio.open_nursery() as nursery:
        yield await FaultProxy.listen(nursery, server.authority)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(base: Path, **settings: object) -> AsyncIterator[Host]:
    """A host that waits for less than others do."""
    given = {"pull_stall_s": 2.0, **settings}
    try:
        async with open_host(embedded(base / "root", base / "state", given)) as host:
            yield host
    finally:
        teardown(str(base / "state"))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path) as started:
        yield started


async def uploaded(server: Server, name: str, image: Made) -> Made:
    await trio.to_thread.run_sync(upload, server.authority, name, "1", image)
    return image


async def pull(
    host: Host,
    text: str,
    namespace: str = "default",
    *,
    bytes_per_s: int = 0,
    told: list[Progress] | None = None,
    unpacks: tuple[Unpack, ...] = (),
) -> None:
    async def report(progress: Progress) -> None:
        if told is not None:
            told.append(progress)
        await trio.lowlevel.checkpoint()

    place = RegistryPlace(reference=text, bytes_per_s=bytes_per_s)
    store = ImageStore(name="pulled:1", unpacks=unpacks)
    await host.transfers.pull(namespace, place, store, no_credentials, report)


async def holds(host: Host, image: Made, namespace: str = "default") -> None:
    """The namespace has the image, whole, and nothing of its way."""
    here = {info.digest for info in host.content.list(namespace)}
    assert here == image.blobs.keys()
    for digest in here:
        await host.content.verify(namespace, digest)
    assert host.images.get(namespace, "pulled:1").target.digest == image.digest
    assert not await host.content.list_statuses(namespace)
    assert not list((host.config.root / "content/ingest").iterdir())
    assert not host.leases.list(namespace)
    assert not host.crashes.reports()


def largest(image: Made) -> tuple[str, int]:
    """The digest and size of its largest blob."""
    return max(((digest, len(raw)) for digest, raw in image.blobs.items()), key=lambda one: one[1])


def sent_of(proxy: FaultProxy, digest: str) -> int:
    return sum(count for path, count in proxy.sent.items() if path.endswith(digest))


def asked_for(proxy: FaultProxy, digest: str) -> list[str]:
    """The ranges that were asked for, in order."""
    return [one.headers.get("range", "") for one in proxy.asked if one.path.endswith(digest)]


def at_first(digest: str, fault: Fault) -> Script:
    """Harm the first answer with this blob."""

    def script(asked: Asked) -> Fault | None:
        return fault if asked.path.endswith(digest) and asked.nth == 1 else None

    return script


async def until(true: Callable[[], bool], within_s: float = 20) -> None:
    with trio.fail_after(within_s):
        while not true():
            await trio.sleep(0.01)


@pytest.mark.root
@pytest.mark.slow
async def test_a_pull_killed_half_way_goes_on_with_what_it_had(
    server: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    image = await uploaded(server, "killed", make(Random(1), (48 * MIB, 12 * MIB, 4 * MIB)))
    total = sum(map(len, image.blobs.values()))
    # Slow enough for little to be on its way between the two.
    proxy.bytes_per_s = 16 * MIB
    place = types.OCIRegistry(reference=f"{proxy.authority}/killed:1")
    store = types.ImageStore(name="pulled:1")

    async def ask(socket: Path) -> None:
        async with Channel.connect(socket) as channel:
            await move(channel, place, store)

    cut_off: list[bool] = []

    async def ask_in_vain(socket: Path) -> None:
        try:
            await ask(socket)
        except* (Refusal, OSError, trio.BrokenResourceError):
            cut_off.append(True)

    with running("holdfast", tmp_path) as daemon:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_in_vain, daemon.socket)
            await until(lambda: proxy.sent.total() >= total // 2)
            os.kill(daemon.pid, signal.SIGKILL)
    assert cut_off
    had = proxy.sent.total()
    assert total // 2 <= had < total * 3 // 4
    with running("holdfast", tmp_path) as daemon:
        await ask(daemon.socket)
    again = proxy.sent.total() - total
    print(f"{had} of {total} bytes before the kill, {again} of them again: {again / had:.1%}")
    assert 0 <= again < had * 0.05
    async with opened(tmp_path) as host:
        await holds(host, image)


async def test_a_full_disk_is_told_and_the_pull_goes_on_once_there_is_room(
    server: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    image = await uploaded(server, "large", make(Random(2), (20 * MIB, 100_000)))
    digest, size = largest(image)
    content = tmp_path / "root/content"
    content.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", content], check=True)
    try:
        async with opened(tmp_path, pull_range_bytes=2 * MIB) as host:
            with pytest.raises(
                ResourceExhausted, match=r"No space left on device.* bytes are kept"
            ):
                await pull(host, f"{proxy.authority}/large:1")
            await host.collector.collect()
            (status,) = await host.content.list_statuses("default")
            assert status.ref == f"layer-{digest}"
            assert status.offset >= 2 * MIB
            # It and the config wait for a day, and are garbage then.
            ingest = host.store.get("ingest", "default", status.ref)
            (lease,) = host.leases.list("default")
            assert lease.id == f"pull-{image.digest}"
            for kind, record in (
                ("ingest", ingest),
                ("lease", host.store.get("lease", "default", lease.id)),
            ):
                assert record is not None
                left_s = (left_ns(kind, record, read_clock()) or 0) / 1e9
                assert 23 * 3600 < left_s <= 24 * 3600
            assert not host.images.list("default")
            subprocess.run(["mount", "-o", "remount,size=64m", content], check=True)
            await pull(host, f"{proxy.authority}/large:1")
            assert size <= sent_of(proxy, digest) < size + 4 * MIB
            await holds(host, image)
    finally:
        subprocess.run(["umount", "-l", content], check=True)


async def test_what_stalls_is_asked_for_again_from_where_it_is(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    image = await uploaded(server, "stalled", make(Random(3), (MIB,)))
    digest, size = largest(image)
    for kind in ("stall", "cut"):
        proxy.begin(at_first(digest, Fault(kind=kind, at=0.5, number=1)))
        with trio.fail_after(20):
            await pull(host, f"{proxy.authority}/stalled:1")
        begins = size // 2
        assert asked_for(proxy, digest) == ["", f"bytes={begins}-"]
        assert sent_of(proxy, digest) == size
        await holds(host, image)
        await emptied(host)


async def emptied(host: Host, namespace: str = "default") -> None:
    for image in host.images.list(namespace):
        await host.images.delete(namespace, image.name)
    await host.collector.collect()
    assert not host.content.list(namespace)


async def test_a_large_blob_comes_in_ranges_where_the_server_gives_them(
    server: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    image = await uploaded(server, "ranges", make(Random(4), (3 * MIB + 17,)))
    digest, size = largest(image)
    async with opened(tmp_path, pull_range_bytes=MIB // 2) as host:
        await pull(host, f"{proxy.authority}/ranges:1")
        asked = asked_for(proxy, digest)
        assert asked[0] == "bytes=0-131071"
        assert asked[-1] == f"bytes={3 * MIB}-"
        assert len(asked) == 8
        assert sent_of(proxy, digest) == size
        await holds(host, image)
        await emptied(host)
        # One that gives all whatever it is asked for is let go on.
        proxy.begin(lambda _: Fault(kind="ignore-range"))
        await pull(host, f"{proxy.authority}/ranges:1")
        assert asked_for(proxy, digest) == ["bytes=0-131071"]
        assert sent_of(proxy, digest) == size
        await holds(host, image)
        await emptied(host)
        # One that gives other bytes, and says so, gives none at all.
        proxy.begin(lambda _: Fault(kind="other-range"))
        with pytest.raises(Unavailable, match="answered 'bytes"):
            await pull(host, f"{proxy.authority}/ranges:1")
        # One that does not say so is found out, and asked once more for the whole.
        proxy.begin(lambda _: Fault(kind="other-range", number=1))
        await pull(host, f"{proxy.authority}/ranges:1")
        assert asked_for(proxy, digest)[-1] == ""
        await holds(host, image)


async def test_two_who_pull_the_same_share_each_byte(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    image = await uploaded(server, "shared", make(Random(5), (2 * MIB, 300_000)))
    proxy.bytes_per_s = 4 * MIB
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pull, host, f"{proxy.authority}/shared:1")
        nursery.start_soon(pull, host, f"{proxy.authority}/shared:1", "other")
    for digest, raw in image.blobs.items():
        if digest not in image.manifests:
            assert sent_of(proxy, digest) == len(raw)
    await holds(host, image)
    await holds(host, image, "other")


async def test_isolated_namespaces_do_not_share(
    server: Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    image = await uploaded(server, "apart", make(Random(6), (MIB,)))
    digest, size = largest(image)
    proxy.bytes_per_s = 4 * MIB
    async with opened(tmp_path, content_sharing="isolated") as host:
        async with trio.open_nursery() as nursery:
            for namespace in ("one", "two"):
                nursery.start_soon(pull, host, f"{proxy.authority}/apart:1", namespace)
        assert sent_of(proxy, digest) == 2 * size
        await holds(host, image, "one")
        await holds(host, image, "two")


async def test_a_client_that_goes_away_does_not_end_anothers_pull(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    image = await uploaded(server, "left", make(Random(7), (2 * MIB,)))
    digest, size = largest(image)
    proxy.bytes_per_s = 2 * MIB
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def leave() -> None:
            with first:
                await pull(host, f"{proxy.authority}/left:1")

        nursery.start_soon(leave)
        await until(lambda: sent_of(proxy, digest) > 0)
        nursery.start_soon(pull, host, f"{proxy.authority}/left:1")
        await until(lambda: sent_of(proxy, digest) > size // 2)
        first.cancel()
    # Only what was under way is brought again.
    assert size <= sent_of(proxy, digest) < size * 1.25
    await holds(host, image)


async def test_a_fetch_that_falls_is_begun_anew_where_it_was(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    image = await uploaded(server, "fallen", make(Random(8), (2 * MIB,)))
    digest, size = largest(image)
    proxy.bytes_per_s = 2 * MIB
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, host, f"{proxy.authority}/fallen:1")
        for kind, part in (("fetches", 4), ("ingests", 2)):
            await until(lambda part=part: sent_of(proxy, digest) > size // part)
            (child,) = await which_children(host.system.at(kind))
            assert child.ref is not None
            child.ref.exit(KILL)
    assert size <= sent_of(proxy, digest) < size * 1.5
    assert not await host.content.list_statuses("default")
    await host.content.verify("default", digest)


async def test_a_fault_of_a_fetch_is_told_and_is_the_pulls_end(
    server: Server, proxy: FaultProxy, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fall(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    await uploaded(server, "faulty", make(Random(13), (1000,)))
    with monkeypatch.context() as patched:
        patched.setattr(Download, "run", fall)
        with pytest.raises(Unavailable, match="its fetch was ended"):
            await pull(host, f"{proxy.authority}/faulty:1")
    assert "a fault of ours" in host.crashes.reports(supervisor="holdfast/fetches")[0].reason
    await pull(host, f"{proxy.authority}/faulty:1")


async def test_a_pull_and_a_namespace_have_their_rates(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    for number in range(3):
        await uploaded(server, f"metered-{number}", make(Random(9 + number), (MIB,)))

    async def took_s(*pulls: tuple[int, int]) -> float:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, rate in pulls:
                place = RegistryPlace(
                    reference=f"{proxy.authority}/metered-{number}:1", bytes_per_s=rate
                )
                store = ImageStore(name=f"pulled:{number}")
                nursery.start_soon(
                    host.transfers.pull, "default", place, store, no_credentials, silent
                )
        return trio.current_time() - began_s

    async def silent(_: Progress) -> None:
        await trio.lowlevel.checkpoint()

    # A quarter of a second is let through at once.
    assert await took_s((0, MIB // 2)) >= 1.7
    await host.namespaces.update("default", {RATE_LABEL: str(MIB)}, [f"labels.{RATE_LABEL}"])
    assert await took_s((1, 0), (2, 0)) >= 1.7
    await emptied(host)
    await host.namespaces.update("default", {RATE_LABEL: ""}, [f"labels.{RATE_LABEL}"])
    assert await took_s((1, 0), (2, 0)) < 1.7


def kinds(host: Host) -> list[Kind]:
    return [one.kind for one in host.snapshotter().walk("default")]


async def test_layers_are_unpacked_while_later_ones_are_coming(
    server: Server, proxy: FaultProxy, host: Host
) -> None:
    image = await uploaded(server, "unpacked", make_of(busybox_layers()))
    second = image.layers[1]
    unpacked = trio.Event()

    async def hold(asked: Asked) -> None:
        if asked.path.endswith(second):
            await unpacked.wait()

    proxy.before = hold
    wanted = Unpack(platform=platform_of_host(), snapshotter="")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: pull(host, f"{proxy.authority}/unpacked:1", unpacks=(wanted,))
            )
            await until(lambda: Kind.COMMITTED in kinds(host))
            assert sent_of(proxy, second) == 0
            unpacked.set()
    assert len(list(host.snapshotter().walk("default"))) == 2
    await holds(host, image)


async def test_an_ingest_whose_client_went_away_while_it_opened_is_let_go(host: Host) -> None:
    async with await host.content.open_ingest("default", "half") as half:
        await half.write(bytes(20 * MIB))
    for step in range(20):
        with trio.move_on_after(step * 0.002):
            async with await host.content.open_ingest("default", "half"):
                pass
    assert not await which_children(host.system.at("ingests"))


async def test_a_calls_rate_is_heeded(server: Server, proxy: FaultProxy, tmp_path: Path) -> None:
    await uploaded(server, "rated", make(Random(12), (MIB,)))
    source = types.OCIRegistry(reference=f"{proxy.authority}/rated:1")
    store = types.ImageStore(name="pulled:1")
    async with served(tmp_path) as (_, channel):
        request = transfer_pb2.TransferRequest(source=packed(source), destination=packed(store))
        began_s = trio.current_time()
        await channel.unary(TRANSFER, request, Empty, {**NS, PULL_RATE: str(MIB // 2)}, 60)
        assert trio.current_time() - began_s >= 1.7
        with pytest.raises(InvalidArgument, match="a number of bytes"):
            await channel.unary(TRANSFER, request, Empty, {**NS, PULL_RATE: "1k"}, 60)
