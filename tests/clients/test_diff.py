"""Layers between two daemons: `ctr` has Holdfast and Debian's containerd pack the same change, and
each unpacks what the other packed."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "ctr"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import as_json, busybox_layers, config_of, docker_archive, tar
from bench.daemons import running
from bench.load import Client, Target
from dockerhost import DockerHost
from driver import Ctr
from trees import look

from holdfast.api.proto.services import diff_pb2, snapshots_pb2

pytestmark = [pytest.mark.root, pytest.mark.slow]

KINDS = ("holdfast", "containerd")
LOWER = [
    ("kept/stays", b"stays"),
    ("kept/removed", b"removed"),
    ("etc/changed", b"before"),
    ("gone/below/file", b"file"),
    ("refilled/old", b"old"),
    ("links/one", b"one"),
]


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Ctr]]:
    homes = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    with running("holdfast", homes["holdfast"]) as ours:
        with running("containerd", homes["containerd"]) as theirs:
            yield {"holdfast": Ctr(ours), "containerd": Ctr(theirs)}


@contextmanager
def looked_into(ctr: Ctr, snapshotter: str, key: str, target: Path) -> Iterator[Path]:
    """A snapshot mounted with the commands that `ctr` tells."""
    target.mkdir(exist_ok=True)
    said = ctr.run("snapshots", "--snapshotter", snapshotter, "mounts", str(target), key)
    subprocess.run(["sh", "-ec", said], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def brought_in(ctr: Ctr, snapshotter: str, layers: list[bytes]) -> str:
    """An image of these layers, unpacked; the name of its topmost snapshot."""
    name = f"example.org/diff:{uuid.uuid4().hex[:8]}"
    archive = ctr.daemon.base / "image.tar"
    archive.write_bytes(docker_archive([name], layers))
    before = _snapshots(ctr, snapshotter)
    ctr.run("images", "import", "--snapshotter", snapshotter, str(archive))
    listed = ctr.table("snapshots", "--snapshotter", snapshotter, "ls")[1:]
    parents = {row[1] for row in listed}
    new = {row[0] for row in listed} - before
    return next(iter(new - parents))


def _snapshots(ctr: Ctr, snapshotter: str) -> set[str]:
    return {row[0] for row in ctr.table("snapshots", "--snapshotter", snapshotter, "ls")[1:]}


def change(root: Path) -> None:
    """The change that both daemons pack."""
    (root / "kept/removed").unlink()
    (root / "etc/changed").write_text("after")
    (root / "etc/changed").chmod(0o4750)
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "refilled")
    (root / "refilled").mkdir()
    (root / "refilled/new").write_text("new")
    os.link(root / "links/one", root / "links/two")
    (root / "links/sym").symlink_to("../etc/changed")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    (root / ("long" * 40)).write_text("a long name")
    (root / "grün").write_text("no ASCII")
    (root / "capable").write_text("x")
    os.setxattr(
        root / "capable",
        "security.capability",
        bytes.fromhex("0100000200200000000000000000000000000000"),
    )
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"in the middle")
    for path in (root, *root.rglob("*")):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)


def packed(ctr: Ctr, snapshotter: str, key: str) -> bytes:
    # Kept: a collection may be about to take what an import then believes to be there.
    words = [*ctr.words, "snapshots", "--snapshotter", snapshotter, "diff", "--keep", key]
    done = subprocess.run(words, capture_output=True, timeout=60, check=True)
    return gzip.decompress(done.stdout)


def entries(layer: bytes) -> list[tuple[object, ...]]:
    """What a layer says, without the times of removals: containerd takes the clock's."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return [
            (
                member.name,
                member.type,
                member.mode,
                (member.uid, member.gid),
                member.linkname,
                (member.devmajor, member.devminor),
                0 if member.name.rpartition("/")[2].startswith(".wh.") else member.mtime,
                member.pax_headers,
                archive.extractfile(member).read() if member.isreg() else b"",  # type: ignore[union-attr]
            )
            for member in archive
        ]


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_both_daemons_pack_the_same_and_unpack_what_the_other_packed(
    daemons: Mapping[str, Ctr], snapshotter: str, tmp_path: Path
) -> None:
    lower = tar(LOWER)
    layers: dict[str, bytes] = {}
    trees = []
    for kind, ctr in daemons.items():
        base = brought_in(ctr, snapshotter, [lower])
        ctr.run("snapshots", "--snapshotter", snapshotter, "prepare", "change", base)
        with looked_into(ctr, snapshotter, "change", tmp_path / "mnt") as root:
            change(root)
            trees.append(look(root))
        layers[kind] = packed(ctr, snapshotter, "change")
    assert trees[0] == trees[1]
    ours, theirs = (entries(layers[kind]) for kind in KINDS)
    assert [entry[0] for entry in ours] == [entry[0] for entry in theirs]
    assert ours == theirs

    for packer in KINDS:
        for ctr in daemons.values():
            key = f"from-{packer}"
            top = brought_in(ctr, snapshotter, [lower, layers[packer]])
            # `ctr` holds what it prepares, not what it views: a collection would take that.
            ctr.run("snapshots", "--snapshotter", snapshotter, "prepare", key, top)
            with looked_into(ctr, snapshotter, key, tmp_path / "mnt") as root:
                assert look(root) == trees[0]
            ctr.run("snapshots", "--snapshotter", snapshotter, "rm", key)
            # The committed layer once more: its content is in the store already.
            assert entries(packed(ctr, snapshotter, top)) == ours


def test_a_layer_is_kept_under_its_ref_with_its_labels(daemons: Mapping[str, Ctr]) -> None:
    ctr = daemons["holdfast"]
    base = brought_in(ctr, "overlayfs", [tar(LOWER), tar([("kept/more", b"more")])])
    ctr.run(
        *("snapshots", "diff", "--keep", "--ref", "mine", "--label", "colour=blue"),
        *("--media-type", "application/vnd.oci.image.layer.v1.tar", base),
    )
    listed = ctr.run("content", "ls")
    assert "colour=blue" in listed
    said = ctr.refused("snapshots", "diff", "--media-type", "text/plain", base)
    assert "unsupported diff media type: text/plain: not implemented" in said


def test_an_image_is_converted(daemons: Mapping[str, Ctr]) -> None:
    for ctr in daemons.values():
        archive = ctr.daemon.base / "convert.tar"
        name = "example.org/docker:1"
        archive.write_bytes(docker_archive([name], [tar(LOWER)]))
        ctr.run("images", "import", str(archive))
        ctr.run("images", "convert", "--oci", "--uncompress", name, "example.org/oci:1")
        row = next(r for r in ctr.table("images", "ls") if r[0] == "example.org/oci:1")
        assert row[1].startswith("application/vnd.oci.image.")


LAYER = "application/vnd.oci.image.layer.v1.tar"
EPOCH_S = 1_600_000_000


def build(root: Path, names: list[str]) -> None:
    """What a build does, in some order, with the clock's times."""
    for name in names:
        (root / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "built" / name).write_text(name * 1000)
    (root / "etc/changed").write_text("after")
    (root / "kept/removed").unlink()
    shutil.rmtree(root / "gone")


def digest_of_change(
    ctr: Ctr, base: str, media_type: str, key: str, epoch_s: int | None = None
) -> str:
    """The digest of the layer that a daemon makes of a snapshot."""
    client = Client(Target(address=str(ctr.daemon.socket), parent=base, namespace="default"))
    below = f"below-{uuid.uuid4().hex[:8]}"
    try:
        view = snapshots_pb2.ViewSnapshotRequest(
            snapshotter="overlayfs",
            key=below,
            parent=base,
            labels={"containerd.io/gc.root": "test"},
        )
        left = client.call("Snapshots.View", view, snapshots_pb2.ViewSnapshotResponse).mounts
        asked = snapshots_pb2.MountsRequest(snapshotter="overlayfs", key=key)
        right = client.call("Snapshots.Mounts", asked, snapshots_pb2.MountsResponse).mounts
        request = diff_pb2.DiffRequest(left=left, right=right, media_type=media_type)
        if epoch_s is not None:
            request.source_date_epoch.seconds = epoch_s
        made: str = client.call("Diff.Diff", request, diff_pb2.DiffResponse).diff.digest
        return made
    finally:
        client.close()
        ctr.run("snapshots", "rm", below)


def test_the_same_build_is_the_same_layer_at_another_time_and_place(
    daemons: Mapping[str, Ctr], tmp_path: Path
) -> None:
    names = ["b/two", "a/one", "c", "a/three"]
    digests: dict[str, set[str]] = {}
    with running("holdfast", tmp_path / "elsewhere") as elsewhere:
        for ctr, key, order in (
            (daemons["holdfast"], "first", names),
            (daemons["holdfast"], "second", names[::-1]),
            (Ctr(elsewhere), "third", sorted(names)),
        ):
            base = brought_in(ctr, "overlayfs", [tar([*LOWER, ("it/is", key.encode())])])
            # The lower layer differs too: it is what has changed that counts.
            ctr.run("snapshots", "prepare", key, base)
            with looked_into(ctr, "overlayfs", key, tmp_path / "mnt") as root:
                build(root, order)
            for kind in ("", "+gzip", "+zstd"):
                digests.setdefault(kind, set()).add(
                    digest_of_change(ctr, base, LAYER + kind, key, EPOCH_S)
                )
            digests.setdefault("times", set()).add(digest_of_change(ctr, base, LAYER, key))
            time.sleep(1.1)
    assert {kind: len(found) for kind, found in digests.items()} == {
        "": 1,
        "+gzip": 1,
        "+zstd": 1,
        # Without an epoch the times are those of the builds.
        "times": 3,
    }


def test_docker_runs_what_was_packed(daemons: Mapping[str, Ctr], tmp_path: Path) -> None:
    ctr = daemons["holdfast"]
    below = [*busybox_layers(), tar(LOWER)]
    ctr.run("snapshots", "prepare", "for-docker", brought_in(ctr, "overlayfs", below))
    with looked_into(ctr, "overlayfs", "for-docker", tmp_path / "mnt") as root:
        change(root)
    top = packed(ctr, "overlayfs", "for-docker")
    files = {f"{n}.tar": layer for n, layer in enumerate(below)} | {
        # As it is in the content store.
        "top.tar.gz": gzip.compress(top, mtime=0),
        "config.json": as_json(config_of([*below, top])),
    }
    manifest = [
        {"Config": "config.json", "RepoTags": ["packed:1"], "Layers": [*files][: len(below) + 1]}
    ]
    archive = tmp_path / "packed.tar"
    archive.write_bytes(tar([*files.items(), ("manifest.json", as_json(manifest))]))
    script = (
        "cat /etc/changed; test ! -e /kept/removed && test ! -e /gone && ls /refilled;"
        " busybox stat -c '%a %h' /etc/changed /links/two; readlink /links/sym;"
        " busybox stat -c '%F' /pipe /null; cat /grün; ls /long*; wc -c < /sparse"
    )
    with DockerHost.open() as host:
        host.docker("load", "-i", str(archive))
        said = host.docker(
            "run", "--rm", "--network", "none", "packed:1", "/bin/busybox", "sh", "-c", script
        )
    assert said.splitlines() == [
        "after" + "new",
        "4750 1",
        "755 2",
        "../etc/changed",
        "fifo",
        "character special file",
        "no ASCII" + "/" + "long" * 40,
        str(1 << 20),
    ]
