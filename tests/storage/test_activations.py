"""Mounts under a name: made whole or not at all, found again, given back."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from holdfast.actors import failpoints
from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
    Unimplemented,
)
from holdfast.actors.system import System
from holdfast.storage import loop
from holdfast.storage.activations import Activation, Activations
from holdfast.storage.collector import Collector
from holdfast.storage.containers import Container, Containers, Opaque, Runtime
from holdfast.storage.leases import Leases
from holdfast.storage.mountjobs import mount_points, take_off
from holdfast.storage.mountplan import Plan, Step
from holdfast.storage.mounts import Mount, mount_all, unmount_all
from holdfast.storage.namespaces import Namespaces
from holdfast.storage.store import Store
from holdfast.storage.workers import WorkerFault, Workers

pytestmark = pytest.mark.root

NS = "default"
LOOP = Mount(type="loop", source="/etc/hostname")
NAME = "web-root"


class House:
    """Activations over a store, below one directory."""

    def __init__(self, base: Path, store: Store, workers: Workers) -> None:
        self.base = base
        self.store = store
        self.home = base / "mounts"
        self.activations = Activations(store, workers, self.home, [base / "data"])
        self.collector = Collector(store, {"mount": self.activations.reclaim})

    def stack(self, size: str = "8M") -> list[Mount]:
        """A filesystem in a file, and an overlay whose upper part lies in it."""
        top = "{{ mount 1 }}"
        (self.base / "data/lower").mkdir(exist_ok=True)
        (self.base / "data/lower/below").write_text("below")
        return [
            Mount(
                type="mkfs/loop",
                source=f"{self.base}/data/disk",
                options=(f"X-containerd.mkfs.size={size}",),
            ),
            Mount(type="format/ext4", source="{{ mount 0 }}"),
            Mount(
                type="format/mkdir/overlay",
                source="overlay",
                options=(
                    f"X-containerd.mkdir.path={top}/upper:0755",
                    f"X-containerd.mkdir.path={top}/work:0711:7:8",
                    f"upperdir={top}/upper",
                    f"workdir={top}/work",
                    f"lowerdir={self.base}/data/lower",
                ),
            ),
        ]

    @property
    def left(self) -> list[str]:
        """What stands below the directory, in the kernel and on the disk."""
        mounts = [each for each in mount_points() if each.startswith(f"{self.base}/")]
        return [*mounts, *devices(self.base), *os.listdir(self.home)]


def devices(base: Path) -> list[str]:
    """The loop devices whose file lies below a directory."""
    found: list[str] = []
    for name in os.listdir("/sys/block"):
        with suppress(OSError):  # it is no loop device, or is one no longer
            backing = Path("/sys/block", name, "loop/backing_file").read_text()
            if backing.startswith(f"{base}/"):
                found.append(name)
    return found


@asynccontextmanager
async def a_house(base: Path) -> AsyncIterator[House]:
    (base / "data").mkdir(exist_ok=True)
    async with System.open(), Store.open(base / "meta.db") as store:
        workers = Workers(2)
        house = House(base, store, workers)
        await house.activations.recover()
        yield house
        await workers.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    try:
        async with a_house(tmp_path) as house:
            yield house
    finally:
        for path in (tmp_path / "mounts").iterdir():
            take_off(path)
        assert devices(tmp_path) == []


async def test_a_stack_is_made_used_and_given_back(house: House) -> None:
    made = await house.activations.activate(NS, NAME, house.stack(), {"a": "b"})
    assert [each.mount.type for each in made.active] == ["loop", "ext4"]
    assert [each.mounted_at > 0 for each in made.active] == [True, True]
    (overlay,) = made.system
    assert (overlay.type, overlay.source) == ("overlay", "overlay")
    assert made.labels == {"a": "b"}
    work = Path(made.active[1].point) / "work"
    assert (work.stat().st_mode & 0o7777, work.stat().st_uid, work.stat().st_gid) == (0o711, 7, 8)

    target = house.base / "target"
    target.mkdir()
    mount_all([overlay], str(target))
    try:
        assert (target / "below").read_text() == "below"
        (target / "new").write_text("new")
        with pytest.raises(AlreadyExists, match='mount "web-root": already exists'):
            await house.activations.activate(NS, NAME, house.stack())
        # What a client mounted from them stays his.
        await house.activations.deactivate(NS, NAME)
        assert (target / "new").read_text() == "new"
    finally:
        unmount_all(str(target))
    assert house.left == []
    with pytest.raises(NotFound):
        await house.activations.deactivate(NS, NAME)
    with pytest.raises(NotFound):
        house.activations.info(NS, NAME)

    # The file is taken as it is: what was written is there again.
    made = await house.activations.activate(NS, NAME, house.stack(), temporary=True)
    assert [each.mount.type for each in made.active] == ["loop", "ext4", "overlay"]
    assert made.system == [Mount(type="bind", source=made.active[2].point, options=("rbind",))]
    assert (Path(made.active[2].point) / "new").read_text() == "new"
    await house.activations.deactivate(NS, NAME)
    assert house.left == []


async def test_one_that_fails_halfway_leaves_nothing(house: House) -> None:
    for bad in (
        Mount(type="ext4", source=f"{house.base}/nothing"),
        Mount(type="loop", source=f"{house.base}/nothing"),
        Mount(type="loop", source=str(house.base)),
        Mount(type="nonsense", source=""),
        Mount(type="mkdir/tmpfs", source="", options=("X-containerd.mkdir.path=/etc/x",)),
        Mount(
            type="mkdir/tmpfs",
            source="",
            options=(f"X-containerd.mkdir.path={house.base}/data/../x",),
        ),
    ):
        with pytest.raises(Refusal):
            await house.activations.activate(NS, NAME, [*house.stack(), bad], temporary=True)
        assert house.left == []
        assert house.store.count("mount") == 0
    with pytest.raises(Unimplemented):
        await house.activations.activate(NS, NAME, [Mount(type="bind", source="/")])
    with pytest.raises(InvalidArgument):
        await house.activations.activate(NS, "", house.stack())
    with pytest.raises(NotFound, match="lease does not exist"):
        await house.activations.activate(NS, NAME, house.stack(), lease="nobody")


async def test_a_fault_of_the_worker_leaves_nothing_either(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What no worker expects: the plan was made of something else than what it says.
    bad = Plan(steps=[Step(mount=LOOP, point="nul\0", makings=[])], system=[])
    monkeypatch.setattr("holdfast.storage.mountplan.make_plan", lambda *_: bad)
    with pytest.raises(WorkerFault):
        await house.activations.activate(NS, NAME, [LOOP])
    assert (house.left, house.store.count("mount")) == ([], 0)


async def test_the_death_of_a_worker_keeps_no_mount_standing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules, notes = tmp_path / "rules", tmp_path / "notes"
    monkeypatch.setenv(failpoints.VARIABLE, f"@{rules}")
    async with a_house(tmp_path) as house, trio.open_nursery() as nursery:
        await house.activations.activate(NS, NAME, house.stack())
        fresh = tmp_path / "fresh"
        fresh.write_text(f"worker:job.deactivate=note:{notes},worker:job.deactivate=kill")
        fresh.rename(rules)

        async def kill_but_one() -> None:
            while not notes.exists():
                await trio.sleep(0.001)
            rules.unlink()

        nursery.start_soon(kill_but_one)
        await house.activations.deactivate(NS, NAME)
        assert house.left == []
        assert devices(tmp_path) == []
    assert notes.exists()


async def test_no_link_leads_out_of_the_roots(house: House) -> None:
    (house.base / "data/out").symlink_to(house.base)
    (house.base / "outside").mkdir()
    for path, refusal in (("out/outside/x", Refusal), ("out", FailedPrecondition)):
        option = f"X-containerd.mkdir.path={house.base}/data/{path}"
        mount = Mount(type="mkdir/tmpfs", source="none", options=(option,))
        with pytest.raises(refusal):
            await house.activations.activate(NS, NAME, [mount], temporary=True)
    assert os.listdir(house.base / "outside") == []
    made = Mount(
        type="mkfs/loop",
        source=f"{house.base}/data/out/disk",
        options=("X-containerd.mkfs.size=1M",),
    )
    with pytest.raises(Refusal):
        await house.activations.activate(NS, NAME, [made])
    assert not (house.base / "disk").exists()


async def test_a_directory_that_is_there_is_not_changed(house: House) -> None:
    there = house.base / "data/there"
    there.mkdir(mode=0o700)
    options = (f"X-containerd.mkdir.path={there}:0755",)
    mount = Mount(type="mkdir/tmpfs", source="none", options=options)
    with pytest.raises(Unimplemented, match="chmod"):
        await house.activations.activate(NS, NAME, [mount], temporary=True)
    there.chmod(0o000)  # what a death before the end of its making leaves
    await house.activations.activate(NS, NAME, [mount], temporary=True)
    assert there.stat().st_mode & 0o7777 == 0o755


async def test_a_device_shows_its_file_and_no_more_is_written_than_allowed(house: House) -> None:
    disk = house.base / "data/raw"
    disk.write_bytes(b"x" * 4096)
    mount = Mount(type="loop", source=str(disk), options=("ro",))
    made = await house.activations.activate(NS, NAME, [mount])
    device = Path(made.active[0].point)
    assert device.is_block_device()
    assert device.read_bytes() == b"x" * 4096
    done = subprocess.run(["blockdev", "--getro", str(device)], capture_output=True, text=True)
    assert done.stdout == "1\n"
    await house.activations.deactivate(NS, NAME)
    assert house.left == []


async def test_a_device_of_somebody_else_is_left_alone(house: House) -> None:
    disk = house.base / "data/raw"
    disk.write_bytes(b"x" * 4096)
    with loop.attached(str(disk), b"another", read_only=True) as device:
        point = house.home / "1234/1"
        point.parent.mkdir()
        point.symlink_to(device)
        await house.activations.recover()
        assert not point.parent.exists()
        assert loop.bears(device, b"another")


async def test_two_of_one_name_are_made_one_after_the_other(house: House) -> None:
    said: list[str] = []

    async def ask() -> None:
        try:
            await house.activations.activate(NS, NAME, house.stack())
        except AlreadyExists:
            assert len(house.activations.info(NS, NAME).active) == 2
            said.append("exists")
        else:
            said.append("made")

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
    assert sorted(said) == ["exists"] * 3 + ["made"]


async def test_labels_change_and_lists_are_filtered(house: House) -> None:
    tmpfs = [Mount(type="tmpfs", source="none")]
    for name in ("one", "two"):
        await house.activations.activate(NS, name, tmpfs, {"n": name}, temporary=True)
    both = house.activations.list(NS)
    assert [each.name for each in both] == ["one", "two"]
    assert [each.name for each in house.activations.list(NS, ["labels.n==two"])] == ["two"]
    assert [each.name for each in house.activations.list(NS, ["name==one"])] == ["one"]
    assert house.activations.list("other") == []
    changed = Activation(name="one", labels={"n": "", "m": "1"})
    updated = await house.activations.update(NS, changed, ["labels.m"])
    assert updated.labels == {"n": "one", "m": "1"}
    assert house.activations.info(NS, "one") == updated
    assert (await house.activations.update(NS, changed)).labels == {"m": "1"}
    with pytest.raises(InvalidArgument, match="cannot update"):
        await house.activations.update(NS, changed, ["active"])
    with pytest.raises(NotFound):
        await house.activations.update(NS, Activation(name="three"))


async def test_what_nothing_keeps_is_collected(house: House) -> None:
    tmpfs = [Mount(type="tmpfs", source="none")]
    leases, containers = Leases(house.store), Containers(house.store)
    await leases.create(NS, "lease")
    spec = Opaque(type_url="t", value=b"")
    await containers.create(NS, Container(id="box", runtime=Runtime(name="r"), spec=spec))
    wanted = {
        "rooted": ({"containerd.io/gc.root": "now"}, ""),
        "leased": ({}, "lease"),
        "of-box": ({"containerd.io/gc.bref.container": "box"}, ""),
        "of-nobody": ({"containerd.io/gc.bref.container.x": "nobody"}, ""),
        "bare": ({}, ""),
    }
    for name, (labels, lease) in wanted.items():
        await house.activations.activate(NS, name, tmpfs, labels, temporary=True, lease=lease)

    async def kept() -> list[str]:
        await house.collector.collect()
        names = [each.name for each in house.activations.list(NS)]
        assert len(mounts := house.left) == 2 * len(names), mounts
        return names

    assert await kept() == ["leased", "of-box", "rooted"]
    with pytest.raises(FailedPrecondition, match="mounts"):
        await Namespaces(house.store).delete(NS)
    await containers.delete(NS, "box")
    assert await kept() == ["leased", "rooted"]
    await leases.delete(NS, "lease")
    assert await kept() == ["rooted"]
    await house.activations.deactivate(NS, "rooted")
    await Namespaces(house.store).delete(NS)


async def test_a_start_keeps_what_stands_and_forgets_the_rest(tmp_path: Path) -> None:
    tmpfs = [Mount(type="tmpfs", source="none")]
    async with a_house(tmp_path) as house:
        stands = await house.activations.activate(NS, "stands", house.stack())
        fallen = await house.activations.activate(NS, "fallen", tmpfs, temporary=True)
        unmount_all(fallen.active[0].point)
        leftover = house.home / "leftover"
        (leftover / "1").mkdir(parents=True)
        mount_all(tmpfs, str(leftover / "1"))
    async with a_house(tmp_path) as house:
        assert house.activations.list(NS) == [stands]
        assert os.listdir(house.home) == [Path(stands.active[0].point).parent.name]
        await house.activations.deactivate(NS, "stands")
        assert house.left == []


async def test_while_a_record_is_damaged_what_it_may_have_named_is_kept(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    tmpfs = [Mount(type="tmpfs", source="none")]
    async with a_house(tmp_path) as house:
        await house.activations.activate(NS, NAME, tmpfs, temporary=True)
    with closing(sqlite3.connect(tmp_path / "meta.db")) as connection:
        connection.execute("UPDATE record SET value = x'00' WHERE kind = 'mount'")
        connection.commit()
    async with a_house(tmp_path) as house:
        (fault,) = house.activations.faults()
        assert (fault.kind, fault.held) == ("mount directory", True)
        assert len(house.left) == 2
        await house.activations.give_up(fault)
        assert house.activations.faults() == []
        assert house.left == []
