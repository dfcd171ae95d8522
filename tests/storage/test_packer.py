"""Layers packed from trees: what they hold, in which order, and that they bring the tree about."""

import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.actors.errors import Refusal, ResourceExhausted
from holdfast.actors.system import System
from holdfast.storage import worker
from holdfast.storage.compression import compression_of
from holdfast.storage.content import ContentStore
from holdfast.storage.differ import make_layer
from holdfast.storage.digest import digest_of
from holdfast.storage.mounts import Mount
from holdfast.storage.store import Store
from holdfast.storage.workers import Workers

sys.path.insert(0, str(Path(__file__).parent))
from trees import look

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="layers are packed as root")
EPOCH_S = 1_600_000_000
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def bind(path: Path) -> list[Mount]:
    return [Mount(type="bind", source=str(path), options=("rbind", "rw"))]


def overlay(lower: Sequence[Path], upper: Path | None = None) -> list[Mount]:
    own: tuple[str, ...] = ()
    if upper is not None:
        own = (f"upperdir={upper}", f"workdir={upper.with_name('work')}")
    below = "lowerdir=" + ":".join(map(str, lower))
    return [Mount(type="overlay", source="overlay", options=(*own, below))]


def packed(
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    out: Path,
    *,
    compression: str = "",
    epoch_s: int | None = None,
) -> bytes:
    """The layer as a worker packs it."""
    job = {
        "lower": [mount.to_record() for mount in lower],
        "upper": [mount.to_record() for mount in upper],
        "compression": compression,
        "epoch_ns": None if epoch_s is None else epoch_s * 10**9,
        "target": str(out),
    }
    answer = worker.do_pack(job)
    raw = out.read_bytes()
    if not compression:
        assert answer["diff_id"] == digest_of(raw)
        assert answer["size_bytes"] == len(raw)
        assert answer["entries"] == len(members(raw))
    return raw


def members(raw: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return archive.getmembers()


def names(raw: bytes) -> list[str]:
    return [member.name + ("/" if member.isdir() else "") for member in members(raw)]


@contextmanager
def mounted(mounts: Sequence[Mount], target: Path) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    worker.mount_all(mounts, str(target))
    try:
        yield target
    finally:
        worker.unmount_all(str(target))


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    root = tmp_path / "lower"
    (root / "etc/deep").mkdir(parents=True)
    (root / "gone/below").mkdir(parents=True)
    (root / "kept").mkdir()
    for name in ("etc/changed", "etc/deep/same", "gone/below/file", "kept/removed", "kept/stays"):
        (root / name).write_text(name)
    return root


def copy_of(tree: Path, name: str) -> Path:
    target = tree.with_name(name)
    subprocess.run(["cp", "-a", str(tree), str(target)], check=True)
    return target


def test_a_layer_lists_changes_in_the_order_of_names(lower: Path, tmp_path: Path) -> None:
    upper = copy_of(lower, "upper")
    shutil.rmtree(upper / "gone")
    (upper / "kept/removed").unlink()
    (upper / "etc/changed").write_text("otherwise")
    (upper / "etc/deep/new").write_text("new")
    (upper / "etc-new").mkdir()
    (upper / "link").symlink_to("etc/changed")
    os.mkfifo(upper / "pipe")
    os.mknod(upper / "null", 0o20666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(upper / "socket"))
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == [
        "etc/",
        "etc/changed",
        "etc/deep/",
        "etc/deep/new",
        "etc-new/",
        ".wh.gone",
        "kept/",
        "kept/.wh.removed",
        "link",
        "null",
        "pipe",
    ]
    by_name = {member.name: member for member in members(raw)}
    assert (by_name["null"].devmajor, by_name["null"].devminor) == (1, 3)
    assert by_name["link"].linkname == "etc/changed"


def test_the_same_trees_give_an_empty_layer(lower: Path, tmp_path: Path) -> None:
    raw = packed(bind(lower), bind(copy_of(lower, "upper")), tmp_path / "out")
    assert raw == bytes(1024)


def test_without_a_lower_tree_all_is_added_without_an_upper_one_all_removed(
    lower: Path, tmp_path: Path
) -> None:
    assert "gone/below/file" in names(packed([], bind(lower), tmp_path / "out"))
    assert names(packed(bind(lower), [], tmp_path / "out")) == [".wh.etc", ".wh.gone", ".wh.kept"]


def test_a_directory_that_became_a_file_is_that_file_alone(lower: Path, tmp_path: Path) -> None:
    upper = copy_of(lower, "upper")
    shutil.rmtree(upper / "gone")
    (upper / "gone").write_text("a file")
    (upper / "kept/stays").unlink()
    (upper / "kept/stays").mkdir()
    (upper / "kept/stays/in").write_text("in")
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == ["gone", "kept/", "kept/stays/", "kept/stays/in"]


def test_times_of_whole_seconds_are_not_believed(lower: Path, tmp_path: Path) -> None:
    for name in ("etc/changed", "etc/deep/same", "kept/stays"):
        os.utime(lower / name, (1, 1))
    upper = copy_of(lower, "upper")
    (upper / "etc/changed").write_text("etc/CHANGED")
    os.utime(upper / "etc/changed", (1, 1))
    os.utime(upper / "kept/stays", ns=(1_000_000_001, 1_000_000_001))
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == ["etc/", "etc/changed", "kept/", "kept/stays"]


def test_links_are_one_file_and_links_to_it(lower: Path, tmp_path: Path) -> None:
    (lower / "a").write_text("linked")
    os.link(lower / "a", lower / "kept/b")
    os.link(lower / "a", lower / "z")
    upper = copy_of(lower, "upper")
    (upper / "a").chmod(0o600)
    (upper / "z").unlink()
    os.link(upper / "a", upper / "y")
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == ["a", "kept/", "kept/b", "y", ".wh.z"]
    linked = {member.name: member.linkname for member in members(raw) if member.islnk()}
    assert linked == {"kept/b": "a", "y": "a"}


def test_a_name_that_did_not_change_waits_for_the_link_that_did(
    lower: Path, tmp_path: Path
) -> None:
    upper = copy_of(lower, "upper")
    # A tree whose names are one file on one side only.
    (lower / "z").write_text("etc/changed")
    os.utime(lower / "z", (1, 1))
    shutil.copystat(lower / "etc/changed", upper / "etc/changed")
    os.link(upper / "etc/changed", upper / "z")
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == ["z", "etc/", "etc/changed"]
    assert members(raw)[2].linkname == "z"


def test_capabilities_and_attributes_of_users_go_along(lower: Path, tmp_path: Path) -> None:
    upper = copy_of(lower, "upper")
    os.setxattr(upper / "etc/changed", "security.capability", CAPABILITY)
    os.setxattr(upper / "kept/stays", "user.colour", b"bl\0\xffue\n")
    os.setxattr(upper / "kept/stays", "trusted.mine", b"of this host")
    raw = packed(bind(lower), bind(upper), tmp_path / "out")
    assert names(raw) == ["etc/", "etc/changed", "kept/", "kept/stays"]
    target = copy_of(lower, "target")
    apply(raw, bind(target), tmp_path)
    assert os.getxattr(target / "etc/changed", "security.capability") == CAPABILITY
    assert os.getxattr(target / "kept/stays", "user.colour") == b"bl\0\xffue\n"
    assert os.listxattr(target / "kept/stays") == ["user.colour"]


def test_names_that_no_header_holds_arrive(tmp_path: Path) -> None:
    upper, target = tmp_path / "upper", tmp_path / "target"
    upper.mkdir()
    target.mkdir()
    long = "l" * 200
    (upper / long / long).mkdir(parents=True)
    (upper / "grün").write_text("utf-8")
    Path(os.fsdecode(os.fsencode(upper) + b"/\xff\xfe")).write_text("no text at all")
    (upper / "link").symlink_to("t" * 150)
    os.chown(upper / "grün", 3_000_000_000, 4_000_000_000)
    os.utime(upper / "link", (-5, -5), follow_symlinks=False)
    apply(packed([], bind(upper), tmp_path / "out"), bind(target), tmp_path)
    assert look(target) == look(upper)


def test_no_time_is_later_than_the_epoch_that_was_asked_for(lower: Path, tmp_path: Path) -> None:
    upper = copy_of(lower, "upper")
    (upper / "old").write_text("old")
    os.utime(upper / "old", (7, 7))
    (upper / "new").write_text("new")
    shutil.rmtree(upper / "gone")
    raw = packed(bind(lower), bind(upper), tmp_path / "out", epoch_s=EPOCH_S)
    times = {member.name: member.mtime for member in members(raw)}
    assert times == {"old": 7, "new": EPOCH_S, ".wh.gone": EPOCH_S}


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_the_same_trees_give_the_same_bytes(lower: Path, tmp_path: Path, compression: str) -> None:
    upper = copy_of(lower, "upper")
    (upper / "etc/changed").write_bytes(random.Random(1).randbytes(3 << 20))
    shutil.rmtree(upper / "gone")
    again = copy_of(upper, "again")
    one, other = (
        packed(bind(lower), bind(tree), tmp_path / "out", compression=compression)
        for tree in (upper, again)
    )
    assert one == other
    assert compression_of(one[:8]) == compression


def test_holes_are_zeros_and_are_not_read(tmp_path: Path) -> None:
    upper, target = tmp_path / "upper", tmp_path / "target"
    upper.mkdir()
    target.mkdir()
    with (upper / "sparse").open("wb") as file:
        file.seek(40 << 20)
        file.write(b"in the middle")
        file.truncate(64 << 20)
    raw = packed([], bind(upper), tmp_path / "out", compression="zstd")
    assert len(raw) < 1 << 16
    apply(raw, bind(target), tmp_path)
    assert look(target) == look(upper)


def apply(raw: bytes, mounts: Sequence[Mount], tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(raw)
    worker.apply_layer(str(blob), "application/vnd.oci.image.layer.v1.tar", list(mounts))


# ---------------------------------------------------------------- overlays


def test_an_overlay_is_packed_by_its_upper_directory_alone(
    lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (lower / f"etc/deep/{number}").write_text("much")
    upper = tmp_path / "upper"
    for path in (upper, tmp_path / "work"):
        path.mkdir()
    with mounted(overlay([lower], upper), tmp_path / "merged") as merged:
        (merged / "etc/changed").write_text("otherwise")
        shutil.rmtree(merged / "gone")
    looked: list[str] = []
    lstat = worker.pack.__globals__["Walk"].__iter__.__globals__["lstat"]

    def counted(dir_fd: int, name: bytes) -> os.stat_result | None:
        looked.append(os.fsdecode(name))
        return lstat(dir_fd, name)  # type: ignore[no-any-return]

    monkeypatch.setattr("holdfast.storage.changes.lstat", counted)
    raw = packed(bind(lower), overlay([lower], upper), tmp_path / "out")
    assert names(raw) == ["etc/", "etc/changed", ".wh.gone"]
    assert set(looked) == {"etc", "changed", "gone"}


def test_a_committed_layer_is_packed_by_its_directory_alone(lower: Path, tmp_path: Path) -> None:
    upper, base = tmp_path / "upper", tmp_path / "base"
    upper.mkdir()
    base.mkdir()
    (upper / "new").write_text("new")
    above = overlay([upper, lower, base])
    assert worker.guide_of(overlay([lower, base]), above) == str(upper)
    assert worker.guide_of(overlay([base, lower]), above) is None
    assert names(packed(overlay([lower, base]), above, tmp_path / "out")) == ["new"]


def churn(root: Path, dice: random.Random, count: int) -> None:
    """Do things at random to a tree that is mounted."""
    for number in range(count):
        paths = sorted(p for p in root.rglob("*"))
        folders = [root, *(p for p in paths if p.is_dir() and not p.is_symlink())]
        files = [p for p in paths if p.is_file() and not p.is_symlink()]
        fresh = dice.choice(folders) / f"n{len(paths)}-{number}"
        victim = dice.choice(paths) if paths else fresh
        deed = dice.randrange(11)
        if deed == 0:
            fresh.mkdir()
        elif deed == 1:
            fresh.write_bytes(dice.randbytes(dice.randrange(5000)))
        elif deed == 2 and files:
            dice.choice(files).write_bytes(dice.randbytes(100))
        elif deed == 3:
            shutil.rmtree(victim) if victim in folders else victim.unlink(missing_ok=True)
        elif deed == 4 and victim in folders:
            # Removed and made anew: opaque.
            shutil.rmtree(victim)
            victim.mkdir()
            (victim / "anew").write_bytes(dice.randbytes(8))
        elif deed == 5 and victim in files:
            victim.rename(fresh)
        elif deed == 6:
            fresh.symlink_to("somewhere")
        elif deed == 7 and files:
            os.link(dice.choice(files), fresh)
        elif deed == 8 and files:
            victim = dice.choice(files)
            victim.chmod(victim.stat().st_mode & 0o7777 ^ 0o4022)
        elif deed == 9 and files:
            os.setxattr(dice.choice(files), "user.n", dice.randbytes(4))
        elif deed == 10 and files and (victim := dice.choice(files)).stat().st_nlink == 1:
            # Brought up and yet the same.
            os.utime(victim, (5, victim.stat().st_mtime))


@pytest.mark.parametrize("seed", range(12))
def test_a_layer_brings_the_tree_about_however_it_came_to_be(
    seed: int, lower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    churn(lower, dice, 40)
    for path in lower.rglob("*"):
        # A layer's times are whole seconds.
        second = int(path.lstat().st_mtime)
        os.utime(path, (second, second), follow_symlinks=False)
    upper, merged = tmp_path / "upper", tmp_path / "merged"
    for path in (upper, tmp_path / "work"):
        path.mkdir()
    with mounted(overlay([lower], upper), merged):
        churn(merged, dice, 60)
        wanted = look(merged)
        # Packed while it is mounted, as a container's that runs.
        raw = packed(bind(lower), overlay([lower], upper), tmp_path / "out")
    plain = copy_of(lower, "plain")
    apply(raw, bind(plain), tmp_path)
    assert look(plain) == wanted

    other = tmp_path / "other/upper"
    for path in (other, other.with_name("work")):
        path.mkdir(parents=True)
    apply(raw, overlay([lower], other), tmp_path)
    with mounted(overlay([lower], other), merged):
        assert look(merged) == wanted
    # Packed again from where it was applied, and without the short way, it is the same layer.
    again = packed(bind(lower), overlay([lower], other), tmp_path / "out")
    assert names(again) == names(raw)
    assert again == raw
    monkeypatch.setattr(worker, "guide_of", lambda *_: None)
    assert packed(bind(lower), overlay([lower], upper), tmp_path / "out") == raw


# ---------------------------------------------------------------- into the store


@pytest.fixture
async def content(tmp_path: Path, store: Store) -> AsyncIterator[ContentStore]:
    async with System.open():
        yield await ContentStore.open(tmp_path / "content", store)


async def test_a_layer_becomes_a_blob_that_says_what_is_in_it(
    lower: Path, tmp_path: Path, content: ContentStore
) -> None:
    workers = Workers(1)
    plain = packed([], bind(lower), tmp_path / "out")
    made = await make_layer(content, workers, "ns", [], bind(lower), ref="r", labels={"a": "b"})
    assert made.media_type == "application/vnd.oci.image.layer.v1.tar+gzip"
    info = content.info("ns", made.digest)
    assert info.labels == {"a": "b", "containerd.io/uncompressed": digest_of(plain)}
    assert info.size == made.size
    # Once more: the blob is there, and says so still.
    assert await make_layer(content, workers, "ns", [], bind(lower)) == made
    tar = "application/vnd.oci.image.layer.v1.tar"
    one = await make_layer(content, workers, "ns", [], bind(lower), media_type=tar)
    assert one.digest == digest_of(plain)
    assert await content.list_statuses("ns") == []
    with pytest.raises(Refusal, match="unsupported diff media type: text/plain"):
        await make_layer(content, workers, "ns", [], bind(lower), media_type="text/plain")
    await workers.close()


async def test_a_ref_that_was_begun_is_begun_anew(lower: Path, content: ContentStore) -> None:
    workers = Workers(1)
    async with await content.open_ingest("ns", "r") as ingest:
        await ingest.write(b"left by another")
    made = await make_layer(content, workers, "ns", [], bind(lower), ref="r")
    await content.verify("ns", made.digest)
    await workers.close()


async def test_a_diff_that_cannot_be_written_is_refused_and_leaves_nothing(
    lower: Path, tmp_path: Path, content: ContentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(1)
    (lower / "big").write_bytes(random.Random(1).randbytes(8 << 20))

    async def full(*_: object) -> int:
        raise ResourceExhausted("no room: resource exhausted")

    with monkeypatch.context() as patch:
        patch.setattr("holdfast.storage.ingest.Ingest.write", full)
        with pytest.raises(ResourceExhausted, match="no room"):
            await make_layer(content, workers, "ns", [], bind(lower))
    missing = bind(tmp_path / "missing")
    with pytest.raises(Refusal, match="missing"):
        await make_layer(content, workers, "ns", [], missing)
    assert await content.list_statuses("ns") == []
    assert list((tmp_path / "content/ingest").iterdir()) == []
    await make_layer(content, workers, "ns", [], bind(lower))
    await workers.close()
