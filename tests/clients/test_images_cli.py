"""What the command does with images that are here, against a real daemon and real containers."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import busybox_layers, docker_archive, oci_archive
from bench.daemons import Daemon, running
from examples import busybox_image

from holdfast.api.cli.main import main

pytestmark = [pytest.mark.root, pytest.mark.slow]

IMAGE = busybox_image.DEFAULT_NAME
NAMED = {"io.containerd.image.name": "docker.io/library/many:1"}


class Holdfast:
    """The command, for a namespace of the test's."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        self.daemon = daemon
        self.words = ["--address", str(daemon.socket), "--namespace", namespace]

    def raw(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it: here where it only prints, else as a process of its own, which takes longer."""
        if words[0] in ("run", "exec"):
            words = (sys.executable, "-m", "holdfast", *self.words, *words)
            return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([*self.words, *words])
        status = ended.value.code
        assert isinstance(status, int)
        return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())

    def run(self, *words: str, code: int = 0) -> str:
        """What it prints, or where it is to fail, says."""
        done = self.raw(*words)
        said = f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == code, said
        return done.stdout if code == 0 else done.stderr

    def take_in(self, archive: bytes, *words: str) -> str:
        """Import it; the names of what it brought."""
        file = self.daemon.base / "archive.tar"
        file.write_bytes(archive)
        return self.run("import", *words, str(file))

    def rows(self, *words: str, code: int = 0) -> list[dict[str, Any]]:
        done = self.raw(*words, "--format", "json")
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("images", "inspect", name))
        return found

    def names(self) -> list[str]:
        return self.run("images", "--quiet").split()

    def blob(self, digest: str) -> Path:
        algorithm, encoded = digest.split(":")
        return self.daemon.base / "root/content/blobs" / algorithm / encoded


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running("holdfast", tmp_path_factory.mktemp("images")) as started:
        yield started


@pytest.fixture
def holdfast(daemon: Daemon, tmp_path: Path) -> Iterator[Holdfast]:
    """The command in a fresh namespace with busybox; nothing of it outlives the test."""
    it = Holdfast(daemon, f"images-{uuid.uuid4().hex[:8]}")
    busybox_image.build(tmp_path / "busybox.tar")
    it.run("import", str(tmp_path / "busybox.tar"))
    yield it
    for name in it.run("ps", "--all", "--quiet").split():
        it.run("rm", "--force", name)
    for row in it.rows("images", "mount"):
        it.run("images", "unmount", row["directory"])
    for name in it.names():
        it.run("images", "rm", "--force", name)


def test_a_tag_is_a_further_name_and_moves(holdfast: Holdfast) -> None:
    digest = holdfast.inspect("busybox")["target"]["digest"]
    said = holdfast.run("images", "tag", "busybox", "mine:1", "example.org/mine:2")
    assert said == "docker.io/library/mine:1\nexample.org/mine:2\n"
    holdfast.take_in(docker_archive(("other:1",)))
    holdfast.run("images", "tag", "other:1", "mine:1")
    assert holdfast.inspect("mine:1")["target"]["digest"] != digest
    assert holdfast.inspect("example.org/mine:2")["target"]["digest"] == digest
    assert "not found" in holdfast.run("images", "tag", "never:1", "mine:1", code=1)


def test_inspect_tells_documents_layers_and_what_is_here(holdfast: Holdfast) -> None:
    holdfast.take_in(oci_archive(NAMED, architectures=("amd64", "arm64")))
    found = holdfast.inspect("many:1")
    assert [one["platform"] for one in found["platforms"]] == ["linux/amd64", "linux/arm64"]
    ours, theirs = found["platforms"]
    assert ours["here"]
    assert theirs["here"]
    assert "overlayfs" in ours["unpacked"]
    assert theirs["config"]["architecture"] == "arm64"
    assert ours["manifest"]["layers"][0]["digest"] == ours["layers"][0]["digest"]
    assert len(found["indexes"][0]["index"]["manifests"]) == 2
    manifest = holdfast.blob(ours["descriptor"]["digest"]).stat().st_size
    parts = manifest + ours["manifest"]["config"]["size"] + sum(x["size"] for x in ours["layers"])
    assert ours["size_bytes"] == ours["here_bytes"] == parts
    holdfast.run("content", "rm", theirs["layers"][1]["digest"])
    theirs = holdfast.inspect("many:1")["platforms"][1]
    assert not theirs["here"]
    assert [layer["here"] for layer in theirs["layers"]] == [True, False]


@pytest.mark.long
def test_usage_counts_what_is_shared_once(holdfast: Holdfast) -> None:
    one, together = holdfast.rows("images", "usage", "busybox")
    assert (one["content"], one["shared"]) == (together["content"], 0)
    assert one["snapshots"] > one["content"] // 2
    holdfast.run("run", "--name", "c", "busybox", "sh", "-c", "echo more > /more")
    holdfast.run("commit", "c", "more:1")
    first, second, together = holdfast.rows("images", "usage")
    shared = first["content"] + first["snapshots"]
    own = sum(holdfast.blob(d).stat().st_size for d in own_blobs(holdfast, "busybox", "more:1"))
    manifest = holdfast.blob(holdfast.inspect("busybox")["target"]["digest"]).stat().st_size
    assert first["name"] == IMAGE
    assert second["content"] - own == first["content"] - config_and(holdfast, manifest)
    assert first["shared"] == second["shared"] == shared - config_and(holdfast, manifest)
    assert together["content"] == first["content"] + own
    # Another name of the same target is no other image.
    holdfast.run("images", "tag", "busybox", "again:1")
    assert holdfast.rows("images", "usage")[-1]["content"] == together["content"]


def config_and(holdfast: Holdfast, manifest: int) -> int:
    (one,) = holdfast.inspect("busybox")["platforms"]
    return manifest + int(one["manifest"]["config"]["size"])


def own_blobs(holdfast: Holdfast, below: str, name: str) -> set[str]:
    """The blobs of an image that the other does not have."""

    def blobs(name: str) -> set[str]:
        (one,) = holdfast.inspect(name)["platforms"]
        layers = {layer["digest"] for layer in one["layers"]}
        return {one["descriptor"]["digest"], one["manifest"]["config"]["digest"], *layers}

    return blobs(name) - blobs(below)


def test_check_tells_what_is_missing_and_what_is_damaged(holdfast: Holdfast) -> None:
    holdfast.take_in(oci_archive(NAMED, architectures=("amd64", "arm64")))
    rows = holdfast.rows("images", "check", "many:1")
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert "overlayfs" in rows[0]["unpacked"]
    # Never brought here is no fault; brought in part is one.
    holdfast.run("content", "rm", rows[1]["digest"])
    rows = holdfast.rows("images", "check", "many:1")
    assert [(row["state"], row["here"]) for row in rows] == [("complete", "4/4"), ("absent", "0/1")]
    (busybox,) = holdfast.inspect("busybox")["platforms"]
    layer = busybox["layers"][0]["digest"]
    holdfast.run("images", "check", "--verify", "busybox")
    blob = holdfast.blob(layer)
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(raw)
    # Who does not read all of it does not see it.
    assert holdfast.rows("images", "check", "busybox")[0]["state"] == "complete"
    (row,) = holdfast.rows("images", "check", "--verify", "busybox", code=1)
    assert (row["state"], list(row["damaged"])) == ("damaged", [layer])
    assert "does not verify" in holdfast.run("images", "check", "--verify", "busybox", code=1)
    holdfast.run("content", "rm", layer)
    (row,) = holdfast.rows("images", "check", "busybox", code=1)
    assert (row["state"], row["here"], row["missing"]) == ("partial", "2/3", [layer])


def test_prune_takes_what_no_container_is_of_and_no_pin_keeps(holdfast: Holdfast) -> None:
    holdfast.run("run", "--name", "user", "busybox", "true")
    holdfast.run("images", "tag", "busybox", "same:1")
    holdfast.take_in(docker_archive(("pinned:1",)))
    holdfast.run("images", "pin", "pinned:1")
    holdfast.take_in(oci_archive(NAMED))
    before = holdfast.names()
    assert holdfast.run("images", "prune") == ""
    done = holdfast.raw("images", "prune", "--all", "--dry-run")
    assert done.stdout == "docker.io/library/many:1\n"
    assert "would be freed" in done.stderr
    assert holdfast.names() == before
    assert holdfast.run("images", "prune", "--all", "--filter", "name==nothing") == ""
    assert holdfast.run("images", "prune", "--all", "--older-than", "1h") == ""
    holdfast.run("images", "prune", "--older-than", "soon", code=2)
    layers = [x["digest"] for x in holdfast.inspect("many:1")["platforms"][0]["layers"]]
    assert holdfast.run("images", "prune", "--all") == "docker.io/library/many:1\n"
    assert not any(layer in holdfast.run("content", "--quiet") for layer in layers)
    holdfast.run("rm", "user")
    assert holdfast.run("images", "prune", "--all").split() == [IMAGE, "docker.io/library/same:1"]
    assert "is pinned" in holdfast.run("images", "rm", "pinned:1", code=1)
    holdfast.run("images", "unpin", "pinned:1")
    assert holdfast.run("images", "prune", "--all") == "docker.io/library/pinned:1\n"
    assert holdfast.names() == []
    assert holdfast.run("content", "--quiet") == holdfast.run("snapshots", "--quiet") == ""


def test_a_name_by_its_digest_alone_is_pruned_when_no_tag_has_its_target(
    holdfast: Holdfast,
) -> None:
    holdfast.take_in(oci_archive(NAMED), "--base-name", "docker.io/library/many")
    tagged, named = sorted(name for name in holdfast.names() if "many" in name)
    assert "@sha256:" in named
    assert holdfast.run("images", "prune") == ""
    holdfast.run("images", "rm", tagged)
    assert holdfast.run("images", "prune") == f"{named}\n"


def test_a_mounted_image_is_there_until_it_is_unmounted(holdfast: Holdfast, tmp_path: Path) -> None:
    read, write = tmp_path / "read", tmp_path / "write"
    assert "no directory" in holdfast.run("images", "mount", "busybox", str(read), code=1)
    read.mkdir()
    write.mkdir()
    assert holdfast.run("images", "mount", "busybox", str(read)) == f"{read}\n"
    assert (read / "bin/busybox").stat().st_size > 100_000
    with pytest.raises(OSError, match="Read-only"):
        (read / "note").write_text("x")
    assert "already exists" in holdfast.run("images", "mount", "busybox", str(read), code=1)
    holdfast.run("images", "mount", "--rw", "busybox", str(write))
    (write / "note").write_text("x")
    rows = holdfast.rows("images", "mount")
    assert [(row["directory"], row["writable"]) for row in rows] == [
        (str(read), False),
        (str(write), True),
    ]
    # The lease keeps what is mounted when the image is gone.
    holdfast.run("images", "rm", "busybox")
    assert (read / "bin/busybox").exists()
    assert holdfast.run("images", "unmount", str(read), str(write)).split() == [
        str(read),
        str(write),
    ]
    assert os.listdir(read) == os.listdir(write) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    holdfast.take_in(docker_archive(("x:1",)))
    holdfast.run("images", "rm", "x:1")
    assert holdfast.run("snapshots", "--quiet") == ""
    assert "no image is mounted" in holdfast.run("images", "unmount", str(read), code=1)
    link = tmp_path / "link"
    link.symlink_to(read)
    holdfast.take_in(docker_archive(("x:1",)))
    assert holdfast.run("images", "mount", "x:1", str(link)) == f"{read}\n"
    holdfast.run("images", "unmount", str(link))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_mount_outlives_a_killed_daemon_and_is_taken_off_alone(
    tmp_path: Path, layers: int
) -> None:
    """A view of one layer is a bind, of several an overlay."""
    place, base = tmp_path / "place", tmp_path / "daemon"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "before", str(place)], check=True)
    (place / "before").touch()
    try:
        with running("holdfast", base, containers_live_on=True) as first:
            one = Holdfast(first, "mounts")
            one.take_in(docker_archive(("x:1",), busybox_layers()[:layers]))
            # What could not be mounted leaves what was there.
            one.run("images", "mount", "never:1", str(place), code=1)
            one.run("images", "mount", "--platform", "s390x", "x:1", str(place), code=1)
            assert os.listdir(place) == ["before"]
            one.run("images", "mount", "x:1", str(place))
            assert "bin" in os.listdir(place)
            os.kill(first.pid, signal.SIGKILL)
        with running("holdfast", base) as second:
            one = Holdfast(second, "mounts")
            assert [row["image"] for row in one.rows("images", "mount")] == [
                "docker.io/library/x:1"
            ]
            assert "bin" in os.listdir(place)
            subprocess.run(["mount", "-t", "tmpfs", "over", str(place)], check=True)
            said = one.run("images", "unmount", str(place), code=1)
            assert "unmount that first" in said
            subprocess.run(["umount", str(place)], check=True)
            one.run("images", "unmount", str(place))
            assert os.listdir(place) == ["before"]
            # And once more: a mount that is gone already, as after a reboot.
            one.run("images", "mount", "--rw", "x:1", str(place))
            assert [row["stands"] for row in one.rows("images", "mount")] == [True]
            subprocess.run(["umount", str(place)], check=True)
            assert [row["stands"] for row in one.rows("images", "mount")] == [False]
            one.run("images", "mount", "x:1", str(place))
            subprocess.run(["umount", str(place)], check=True)
            one.run("images", "unmount", str(place))
            assert os.listdir(place) == ["before"]
            assert one.rows("images", "mount") == []
    finally:
        subprocess.run(["umount", "--recursive", str(place)], check=False)


@pytest.mark.parametrize(
    ("compression", "media_type"),
    [
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        ("uncompressed", "application/vnd.docker.image.rootfs.diff.tar"),
    ],
)
def test_a_converted_image_has_the_same_files_in_the_compression_asked_for(
    holdfast: Holdfast, compression: str, media_type: str
) -> None:
    holdfast.take_in(docker_archive(("docker:1",)))
    before = holdfast.inspect("docker:1")["platforms"][0]
    words = ("convert", "--compression", compression, "--label", "made=here", "docker:1")
    digest = holdfast.run(*words, "new:1").strip()
    found = holdfast.inspect("new:1")
    (new,) = found["platforms"]
    assert found["target"]["digest"] == digest
    assert found["labels"] == {"made": "here"}
    assert {layer["mediaType"] for layer in new["layers"]} == {media_type}
    assert [x["diff_id"] for x in new["layers"]] == [x["diff_id"] for x in before["layers"]]
    assert new["config"] == before["config"]
    for layer in new["layers"]:
        raw = holdfast.blob(layer["digest"]).read_bytes()
        assert layer["digest"] == f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if compression == "uncompressed":
            assert layer["digest"] == layer["diff_id"]
        holdfast.run("images", "check", "--verify", "new:1")
    # The same again gives the same; so does a second conversion of the result.
    assert holdfast.run(*words, "other:1").strip() == digest
    again = ("convert", "--compression", compression, "new:1", "third:1")
    assert holdfast.run(*again).strip() == digest
    holdfast.run("images", "rm", "docker:1", "other:1", "third:1")
    assert holdfast.run("run", "--rm", "new:1", "/bin/busybox", "cat", "/etc/motd") == "hello\n"


@pytest.mark.long
def test_convert_makes_ocis_types_of_dockers_and_leaves_the_platforms_asked_for(
    holdfast: Holdfast,
) -> None:
    holdfast.take_in(docker_archive(("docker:1",)))
    holdfast.run("convert", "--oci", "docker:1", "oci:1")
    found = holdfast.inspect("oci:1")
    assert found["target"]["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    text = json.dumps(found)
    assert "vnd.docker" not in text
    holdfast.take_in(oci_archive(NAMED, architectures=("amd64", "arm64")))
    holdfast.run("convert", "--platform", "linux/arm64", "many:1", "arm:1")
    assert [one["platform"] for one in holdfast.inspect("arm:1")["platforms"]] == ["linux/arm64"]
    same = holdfast.inspect("many:1")["target"]["digest"]
    assert holdfast.run("convert", "many:1", "same:1").strip() == same
    said = holdfast.run("convert", "--platform", "s390x", "many:1", "no:1", code=1)
    assert "nothing of it is for these platforms" in said
    assert "docker.io/library/no:1" not in holdfast.names()


def test_a_container_becomes_an_image_and_runs_on(holdfast: Holdfast) -> None:
    script = "echo made > /made; rm /etc/passwd; mkdir /d; echo $$ > /d/pid; exec sleep 1000"
    holdfast.run("run", "-d", "--name", "c", "busybox", "sh", "-c", script)
    wait_for(lambda: holdfast.raw("exec", "c", "cat", "/d/pid").stdout)
    digest = holdfast.run(
        *("commit", "--author", "me", "--message", "why not", "--change", 'CMD ["cat", "/made"]'),
        *("--change", "ENV GREETING=hello", "--change", "WORKDIR /d", "c", "made:1"),
    ).strip()
    assert holdfast.run("exec", "c", "cat", "/made") == "made\n"  # not frozen
    found = holdfast.inspect("made:1")
    assert found["target"]["digest"] == digest
    config = found["platforms"][0]["config"]
    assert config["author"] == "me"
    assert config["history"][-1]["comment"] == "why not"
    assert config["history"][-1]["created_by"].startswith("sh -c echo made")
    holdfast.run("rm", "--force", "c")
    holdfast.run("images", "rm", "busybox")
    assert holdfast.run("run", "--rm", "made:1") == "made\n"
    script = "pwd; echo $GREETING; test -e /etc/passwd || echo gone"
    assert holdfast.run("run", "--rm", "made:1", "sh", "-c", script) == "/d\nhello\ngone\n"
    holdfast.run("images", "check", "--verify", "made:1")


def test_others_read_what_is_made_here(holdfast: Holdfast, tmp_path: Path) -> None:
    """skopeo checks each digest, umoci unpacks, Debian's containerd runs."""
    script = "echo made > /made; rm /etc/passwd; ln -s made /link"
    holdfast.run("run", "--name", "c", "busybox", "sh", "-c", script)
    holdfast.run("commit", "--change", 'CMD ["cat", "/link"]', "c", "made:1")
    archive, layout = tmp_path / "made.tar", tmp_path / "layout"
    for compression in ("gzip", "uncompressed", "zstd"):
        name = f"docker.io/library/{compression}:1"
        holdfast.run("convert", "--compression", compression, "--oci", "made:1", name)
        holdfast.run("export", "-o", str(archive), name)
        source = f"oci-archive:{archive}"
        seen = json.loads(command("skopeo", "inspect", source))
        assert seen["Digest"] == holdfast.inspect(name)["target"]["digest"]
        command("skopeo", "copy", source, f"dir:{tmp_path}/{compression}")
        if compression == "gzip":
            command("skopeo", "copy", source, f"oci:{layout}:made")
            command("umoci", "unpack", "--image", f"{layout}:made", str(tmp_path / "bundle"))
            root = tmp_path / "bundle/rootfs"
            assert (root / "link").read_text() == "made\n"
            assert not (root / "etc/passwd").exists()
        with running("containerd", tmp_path / f"containerd-{compression}") as theirs:
            ctr = ("ctr", "--address", str(theirs.socket))
            command(*ctr, "images", "import", str(archive))
            assert command(*ctr, "run", "--rm", "--net-host", name, "c") == "made\n"


def command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_a_commit_is_refused_where_it_cannot_be_and_leaves_nothing(holdfast: Holdfast) -> None:
    assert "not found" in holdfast.run("commit", "never", "x:1", code=1)
    holdfast.run("run", "--name", "c", "busybox", "true")
    said = holdfast.run("commit", "--change", "FROM scratch", "c", "x:1", code=1)
    assert "begins with none of CMD" in said
    assert "KEY=VALUE" in holdfast.run("commit", "--change", "ENV A", "c", "x:1", code=1)
    # Without a change in its files there is no layer; with an epoch it is the same each time.
    first = holdfast.run("commit", "--epoch", "1000", "c", "same:1")
    assert holdfast.run("commit", "--epoch", "1000", "c", "same:2") == first
    config = holdfast.inspect("same:1")["platforms"][0]["config"]
    assert config["created"] == "1970-01-01T00:16:40Z"
    assert config["history"][-1]["empty_layer"]
    below = holdfast.inspect("busybox")["platforms"][0]
    assert config["rootfs"] == below["config"]["rootfs"]
    holdfast.run("images", "rm", "busybox", "same:1", "same:2")
    assert "not here any more" in holdfast.run("commit", "c", "x:1", code=1)
    assert holdfast.names() == []


@pytest.mark.long
def test_several_images_and_platforms_go_out_and_come_in(
    holdfast: Holdfast, tmp_path: Path
) -> None:
    raw = oci_archive(NAMED, architectures=("amd64", "arm64", "s390x"))
    holdfast.take_in(raw)
    archive = tmp_path / "out.tar"

    def digests(*words: str) -> set[str]:
        holdfast.run("export", "-o", str(archive), *words)
        with tarfile.open(archive) as out:
            return {f"sha256:{name[13:]}" for name in out.getnames() if name.startswith("blobs/sh")}

    by_platform = {
        one["platform"]: one["descriptor"]["digest"]
        for one in holdfast.inspect("many:1")["platforms"]
    }
    every = digests("many:1", "busybox")
    assert set(by_platform.values()) <= every
    assert holdfast.inspect("busybox")["target"]["digest"] in every
    two = digests("--platform", "linux/arm64", "--platform", "s390x", "many:1")
    assert by_platform["linux/amd64"] not in two
    assert {by_platform["linux/arm64"], by_platform["linux/s390x"]} <= two
    # What is not here as a whole stays behind, or is missed when all is asked for.
    holdfast.run("content", "rm", by_platform["linux/s390x"])
    some = digests("many:1")
    assert by_platform["linux/arm64"] in some
    assert by_platform["linux/s390x"] not in some
    said = holdfast.run("export", "-o", str(archive), "--all-platforms", "many:1", code=1)
    assert "not found" in said
    said = holdfast.run("export", "-o", str(archive), "--platform", "riscv64", "many:1", code=1)
    assert "no manifest found for platform" in said

    digests("--platform", "linux/arm64", "many:1")
    holdfast.run("images", "rm", "many:1")
    assert holdfast.run("import", "--all-platforms", str(archive)) == "docker.io/library/many:1\n"
    states = {row["platform"]: row["state"] for row in holdfast.rows("images", "check", "many:1")}
    assert states["linux/arm64"] == "complete"
    holdfast.run("images", "rm", "many:1")
    holdfast.run("import", "--platform", "linux/arm64", str(archive))
    unpacked = {
        row["platform"]: row["unpacked"] for row in holdfast.rows("images", "check", "many:1")
    }
    assert "overlayfs" in unpacked["linux/arm64"]


def wait_for(condition: Any, within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
