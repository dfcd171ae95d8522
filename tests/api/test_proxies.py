"""Snapshots of another process: the suite over the wire, deaths between the steps, silence."""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import AlreadyExists, NotFound, Refusal, Unavailable
from holdfast.actors.system import System
from holdfast.api.grpc.server import GrpcServer, listen_unix
from holdfast.api.proxies.breaker import FAILURES_MAX, PAUSE_CAP_S, PAUSE_FIRST_S, Breaker
from holdfast.api.proxies.proxy import Proxy
from holdfast.api.proxies.snapshots import ProxiedSnapshots
from holdfast.api.services import snapshots as service
from holdfast.storage.lentsnapshots import NAMESPACE, LentSnapshots
from holdfast.storage.overlay import Overlay
from holdfast.storage.remotesnapshots import RemoteKeeper, RemoteSnapshots
from holdfast.storage.snapshotrecords import LABEL_TARGET
from holdfast.storage.snapshots import SnapshotKeeper, Snapshots
from holdfast.storage.snapshotter import Info, Kind
from holdfast.storage.store import Store
from holdfast.storage.workers import Workers

sys.path.insert(0, str(Path(__file__).parent.parent / "storage"))
from check_snapshotter import CHECKS, NS, House, check_snapshotter

HOST = "0123456789ab-cdef"


@asynccontextmanager
async def lender(tmp: Path) -> AsyncGenerator[Snapshots]:
    """A process's snapshots, served on a socket."""
    async with Store.open(tmp / "lender.db") as store, trio.open_nursery() as nursery:
        workers = Workers(2)
        snapshots = Snapshots(store, Overlay(), tmp / "lent", workers)
        keeper = await SnapshotKeeper.spawn(snapshots)
        try:
            listener = await listen_unix(tmp / "lent.sock", 0o600)
            nursery.start_soon(GrpcServer([service.lent(LentSnapshots(snapshots))]).serve, listener)
            yield snapshots
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                keeper.shutdown()
                await keeper.wait_exit()
                await workers.close()


@asynccontextmanager
async def borrower(tmp: Path, within_s: float = 20.0) -> AsyncGenerator[House]:
    """A snapshotter whose trees are the lender's."""
    async with Store.open(tmp / "borrower.db") as store:
        proxy = Proxy("lent", str(tmp / "lent.sock"), within_s)
        snapshots = RemoteSnapshots(store, "lent", ProxiedSnapshots(proxy, "any"), HOST)
        keeper = await RemoteKeeper.spawn(snapshots)
        try:
            yield House(snapshots, store, tmp)
        finally:
            keeper.shutdown()
            await keeper.wait_exit()


@asynccontextmanager
async def both(tmp: Path) -> AsyncGenerator[House]:
    async with System.open(), lender(tmp), borrower(tmp) as house:
        yield house


@pytest.mark.root
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_remote_snapshotter_passes_the_suite(
    tmp_path: Path, check: Callable[[House], Awaitable[None]]
) -> None:
    await check_snapshotter(lambda: both(tmp_path), check)


def remote_of(house: House) -> RemoteSnapshots:
    assert isinstance(house.snapshotter, RemoteSnapshots)
    return house.snapshotter


async def test_a_death_after_the_making_leaves_nothing(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as lent:
        async with borrower(tmp_path) as house:
            remote = remote_of(house).remote
            # What a kill between the other side's work and our record leaves.
            await remote.prepare(NS, Kind.ACTIVE, f"{NS}/{HOST.replace('-', '')[:12]}-1/x", "", {})
            await remote.prepare(NS, Kind.ACTIVE, f"{NS}/somebody-else/x", "", {})
            await house.snapshotter.prepare(NS, "kept", "")
            assert len(lent.walk(NAMESPACE)) == 3
        async with borrower(tmp_path) as house:
            with trio.fail_after(10):
                while len(lent.walk(NAMESPACE)) != 2:
                    await trio.sleep(0.01)
            names = sorted(info.name for info in lent.walk(NAMESPACE))
            assert [name.rpartition("/")[2] for name in names] == ["kept", "x"]
            assert names[1] == f"{NS}/somebody-else/x"
            assert await house.snapshotter.mounts(NS, "kept")


@pytest.mark.parametrize("took_effect", [False, True])
async def test_a_death_within_a_commit_leaves_the_old_or_the_new(
    tmp_path: Path, took_effect: bool
) -> None:
    async with System.open(), lender(tmp_path) as lent:
        async with borrower(tmp_path) as house:
            snapshots = remote_of(house)
            await snapshots.prepare(NS, "key", "")
            place = next(iter(snapshots.index.scan(NS)))[0]
            active = snapshots.index.require(place)
            target = active.remote.replace("/key", "/name")
            intent = active.committing("name", target, {"a": "b"}, "")
            await house.store.write(lambda tx: snapshots.index.put_in(tx, place, intent))
            if took_effect:
                await snapshots.remote.commit(NS, target, active.remote, {})
        async with borrower(tmp_path) as house:
            with trio.fail_after(10):
                while remote_of(house).index.get(place) == intent:
                    await trio.sleep(0.01)
            if took_effect:
                info = house.snapshotter.stat(NS, "name")
                assert (info.kind, info.labels) == (Kind.COMMITTED, {"a": "b"})
                with pytest.raises(NotFound):
                    house.snapshotter.stat(NS, "key")
            else:
                assert house.snapshotter.stat(NS, "key").kind is Kind.ACTIVE
                await house.snapshotter.commit(NS, "name", "key")
            assert [info.kind for info in lent.walk(NAMESPACE)] == [Kind.COMMITTED]


async def test_a_commit_of_which_nobody_can_tell_is_settled_later(tmp_path: Path) -> None:
    class Silent(ProxiedSnapshots):
        silent = False

        async def commit(
            self, namespace: str, name: str, active: str, labels: Mapping[str, str]
        ) -> None:
            await super().commit(namespace, name, active, labels)
            self.silent = True
            raise Unavailable("its answer is lost")

        async def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
            if self.silent:
                raise Unavailable("it is silent")
            return await super().walk(namespace, filters)

    async with System.open(), lender(tmp_path) as lent, Store.open(tmp_path / "b.db") as store:
        remote = Silent(Proxy("lent", str(tmp_path / "lent.sock"), 10.0), "any")
        snapshots = RemoteSnapshots(store, "lent", remote, HOST)
        await snapshots.prepare(NS, "key", "")
        with pytest.raises(Unavailable, match="silent"):
            await snapshots.commit(NS, "name", "key")
        assert snapshots.stat(NS, "key").kind is Kind.ACTIVE
        remote.silent = False
        with pytest.raises(AlreadyExists):
            await snapshots.commit(NS, "name", "key")
        assert snapshots.stat(NS, "name").kind is Kind.COMMITTED
        assert [info.kind for info in lent.walk(NAMESPACE)] == [Kind.COMMITTED]


async def test_what_our_side_forgets_goes_there_too(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as lent, borrower(tmp_path) as house:
        await house.layer("base", "", lambda root: (root / "f").write_text("1"))
        await house.layer("top", "base", lambda root: (root / "g").write_text("2"))
        assert len(lent.walk(NAMESPACE)) == 2
        # The collector's way: records go, in any order.
        await house.store.write(lambda tx: tx.delete("snapshot", NS, "lent/base"))
        await house.store.write(lambda tx: tx.delete("snapshot", NS, "lent/top"))
        with trio.fail_after(10):
            await house.snapshotter.cleanup()
            while lent.walk(NAMESPACE):
                await trio.sleep(0.01)


async def test_a_layer_that_is_there_need_not_be_made(tmp_path: Path) -> None:
    """`containerd.io/snapshot.ref`: how a lazy-pulling snapshotter says that it has a layer."""

    class Lazy(LentSnapshots):
        async def prepare(self, namespace, key, parent, labels=None, *, lease=""):  # type: ignore[no-untyped-def]
            target = (labels or {}).get(LABEL_TARGET)
            made = await super().prepare(namespace, key, parent, labels)
            if target:
                await self.commit(namespace, f"own/{target}", key, labels)
                raise AlreadyExists(f"target snapshot {target}: already exists")
            return made

    async with System.open(), lender(tmp_path) as lent, trio.open_nursery() as nursery:
        listener = await listen_unix(tmp_path / "lazy.sock", 0o600)
        nursery.start_soon(GrpcServer([service.lent(Lazy(lent))]).serve, listener)
        async with Store.open(tmp_path / "b.db") as store:
            proxy = Proxy("lazy", f"unix://{tmp_path}/lazy.sock", 10.0)
            snapshots = RemoteSnapshots(store, "lazy", ProxiedSnapshots(proxy, "lazy"), HOST)
            with pytest.raises(AlreadyExists, match="target snapshot"):
                await snapshots.prepare(NS, "extract", "", {LABEL_TARGET: "sha256:1"})
            assert snapshots.stat(NS, "sha256:1").kind is Kind.COMMITTED
            assert await snapshots.prepare(NS, "web", "sha256:1")
            assert lent.stat(NAMESPACE, "own/sha256:1").kind is Kind.COMMITTED
        nursery.cancel_scope.cancel()


async def test_one_that_is_not_there_is_told_soon_and_taken_up_later(tmp_path: Path) -> None:
    async with System.open(), borrower(tmp_path, within_s=0.2) as house:
        for _ in range(FAILURES_MAX):
            with pytest.raises(Unavailable, match="connect to"):
                await house.snapshotter.prepare(NS, "a", "")
        with pytest.raises(Unavailable, match="asked again in"):
            await house.snapshotter.prepare(NS, "a", "")
        assert house.snapshotter.walk(NS) == []
        async with lender(tmp_path):
            with trio.fail_after(10):
                while True:
                    try:
                        await house.snapshotter.prepare(NS, "a", "")
                        break
                    except Unavailable:
                        await trio.sleep(0.05)


async def test_one_that_hangs_costs_its_deadline(tmp_path: Path) -> None:
    async with System.open(), trio.open_nursery() as nursery:
        listener = await listen_unix(tmp_path / "lent.sock", 0o600)

        async def swallow(stream: trio.SocketStream) -> None:
            async with stream:
                async for _ in stream:
                    pass

        nursery.start_soon(trio.serve_listeners, swallow, [listener])
        async with borrower(tmp_path, within_s=0.2) as house:
            began_s = trio.current_time()
            with pytest.raises(Refusal):
                await house.snapshotter.prepare(NS, "a", "")
            assert trio.current_time() - began_s < 2.0
        nursery.cancel_scope.cancel()


def test_the_breaker_opens_waits_longer_and_closes() -> None:
    breaker = Breaker("it")
    for _ in range(FAILURES_MAX):
        breaker.enter(0.0)
        breaker.failed(0.0, "silence")
    with pytest.raises(Unavailable, match=r"it does not answer \(silence\); .* in 1.0 s"):
        breaker.enter(0.0)
    breaker.enter(PAUSE_FIRST_S)
    with pytest.raises(Unavailable):
        breaker.enter(PAUSE_FIRST_S)  # one probe at a time
    breaker.failed(PAUSE_FIRST_S, "silence")
    assert breaker.pause_s == 2 * PAUSE_FIRST_S
    for _ in range(10):
        breaker.failed(2.0, "silence")
    assert breaker.pause_s == PAUSE_CAP_S
    breaker.enter(100.0)
    breaker.withdrawn()
    breaker.enter(100.0)
    breaker.answered()
    breaker.enter(0.0)
    breaker.enter(0.0)
