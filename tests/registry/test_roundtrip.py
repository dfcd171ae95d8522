"""Pull from and push to a real registry: Debian's docker-registry on the loopback."""

import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from archives import oci_archive
from bench.daemons import running
from servers import SECRET, USER, Server, registry
from transfers import move, opened, served

from holdfast.actors.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refusal,
    Unavailable,
)
from holdfast.api.grpc.client import Channel, ClientCall
from holdfast.api.host import Host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.types_pb2 import Platform
from holdfast.api.streams import packed, unpacked
from holdfast.storage.descriptor import IMAGE_NAME
from holdfast.storage.images import Image

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="layers are unpacked as root")
AMD64 = Platform(os="linux", architecture="amd64")
House = tuple[Host, Channel]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with served(tmp_path) as both:
        yield both


async def local(host: Host, name: str, raw: bytes | None = None) -> Image:
    """An image in the store, of a name that tells nothing of a registry."""
    raw = oci_archive({IMAGE_NAME: name}) if raw is None else raw
    (image,) = await host.image_keeper.take_in("default", io.BytesIO(raw))
    return image


async def emptied(host: Host) -> None:
    for image in host.images.list("default"):
        await host.images.delete("default", image.name)
    await host.collector.collect()
    assert not host.content.list("default")


def place(text: str, **resolver: str) -> types.OCIRegistry:
    return types.OCIRegistry(reference=text, resolver=types.RegistryResolver(**resolver))


async def pushed(channel: Channel, name: str, to: types.OCIRegistry) -> list[str]:
    told = await move(channel, types.ImageStore(name=name), to)
    return [one.event for one in told]


async def pulled(channel: Channel, source: types.OCIRegistry, name: str = "pulled:1") -> list[str]:
    told = await move(channel, source, types.ImageStore(name=name))
    return [one.event for one in told]


async def test_what_is_pushed_is_pulled_and_unpacked(house: House, plain: Server) -> None:
    host, channel = house
    image = await local(host, "local:1")
    where = place(f"{plain.authority}/team/busybox:1")
    events = await pushed(channel, image.name, where)
    assert events.count("complete") == 4
    # A second time nothing is sent but the manifest.
    assert (await pushed(channel, image.name, where)).count("exists") == 3
    await emptied(host)

    store = types.ImageStore(
        name="pulled:1",
        platforms=[AMD64],
        unpacks=[types.UnpackConfiguration(platform=AMD64)],
    )
    told = await move(channel, where, store)
    assert told[0].event == f"Resolving from {plain.authority}/team/busybox:1"
    assert told[-1].event.startswith("Completed pull from")
    assert {one.name for one in told if one.event == "complete"} >= {
        f"manifest-{image.target.digest}"
    }
    assert host.images.get("default", "pulled:1").target.digest == image.target.digest
    await host.collector.collect()
    assert len(list(host.snapshotter().walk("default"))) == 2
    for info in host.content.list("default"):
        await host.content.verify("default", info.digest)
        label = f"containerd.io/distribution.source.{plain.authority}"
        assert info.labels[label] == "team/busybox"
    assert not host.leases.list("default")

    # By digest; what is here is not fetched again.
    by_digest = f"{plain.authority}/team/busybox@{image.target.digest}"
    assert "downloading" not in await pulled(channel, place(by_digest), by_digest)


async def test_a_blob_of_another_repository_is_mounted(house: House, plain: Server) -> None:
    host, channel = house
    await local(host, "local:1")
    await pushed(channel, "local:1", place(f"{plain.authority}/first/tool:1"))
    await emptied(host)
    await pulled(channel, place(f"{plain.authority}/first/tool:1"))
    await pushed(channel, "pulled:1", place(f"{plain.authority}/second/tool:1"))
    log = (plain.base / "data/docker/registry/v2/repositories/second/tool/_layers/sha256").iterdir()
    assert len(list(log)) == 3


async def test_of_an_index_only_the_platforms_asked_for_are_brought(
    house: House, plain: Server
) -> None:
    host, channel = house
    raw = oci_archive({IMAGE_NAME: "many:1"}, architectures=("amd64", "arm64"))
    await local(host, "many:1", raw)
    where = place(f"{plain.authority}/many:1")
    await pushed(channel, "many:1", where)
    await emptied(host)

    async def count(store: types.ImageStore) -> int:
        await move(channel, where, store)
        found = len(host.content.list("default"))
        await emptied(host)
        return found

    # Both share their layers.
    assert await count(types.ImageStore(name="all:1")) == 7
    assert await count(types.ImageStore(name="one:1", platforms=[AMD64])) == 5
    every = types.ImageStore(name="one:1", platforms=[AMD64], all_metadata=True)
    assert await count(every) == 7
    assert await count(types.ImageStore(name="one:1", manifest_limit=1)) == 5
    other = Platform(os="linux", architecture="s390x")
    with pytest.raises(NotFound, match="no match for platform"):
        await move(channel, where, types.ImageStore(name="no:1", platforms=[other]))


async def test_a_pull_goes_on_where_it_broke_off(house: House, plain: Server) -> None:
    host, channel = house
    image = await local(host, "local:1")
    layers = [i for i in host.content.list("default") if i.size > 100_000]
    raw = await host.content.read_all("default", layers[0].digest)
    where = place(f"{plain.authority}/broken:1")
    await pushed(channel, image.name, where)
    await emptied(host)
    for piece in (raw[:50_000], b"x" * 50_000):
        async with await host.content.open_ingest("default", f"layer-{layers[0].digest}") as half:
            await half.write(piece, 0)
        # What was there and is not what the digest says is fetched anew.
        await pulled(channel, where)
        assert not await host.content.list_statuses("default")
        await host.content.verify("default", layers[0].digest)
        await emptied(host)


async def answering(call: ClientCall[AnyMessage], answer: types.AuthResponse) -> None:
    """Answer each question for credentials."""
    async for message in call:
        assert unpacked(message, types.AuthRequest).host.startswith("localhost:")
        await call.send(packed(answer))


async def with_credentials(
    channel: Channel, where: types.OCIRegistry, answer: types.AuthResponse, *, push: bool
) -> None:
    where.resolver.auth_stream = "auth"
    refused: list[Refusal] = []
    async with opened(channel, "auth") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(answering, stream, answer)
        try:
            if push:
                await pushed(channel, "local:1", where)
            else:
                await pulled(channel, where)
        except Refusal as refusal:
            refused.append(refusal)
        nursery.cancel_scope.cancel()
    if refused:
        raise refused[0]


PASSWORD = types.AuthResponse(authType=types.CREDENTIALS, username=USER, secret=SECRET)
WRONG = types.AuthResponse(authType=types.CREDENTIALS, username=USER, secret="guess")
REFRESH = types.AuthResponse(authType=types.REFRESH, secret=SECRET)


async def test_a_password_is_shown_when_it_is_asked_for(house: House, tmp_path: Path) -> None:
    host, channel = house
    await local(host, "local:1")
    with registry(tmp_path / "r", auth="basic") as server:
        where = f"{server.authority}/secret:1"
        with pytest.raises(PermissionDenied, match="no basic auth credentials"):
            await pushed(channel, "local:1", place(where))
        with pytest.raises(PermissionDenied, match="HTTP status 401"):
            await with_credentials(channel, place(where), WRONG, push=True)
        await with_credentials(channel, place(where), PASSWORD, push=True)
        await emptied(host)
        await with_credentials(channel, place(where), PASSWORD, push=False)
        assert host.images.get("default", "pulled:1")


async def test_a_token_is_fetched_when_it_is_asked_for(house: House, tmp_path: Path) -> None:
    host, channel = house
    await local(host, "local:1")
    with registry(tmp_path / "r", auth="token") as server:
        where = f"{server.authority}/secret:1"
        with pytest.raises(PermissionDenied):
            await pushed(channel, "local:1", place(where))
        await with_credentials(channel, place(where), PASSWORD, push=True)
        await with_credentials(channel, place(f"{where}2"), REFRESH, push=True)
        await emptied(host)
        # Anybody may pull.
        await pulled(channel, place(where))


async def test_a_host_is_spoken_to_as_its_file_says(house: House, tmp_path: Path) -> None:
    host, channel = house
    await local(host, "local:1")
    with registry(tmp_path / "r", tls=True) as server:
        where = f"{server.authority}/tls:1"
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await pushed(channel, "local:1", place(where, default_scheme="https"))
        folder = tmp_path / "hosts" / "mirrored.example"
        folder.mkdir(parents=True)
        (folder / "ca.pem").write_bytes(server.certificate.read_bytes())
        (folder / "hosts.toml").write_text(
            f'server = "https://{server.authority}"\nca = "ca.pem"\n'
            '[host."http://127.0.0.1:9"]\ncapabilities = ["pull", "resolve"]\n'
        )
        by_file = place("mirrored.example/tls:1", host_dir=str(tmp_path / "hosts"))
        await pushed(channel, "local:1", by_file)
        await emptied(host)
        # The mirror does not answer; the server does.
        await pulled(channel, by_file)
        (folder / "hosts.toml").write_text('[host."https://x"]\ncapabilities = ["fly"]')
        with pytest.raises(InvalidArgument, match="unknown capabilities"):
            await pulled(channel, by_file)


async def test_what_a_registry_does_not_have_is_refused(house: House, plain: Server) -> None:
    host, channel = house
    with pytest.raises(NotFound, match="404"):
        await pulled(channel, place(f"{plain.authority}/never:1"))
    with pytest.raises(Unavailable):
        await pulled(channel, place("localhost:9/never:1"))
    with pytest.raises(InvalidArgument, match="invalid reference"):
        await pulled(channel, place("UPPER CASE"))
    with pytest.raises(NotFound):
        await pushed(channel, "never:1", place(f"{plain.authority}/never:1"))
    assert not host.images.list("default")


def test_a_daemon_that_starts_does_not_wait_for_the_http_client() -> None:
    code = "import sys, holdfast.api.boot, holdfast.api.daemon; sys.exit('httpx2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.root
@pytest.mark.slow
async def test_ctr_pulls_what_was_pushed_and_its_push_is_pulled(
    house: House, plain: Server, tmp_path: Path
) -> None:
    host, channel = house
    image = await local(host, "local:1")
    await pushed(channel, "local:1", place(f"{plain.authority}/exchange:1"))
    await emptied(host)

    async def ctr(socket: Path, words: Sequence[str]) -> str:
        command = ["ctr", "--address", str(socket), "images", *words]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
        return bytes(done.stdout).decode()

    ours, theirs = (f"{plain.authority}/exchange:{tag}" for tag in (1, 2))
    with running("containerd", tmp_path / "containerd") as daemon:
        await ctr(daemon.socket, ["pull", "--plain-http", ours])
        assert image.target.digest in await ctr(daemon.socket, ["ls"])
        await ctr(daemon.socket, ["push", "--plain-http", theirs, ours])
    await pulled(channel, place(theirs))
    assert host.images.get("default", "pulled:1").target.digest == image.target.digest
