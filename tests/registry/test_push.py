"""Push to a real registry, also through a proxy that spoils uploads."""

import gzip
import http.client
import io
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from archives import as_json, oci_archive, sha256, tar
from cutproxy import CUT, KEPT, LIMITED, LOST, REFUSED, TORN, UNABLE, Proxy, cutting
from servers import SECRET, USER, Server, registry
from transfers import move, opened, served

from holdfast.actors.errors import FailedPrecondition, NotFound, Refusal
from holdfast.api.grpc.client import Channel
from holdfast.api.host import Host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.types_pb2 import Platform
from holdfast.api.streams import packed
from holdfast.storage.content import ContentInfo
from holdfast.storage.descriptor import IMAGE_NAME, children
from holdfast.storage.images import Image
from holdfast.storage.registry import push as module

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the daemon's stores are root's")
AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")
THREE = ("amd64", "arm64", "s390x")
PART_BYTES = 64 << 10
House = tuple[Host, Channel]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with served(tmp_path) as both:
        yield both


@pytest.fixture
def proxy(plain: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr(module, "PART_BYTES", PART_BYTES)
    with cutting(plain.authority) as between:
        yield between


def of_size(size: int) -> bytes:
    """An archive of an image with one layer of about so many bytes, which do not shrink."""
    layer = gzip.compress(tar([("data", random.Random(size).randbytes(size))]), 0, mtime=0)
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    config["rootfs"] = {"type": "layers", "diff_ids": [sha256(gzip.decompress(layer))]}
    oci = "application/vnd.oci.image"
    blobs: dict[str, bytes] = {}

    def add(raw: bytes, kind: str) -> dict[str, object]:
        blobs[sha256(raw)] = raw
        return {"mediaType": f"{oci}.{kind}", "digest": sha256(raw), "size": len(raw)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": add(as_json(config), "config.v1+json"),
        "layers": [add(layer, "layer.v1.tar+gzip")],
    }
    top = add(as_json(manifest), "manifest.v1+json")
    top["annotations"] = {IMAGE_NAME: "big:1"}
    return tar(
        [
            *((f"blobs/{digest.replace(':', '/')}", raw) for digest, raw in blobs.items()),
            ("index.json", as_json({"schemaVersion": 2, "manifests": [top]})),
            ("oci-layout", as_json({"imageLayoutVersion": "1.0.0"})),
        ]
    )


async def local(host: Host, raw: bytes) -> Image:
    """The image of an archive."""
    (image,) = await host.image_keeper.take_in("default", io.BytesIO(raw))
    return image


async def pushed(
    channel: Channel, name: str, to: str, *platforms: Platform
) -> list[types.Progress]:
    told = await move(
        channel,
        types.ImageStore(name=name, platforms=platforms),
        types.OCIRegistry(reference=to),
    )
    return list(told)


def words(told: list[types.Progress]) -> dict[str, list[str]]:
    """Each blob's events."""
    found: dict[str, list[str]] = {}
    for one in told:
        if one.name.partition("-")[0] in ("layer", "config", "manifest", "index"):
            found.setdefault(one.name, []).append(one.event)
    return found


def fetch(server: Server, path: str) -> tuple[int, bytes]:
    """What the registry itself says."""
    accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    port = int(server.authority.partition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", f"/v2/{path}", headers={"Accept": accept})
        with connection.getresponse() as answer:
            return answer.status, answer.read()


async def test_a_blob_is_sent_in_parts_and_told_in_bytes(
    house: House, plain: Server, proxy: Proxy
) -> None:
    host, channel = house
    image = await local(host, of_size(600_000))
    told = await pushed(channel, image.name, f"{proxy.authority}/parts:1")
    (layer,) = (name for name in words(told) if name.startswith("layer-"))
    progress = [one.progress for one in told if one.name == layer]
    total = next(one.total for one in told if one.name == layer)
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] == total
    assert len(set(progress)) == total // PART_BYTES + 2
    assert fetch(plain, "parts/manifests/1") == (
        200,
        await host.content.read_all("default", image.target.digest),
    )
    status, raw = fetch(plain, f"parts/blobs/{layer.removeprefix('layer-')}")
    assert (status, sha256(raw)) == (200, layer.removeprefix("layer-"))


@pytest.mark.parametrize("fault", [REFUSED, LIMITED, CUT, KEPT])
async def test_an_upload_goes_on_where_it_broke_off(
    house: House, plain: Server, proxy: Proxy, fault: int
) -> None:
    host, channel = house
    image = await local(host, of_size(1_000_000 + fault))
    proxy.faults = {4: fault, 9: fault}
    await pushed(channel, image.name, f"{proxy.authority}/on:{fault}")
    size = sum(info.size for info in host.content.list("default"))
    # No more than the parts that broke off came twice.
    assert proxy.sent_bytes() <= size + 2 * PART_BYTES
    if fault == KEPT:
        assert proxy.sent_bytes() <= size
    for info in host.content.list("default"):
        kind = "manifests" if info.digest == image.target.digest else "blobs"
        assert fetch(plain, f"on/{kind}/{info.digest}")[0] == 200
    assert proxy.methods().count("POST") == 2


@pytest.mark.parametrize("fault", [TORN, LOST])
async def test_an_upload_that_the_registry_has_lost_is_begun_anew(
    house: House, plain: Server, proxy: Proxy, fault: int
) -> None:
    host, channel = house
    image = await local(host, of_size(1_100_000 + fault))
    proxy.faults = {5: fault}
    told = await pushed(channel, image.name, f"{proxy.authority}/anew:{fault}")
    assert proxy.methods().count("POST") == 3
    assert fetch(plain, f"anew/manifests/{fault}")[0] == 200
    (events,) = (events for name, events in words(told).items() if name.startswith("layer-"))
    assert events[-1] == "complete"


async def test_a_registry_that_takes_no_parts_is_sent_the_whole(
    house: House, plain: Server, proxy: Proxy
) -> None:
    host, channel = house
    image = await local(host, of_size(500_001))
    proxy.faults = {1: UNABLE}
    await pushed(channel, image.name, f"{proxy.authority}/whole:1")
    assert fetch(plain, "whole/manifests/1")[0] == 200


async def test_what_breaks_off_each_time_is_refused_and_leaves_no_upload(
    house: House, plain: Server, proxy: Proxy
) -> None:
    host, channel = house
    image = await local(host, of_size(500_002))
    proxy.faults = dict.fromkeys(range(1, 100), REFUSED)
    with pytest.raises(Refusal, match="503"):
        await pushed(channel, image.name, f"{proxy.authority}/never:1")
    assert "DELETE" in proxy.methods()
    assert fetch(plain, "never/manifests/1")[0] == 404
    uploads = plain.base / "data/docker/registry/v2/repositories/never/_uploads"
    assert not list(uploads.glob("*/data"))


async def test_a_blob_is_mounted_from_where_its_labels_say_it_is(
    house: House, plain: Server, proxy: Proxy
) -> None:
    host, channel = house
    image = await local(host, oci_archive({IMAGE_NAME: "mounted:1"}))
    await pushed(channel, image.name, f"{proxy.authority}/team/first:1")
    label = f"containerd.io/distribution.source.{proxy.authority}"
    blobs = await parts_of(host, image)
    assert {one.labels[label] for one in blobs} == {"team/first"}
    proxy.forget()
    told = await pushed(channel, image.name, f"{proxy.authority}/team/second:1")
    events = words(told)
    assert [events[name] for name in events if name.startswith("layer-")] == [
        ["uploading", "mounted"],
        ["uploading", "mounted"],
    ]
    assert proxy.sent_bytes() == 0
    assert fetch(plain, "team/second/manifests/1")[0] == 200

    # What is said to be in a repository, and is not, is sent.
    for one in blobs:
        await host.content.update("default", one.digest, {label: "no/where"}, [f"labels.{label}"])
    proxy.forget()
    await pushed(channel, image.name, f"{proxy.authority}/other:1")
    assert proxy.sent_bytes() == sum(one.size for one in blobs)
    assert fetch(plain, "other/manifests/1")[0] == 200
    # A manifest's label will do for what it points to.
    for one in blobs:
        await host.content.update("default", one.digest, {}, [f"labels.{label}"])
    await host.content.update("default", image.target.digest, {label: "other"}, [f"labels.{label}"])
    proxy.forget()
    await pushed(channel, image.name, f"{proxy.authority}/third:1")
    assert proxy.sent_bytes() == 0


async def test_a_mount_is_authorized_for_both_repositories(house: House, tmp_path: Path) -> None:
    host, channel = house
    image = await local(host, oci_archive({IMAGE_NAME: "mounted:1"}))
    password = types.AuthResponse(authType=types.CREDENTIALS, username=USER, secret=SECRET)
    with registry(tmp_path / "r", auth="token") as server:

        async def push(repository: str) -> list[str]:
            place = types.OCIRegistry(reference=f"{server.authority}/{repository}:1")
            place.resolver.auth_stream = "auth"
            told: list[types.Progress] = []
            async with opened(channel, "auth") as stream, trio.open_nursery() as nursery:

                async def answer() -> None:
                    async for _ in stream:
                        await stream.send(packed(password))

                nursery.start_soon(answer)
                told += await move(channel, types.ImageStore(name=image.name), place)
                nursery.cancel_scope.cancel()
            return [events[-1] for name, events in words(told).items() if "layer" in name]

        assert await push("mine/first") == ["complete", "complete"]
        assert await push("mine/second") == ["mounted", "mounted"]


async def parts_of(host: Host, image: Image) -> list[ContentInfo]:
    """Config and layers."""
    raw = await host.content.read_all("default", image.target.digest)
    pointed = children(raw, image.target.media_type, "manifest")
    return [host.content.info("default", one.digest) for one in pointed]


async def many(host: Host) -> tuple[Image, list[dict[str, object]]]:
    image = await local(host, oci_archive({IMAGE_NAME: "many:1"}, architectures=THREE))
    index = json.loads(await host.content.read_all("default", image.target.digest))
    return image, index["manifests"]


async def test_an_index_is_pushed_whole_and_its_manifests_must_be_somewhere(
    house: House, plain: Server
) -> None:
    host, channel = house
    image, entries = await many(host)
    lease = await host.leases.create("default")
    for one in host.content.list("default"):
        await host.content.hold("default", one.digest, lease.id)
    gone = str(entries[1]["digest"])
    raw = await host.content.read_all("default", gone)
    await host.content.delete("default", gone)
    with pytest.raises(NotFound, match=rf"linux/arm64 \({gone}\); pull .* --platform"):
        await pushed(channel, image.name, f"{plain.authority}/index:1")
    assert fetch(plain, "index/manifests/1")[0] == 404
    await host.content.write_blob("default", "again", raw)
    told = await pushed(channel, image.name, f"{plain.authority}/index:1")
    assert told[-1].desc.digest == image.target.digest
    assert fetch(plain, f"index/manifests/{gone}")[0] == 200
    # What the registry has need not be here.
    await host.content.delete("default", gone)
    await pushed(channel, image.name, f"{plain.authority}/index:2")


async def test_of_chosen_platforms_an_index_is_made(house: House, plain: Server) -> None:
    host, channel = house
    image, entries = await many(host)
    where = f"{plain.authority}/chosen"
    told = await pushed(channel, image.name, f"{where}:1", ARM64)
    status, raw = fetch(plain, "chosen/manifests/1")
    assert status == 200
    assert sha256(raw) == told[-1].desc.digest != image.target.digest
    assert json.loads(raw)["manifests"] == [entries[1]]
    assert fetch(plain, f"chosen/manifests/{entries[0]['digest']}")[0] == 404
    # By its digest it would be another one.
    by_digest = f"{where}@{image.target.digest}"
    with pytest.raises(FailedPrecondition, match="chosen platforms alone"):
        await pushed(channel, image.name, by_digest, ARM64)
    await pushed(channel, image.name, f"{where}:2", AMD64, ARM64)
    assert json.loads(fetch(plain, "chosen/manifests/2")[1])["manifests"] == entries[:2]
    riscv = Platform(os="linux", architecture="riscv64")
    with pytest.raises(NotFound, match="no match for platform"):
        await pushed(channel, image.name, f"{where}:3", riscv)
    # Once the registry has the others, the index is itself.
    await pushed(channel, image.name, f"{where}:all")
    told = await pushed(channel, image.name, f"{where}:4", AMD64)
    assert told[-1].desc.digest == image.target.digest
    assert sha256(fetch(plain, "chosen/manifests/4")[1]) == image.target.digest


async def test_what_is_not_here_is_told_by_its_name(house: House, plain: Server) -> None:
    host, channel = house
    image = await local(host, oci_archive({IMAGE_NAME: "torn:1"}))
    layer = max(host.content.list("default"), key=lambda one: one.size)
    await host.content.delete("default", layer.digest)
    with pytest.raises(NotFound, match=f"layer-{layer.digest} is not here"):
        await pushed(channel, image.name, f"{plain.authority}/torn:1")
