"""Images."""

import re
import uuid
from pathlib import Path

import pytest
from bench.daemons import Daemon
from driver import BUSYBOX, Ctr, Pair

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_images_are_listed_with_their_columns(ctr: Ctr) -> None:
    rows = ctr.table("images", "ls")
    assert rows[0] == ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
    row = next(r for r in rows if r[0] == BUSYBOX)
    assert row[1] == "application/vnd.oci.image.manifest.v1+json"
    assert re.fullmatch("sha256:[0-9a-f]{64}", row[2])
    assert row[5] == "linux/amd64"
    assert BUSYBOX in ctr.run("images", "ls", "-q").split()


def test_an_import_says_what_it_unpacks(fresh: Ctr, daemon: Daemon) -> None:
    said = fresh.run("images", "import", str(daemon.base / "busybox.tar"))
    assert re.search(rf"unpacking {re.escape(BUSYBOX)} \(sha256:[0-9a-f]+\)\.\.\.done", said)


def test_an_image_is_labelled(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("images", "label", BUSYBOX, "owner=me").strip() == "owner=me"
    assert "owner=me" in fresh.run("images", "ls")


def test_an_image_is_checked_complete_and_unpacked(ctr: Ctr) -> None:
    rows = ctr.table("images", "check")
    row = next(r for r in rows if r[0] == BUSYBOX)
    assert row[3] == "complete"
    assert row[-1] == "true"


def test_an_image_exported_is_the_image_imported(
    fresh: Ctr, daemon: Daemon, tmp_path: Path
) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    digest = next(row[2] for row in fresh.table("images", "ls") if row[0] == BUSYBOX)
    archive = tmp_path / "out.tar"
    fresh.run("images", "export", str(archive), BUSYBOX)
    other = Ctr(daemon, "ns-" + uuid.uuid4().hex[:8])
    other.run("images", "import", "--no-unpack", str(archive))
    assert next(row[2] for row in other.table("images", "ls") if row[0] == BUSYBOX) == digest


def test_an_image_is_tagged_and_removed(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("images", "tag", BUSYBOX, "example.org/mine:1").strip() == "example.org/mine:1"
    assert "already exists" in fresh.refused("images", "tag", BUSYBOX, "example.org/mine:1")
    assert fresh.run("images", "rm", "example.org/mine:1").strip() == "example.org/mine:1"
    assert "example.org/mine:1" not in fresh.run("images", "ls", "-q")


def test_content_goes_with_the_last_image_that_needs_it(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("content", "ls", "-q").split()
    fresh.run("images", "rm", "--sync", BUSYBOX)
    assert fresh.run("content", "ls", "-q").split() == []


def test_removing_an_unknown_image_only_warns(ctr: Ctr) -> None:
    done = ctr.raw("images", "rm", "example.org/never:was")
    assert done.returncode == 0
    assert "example.org/never:was: image not found" in done.stderr


def test_images_are_mounted_to_be_read_and_to_be_written(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        target = ctr.daemon.base / "mounted"
        target.mkdir(exist_ok=True)
        for flags in ((), ("--rw",)):
            ctr.run("images", "mount", *flags, BUSYBOX, str(target))
            try:
                assert (target / "bin/busybox").exists()
                if flags:
                    (target / "new").write_text("written")
                else:
                    with pytest.raises(OSError, match="Read-only"):
                        (target / "new").touch()
            finally:
                ctr.run("images", "unmount", "--rm", str(target))
            assert list(target.iterdir()) == []
        assert str(target) not in ctr.run("snapshots", "ls")


def test_what_images_prints_is_what_containerd_prints(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", "--no-unpack", str(ctr.daemon.base / "busybox.tar"))
    assert BUSYBOX in pair.same("images", "ls")
    assert "complete" in pair.same("images", "check")
    assert BUSYBOX in pair.same("images", "check", "-q")
    pair.same("images", "import", "--snapshotter", "native", "@/busybox.tar")
    assert BUSYBOX in pair.same("images", "check", "-q", "--snapshotter", "native")
    pair.same("images", "label", BUSYBOX, "a=b")
    pair.same("images", "label", "--replace-all", BUSYBOX, "c=d")
    assert "a=b" not in pair.same("images", "ls")
    pair.same("images", "export", "--skip-manifest-json", "--all-platforms", "@/out.tar", BUSYBOX)
    pair.same("images", "tag", BUSYBOX, "example.org/mine:1")
    pair.same("images", "tag", BUSYBOX, "example.org/mine:1", code=1)
    pair.same("images", "rm", "--sync", "example.org/mine:1", BUSYBOX)
    pair.same("images", "mount", BUSYBOX, "@/mounted", code=1)


def test_an_image_is_converted_as_by_containerd(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    pair.same("images", "convert", "--oci", BUSYBOX, "example.org/oci:1")
    flags = ("--uncompress", "--platform", "linux/amd64")
    pair.same("images", "convert", *flags, BUSYBOX, "example.org/plain:1")
    listed = pair.same("images", "ls")
    assert "example.org/oci:1" in listed
    assert "example.org/plain:1" in listed
    assert "complete" in pair.same("images", "check", "name==example.org/plain:1")
    pair.same("images", "convert", "--uncompress", "never/was:1", "example.org/other:1", code=1)


def test_an_import_names_what_has_no_name_by_its_digest(pair: Pair) -> None:
    archive = ("--digests", "--index-name", "example.org/index:1", "@/busybox.tar")
    assert "import-" in pair.same("images", "import", *archive)
    assert "example.org/index:1" in pair.same("images", "ls", "-q")
