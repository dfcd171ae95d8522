"""Snapshots over each driver: the suite, and what is the graph's own."""

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from holdfast.actors import failpoints
from holdfast.actors.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from holdfast.actors.exits import KILL
from holdfast.actors.system import System
from holdfast.storage.leases import Leases
from holdfast.storage.mounts import detached, mount_all, unmount_all
from holdfast.storage.native import Native
from holdfast.storage.overlay import Overlay
from holdfast.storage.snapshotactor import SnapshotActor
from holdfast.storage.snapshots import Driver, SnapshotKeeper, Snapshots
from holdfast.storage.snapshotter import Kind
from holdfast.storage.store import Store, Transaction
from holdfast.storage.workers import Worker, Workers

sys.path.insert(0, str(Path(__file__).parent))
from check_snapshotter import CHECKS, NS, House, check_snapshotter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


def is_there(path: Path | str) -> bool:
    return Path(path).is_dir()


@asynccontextmanager
async def opened(tmp: Path, driver_name: str) -> AsyncGenerator[House, None]:
    async with System.open(), Store.open(tmp / "db") as store:
        workers = Workers(2)
        driver: Driver = Overlay() if driver_name == "overlayfs" else Native(workers)
        snapshots = Snapshots(store, driver, tmp / driver_name, workers)
        keeper = await SnapshotKeeper.spawn(snapshots)
        try:
            yield House(snapshots, store, tmp)
        finally:
            with trio.CancelScope(shield=True):
                keeper.shutdown()
                await keeper.wait_exit()
                await workers.close()


@pytest.mark.root
@pytest.mark.parametrize("driver_name", ["overlayfs", "native"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_each_driver_passes_the_suite(
    tmp_path: Path, driver_name: str, check: Callable[[House], Awaitable[None]]
) -> None:
    await check_snapshotter(lambda: opened(tmp_path, driver_name), check)


async def test_overlay_mounts_are_those_of_containerd(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        home = tmp_path / "overlayfs/snapshots"
        [mount] = await s.prepare(NS, "a", "")
        assert (mount.type, mount.source) == ("bind", f"{home}/1/fs")
        assert mount.options == ("rw", "rbind")
        await s.commit(NS, "A", "a")
        [mount] = await s.prepare(NS, "b", "A")
        assert (mount.type, mount.source) == ("overlay", "overlay")
        assert mount.options == (
            "index=off",
            f"workdir={home}/2/work",
            f"upperdir={home}/2/fs",
            f"lowerdir={home}/1/fs",
        )
        await s.commit(NS, "B", "b")
        [mount] = await s.view(NS, "v", "B")
        assert mount.options == ("index=off", f"lowerdir={home}/2/fs:{home}/1/fs")
        [mount] = await s.view(NS, "w", "A")
        assert (mount.source, mount.options) == (f"{home}/1/fs", ("ro", "rbind"))


async def test_a_restart_sweeps_what_has_no_record(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        await house.snapshotter.prepare(NS, "kept", "")
    orphan = tmp_path / "overlayfs/snapshots/77"
    (orphan / "fs/deep").mkdir(parents=True)
    (orphan / "fs/deep/file").write_text("x")
    async with opened(tmp_path, "overlayfs") as house:
        await house.snapshotter.cleanup()
        assert not is_there(orphan)
        [mount] = await house.snapshotter.mounts(NS, "kept")
        assert is_there(mount.source)
        [mount] = await house.snapshotter.prepare(NS, "new", "")
        assert mount.source == str(tmp_path / "overlayfs/snapshots/78/fs")


async def test_nothing_is_swept_while_the_store_has_damaged_records(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "told", "")
        Path(mount.source, "file").write_text("x")
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("UPDATE record SET value = x'00' WHERE kind = 'snapshot'")
        connection.commit()
    async with opened(tmp_path, "overlayfs") as house:
        assert house.store.damaged
        await house.snapshotter.cleanup()
        assert Path(mount.source, "file").read_text() == "x"
        [other] = await house.snapshotter.prepare(NS, "new", "")
        assert other.source != mount.source
        await house.store.forget_damaged(house.store.damaged)
    async with opened(tmp_path, "overlayfs") as house:
        await house.snapshotter.cleanup()
        assert not is_there(mount.source)
        assert is_there(other.source)


async def test_a_lost_committed_snapshot_refuses_use_but_not_removal(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        await s.prepare(NS, "a", "")
        await s.commit(NS, "A", "a")
        await s.prepare(NS, "b", "A")
        await s.view(NS, "v", "A")
    (tmp_path / "overlayfs/snapshots/1/fs").rmdir()
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        lost = r'snapshot "A": its directory .*/snapshots/1 is lost'
        for key in ("b", "v"):
            with pytest.raises(DataLoss, match=lost):
                await s.mounts(NS, key)
        with pytest.raises(DataLoss, match=lost):
            await s.prepare(NS, "c", "A")
        with pytest.raises(DataLoss, match=lost):
            await s.view(NS, "c", "A")
        assert [info.name for info in s.walk(NS)] == ["A", "b", "v"]
        for key in ("b", "v", "A"):
            await s.remove(NS, key)
        await s.cleanup()
        assert os.listdir(tmp_path / "overlayfs/snapshots") == []
        await s.prepare(NS, "a", "")
        await s.commit(NS, "A", "a")
        assert await s.view(NS, "v", "A")


async def test_a_snapshot_recorded_after_its_actor_was_killed_keeps_its_directory(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        held = threading.Event()
        begun = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def hold(tx: Transaction) -> None:
            token.run_sync_soon(begun.set)
            held.wait(10)

        async def prepare() -> None:
            with pytest.raises(Unavailable):
                await s.prepare(NS, "a", "")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.store.write, hold)
            await begun.wait()
            nursery.start_soon(prepare)
            directory = tmp_path / "overlayfs/snapshots/1/work"
            while not is_there(directory):
                await trio.sleep(0.01)
            [actor] = [c for c in System.current().cells if c.ref.actor_class is SnapshotActor]
            actor.ref.exit(KILL)
            held.set()
        await s.cleanup()
        recorded = [info.name for info in s.walk(NS)] == ["a"]
        assert recorded == is_there(directory)


async def test_an_active_snapshot_whose_directory_was_lost_is_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "active", "")
        await house.snapshotter.prepare(NS, "b", "")
        await house.snapshotter.commit(NS, "B", "b")
    os.rmdir(mount.source)
    (tmp_path / "overlayfs/snapshots/1").rename(tmp_path / "one")
    (tmp_path / "overlayfs/snapshots/2").rename(tmp_path / "two")
    async with opened(tmp_path, "overlayfs") as house:
        assert is_there(mount.source)
        # A committed one is not invented; everything else serves on.
        assert not is_there(tmp_path / "overlayfs/snapshots/2")


async def test_a_removed_snapshots_directory_goes(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "a", "")
        await house.snapshotter.remove(NS, "a")
        await house.snapshotter.cleanup()
        assert not is_there(Path(mount.source).parent)


async def test_a_workers_death_at_a_removal_costs_a_further_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "worker:job.remove=delay:60")
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "a", "")
        await house.snapshotter.remove(NS, "a")

        def working() -> list[int]:
            actors = [cell.actor for cell in System.current().cells]
            return [one.pid for one in actors if isinstance(one, Worker) and one.pid]

        with trio.fail_after(20):
            while not working():
                await trio.sleep(0.01)
        monkeypatch.delenv(failpoints.VARIABLE)
        await trio.sleep(0.3)
        assert is_there(Path(mount.source).parent)
        os.kill(working()[0], signal.SIGKILL)
        with trio.fail_after(20):
            await house.snapshotter.cleanup()
        assert not is_there(Path(mount.source).parent)


async def test_a_record_that_another_deletes_is_reclaimed(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "a", "")
        await house.store.write(lambda tx: tx.delete("snapshot", NS, "overlayfs/a"))
        await house.snapshotter.cleanup()
        assert not is_there(Path(mount.source).parent)


async def test_a_commit_keeps_the_directory(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        [mount] = await house.snapshotter.prepare(NS, "a", "")
        await house.snapshotter.commit(NS, "A", "a")
        await house.snapshotter.cleanup()
        assert is_there(mount.source)


async def test_a_refused_prepare_leaves_no_directory(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        with pytest.raises(NotFound, match="lease does not exist"):
            await house.snapshotter.prepare(NS, "a", "", lease="none")
        await house.snapshotter.cleanup()
        assert os.listdir(tmp_path / "overlayfs/snapshots") == []


async def test_a_lease_holds_what_is_made_under_it(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        leases = Leases(house.store)
        lease = await leases.create(NS, "lease-1")
        s = house.snapshotter
        await s.prepare(NS, "a", "", lease=lease.id)
        assert [r.id for r in leases.list_resources(NS, lease.id)] == ["a"]
        await s.commit(NS, "A", "a", lease=lease.id)
        [resource] = leases.list_resources(NS, lease.id)
        assert (resource.id, resource.type) == ("A", "snapshots/overlayfs")


async def test_of_many_who_prepare_one_key_one_wins(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        won: list[int] = []
        refused: list[int] = []

        async def prepare(number: int) -> None:
            try:
                await house.snapshotter.prepare(NS, "same", "")
                won.append(number)
            except Exception:
                refused.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(prepare, number)
        assert (len(won), len(refused)) == (1, 7)


async def test_a_parent_is_not_removed_under_a_child_on_its_way(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        await s.prepare(NS, "a", "")
        await s.commit(NS, "A", "a")
        results: list[str] = []

        async def prepare() -> None:
            try:
                await s.prepare(NS, "child", "A")
                results.append("prepared")
            except NotFound:
                results.append("no parent")

        async def remove() -> None:
            try:
                await s.remove(NS, "A")
                results.append("removed")
            except FailedPrecondition:
                results.append("has child")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(prepare)
            nursery.start_soon(remove)
        assert sorted(results) in (["has child", "prepared"], ["no parent", "removed"])


async def test_idle_snapshots_have_no_actor(tmp_path: Path) -> None:
    async with opened(tmp_path, "overlayfs") as house:
        s = house.snapshotter
        assert isinstance(s, Snapshots)
        for number in range(5):
            await s.prepare(NS, f"a{number}", "")
        alive = len(System.current().cells)
        s.idle_s = 0.0
        s.passivate()
        await trio.sleep(0.05)
        assert len(System.current().cells) == alive - 5
        assert (await s.usage(NS, "a0")).inodes == 1


async def test_without_its_keeper_it_says_so_and_serves_again_after_a_restart(
    tmp_path: Path,
) -> None:
    async with System.open(), Store.open(tmp_path / "db") as store:
        workers = Workers(1)
        s = Snapshots(store, Overlay(), tmp_path / "o", workers)
        with pytest.raises(Unavailable, match="not running"):
            await s.prepare(NS, "a", "")
        keeper = await SnapshotKeeper.spawn(s)
        await s.prepare(NS, "a", "")
        keeper.exit(KILL)
        await keeper.wait_exit()
        with pytest.raises(Unavailable):
            await s.prepare(NS, "b", "")
        await SnapshotKeeper.spawn(s)
        await s.prepare(NS, "b", "")
        assert [info.name for info in s.walk(NS)] == ["a", "b"]
        await workers.close()


@pytest.mark.root
@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a\\:b,c\\"])
async def test_a_root_may_have_any_name(tmp_path: Path, name: str) -> None:
    root, at = tmp_path / name, tmp_path / "at"
    root.mkdir()
    at.mkdir()
    async with opened(root, "overlayfs") as house:
        s = house.snapshotter
        [mount] = await s.prepare(NS, "a", "")
        Path(mount.source, "lowest").touch()
        await s.commit(NS, "A", "a")
        mounts = await s.prepare(NS, "b", "A")
        mount_all(mounts, str(at))
        try:
            (at / "upper").touch()
        finally:
            unmount_all(str(at))
        await s.commit(NS, "B", "b")
        with detached(await s.prepare(NS, "c", "B")) as fd:
            assert sorted(os.listdir(fd)) == ["lowest", "upper"]
        with detached(await s.view(NS, "v", "B")) as fd:
            assert sorted(os.listdir(fd)) == ["lowest", "upper"]


@pytest.mark.root
def test_overlay_is_only_offered_where_it_works(tmp_path: Path) -> None:
    driver = trio.run(Overlay.probe, tmp_path)
    assert isinstance(driver, Overlay)
    assert os.listdir(tmp_path) == []
    assert isinstance(trio.run(Overlay.probe, tmp_path / "a:b,c"), Overlay)
    [mount] = driver.mounts(tmp_path / "2", Kind.ACTIVE, [tmp_path / "1"])
    assert mount.options[0] == "index=off"
    at = tmp_path / "at"
    for path in (at, tmp_path / "1/fs", tmp_path / "2/fs", tmp_path / "2/work"):
        path.mkdir(parents=True)
    mount_all([mount], str(at))
    try:
        # An upper directory on an overlay is more than the kernel takes.
        assert "skip plugin" in str(trio.run(Overlay.probe, at))
    finally:
        unmount_all(str(at))
