"""Pull and push: `ctr` speaks with the registry itself, and with the daemon about what it has."""

import contextlib
import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import BUSYBOX, Ctr, Pair

sys.path.insert(0, str(Path(__file__).parents[2] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[2] / "storage"))
import servers
from archives import oci_archive

from holdfast.storage.descriptor import IMAGE_NAME

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {base}/registry}}}}
http: {{addr: 127.0.0.1:{port}}}
"""
PLAIN = ("--plain-http",)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a registry of the test's own listens."""
    base = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = base / "config.yml"
    file.write_text(CONFIG.format(base=base, port=port))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def digest_of(ctr: Ctr, name: str) -> str:
    return next(row[2] for row in ctr.table("images", "ls") if row[0] == name)


@pytest.fixture
def pushed(fresh: Ctr, registry: str) -> str:
    """An image that the registry has, and the daemon not any more."""
    fresh.run("images", "import", "--no-unpack", str(fresh.daemon.base / "busybox.tar"))
    name = f"{registry}/{fresh.words[-1]}:1"
    fresh.run("images", "tag", BUSYBOX, name)
    fresh.run("images", "push", *PLAIN, name)
    fresh.run("images", "rm", "--sync", BUSYBOX, name)
    return name


def test_an_image_is_pushed_and_pulled(fresh: Ctr, pushed: str, daemon: object) -> None:
    assert "elapsed" in fresh.run("images", "pull", *PLAIN, pushed)
    assert pushed in fresh.run("images", "check", "-q").split()
    name = "c-" + fresh.words[-1]
    assert fresh.run("run", "--rm", pushed, name, "echo", "pulled") == "pulled\n"
    said = fresh.run("images", "pull", *PLAIN, "--print-chainid", "--all-platforms", pushed)
    assert "image chain ID: sha256:" in said


def test_content_is_fetched_without_being_unpacked(fresh: Ctr, pushed: str) -> None:
    fresh.run("content", "fetch", *PLAIN, pushed)
    assert len(fresh.run("content", "ls", "-q").split()) == 3
    (row,) = [row for row in fresh.table("images", "check") if row[0] == pushed]
    assert (row[3], row[-1]) == ("complete", "false")


def test_an_object_is_fetched_and_pushed(fresh: Ctr, pushed: str, tmp_path: Path) -> None:
    fresh.run("content", "fetch", *PLAIN, pushed)
    digest = digest_of(fresh, pushed)
    manifest = fresh.run("content", "get", digest)
    assert fresh.run("content", "fetch-object", *PLAIN, pushed, digest) == manifest
    config = next(
        one for one in fresh.run("content", "ls", "-q").split()
        if '"rootfs"' in fresh.raw("content", "get", one).stdout.replace("\x00", "")
    )  # fmt: skip
    kind = "application/vnd.oci.image.config.v1+json"
    other = f"{pushed.removesuffix(':1')}-other:1"
    fresh.run("content", "push-object", *PLAIN, other, config, kind)
    host, _, repository = other.removesuffix(":1").partition("/")
    with urllib.request.urlopen(f"http://{host}/v2/{repository}/blobs/{config}") as answer:
        assert "sha256:" + hashlib.sha256(answer.read()).hexdigest() == config


def test_what_the_registry_does_not_have_is_refused_alike(pair: Pair, registry: str) -> None:
    said = pair.same("images", "pull", *PLAIN, f"{registry}/never/was:1", code=1)
    assert "not found" in said
    assert "not found" in pair.same("images", "push", *PLAIN, f"{registry}/never/was:1", code=1)


@pytest.fixture
def index(fresh: Ctr, registry: str, tmp_path: Path) -> str:
    """An image of three platforms that the registry has, and the daemon not any more."""
    name = f"{registry}/{fresh.words[-1]}-index:1"
    archive = tmp_path / "index.tar"
    archive.write_bytes(oci_archive({IMAGE_NAME: name}, architectures=("amd64", "arm64", "s390x")))
    fresh.run("images", "import", "--no-unpack", "--all-platforms", str(archive))
    fresh.run("images", "push", *PLAIN, name)
    fresh.run("images", "rm", "--sync", name)
    return name


def platforms_of(fresh: Ctr) -> list[str]:
    """The platforms whose configs are there."""
    found: list[str] = []
    for digest in fresh.run("content", "ls", "-q").split():
        # Layers are no text, and no JSON.
        with contextlib.suppress(ValueError):
            document = json.loads(fresh.run("content", "get", digest))
            if "rootfs" in document:
                found.append(document["architecture"])
    return sorted(found)


def test_one_platform_of_many_is_pulled_or_several_or_all(fresh: Ctr, index: str) -> None:
    for words, expected in (
        ((), ["amd64"]),
        (("--platform", "linux/arm64"), ["arm64"]),
        (("--platform", "linux/arm64", "--platform", "linux/s390x"), ["arm64", "s390x"]),
        (("--all-platforms",), ["amd64", "arm64", "s390x"]),
    ):
        fresh.run("images", "pull", *PLAIN, *words, index)
        assert platforms_of(fresh) == expected
        fresh.run("images", "rm", "--sync", index)


def test_an_image_is_pulled_by_its_digest(fresh: Ctr, index: str) -> None:
    fresh.run("images", "pull", *PLAIN, index)
    digest = digest_of(fresh, index)
    fresh.run("images", "rm", "--sync", index)
    pinned = f"{index.removesuffix(':1')}@{digest}"
    fresh.run("images", "pull", *PLAIN, pinned)
    assert digest_of(fresh, pinned) == digest
    name = "c-" + fresh.words[-1]
    words = ("busybox", "cat", "/etc/motd")
    assert fresh.run("run", "--rm", pinned, name, *words) == "hello\n"


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_password_opens_a_registry(fresh: Ctr, auth: str, tmp_path: Path) -> None:
    fresh.run("images", "import", "--no-unpack", str(fresh.daemon.base / "busybox.tar"))
    user = ("--user", f"{servers.USER}:{servers.SECRET}")
    with servers.registry(tmp_path / "r", auth=auth) as private:
        name = f"{private.authority}/{fresh.words[-1]}:1"
        fresh.run("images", "tag", BUSYBOX, name)
        fresh.refused("images", "push", *PLAIN, name)
        fresh.refused("images", "push", *PLAIN, "--user", f"{servers.USER}:guess", name)
        fresh.run("images", "push", *PLAIN, *user, name)
        fresh.run("images", "rm", "--sync", BUSYBOX, name)
        fresh.run("images", "pull", *PLAIN, *user, name)
        assert name in fresh.run("images", "check", "-q").split()
