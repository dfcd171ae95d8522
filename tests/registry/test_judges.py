"""What others say of our images: skopeo and umoci, and Debian's containerd that runs them."""

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import BUSYBOX, oci_archive, sha256, tar
from bench.daemons import Daemon, running
from command import Command
from servers import Server, registry

from holdfast.storage.descriptor import IMAGE_NAME

pytestmark = [pytest.mark.root, pytest.mark.slow]

INSECURE = ("--insecure-policy",)
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class House:
    """A daemon and a registry, and a folder for what a test makes."""

    daemon: Daemon
    holdfast: Command
    server: Server
    base: Path

    def place(self) -> str:
        """A name in the registry that nobody has taken."""
        return f"{self.server.authority}/{uuid.uuid4().hex[:8]}/box:1"

    def imported(self, raw: bytes) -> str:
        """The name that an archive's image has here."""
        file = self.base / "in.tar"
        file.write_bytes(raw)
        return self.holdfast.run("import", str(file)).split()[-1]

    def pushed(self, raw: bytes) -> str:
        """The place of an archive's image in the registry."""
        place = self.place()
        self.holdfast.run("push", self.imported(raw), place)
        return place

    def gone(self) -> None:
        """Nothing is left in the store."""
        if names := self.holdfast.run("images", "-q").split():
            self.holdfast.run("images", "rm", *names)
        assert self.holdfast.run("content", "-q") == ""

    def mounted(self, name: str) -> Path:
        """The image's tree as our snapshots show it; the caller unmounts it."""
        target = self.base / "mounted"
        target.mkdir()
        ctr(self.daemon, "images", "mount", name, str(target))
        return target


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running("holdfast", tmp_path_factory.mktemp("judged")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("registry") / "r") as server:
        yield server


@pytest.fixture
def house(daemon: Daemon, server: Server, tmp_path: Path) -> Iterator[House]:
    house = House(daemon, Command(daemon), server, tmp_path)
    yield house
    house.gone()


def skopeo(*words: str) -> str:
    done = subprocess.run(
        ["skopeo", *INSECURE, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copied(*words: str) -> None:
    """Copy by skopeo; plain http, as the loopback's registry speaks."""
    skopeo("copy", "--src-tls-verify=false", "--dest-tls-verify=false", *words)


def ctr(daemon: Daemon, *words: str) -> str:
    done = subprocess.run(
        ["ctr", "--address", str(daemon.socket), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def blobs(layout: Path) -> dict[str, bytes]:
    """The blobs of an OCI layout, each under the digest that its bytes have."""
    found = {f"sha256:{path.name}": path for path in (layout / "blobs/sha256").iterdir()}
    read = {sha256(path.read_bytes()): path.read_bytes() for path in found.values()}
    assert set(read) == set(found)
    return read


def top_of(layout: Path) -> str:
    """The digest that a layout's index.json points to."""
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = index["manifests"]
    return str(entry["digest"])


def named(name: str = "box.example/judged:1", **more: object) -> bytes:
    """An archive of busybox in two layers."""
    return oci_archive({IMAGE_NAME: name}, **more)  # type: ignore[arg-type]


def test_skopeo_sees_what_we_pushed(house: House) -> None:
    place = house.pushed(named())
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{place}"))
    (image,) = house.holdfast.records("images")
    assert seen["Digest"] == image["digest"]
    assert (seen["Architecture"], seen["Os"]) == ("amd64", "linux")
    manifest = json.loads(house.holdfast.run("content", "get", str(image["digest"])))
    assert seen["Layers"] == [layer["digest"] for layer in manifest["layers"]]


def test_skopeo_copies_blob_by_blob_what_we_have(house: House) -> None:
    place = house.pushed(named())
    layout = house.base / "layout"
    copied(f"docker://{place}", f"oci:{layout}:1")
    ours = set(house.holdfast.run("content", "-q").split())
    # The import keeps the archive's own index beside the image's four blobs.
    assert set(blobs(layout)) <= ours
    assert len(blobs(layout)) == 4
    (image,) = house.holdfast.records("images")
    assert top_of(layout) == image["digest"]


@pytest.mark.long
def test_skopeo_copies_all_platforms_of_an_index(house: House) -> None:
    place = house.pushed(named(architectures=("amd64", "arm64", "s390x")))
    layout = house.base / "layout"
    copied("--all", f"docker://{place}", f"oci:{layout}:1")
    (image,) = house.holdfast.records("images")
    assert top_of(layout) == image["digest"]
    # The index, and for each platform a manifest and a config over the same two layers.
    assert len(blobs(layout)) == 1 + 3 * 2 + 2
    assert set(blobs(layout)) <= set(house.holdfast.run("content", "-q").split())


def test_skopeo_reads_our_export_as_an_oci_archive(house: House) -> None:
    name = house.imported(named())
    archive, layout = house.base / "out.tar", house.base / "layout"
    house.holdfast.run("export", "-o", str(archive), name)
    copied(f"oci-archive:{archive}", f"oci:{layout}:1")
    (image,) = house.holdfast.records("images")
    assert top_of(layout) == image["digest"]
    assert set(blobs(layout)) <= set(house.holdfast.run("content", "-q").split())


@pytest.mark.long
def test_skopeo_reads_our_export_as_a_docker_archive(house: House) -> None:
    name = house.imported(named())
    archive, copy = house.base / "out.tar", house.base / "copy"
    house.holdfast.run("export", "-o", str(archive), name)
    copied(f"docker-archive:{archive}:{name}", f"dir:{copy}")
    # The format has no manifest: skopeo makes one, over the same config and the layers unpacked.
    (image,) = house.holdfast.records("images")
    ours = json.loads(house.holdfast.run("content", "get", str(image["digest"])))
    theirs = json.loads((copy / "manifest.json").read_bytes())
    assert theirs["config"]["digest"] == ours["config"]["digest"]
    config = json.loads(house.holdfast.run("content", "get", ours["config"]["digest"]))
    assert [layer["digest"] for layer in theirs["layers"]] == config["rootfs"]["diff_ids"]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_skopeo_pushed_is_pulled_and_runs(house: House, compression: str) -> None:
    archive, place = house.base / "box.tar", house.place()
    # skopeo remembers where it has seen a layer, packed in whatever way: these are new to it.
    mark = ("etc/mark", uuid.uuid4().bytes)
    box = tar([("bin/busybox", BUSYBOX.read_bytes()), mark])
    archive.write_bytes(named(layers=[box, tar([("etc/motd", b"hello\n"), mark])]))
    copied("--dest-compress-format", compression, f"oci-archive:{archive}", f"docker://{place}")
    name, digest = house.holdfast.run("pull", place).split()
    assert name == place
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{place}")
    assert digest == sha256(raw.encode())
    for layer in json.loads(raw)["layers"]:
        assert layer["mediaType"].endswith(f"+{compression}")
        packed = server_blob(house.server, layer["digest"])
        assert packed.startswith(ZSTD_MAGIC) is (compression == "zstd")
    assert house.holdfast.run("run", "--rm", place, "busybox", "cat", "/etc/motd") == "hello\n"


def server_blob(server: Server, digest: str) -> bytes:
    """A blob as the registry has it on disk."""
    kind, _, name = digest.partition(":")
    data = server.base / "data/docker/registry/v2/blobs" / kind / name[:2] / name / "data"
    return data.read_bytes()


@pytest.mark.long
def test_an_index_that_skopeo_copied_is_pulled_for_one_platform_or_all(house: House) -> None:
    archive, place = house.base / "box.tar", house.place()
    archive.write_bytes(named(architectures=("amd64", "arm64")))
    layout = house.base / "layout"
    with tarfile.open(archive) as file:
        file.extractall(layout, filter="data")
    copied("--all", f"oci:{layout}", f"docker://{place}")
    _, digest = house.holdfast.run("pull", place).split()
    assert digest == top_of(layout)
    one = house.holdfast.run("content", "-q").split()
    assert house.holdfast.run("run", "--rm", place, "busybox", "echo", "on amd64") == "on amd64\n"
    house.gone()
    assert house.holdfast.run("pull", "--all-platforms", place).split() == [place, digest]
    both = house.holdfast.run("content", "-q").split()
    assert set(both) == set(blobs(layout))
    # The other platform's manifest and config.
    assert len(both) == len(one) + 2


# ---------------------------------------------------------------- umoci


def motley() -> list[bytes]:
    """Layers with every kind of file that one holds, and a second that takes from the first."""

    def entry(
        name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, **more: object
    ) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, 1_600_000_000
        for key, value in more.items():
            setattr(info, key, value)
        return info

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(info: tarfile.TarInfo, data: bytes = b"") -> None:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        add(entry("bin", tarfile.DIRTYPE, 0o755))
        add(entry("bin/busybox", mode=0o755), BUSYBOX.read_bytes())
        add(entry("bin/su", mode=0o4755, uid=0, gid=0), b"set-uid")
        add(entry("srv", tarfile.DIRTYPE, 0o2775, uid=1000, gid=50))
        add(entry("srv/owned", mode=0o640, uid=1000, gid=50), b"mine\n")
        add(entry("srv/" + "long" * 45), b"a long name")
        add(entry("srv/grüße"), b"not in ascii")
        add(entry("srv/sparse"), b"\0" * 100_000)
        add(entry("srv/hard", tarfile.LNKTYPE, linkname="srv/owned"))
        add(entry("srv/soft", tarfile.SYMTYPE, 0o777, linkname="../bin/busybox"))
        add(entry("srv/nowhere", tarfile.SYMTYPE, 0o777, linkname="/not/there"))
        add(entry("srv/fifo", tarfile.FIFOTYPE, 0o600))
        add(entry("srv/null", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3))
        labelled = entry("srv/labelled")
        labelled.pax_headers = {"SCHILY.xattr.user.mood": "good"}
        add(labelled, b"with an attribute")
        add(entry("tmp", tarfile.DIRTYPE, 0o1777))
        add(entry("old", tarfile.DIRTYPE, 0o755))
        add(entry("old/one"), b"1")
        add(entry("old/two"), b"2")
        add(entry("opaque", tarfile.DIRTYPE, 0o755))
        add(entry("opaque/below"), b"hidden")
        add(entry("changed", mode=0o600), b"before")
    upper = io.BytesIO()
    with tarfile.open(fileobj=upper, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in (
            (entry("old", tarfile.DIRTYPE, 0o700), b""),
            (entry("old/.wh.one"), b""),
            (entry("opaque", tarfile.DIRTYPE, 0o755), b""),
            (entry("opaque/.wh..wh..opq"), b""),
            (entry("opaque/above"), b"seen"),
            (entry("changed", mode=0o755), b"afterwards"),
        ):
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return [out.getvalue(), upper.getvalue()]


def tree(root: Path) -> Mapping[str, object]:
    """All that a tree says of its files, by their paths."""
    found: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = Path(folder) / name
            info = path.lstat()
            kind = stat.S_IFMT(info.st_mode)
            what: object = None
            if stat.S_ISREG(kind):
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(kind):
                what = os.readlink(path)
            elif stat.S_ISCHR(kind):
                what = info.st_rdev
            key = str(path.relative_to(root))
            same = inodes.setdefault(info.st_ino, key) if info.st_nlink > 1 else key
            attributes = {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
                if each.startswith("user.")
            }
            found[key] = (
                oct(info.st_mode),
                (info.st_uid, info.st_gid),
                None if stat.S_ISDIR(kind) else int(info.st_mtime),
                what,
                sorted([same, key]) if not stat.S_ISDIR(kind) else None,
                attributes,
            )
    return found


def test_umoci_unpacks_our_export_to_the_tree_that_our_snapshots_show(house: House) -> None:
    name = house.imported(named(layers=motley()))
    archive, layout, bundle = (house.base / each for each in ("out.tar", "layout", "bundle"))
    house.holdfast.run("export", "-o", str(archive), name)
    with tarfile.open(archive) as file:
        file.extractall(layout, filter="data")
    tag = name.rpartition(":")[2]
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    mounted = house.mounted(name)
    try:
        ours, theirs = tree(mounted), tree(bundle / "rootfs")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        ctr(house.daemon, "snapshots", "rm", str(mounted))
    assert ours == theirs
    assert {"old/two", "opaque/above", "srv/null", "srv/labelled"} <= set(ours)
    assert {"old/one", "opaque/below"}.isdisjoint(ours)


@pytest.mark.long
def test_what_umoci_packed_is_imported_and_runs(house: House) -> None:
    layout, bundle = house.base / "layout", house.base / "bundle"
    archive = house.base / "box.tar"
    archive.write_bytes(named())
    copied(f"oci-archive:{archive}", f"oci:{layout}:1")
    umoci = ["umoci", "unpack", "--image", f"{layout}:1", str(bundle)]
    subprocess.run(umoci, check=True, capture_output=True, timeout=60)
    (bundle / "rootfs/etc/motd").write_text("changed\n")
    (bundle / "rootfs/etc/added").write_text("added\n")
    umoci = ["umoci", "repack", "--image", f"{layout}:2", str(bundle)]
    subprocess.run(umoci, check=True, capture_output=True, timeout=60)
    place = house.place()
    copied(f"oci:{layout}:2", f"docker://{place}")
    words = ("run", "--rm", place, "busybox", "cat", "/etc/motd", "/etc/added")
    assert house.holdfast.run(*words) == "changed\nadded\n"


# ---------------------------------------------------------------- Debian's containerd


def test_containerd_runs_what_we_pushed_and_we_run_what_it_pushed(house: House) -> None:
    place, back = house.pushed(named(architectures=("amd64", "arm64"))), house.place()
    (image,) = house.holdfast.records("images")
    with running("containerd", house.base / "containerd") as other:
        ctr(other, "images", "pull", "--plain-http", "--all-platforms", place)
        assert str(image["digest"]) in ctr(other, "images", "ls")
        ran = ctr(other, "run", "--rm", place, "judged", "busybox", "cat", "/etc/motd")
        assert ran == "hello\n"
        ctr(other, "images", "push", "--plain-http", back, place)
    house.gone()
    words = house.holdfast.run("pull", back).split()
    assert words == [back, image["digest"]]
    assert house.holdfast.run("run", "--rm", back, "busybox", "cat", "/etc/motd") == "hello\n"
