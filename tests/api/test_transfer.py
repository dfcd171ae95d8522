"""Transfer over the socket: archives in and out by streams, names; and what is refused."""

import io
import os
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import busybox_layers, oci_archive, sha256
from transfers import NS, STREAM, TRANSFER, move, opened, receive_bytes, send_bytes, served

from holdfast.actors.errors import AlreadyExists, InvalidArgument, NotFound, Refusal, Unimplemented
from holdfast.api.grpc.client import Channel
from holdfast.api.host import Host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.api.proto.services import transfer_pb2
from holdfast.api.proto.types_pb2 import Platform
from holdfast.api.streams import packed
from holdfast.storage.descriptor import IMAGE_NAME

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="layers are unpacked as root")
NAME = "example.org/b:1"
AMD64 = Platform(os="linux", architecture="amd64")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[tuple[Host, Channel]]:
    async with served(tmp_path) as both:
        yield both


async def brought_in(channel: Channel, raw: bytes, store: types.ImageStore) -> list[str]:
    """Import an archive; the events that were told."""
    told: Sequence[types.Progress] = ()
    refused: list[Refusal] = []
    async with opened(channel, "import") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send_bytes, stream, raw)
        try:
            told = await move(channel, types.ImageImportStream(stream="import"), store)
        except Refusal as refusal:
            refused.append(refusal)
            nursery.cancel_scope.cancel()
    if refused:
        raise refused[0]
    return [f"{one.event} {one.name}".strip() for one in told]


async def test_an_archive_is_imported_named_and_unpacked(house: tuple[Host, Channel]) -> None:
    host, channel = house
    store = types.ImageStore(
        name="example.org/index:1",
        labels={"colour": "blue"},
        extra_references=[types.ImageReference(name="", is_prefix=True)],
        unpacks=[types.UnpackConfiguration(platform=AMD64, snapshotter="native")],
    )
    events = await brought_in(channel, oci_archive({IMAGE_NAME: NAME}), store)
    assert events[0] == "Importing"
    assert f"saved {NAME}" in events
    assert events[-1] == "Completed import"
    images = {image.name: image for image in host.images.list("default")}
    assert set(images) == {NAME, "example.org/index:1"}
    assert images[NAME].labels == {"colour": "blue"}
    await host.collector.collect()
    chain = [info.name for info in host.snapshotter("native").walk("default")]
    assert sha256(busybox_layers()[0]) in chain
    assert len(chain) == 2
    assert not host.leases.list("default")


async def test_what_is_exported_is_what_was_imported(house: tuple[Host, Channel]) -> None:
    host, channel = house
    prefix = types.ImageReference(name="", is_prefix=True)
    await brought_in(
        channel, oci_archive({IMAGE_NAME: NAME}), types.ImageStore(extra_references=[prefix])
    )
    target = host.images.get("default", NAME).target
    received: list[bytes] = []

    async def receive(stream: object) -> None:
        received.append(await receive_bytes(stream))  # type: ignore[arg-type]

    async with opened(channel, "export") as stream, trio.open_nursery() as nursery:
        nursery.start_soon(receive, stream)
        destination = types.ImageExportStream(stream="export", platforms=[AMD64])
        told = await move(channel, types.ImageStore(name=NAME), destination)
    assert [one.event for one in told] == ["Exporting", "exporting", "Completed export"]
    with tarfile.open(fileobj=io.BytesIO(received[0])) as archive:
        assert f"blobs/{target.digest.replace(':', '/')}" in archive.getnames()
    await host.images.delete("default", NAME)
    await host.collector.collect()
    assert not host.content.list("default")
    await brought_in(channel, received[0], types.ImageStore(extra_references=[prefix]))
    assert host.images.get("default", NAME).target.digest == target.digest


async def test_an_image_is_given_further_names(house: tuple[Host, Channel]) -> None:
    host, channel = house
    await brought_in(channel, oci_archive(), types.ImageStore(name=NAME))
    digest = host.images.get("default", NAME).target.digest
    further = types.ImageStore(
        name="example.org/b:2",
        extra_references=[types.ImageReference(name="example.org/b", add_digest=True)],
    )
    await move(channel, types.ImageStore(name=NAME), further)
    names = {image.name for image in host.images.list("default")}
    assert names == {NAME, "example.org/b:2", f"example.org/b@{digest}"}
    # Once more: a name that exists points to the target afterwards.
    await move(channel, types.ImageStore(name=NAME), further)
    with pytest.raises(NotFound, match="no image name found"):
        await move(channel, types.ImageStore(name=NAME), types.ImageStore())
    with pytest.raises(NotFound, match=r"example\.org/none:1"):
        await move(channel, types.ImageStore(name="example.org/none:1"), further)


async def test_what_cannot_be_done_is_refused(house: tuple[Host, Channel]) -> None:
    host, channel = house
    store = types.ImageStore(name=NAME)
    with pytest.raises(Unimplemented, match="method Transfer not implemented for containerd"):
        await move(channel, types.ImageImportStream(stream="s"), types.ReadStream())
    with pytest.raises(NotFound, match="stream 'never'"):
        await move(channel, types.ImageImportStream(stream="never"), store)
    wrong = types.ImageStore(name=NAME, unpacks=[types.UnpackConfiguration(snapshotter="none")])
    with pytest.raises(InvalidArgument, match="snapshotter not loaded: none"):
        await brought_in(channel, oci_archive(), wrong)
    with pytest.raises(InvalidArgument):
        await brought_in(channel, b"no archive at all" * 100, store)
    assert not host.images.list("default")
    assert not host.leases.list("default")


async def test_a_stream_has_one_name_and_one_namespace(house: tuple[Host, Channel]) -> None:
    _, channel = house
    async with opened(channel, "s"):
        with pytest.raises(AlreadyExists, match="stream 's'"):
            async with opened(channel, "s"):
                pass
        async with opened(channel, "s", {"containerd-namespace": "other"}):
            pass
    async with channel.stream(STREAM, AnyMessage, NS) as call:
        await call.send(packed(types.Data()))
        with pytest.raises(InvalidArgument, match="StreamInit is expected"):
            await call.receive()
    # It is free once its call has ended.
    with trio.fail_after(5):
        while True:
            try:
                async with opened(channel, "s"):
                    break
            except AlreadyExists:
                await trio.sleep(0.01)


async def test_a_client_that_leaves_in_the_midst_of_an_import_leaves_nothing(
    house: tuple[Host, Channel],
) -> None:
    host, channel = house
    raw = oci_archive()
    refused: list[Refusal] = []

    async def ask() -> None:
        request = transfer_pb2.TransferRequest(
            source=packed(types.ImageImportStream(stream="left")),
            destination=packed(types.ImageStore(name=NAME)),
        )
        try:
            await channel.unary(TRANSFER, request, Empty, NS, 30)
        except Refusal as refusal:
            refused.append(refusal)

    async with trio.open_nursery() as nursery:
        async with opened(channel, "left") as stream:
            nursery.start_soon(ask)
            assert (await stream.receive()) is not None
            await stream.send(packed(types.Data(data=raw[: 20 << 10])))
            with trio.fail_after(10):
                while not await host.content.list_statuses("default"):
                    await trio.sleep(0.01)
    assert len(refused) == 1
    assert not host.images.list("default")
    assert not await host.content.list_statuses("default")
    assert not host.leases.list("default")
