"""Content and differs both ways with Debian's containerd: what it has we run, it keeps with us."""

import base64
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import trio
from bench.daemons import Daemon, running
from examples import busybox_image

from holdfast.api.grpc.client import Channel
from holdfast.api.proto.services import images_pb2 as images
from holdfast.api.proto.types_pb2 import Descriptor

pytestmark = pytest.mark.root

NAME = busybox_image.DEFAULT_NAME
ROT = "application/vnd.holdfast.test.layer.v1.tar+base64"
NOBODYS = f"sha256:{hashlib.sha256(b'nobody has it').hexdigest()}"
HELLO = ("sh", "-c", "echo hello > /f && cat /f")


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A socket's path has its limit.
    return tmp_path_factory.mktemp("p", numbered=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "busybox.tar"
    busybox_image.build(path)
    return path


def ask(daemon: Daemon, *words: str, namespace: str = "test") -> subprocess.CompletedProcess[bytes]:
    address = ["--address", str(daemon.socket), "--namespace", namespace]
    return subprocess.run(
        ["ctr", *address, *words], input=b"", capture_output=True, timeout=60, check=False
    )


def ctr(daemon: Daemon, *words: str, namespace: str = "test") -> str:
    done = ask(daemon, *words, namespace=namespace)
    assert done.returncode == 0, f"ctr {words}: {done.stdout!r}{done.stderr!r}"
    return done.stdout.decode()


def digests(daemon: Daemon, namespace: str = "test") -> set[str]:
    return set(ctr(daemon, "content", "ls", "-q", namespace=namespace).split())


def name_it(daemon: Daemon, target: dict[str, object]) -> None:
    """Give an image a name, as a client does that knows its descriptor."""
    image = images.Image(
        name=NAME,
        target=Descriptor(
            media_type=str(target["mediaType"]),
            digest=str(target["digest"]),
            size=int(str(target["size"])),
        ),
    )

    async def create() -> None:
        async with Channel.connect(daemon.socket) as channel:
            await channel.unary(
                "/containerd.services.images.v1.Images/Create",
                images.CreateImageRequest(image=image),
                images.CreateImageResponse,
                {"containerd-namespace": "test"},
                timeout_s=10,
            )

    trio.run(create)


def source(daemon: Daemon) -> str:
    return f'[proxy_plugins.theirs]\ntype = "content"\naddress = "{daemon.socket}"\n'


def test_an_image_that_only_containerd_has_runs_here(base: Path, archive: Path) -> None:
    with running("containerd", base / "c") as theirs:
        ctr(theirs, "images", "import", "--no-unpack", str(archive))
        row = ctr(theirs, "images", "ls").splitlines()[1].split()
        media_type, digest = row[1], row[2]
        with running("holdfast", base / "h", settings=source(theirs)) as ours:
            assert digests(ours) == set()
            raw = ctr(ours, "content", "get", digest)
            assert hashlib.sha256(raw.encode()).hexdigest() == digest.partition(":")[2]
            # A client's pull need not write: no byte, which would be refused, is enough.
            config = json.loads(raw)["config"]["digest"]
            ctr(ours, "content", "ingest", "--expected-digest", config, "again")
            name_it(ours, {"mediaType": media_type, "digest": digest, "size": len(raw)})
            assert ctr(ours, "run", "--rm", NAME, "box", *HELLO).strip() == "hello"
            assert digests(ours) == digests(theirs)
            # The namespace is sent on: what nobody has there, is not found.
            said = ask(ours, "content", "get", digest, namespace="other")
            assert b"not found" in said.stderr
        ctr(theirs, "images", "rm", "--sync", NAME)
        with running("holdfast", base / "h", settings=source(theirs)) as ours:
            assert ctr(ours, "run", "--rm", NAME, "box", *HELLO).strip() == "hello"


def test_a_source_that_is_stopped_holds_up_nobody_for_long(base: Path, archive: Path) -> None:
    with running("containerd", base / "c") as theirs:
        settings = source(theirs) + "within_s = 1.0\n"
        with running("holdfast", base / "h", settings=settings) as ours:
            os.kill(theirs.pid, signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                said = ask(ours, "content", "get", NOBODYS)
                assert b"not found" in said.stderr
                assert time.monotonic() - began_s > 1.0, "it was asked"
                began_s = time.monotonic()
                for _ in range(5):
                    assert b"not found" in ask(ours, "content", "get", NOBODYS).stderr
                # One probe at most came due meanwhile.
                assert time.monotonic() - began_s < 3.0
                ctr(ours, "images", "import", str(archive))
                assert ctr(ours, "run", "--rm", NAME, "box", *HELLO).strip() == "hello"
            finally:
                os.kill(theirs.pid, signal.SIGCONT)


def test_what_containerd_packs_for_us_comes_through_its_content(base: Path, archive: Path) -> None:
    with running("containerd", base / "c") as theirs:
        gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip"
        plugin = (
            f'[proxy_plugins.packer]\ntype = "diff"\naddress = "{theirs.socket}"\n'
            f'media_types = ["{gzip_type}"]\n'
        )
        with running("holdfast", base / "h", settings=source(theirs) + plugin) as ours:
            ctr(theirs, "images", "import", "--no-unpack", str(archive))
            ctr(ours, "images", "import", str(archive))
            ctr(ours, "run", "--detach", NAME, "box", "sh", "-c", "echo hello > /f; sleep 1000")
            before = digests(ours)
            words = ["--media-type", gzip_type, "--keep", "box"]
            done = ask(ours, "snapshots", "diff", *words)
            assert done.returncode == 0, done.stderr
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(done.stdout))) as tar:
                assert "f" in tar.getnames()
            [made] = digests(ours) - before
            assert made in digests(theirs), "it was made there"
            plain = hashlib.sha256(gzip.decompress(done.stdout)).hexdigest()
            assert f"containerd.io/uncompressed=sha256:{plain}" in ctr(ours, "content", "ls")
            ctr(ours, "tasks", "rm", "--force", "box")


def test_a_kill_in_the_middle_of_a_fetch_leaves_nothing_visible(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = bytes(range(256)) * (40 << 10)  # 10 MiB, three pieces
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    # Its first collection would take what has no label yet.
    later = '[plugins."io.containerd.gc.v1.scheduler"]\nstartup_delay = "60s"\n'
    with running("containerd", base / "c", settings=later) as theirs:
        address = ["ctr", "-a", str(theirs.socket), "-n", "test"]
        words = ["content", "ingest", "--expected-digest", digest, "big"]
        subprocess.run([*address, *words], input=raw, check=True, timeout=60)
        ctr(theirs, "content", "label", digest, "containerd.io/gc.root=test")
        monkeypatch.setenv("HOLDFAST_FAILPOINTS", "daemon:content.fetch.piece=kill@2")
        with running("holdfast", base / "h", settings=source(theirs)) as ours:
            assert ask(ours, "content", "get", digest).returncode != 0
        monkeypatch.delenv("HOLDFAST_FAILPOINTS")
        assert not list((base / "h/root/content/blobs/sha256").iterdir())
        [cut] = (base / "h/root/content/ingest").glob("*/data")
        assert cut.stat().st_size == 8 << 20
        with running("holdfast", base / "h", settings=source(theirs)) as ours:
            assert digests(ours) == set()
            assert ask(ours, "content", "get", digest).stdout == raw
            assert digests(ours) == {digest}
            assert not list((base / "h/root/content/ingest").iterdir())


def test_containerd_keeps_its_content_and_snapshots_with_us(base: Path, archive: Path) -> None:
    lent = base / "lent.sock"
    plugins = "".join(
        f'[proxy_plugins.{name}]\ntype = "{kind}"\naddress = "{lent}"\n'
        for name, kind in (("ours", "snapshot"), ("far", "content"))
    )
    settings = f'lend_snapshots = "{lent}"\nlend_content = "{lent}"\n'
    start_theirs = partial(
        running,
        "containerd",
        base / "c",
        for_crun=True,
        settings=plugins,
        disabled=("io.containerd.content.v1.content",),
    )
    with running("holdfast", base / "h", settings=settings) as ours:
        with start_theirs() as theirs:
            ctr(theirs, "images", "import", "--snapshotter", "ours", str(archive))
            words = ["--rm", "--snapshotter", "ours", "--runc-binary", "crun", NAME, "box"]
            assert ctr(theirs, "run", *words, *HELLO).strip() == "hello"
            assert digests(ours, "holdfast.lent") >= digests(theirs) != set()
            assert not (base / "c/root/io.containerd.content.v1.content/blobs").exists()
        with start_theirs() as theirs:
            # Our collector has taken nothing: it is needed by records that are not ours.
            ctr(theirs, "run", *words, "true")
            ctr(theirs, "images", "rm", "--sync", NAME)
            assert digests(theirs) == set()
            assert digests(ours, "holdfast.lent") == set(), "theirs removes what it needs no more"


def test_a_layer_of_a_kind_that_only_containerd_knows_is_applied_by_it(
    base: Path, tmp_path: Path
) -> None:
    """containerd's stream processors make a layer of what is none to us."""
    archive = tmp_path / "strange.tar"
    strange(archive)
    processor = (
        "[stream_processors.base64]\n"
        f'accepts = ["{ROT}"]\nreturns = "application/vnd.oci.image.layer.v1.tar"\n'
        'path = "base64"\nargs = ["-d"]\n'
    )
    with running("containerd", base / "c", settings=processor) as theirs:
        ctr(theirs, "images", "import", "--no-unpack", str(archive))
        with running("holdfast", base / "alone") as ours:
            said = ask(ours, "images", "import", str(archive))
            assert b"no processor for media-type" in said.stderr, said
        plugin = f'[proxy_plugins.theirs]\ntype = "diff"\naddress = "{theirs.socket}"\n'
        with running("holdfast", base / "h", settings=plugin) as ours:
            ctr(ours, "images", "import", str(archive))
            assert ctr(ours, "run", "--rm", NAME, "box", *HELLO).strip() == "hello"


def strange(archive: Path) -> None:
    """Busybox's image, its layer in base64."""
    plain = archive.with_suffix(".plain")
    busybox_image.build(plain)
    with tarfile.open(plain) as tar:
        names = [name for name in tar.getnames() if tar.getmember(name).isfile()]
        files = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    [entry] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files.pop(place(entry["digest"])))
    [layer] = manifest["layers"]
    raw = base64.b64encode(gzip.decompress(files.pop(place(layer["digest"]))))
    manifest["layers"] = [described(ROT, raw)]
    whole = json.dumps(manifest).encode()
    entry |= described(entry["mediaType"], whole)
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    del files["manifest.json"]
    for blob in (raw, whole):
        files[place(f"sha256:{hashlib.sha256(blob).hexdigest()}")] = blob
    with tarfile.open(archive, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def described(media_type: str, raw: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(raw)}
