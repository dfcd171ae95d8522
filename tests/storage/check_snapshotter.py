"""The one suite that every snapshotter passes: `await check_snapshotter(make)`.

`make()` is an async context manager that gives a fresh `House`. Trees are written and read
through real mounts, which are taken off also when a check fails.
"""

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from holdfast.storage.database import EventRows
from holdfast.storage.events import Event
from holdfast.storage.mounts import Mount, mount_all, unmount_all
from holdfast.storage.snapshotter import Info, Kind, Snapshotter
from holdfast.storage.store import Store

NS = "testing"


@dataclass
class House:
    """A snapshotter, its store, and a place for mounts."""

    snapshotter: Snapshotter
    store: Store
    tmp: Path

    @contextmanager
    def mounted(self, mounts: Sequence[Mount]) -> Iterator[Path]:
        """The mounts on a fresh directory."""
        target = self.tmp / "mnt"
        target.mkdir(exist_ok=True)
        mount_all(mounts, str(target))
        try:
            yield target
        finally:
            unmount_all(str(target))

    async def layer(self, name: str, parent: str, change: Callable[[Path], object]) -> str:
        """A committed snapshot: its parent's tree, changed."""
        with self.mounted(await self.snapshotter.prepare(NS, f"{name}-key", parent)) as root:
            change(root)
        await self.snapshotter.commit(NS, name, f"{name}-key")
        return name

    async def tree(self, parent: str) -> dict[str, str]:
        """What a committed snapshot shows."""
        with self.mounted(await self.snapshotter.view(NS, "tree-view", parent)) as root:
            found = describe(root)
        await self.snapshotter.remove(NS, "tree-view")
        return found


def mounts_below(path: Path) -> list[str]:
    """What is mounted somewhere below a directory."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(f"{path}/")]


Make = Callable[[], AbstractAsyncContextManager[House]]


def describe(root: Path) -> dict[str, str]:
    """Each path with its kind, mode, owner and content."""
    found: dict[str, str] = {}
    for at, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(at) / name
            status = path.lstat()
            what = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
            if path.is_symlink():
                what += f" -> {path.readlink()}"
            elif path.is_file():
                what += f" {path.read_bytes()!r}"
            found[str(path.relative_to(root))] = what
    return found


def _first(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("127.0.0.1")
    (root / "etc/hosts").chmod(0o640)
    os.chown(root / "etc/hosts", 7, 8)
    (root / "link").symlink_to("etc/hosts")
    (root / "bin").mkdir(mode=0o700)
    (root / "bin/su").write_text("su")
    (root / "bin/su").chmod(0o4755)


async def life(house: House) -> None:
    """Prepare, write, commit, prepare upon it: the walk-through of the interface."""
    s = house.snapshotter
    mounts = await s.prepare(NS, "one", "", {"a": "b"})
    assert await s.mounts(NS, "one") == mounts
    info = s.stat(NS, "one")
    assert (info.kind, info.parent, info.labels) == (Kind.ACTIVE, "", {"a": "b"})
    assert 0 < info.created_at == info.updated_at
    with house.mounted(mounts) as root:
        _first(root)
        before = describe(root)
    await s.commit(NS, "layer", "one", {"c": "d"})
    committed = s.stat(NS, "layer")
    assert (committed.kind, committed.labels) == (Kind.COMMITTED, {"c": "d"})
    with pytest.raises(NotFound, match="snapshot one does not exist: not found"):
        s.stat(NS, "one")

    with house.mounted(await s.prepare(NS, "two", "layer")) as root:
        assert describe(root) == before
        (root / "etc/hosts").write_text("changed")
        (root / "new").write_text("new")
        after = describe(root)
    assert await house.tree("layer") == before
    await s.commit(NS, "upper", "two")
    assert await house.tree("upper") == after
    assert s.stat(NS, "upper").parent == "layer"


async def refusals(house: House) -> None:
    """Each wrong request is refused with the words that clients know, and changes nothing."""
    s = house.snapshotter
    await house.layer("base", "", _first)
    await s.prepare(NS, "active", "base")
    await s.view(NS, "view", "base")
    known = s.walk(NS)
    with pytest.raises(AlreadyExists, match='snapshot "active": already exists'):
        await s.prepare(NS, "active", "base")
    with pytest.raises(AlreadyExists):
        await s.view(NS, "base", "")
    with pytest.raises(NotFound, match="parent snapshot none does not exist: not found"):
        await s.prepare(NS, "x", "none")
    with pytest.raises(InvalidArgument, match='parent "active" is not committed snapshot'):
        await s.prepare(NS, "x", "active")
    with pytest.raises(AlreadyExists, match='snapshot "base": already exists'):
        await s.commit(NS, "base", "active")
    with pytest.raises(NotFound):
        await s.commit(NS, "x", "none")
    with pytest.raises(FailedPrecondition, match='snapshot "view" is not active'):
        await s.commit(NS, "x", "view")
    with pytest.raises(FailedPrecondition, match="requested snapshot base not active or view"):
        await s.mounts(NS, "base")
    with pytest.raises(FailedPrecondition, match="cannot remove snapshot with child"):
        await s.remove(NS, "base")
    for call in (s.usage, s.mounts, s.remove):
        with pytest.raises(NotFound, match="snapshot none does not exist: not found"):
            await call(NS, "none")
    with pytest.raises(InvalidArgument, match="key must not be empty"):
        await s.prepare(NS, "", "base")
    with pytest.raises(InvalidArgument, match="name must not be empty"):
        await s.commit(NS, "", "active")
    with pytest.raises(FailedPrecondition, match="namespace is required"):
        s.stat("", "base")
    with pytest.raises(InvalidArgument, match="label key and value length"):
        await s.prepare(NS, "x", "base", {"k": "v" * 5000})
    for key in ("x", "active"):  # the target is looked for first
        with pytest.raises(AlreadyExists, match='target snapshot "base": already exists'):
            await s.prepare(NS, key, "", {"containerd.io/snapshot.ref": "base"})
    assert s.walk(NS) == known


async def removal(house: House) -> None:
    """Children go before parents; a name can be used again; the disk is given back."""
    s = house.snapshotter
    await house.layer("a", "", _first)
    await house.layer("b", "a", lambda root: (root / "b").write_text("b"))
    await s.prepare(NS, "c", "b")
    with pytest.raises(FailedPrecondition):
        await s.remove(NS, "b")
    await s.remove(NS, "c")
    with pytest.raises(NotFound):
        await s.mounts(NS, "c")
    await s.remove(NS, "b")
    await s.remove(NS, "a")
    assert s.walk(NS) == []
    await s.cleanup()
    await house.layer("a", "", lambda root: (root / "again").write_text("again"))
    assert set(await house.tree("a")) == {"again"}


async def views(house: House) -> None:
    """A view shows its parent and cannot be written."""
    s = house.snapshotter
    await house.layer("one", "", _first)
    await house.layer("two", "one", lambda root: (root / "two").write_text("2"))
    for parent in ("", "one", "two"):
        mounts = await s.view(NS, "v", parent)
        assert s.stat(NS, "v").kind is Kind.VIEW
        assert (await s.usage(NS, "v")).size_bytes == 0
        with house.mounted(mounts) as root:
            with pytest.raises(OSError):
                (root / "x").write_text("x")
            assert ("two" in describe(root)) is (parent == "two")
        await s.remove(NS, "v")


async def whiteouts(house: House) -> None:
    """What is removed in a layer is gone above it, and stays below it."""
    s = house.snapshotter
    await house.layer("one", "", _first)

    def change(root: Path) -> None:
        (root / "link").unlink()
        shutil.rmtree(root / "etc")
        (root / "bin/su").unlink()

    await house.layer("two", "one", change)
    assert set(await house.tree("two")) == {"bin"}

    def fill(root: Path) -> None:
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("root")

    await house.layer("three", "two", fill)
    assert set(await house.tree("three")) == {"bin", "etc", "etc/passwd"}
    assert "etc/hosts" in await house.tree("one")
    assert s.stat(NS, "three").parent == "two"


async def renames(house: House) -> None:
    """A directory of a lower layer can be moved, or replaced by a file and back."""

    def rename(root: Path) -> None:
        try:
            (root / "etc").rename(root / "moved")
        except OSError:
            # Overlayfs without redirects says EXDEV, and mv(1) copies.
            shutil.move(root / "etc", root / "moved")
        shutil.rmtree(root / "bin")
        (root / "bin").write_text("a file")

    await house.layer("one", "", _first)
    await house.layer("two", "one", rename)
    tree = await house.tree("two")
    assert set(tree) == {"moved", "moved/hosts", "link", "bin"}

    def back(root: Path) -> None:
        (root / "bin").unlink()
        (root / "bin").mkdir()

    await house.layer("three", "two", back)
    assert (await house.tree("three")).keys() == {"moved", "moved/hosts", "link", "bin"}


async def metadata(house: House) -> None:
    """Owners, modes, links, attributes and the root's own mode pass from layer to layer."""

    def first(root: Path) -> None:
        _first(root)
        root.chmod(0o750)
        os.chown(root, 5, 6)
        os.link(root / "etc/hosts", root / "hard")
        os.setxattr(root / "bin/su", "user.note", b"kept")
        os.mkfifo(root / "fifo", 0o640)
        os.utime(root / "etc", ns=(1_000_000_001, 1_000_000_001))

    await house.layer("one", "", first)
    mounts = await house.snapshotter.prepare(NS, "two", "one")
    with house.mounted(mounts) as root:
        status = root.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 5, 6)
        assert (root / "hard").stat().st_ino == (root / "etc/hosts").stat().st_ino
        assert (root / "hard").stat().st_nlink == 2
        assert os.getxattr(root / "bin/su", "user.note") == b"kept"
        assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
        assert stat.S_IMODE((root / "bin/su").stat().st_mode) == 0o4755
        assert (root / "etc").stat().st_mtime_ns == 1_000_000_001


async def usage(house: House) -> None:
    """Usage grows with what is written, once for several links, not for holes."""
    s = house.snapshotter
    mounts = await s.prepare(NS, "one", "")
    empty = await s.usage(NS, "one")
    with house.mounted(mounts) as root:
        (root / "data").write_bytes(b"x" * (1 << 20))
        os.sync()
        filled = await s.usage(NS, "one")
        os.link(root / "data", root / "same")
        with (root / "hole").open("wb") as hole:
            hole.truncate(1 << 30)
    linked = await s.usage(NS, "one")
    assert filled.inodes == empty.inodes + 1
    assert filled.size_bytes >= empty.size_bytes + (1 << 20)
    assert linked.inodes == filled.inodes + 1
    assert linked.size_bytes < filled.size_bytes + (1 << 20)
    await s.commit(NS, "layer", "one")
    assert await s.usage(NS, "layer") == linked


async def labels(house: House) -> None:
    """Labels are changed as a mask says; nothing else can be."""
    s = house.snapshotter
    await s.prepare(NS, "one", "", {"a": "1", "b": "2"})
    before = s.stat(NS, "one")

    def change(**changed: str) -> Info:
        return Info(kind=Kind.ACTIVE, name="one", labels=changed)

    assert (await s.update(NS, change(a="9"), ["labels.a"])).labels == {"a": "9", "b": "2"}
    assert (await s.update(NS, change(), ["labels.b"])).labels == {"a": "9"}
    after = await s.update(NS, change(c="3"), ["labels"])
    assert after == s.stat(NS, "one")
    assert (after.labels, after.created_at) == ({"c": "3"}, before.created_at)
    assert after.updated_at > before.updated_at
    assert (await s.update(NS, change())).labels == {}
    with pytest.raises(InvalidArgument, match='cannot update "parent" field on snapshot "one"'):
        await s.update(NS, change(), ["parent"])
    with pytest.raises(NotFound):
        await s.update(NS, Info(kind=Kind.ACTIVE, name="none"))


async def walks(house: House) -> None:
    """Walking shows this namespace's snapshots in order, filtered."""
    s = house.snapshotter
    await house.layer("base", "", lambda root: None)
    await s.prepare(NS, "b", "base", {"team": "x"})
    await s.view(NS, "a", "base")
    await s.prepare("other", "b", "")
    assert [info.name for info in s.walk(NS)] == ["a", "b", "base"]
    assert [info.name for info in s.walk("other")] == ["b"]
    assert s.walk("nobody") == []

    def names(*filters: str) -> list[str]:
        return [info.name for info in s.walk(NS, filters)]

    assert names("kind==active") == ["b"]
    assert names("kind==view", "name==base") == ["a", "base"]
    assert names("parent==base") == ["a", "b"]
    assert names("labels.team==x,kind==active") == ["b"]
    assert names("nothing==x") == []


async def many_layers(house: House) -> None:
    """A chain of 128 layers can be mounted, and shows what each of them did."""
    s = house.snapshotter
    parent = ""
    for number in range(128):
        mounts = await s.prepare(NS, "next", parent)
        if (len(mounts) == 1 and mounts[0].type == "bind") or number in (1, 50, 127):
            with house.mounted(mounts) as root:
                (root / f"file-{number}").write_text(str(number))
                (root / "last").write_text(str(number))
        parent = f"layer-{number}"
        await s.commit(NS, parent, "next")
    tree = await house.tree(parent)
    assert {"file-0", "file-1", "file-50", "file-127", "last"} <= tree.keys()
    assert tree["last"].endswith("b'127'")


async def events(house: House) -> None:
    """Each change comes with its event."""
    s = house.snapshotter
    await s.prepare(NS, "one", "")
    await s.commit(NS, "layer", "one")
    await s.view(NS, "look", "layer")
    await s.remove(NS, "look")
    seen = [(event.topic, event.payload) for event in _events(house.store)]
    name = s.name
    assert seen == [
        ("/snapshot/prepare", {"key": "one", "parent": "", "snapshotter": name}),
        ("/snapshot/commit", {"key": "one", "name": "layer", "snapshotter": name}),
        ("/snapshot/remove", {"key": "look", "snapshotter": name}),
    ]


def _events(store: Store) -> list[Event]:
    rows = EventRows(store.path)
    try:
        return [event for event in rows.read(0, 1000) if event.topic.startswith("/snapshot/")]
    finally:
        rows.close()


CHECKS: Sequence[Callable[[House], Awaitable[None]]] = (
    life,
    refusals,
    removal,
    views,
    whiteouts,
    renames,
    metadata,
    usage,
    labels,
    walks,
    many_layers,
    events,
)


async def check_snapshotter(make: Make, check: Callable[[House], Awaitable[None]]) -> None:
    """One check of the suite in a house of its own, which is empty of mounts afterwards."""
    async with make() as house:
        await check(house)
        assert not mounts_below(house.tmp)
