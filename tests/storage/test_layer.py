"""Layers: hostile ones change nothing but their root, honest ones give what tar gives."""

import gzip
import hashlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from holdfast.storage.layer import Applied, Limits, apply
from holdfast.storage.mounts import Mount, detached
from holdfast.storage.tar import Bounds
from holdfast.storage.worker import apply_layer

sys.path.insert(0, str(Path(__file__).parent))
from hostile import LINK_ABSOLUTE, LINK_OUT, REFUSED
from layers import END, block, directory, file, hard_link, pack, padded, pax, symlink, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

LAYER = "application/vnd.oci.image.layer.v1.tar"


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that a layer can say: kinds, modes, owners, times, content, attributes."""
    found: dict[str, tuple[object, ...]] = {}
    links: dict[int, str] = {}
    for at, directories, files in os.walk(os.fsencode(root)):
        for name in sorted(directories + files):
            path = os.path.join(at, name)
            status = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                content = status.st_rdev
            first = None
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                first = links.setdefault(status.st_ino, key)
            attributes = {
                attribute: os.getxattr(path, attribute, follow_symlinks=False)
                for attribute in os.listxattr(path, follow_symlinks=False)
            }
            found[key] = (
                stat.filemode(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
                first,
                tuple(sorted(attributes.items())),
            )
    return found


def names(root: Path) -> set[str]:
    return set(tree(root))


class Place:
    """A root to apply onto, within a directory that must not change."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.root = tmp / "inside/root"
        self.root.mkdir(parents=True)
        (tmp / "outside").mkdir()
        (tmp / "outside/secret").write_text("secret")
        (tmp / "outside/secret").chmod(0o600)
        self.blob = tmp / "blob"

    def apply(self, *entries: bytes, end: bytes = END, limits: Limits | None = None) -> Applied:
        write(self.blob, *entries, end=end)
        outside = self.seen_outside()
        root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        open_before = len(os.listdir("/proc/self/fd"))
        try:
            return apply(self.blob, LAYER, root_fd, limits=limits, sync=False)
        finally:
            assert len(os.listdir("/proc/self/fd")) == open_before
            os.close(root_fd)
            assert self.seen_outside() == outside

    def seen_outside(self) -> dict[str, tuple[object, ...]]:
        seen = tree(self.tmp)
        return {k: v for k, v in seen.items() if not k.startswith(("inside/root", "blob"))}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_layer_is_refused_and_harms_nothing(place: Place, case: str) -> None:
    refusal, entries = REFUSED[case]
    end = b"" if "cut short" in case else END
    with pytest.raises(refusal):
        place.apply(*entries, end=end)


def test_absolute_names_stay_inside(place: Place) -> None:
    place.apply(file(b"/etc/passwd", b"x"), file(b"///a", b"y"), file(b"./b/./c//d", b"z"))
    assert names(place.root) == {"etc", "etc/passwd", "a", "b", "b/c", "b/c/d"}


@pytest.mark.parametrize("link", [LINK_OUT, LINK_ABSOLUTE, symlink(b"out", b"/" + b"../" * 20)])
def test_a_symlink_leads_nowhere_outside(place: Place, link: bytes) -> None:
    place.apply(link, file(b"out/x", b"x"), directory(b"out/d"), file(b"out/secret", b"mine"))
    assert (place.tmp / "outside/secret").read_text() == "secret"


def test_a_symlink_is_replaced_not_followed(place: Place) -> None:
    place.apply(
        symlink(b"a", b"../../outside/secret"),
        file(b"a", b"mine", mode=0o666),
        symlink(b"d", b"../../outside"),
        directory(b"d", 0o777),
        symlink(b"e", b"../../outside/secret"),
        hard_link(b"f", b"e"),
        block(b"f", b"6", mode=0o777),
    )
    assert not (place.root / "a").is_symlink()
    assert (place.root / "a").read_text() == "mine"
    assert stat.S_ISDIR((place.root / "d").lstat().st_mode)
    assert stat.S_ISFIFO((place.root / "f").lstat().st_mode)


def test_a_parent_replaced_by_a_symlink_is_not_remembered(place: Place) -> None:
    place.apply(
        directory(b"d"),
        file(b"d/one", b"1"),
        symlink(b"d", b"/../../outside"),
        file(b"d/two", b"2"),
    )
    assert "outside/two" in names(place.root)


def test_duplicates_the_last_one_wins(place: Place) -> None:
    place.apply(
        file(b"a", b"1"),
        file(b"a", b"22"),
        directory(b"d"),
        file(b"d/x", b"x"),
        file(b"d", b"now a file"),
        symlink(b"s", b"a"),
        directory(b"s"),
        file(b"h", b"h"),
        hard_link(b"h", b"h"),
        directory(b"t", 0o700),
        directory(b"t", 0o711, mtime=5),
    )
    assert (place.root / "a").read_text() == "22"
    assert (place.root / "d").read_text() == "now a file"
    assert (place.root / "s").is_dir()
    assert (place.root / "h").read_text() == "h"
    assert (place.root / "t").stat().st_mtime == 5
    assert stat.S_IMODE((place.root / "t").stat().st_mode) == 0o711


def test_long_and_wild_names(place: Place) -> None:
    deep = b"/".join([b"n" * 200] * 15)
    place.apply(
        pax({b"path": deep}),
        file(b"short"),
        block(b"././@LongLink", b"L", size=151) + padded(b"g" * 150 + b"\0"),
        file(b"cut", b"x"),
        block(b"././@LongLink", b"K", size=201) + padded(b"t" * 200 + b"\0"),
        symlink(b"longlink", b"cut"),
        file(b"not\xff\xfeutf8\n", b"x"),
        file(b"base", b"p", prefix=b"some/prefix"),
        pax({b"path": "ünïcode".encode()}),
        file(b"u"),
    )
    found = names(place.root)
    assert os.fsdecode(deep) in found
    assert "g" * 150 in found
    assert os.readlink(place.root / "longlink") == "t" * 200
    assert os.fsdecode(b"not\xff\xfeutf8\n") in found
    assert {"some/prefix/base", "ünïcode"} <= found


def test_metadata_is_set_in_an_order_that_keeps_it(place: Place) -> None:
    place.apply(
        pax({b"mtime": b"1234567890.123456789", b"uid": b"4000000", b"gid": b"7"}),
        file(b"su", b"x", mode=0o6755),
        pax({b"SCHILY.xattr.user.a": b"1", b"SCHILY.xattr.security.capability": CAPABILITY}),
        file(b"capable", b"x", uid=3),
        directory(b"d", 0o1777, mtime=77, uid=5),
        file(b"d/inside", b"x"),
        block(b"null", b"3", major=1, minor=3, mode=0o666),
        block(b"loop", b"4", major=7, minor=300, mode=0o660),
        pax({b"mtime": b"-1.5"}),
        file(b"old"),
    )
    status = (place.root / "su").stat()
    assert status.st_mtime_ns == 1234567890_123456789
    assert (status.st_uid, status.st_gid) == (4000000, 7)
    assert stat.S_IMODE(status.st_mode) == 0o6755
    assert os.getxattr(place.root / "capable", "security.capability") == CAPABILITY
    assert os.getxattr(place.root / "capable", "user.a") == b"1"
    status = (place.root / "d").stat()
    assert (status.st_mtime, status.st_uid, stat.S_IMODE(status.st_mode)) == (77, 5, 0o1777)
    assert (place.root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (place.root / "loop").stat().st_rdev == os.makedev(7, 300)
    assert (place.root / "old").stat().st_mtime_ns == -1_500_000_000


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_overlays_own_attributes_are_not_taken_from_a_layer(place: Place) -> None:
    place.apply(
        pax(
            {
                b"SCHILY.xattr.trusted.overlay.redirect": b"/etc",
                b"SCHILY.xattr.user.overlay.opaque": b"y",
                b"SCHILY.xattr.user.note": b"kept",
            }
        ),
        directory(b"d"),
        pax({b"SCHILY.xattr.user.x": b"not on symlinks"}),
        symlink(b"s", b"d"),
    )
    assert os.listxattr(place.root / "d") == ["user.note"]


def test_a_bomb_is_stopped_at_its_bound(place: Place) -> None:
    data = gzip.compress(file(b"zeros", b"\0" * (64 << 20)), 9)
    assert len(data) < 1 << 20
    with pytest.raises(ResourceExhausted, match="inflates to more than"):
        place.apply(data, end=b"", limits=Limits(stream_bytes_max=8 << 20))
    assert (place.root / "zeros").stat().st_size <= 8 << 20


def test_too_many_entries_are_refused(place: Place) -> None:
    with pytest.raises(ResourceExhausted, match="more than 10 entries"):
        place.apply(
            *(file(str(n).encode()) for n in range(11)),
            limits=Limits(bounds=Bounds(entries_max=10)),
        )


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain", "members", "frames"])
def test_the_digest_is_that_of_the_plain_stream(place: Place, compression: str) -> None:
    plain = file(b"a", random.Random(1).randbytes(300_000)) + END + b"\0" * 9000
    data = {
        "plain": plain,
        "gzip": gzip.compress(plain) + b"\0" * 512,
        "zstd": zstd.compress(plain),
        "members": gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]),
        "frames": zstd.compress(plain[:1000]) + zstd.compress(plain[1000:]),
    }[compression]
    applied = place.apply(data, end=b"")
    assert applied.diff_id == "sha256:" + hashlib.sha256(plain).hexdigest()
    assert (applied.size_bytes, applied.entries) == (len(plain), 1)


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_compressed_stream_cut_short_or_damaged_is_refused(place: Place, compress) -> None:  # type: ignore[no-untyped-def]
    data = compress(file(b"a", random.Random(1).randbytes(300_000)) + END)
    for bad in (data[:-10], data[: len(data) // 2], data[:100] + b"xxxx" + data[104:]):
        with pytest.raises(InvalidArgument):
            place.apply(bad, end=b"")
    with pytest.raises(InvalidArgument):
        place.apply(gzip.compress(END) + b"garbage", end=b"")


def test_sparse_files_of_every_format(place: Place) -> None:
    (place.tmp / "source").mkdir()
    with (place.tmp / "source/sparse").open("wb") as out:
        for number in range(12):
            out.seek(number * 1_000_000)
            out.write(bytes([number]) * 5000)
        out.truncate(20_000_000)
    expected = (place.tmp / "source/sparse").read_bytes()
    for options in (
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ):
        subprocess.run(
            ["tar", "-C", place.tmp / "source", "--sparse", *options, "-cf", place.tmp / "t", "."],
            check=True,
        )
        place.apply((place.tmp / "t").read_bytes(), end=b"")
        assert (place.root / "sparse").read_bytes() == expected
        assert (place.root / "sparse").stat().st_blocks * 512 < 200_000
        (place.root / "sparse").unlink()


@pytest.mark.parametrize(
    ("media_type", "accepted"),
    [
        ("", True),
        (LAYER, True),
        (LAYER + "+gzip", True),
        (LAYER + "+zstd", True),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        (LAYER + "+gzip+encrypted", False),
        ("application/vnd.oci.image.config.v1+json", False),
        ("application/vnd.erofs.layer.v1", False),
    ],
)
def test_only_tar_layers_are_applied(place: Place, media_type: str, accepted: bool) -> None:
    write(place.blob, file(b"a"))
    mount = Mount(type="bind", source=str(place.root), options=("rbind", "rw"))
    if accepted:
        assert apply_layer(str(place.blob), media_type, [mount]).entries == 1
    else:
        with pytest.raises(Unimplemented, match="no processor for media-type"):
            apply_layer(str(place.blob), media_type, [mount])


def test_a_read_only_mount_is_not_applied_to(place: Place) -> None:
    write(place.blob, file(b"a"))
    mounts = [
        Mount(type="bind", source=str(place.root), options=("rbind", "ro")),
        Mount(type="overlay", source="overlay", options=(f"lowerdir={place.root}:/",)),
    ]
    for mount in mounts:
        with pytest.raises(FailedPrecondition):
            apply_layer(str(place.blob), "", [mount])


# -- the two forms give one tree


LOWER = [
    directory(b"dir", 0o750, uid=3),
    file(b"dir/a", b"a"),
    file(b"dir/b", b"b"),
    directory(b"dir/sub", 0o711, gid=9),
    file(b"dir/sub/c", b"c"),
    file(b"file", b"file"),
    symlink(b"link", b"dir"),
    directory(b"empty"),
]

CHANGES: dict[str, Sequence[bytes]] = {
    "whiteout": [file(b".wh.file")],
    "whiteout of a directory": [file(b".wh.dir")],
    "whiteout in a directory": [file(b"dir/sub/.wh.c")],
    "whiteout of what is not there": [file(b".wh.none"), file(b"no/such/.wh.x")],
    "whiteout, then anew": [file(b".wh.file"), file(b"file", b"new")],
    "new, then whiteout": [file(b"file", b"new"), file(b".wh.file")],
    "whiteout, then the directory anew": [file(b".wh.dir"), directory(b"dir"), file(b"dir/x")],
    "whiteout, then a file below it": [file(b".wh.dir"), file(b"dir/x", b"x")],
    "a file below it, then whiteout": [file(b"dir/x", b"x"), file(b".wh.dir")],
    "whiteouts below a whiteout": [file(b"dir/sub/.wh.c"), file(b".wh.dir")],
    "opaque": [directory(b"dir"), file(b"dir/.wh..wh..opq"), file(b"dir/x", b"x")],
    "opaque at the end": [file(b"dir/x", b"x"), file(b"dir/.wh..wh..opq")],
    "opaque of the root": [file(b".wh..wh..opq"), file(b"only", b"x")],
    "opaque of nothing": [file(b"none/.wh..wh..opq"), file(b"file/.wh..wh..opq")],
    "a file for a directory": [file(b"dir", b"now a file")],
    "a file for a directory and back": [file(b"dir", b"x"), directory(b"dir"), file(b"dir/y")],
    "a directory for a file": [directory(b"file"), file(b"file/x", b"x")],
    "a directory for a link": [directory(b"link"), file(b"link/x", b"x")],
    "through a lower link": [file(b"link/through", b"x")],
    "unnamed parents": [file(b"dir/sub/deep", b"x"), file(b"brand/new/x", b"x")],
    "hard link to a lower file": [hard_link(b"h", b"dir/sub/c"), hard_link(b"h2", b"dir/sub/c")],
    "hard link to a lower link": [hard_link(b"h", b"link")],
    "hard link to a lower file, then whiteout": [
        hard_link(b"h", b"dir/sub/c"),
        file(b"dir/sub/.wh.c"),
    ],
    "hard link to a lower file, then opaque": [
        hard_link(b"dir/h", b"dir/sub/c"),
        file(b"dir/.wh..wh..opq"),
    ],
    "up from where a lower link leads": [
        symlink(b"s", b"link/sub"),
        symlink(b"t", b"s/.."),
        file(b"t/x", b"x"),
        file(b"t/.wh.a"),
    ],
    "hard link through a lower link": [hard_link(b"h", b"link/sub/c")],
    "hard link to what came through a lower link": [
        file(b"link/mine", b"x"),
        hard_link(b"h", b"link/mine"),
    ],
    "whiteout through a lower link": [file(b"link/sub/.wh.c"), file(b"link/.wh.a")],
    "whiteout of a lower link": [file(b".wh.link")],
    "whiteout by another path than it came": [file(b"link/a", b"mine"), file(b"dir/.wh.a")],
    "opaque through a lower link": [file(b"link/.wh..wh..opq"), file(b"dir/new", b"x")],
    "opaque of the root through a link": [
        symlink(b"up", b"dir/.."),
        file(b"up/.wh..wh..opq"),
        file(b"only", b"x"),
    ],
    "whiteout, then opaque": [file(b"dir/.wh.a"), file(b"dir/.wh..wh..opq")],
    "opaque, then whiteout": [file(b"dir/.wh..wh..opq"), file(b"dir/.wh.a")],
    "opaque, then what was below it": [file(b"dir/.wh..wh..opq"), file(b"dir/sub/new", b"x")],
    "opaque twice": [file(b"dir/.wh..wh..opq"), file(b"dir/x"), file(b"dir/.wh..wh..opq")],
    "a whiteout in what is new": [file(b"new/a", b"x"), file(b"new/.wh.a"), file(b"new/.wh.b")],
    "device whiteout": [block(b"file", b"3")],
    "aufs leavings": [file(b".wh..wh.plnk/1.2", b"x"), file(b".wh..wh.aufs", b"x")],
}


def _without_times(seen: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {key: (*value[:3], *value[4:]) for key, value in seen.items()}


@pytest.mark.root
@pytest.mark.parametrize("case", CHANGES)
def test_both_forms_show_the_same_tree(tmp_path: Path, case: str) -> None:
    for name in ("plain", "lower", "upper", "work", "base"):
        (tmp_path / name).mkdir()
    blob = write(tmp_path / "blob", *LOWER)
    for name in ("plain", "lower"):
        bind = Mount(type="bind", source=str(tmp_path / name), options=("rbind", "rw"))
        apply_layer(str(blob), "", [bind])
    overlay = Mount(
        type="overlay",
        source="overlay",
        options=(
            f"workdir={tmp_path}/work",
            f"upperdir={tmp_path}/upper",
            f"lowerdir={tmp_path}/lower:{tmp_path}/base",
        ),
    )
    blob = write(tmp_path / "blob", *CHANGES[case])
    bind = Mount(type="bind", source=str(tmp_path / "plain"), options=("rbind", "rw"))
    apply_layer(str(blob), "", [bind])
    apply_layer(str(blob), "", [overlay])
    with detached([overlay]) as fd:
        seen = tree(Path(f"/proc/self/fd/{fd}/."))
    assert _without_times(seen) == _without_times(tree(tmp_path / "plain"))


# -- equality with GNU tar


NAMES = st.sampled_from(["a", "b", "c", "dir", "ä", "x y", "n" * 120])
KINDS = st.sampled_from(["file", "dir", "symlink", "link", "fifo", "device"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), KINDS), max_size=12),
    seed=st.integers(0, 2**32),
    how=st.sampled_from(["gnu", "posix", "python"]),
)
def test_random_trees_come_out_as_from_gnu_tar(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[list[str], str]],
    seed: int,
    how: str,
) -> None:
    tmp = tmp_path_factory.mktemp("random")
    chance = random.Random(seed)
    for name in ("source", "ours", "theirs"):
        (tmp / name).mkdir()
    _grow(tmp / "source", steps, chance)
    if how == "python":
        (tmp / "t").write_bytes(pack(tmp / "source"))
    else:
        subprocess.run(
            ["tar", "-C", tmp / "source", f"--format={how}", "--xattrs", "-cf", tmp / "t", "."],
            check=True,
        )
    root_fd = os.open(tmp / "ours", os.O_RDONLY)
    apply(tmp / "t", "", root_fd, sync=False)
    os.close(root_fd)
    subprocess.run(
        ["tar", "-C", tmp / "theirs", "--xattrs", "--same-owner", "-pxf", tmp / "t"], check=True
    )
    assert tree(tmp / "ours") == tree(tmp / "theirs")


def _grow(root: Path, steps: list[tuple[list[str], str]], chance: random.Random) -> None:
    made: list[Path] = []
    for parts, kind in steps:
        path = root.joinpath(*parts)
        within = [parent for parent in path.parents if parent.is_relative_to(root)]
        if os.path.lexists(path) or any(parent.is_symlink() for parent in within):
            # Opening it anew might wait on a FIFO, and a symlink leads out of the tree.
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 70_000])))
                os.setxattr(path, "user.seed", str(chance.random()).encode())
            elif kind == "dir":
                path.mkdir()
            elif kind == "symlink":
                path.symlink_to(chance.choice(["a", "/etc/passwd", "../..", "n" * 150]))
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "device":
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(chance.choice([200, 4000]), 70_000))
            elif made:
                target = chance.choice(made)
                if not target.is_dir() or target.is_symlink():
                    os.link(target, path, follow_symlinks=False)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        if path.is_symlink() or path.exists():
            made.append(path)
            os.chown(path, chance.randrange(3), chance.randrange(70_000), follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(chance.choice([0o644, 0o4755, 0o600, 0o1777, 0o2755]))
    for path in sorted(made, reverse=True):
        times_ns = chance.randrange(10**18), chance.randrange(10**18)
        if path.is_symlink() or path.exists():
            os.utime(path, ns=times_ns, follow_symlinks=False)
