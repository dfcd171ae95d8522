"""Snapshots."""

import gzip
import hashlib
import os
import subprocess
import uuid
from pathlib import Path

import pytest
from driver import BUSYBOX, Ctr, Pair

pytestmark = [pytest.mark.root, pytest.mark.slow]


def chain_id(ctr: Ctr) -> str:
    rows = ctr.table("snapshots", "ls")
    return next(row[0] for row in rows if row[0].startswith("sha256:") and row[-1] == "Committed")


def test_a_snapshot_lives_from_prepare_to_removal(ctr: Ctr) -> None:
    parent, key = chain_id(ctr), "s-" + uuid.uuid4().hex[:8]
    ctr.run("snapshots", "prepare", key, parent)
    rows = ctr.table("snapshots", "ls")
    assert rows[0] == ["KEY", "PARENT", "KIND"]
    assert [key, parent, "Active"] in rows
    mounts = ctr.run("snapshots", "mounts", "/target", key)
    assert mounts.startswith("mount -t overlay overlay /target -o ")
    assert "upperdir=" in mounts
    assert "lowerdir=" in mounts
    assert '"Kind": "Active"' in ctr.run("snapshots", "info", key)
    assert key in ctr.run("snapshots", "tree")
    usage = ctr.table("snapshots", "usage", key)
    assert usage[0] == ["KEY", "SIZE", "INODES"]
    assert usage[1][0] == key
    ctr.run("snapshots", "label", key, "colour=blue")
    assert '"colour": "blue"' in ctr.run("snapshots", "info", key)
    ctr.run("snapshots", "commit", key + "-done", key)
    assert [key + "-done", parent, "Committed"] in ctr.table("snapshots", "ls")
    ctr.run("snapshots", "view", key + "-view", key + "-done")
    assert [key + "-view", key + "-done", "View"] in ctr.table("snapshots", "ls")
    assert "cannot remove snapshot with child" in ctr.refused("snapshots", "rm", key + "-done")
    ctr.run("snapshots", "rm", key + "-view")
    ctr.run("snapshots", "rm", key + "-done")
    assert key not in ctr.run("snapshots", "ls")


def test_a_snapshot_is_not_prepared_twice(ctr: Ctr) -> None:
    key = "s-" + uuid.uuid4().hex[:8]
    ctr.run("snapshots", "prepare", key)
    assert "already exists" in ctr.refused("snapshots", "prepare", key)
    ctr.run("snapshots", "rm", key)
    assert "not found" in ctr.refused("snapshots", "rm", key)


def test_what_has_changed_in_a_snapshot_is_a_layer(pair: Pair, tmp_path: Path) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        ctr.run("snapshots", "prepare", "one", chain_id(ctr))
        target = tmp_path / ctr.daemon.kind
        target.mkdir()
        subprocess.run(
            ["sh", "-ec", ctr.run("snapshots", "mounts", str(target), "one")], check=True
        )
        try:
            (target / "new").write_text("written")
            for path in (target / "new", target):
                os.utime(path, (1_700_000_000, 1_700_000_000))
        finally:
            subprocess.run(["umount", str(target)], check=True)
    plain = ("--media-type", "application/vnd.oci.image.layer.v1.tar")
    # First, for what is there already gets no labels.
    flags = ("--keep", "--ref", "mine", "--label", "colour=blue")
    assert "written" in pair.same("snapshots", "diff", *plain, *flags, "one")
    for ctr in pair:
        (kept,) = [line for line in ctr.run("content", "ls").splitlines() if "colour=blue" in line]
        words = [*ctr.words, "snapshots", "diff", "one"]
        packed = subprocess.run(words, capture_output=True, check=True).stdout
        plain_digest = "sha256:" + hashlib.sha256(gzip.decompress(packed)).hexdigest()
        assert plain_digest == kept.split()[0]
    pair.same("snapshots", "prepare", "two", chain_id(pair.ours))
    assert "written" in pair.same("snapshots", "diff", *plain, "two", "one")
    pair.same("snapshots", "diff", "never", code=1)
    pair.same("snapshots", "rm", "one", "two")


def test_what_snapshots_prints_is_what_containerd_prints(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", "--no-unpack", str(ctr.daemon.base / "busybox.tar"))
    digest = next(row[2] for row in pair.ours.table("images", "ls") if row[0] == BUSYBOX)
    assert "done" in pair.same("snapshots", "unpack", digest)
    parent = chain_id(pair.ours)
    pair.same("snapshots", "ls")
    pair.same("snapshots", "usage")
    pair.same("snapshots", "usage", "-b", parent)
    pair.same("snapshots", "tree")
    assert "mount -t bind" in pair.same("snapshots", "prepare", "--target", "/t", "one")
    assert '"rbind"' in pair.same("snapshots", "prepare", "--mounts", "two")
    assert '"ro"' in pair.same("snapshots", "view", "--mounts", "--target", "/t", "three")
    for ctr in pair:
        ctr.raw("snapshots", "rm", "three")  # a view of ctr's has no root: it may be gone already
    assert "mount -t bind" in pair.same("snapshots", "mounts", "/t", "one")
    pair.same("snapshots", "commit", "done", "one")
    assert "done" in pair.same("snapshots", "ls")
    assert "Committed" in pair.same("snapshots", "info", "done")
    for ctr in pair:
        ctr.run("snapshots", "label", "done", "colour=blue")
    assert "blue" in pair.same("snapshots", "info", "done")
    pair.same("snapshots", "rm", "two", "done")
    assert pair.same("snapshots", "--snapshotter", "native", "ls").count("\n") == 1
    for wrong in (
        ("info", "never"), ("usage", "never"), ("commit", "a", "never"), ("mounts", "/t", "never"),
        ("prepare", "a", "never"), ("view", "a", "never"), ("label", "never", "a=b"),
    ):  # fmt: skip
        pair.same("snapshots", *wrong, code=1)
