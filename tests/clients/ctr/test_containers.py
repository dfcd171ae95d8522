"""Containers."""

import io
import json
import subprocess
import tarfile
import uuid

import pytest
from driver import BUSYBOX, Ctr, Pair, start

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_containers_are_listed_described_labelled_and_removed(ctr: Ctr, name: str) -> None:
    ctr.run("containers", "create", "--label", "colour=blue", BUSYBOX, name, "true")
    rows = ctr.table("containers", "ls")
    assert rows[0] == ["CONTAINER", "IMAGE", "RUNTIME"]
    assert [name, BUSYBOX, "io.containerd.runc.v2"] in rows
    info = ctr.run("containers", "info", name)
    assert f'"ID": "{name}"' in info
    assert '"colour": "blue"' in info
    assert '"Snapshotter": "overlayfs"' in info
    ctr.run("containers", "label", name, "colour=red")
    assert '"colour": "red"' in ctr.run("containers", "info", name)
    ctr.run("containers", "rm", name)
    assert name not in ctr.run("containers", "ls", "-q").split()
    assert name not in ctr.run("snapshots", "ls")


def test_an_unknown_container_is_not_found(ctr: Ctr) -> None:
    said = ctr.refused("containers", "info", "never-was")
    assert 'container "never-was" in namespace "default": not found' in said


def test_a_container_with_a_running_task_is_not_removed(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert "cannot delete a non stopped container" in ctr.refused("containers", "rm", name)


def test_what_containers_prints_is_what_containerd_prints(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    labels = ("--label", "colour=blue", "--label", "size=3")
    pair.same("containers", "create", *labels, "--env", "A=b", BUSYBOX, "one", "sleep", "1000")
    pair.same("containers", "create", "--snapshotter", "native", BUSYBOX, "two", "true")
    pair.same("containers", "create", BUSYBOX, "one", "true", code=1)
    assert pair.same("containers", "ls").count(BUSYBOX) == 2
    assert pair.same("containers", "ls", "-q", "labels.colour==blue") == "one\n"
    assert pair.same("containers", "ls", "-q", "id~=t.o") == "two\n"
    told = [json.loads(ctr.run("containers", "info", "one")) for ctr in pair]
    for one in told:
        for changing in ("CreatedAt", "UpdatedAt"):
            del one[changing]
    assert told[0] == told[1]
    pair.same("containers", "info", "--spec", "one")
    for ctr in pair:
        labels = ctr.run("containers", "label", "one", "colour=", "weight=1").strip().split(",")
        assert {"size=3", "weight=1"} <= set(labels)
        assert not any(label.startswith("colour") for label in labels)
    pair.same("containers", "rm", "one", "two", "three", code=1)
    assert pair.same("containers", "ls", "-q") == ""


def test_a_checkpoint_without_its_task_is_an_image_of_the_container(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    pair.same("containers", "create", BUSYBOX, "one", "true")
    pair.same("containers", "checkpoint", "--image", "one", "example.org/checkpoint:1")
    assert "example.org/checkpoint:1" in pair.same("images", "ls", "-q")
    # Its media type is one that this ctr restores from no daemon.
    said = pair.same("containers", "restore", "two", "example.org/checkpoint:1", code=1)
    assert "media type not found" in said
    pair.same("containers", "rm", "one")


def test_a_checkpoint_of_a_containers_changes_holds_them(pair: Pair) -> None:
    kinds: list[list[str]] = []
    name = "c-" + uuid.uuid4().hex[:8]  # runc's own directory is the same to both
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        own = f"{name}-{ctr.daemon.kind}"
        ctr.run("run", BUSYBOX, own, "sh", "-c", "echo written >/new; rm /bin/busybox")
        ctr.run("containers", "checkpoint", "--rw", "--image", own, "example.org/changed:1")
        ctr.run("containers", "rm", own)
        digest = next(
            row[2] for row in ctr.table("images", "ls") if row[0] == "example.org/changed:1"
        )
        index = json.loads(ctr.run("content", "get", digest))
        kinds.append([each["mediaType"] for each in index["manifests"]])
        layer = index["manifests"][kinds[-1].index(GZIP)]
        words = [*ctr.words, "content", "get", layer["digest"]]
        packed = subprocess.run(words, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            assert {"new", "bin/.wh.busybox"} <= set(archive.getnames())
            new = archive.extractfile("new")
            assert new is not None
            assert new.read() == b"written\n"
    assert kinds[0] == kinds[1]
