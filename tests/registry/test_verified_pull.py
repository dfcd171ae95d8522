"""Programs of the host's owner judge an image between its name and its content."""

import io
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from archives import oci_archive
from servers import Server
from transfers import move, served

from holdfast.actors.errors import FailedPrecondition, PermissionDenied
from holdfast.api.grpc.client import Channel
from holdfast.api.host import Host
from holdfast.api.proto import transfer_types_pb2 as types
from holdfast.storage.descriptor import IMAGE_NAME

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="the daemon's stores are root's")
House = tuple[Host, Channel]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with served(tmp_path) as (host, channel):
        folder = tmp_path / "verifiers"
        folder.mkdir()
        host.config = replace(host.config, image_verifier_bin_dir=str(folder))
        yield host, channel


async def test_a_refused_image_is_not_fetched(house: House, plain: Server, tmp_path: Path) -> None:
    host, channel = house
    raw = oci_archive({IMAGE_NAME: "local:1"})
    (image,) = await host.image_keeper.take_in("default", io.BytesIO(raw))
    where = f"{plain.authority}/judged:1"
    await move(channel, types.ImageStore(name="local:1"), types.OCIRegistry(reference=where))
    await host.images.delete("default", "local:1")
    await host.collector.collect()
    verifier = tmp_path / "verifiers" / "judge"
    told = tmp_path / "told"

    async def pull() -> None:
        await move(channel, types.OCIRegistry(reference=where), types.ImageStore(name="new:1"))

    verifier.write_text("#!/bin/sh\necho not of ours; exit 1\n")
    verifier.chmod(0o755)
    with pytest.raises(PermissionDenied, match=r"refused by verifier judge .*: not of ours"):
        await pull()
    verifier.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(PermissionDenied, match="signal 9"):
        await pull()
    verifier.write_text("no program")
    with pytest.raises(FailedPrecondition, match="is not verified"):
        await pull()
    assert not host.images.list("default")
    assert not host.content.list("default")
    assert not await host.content.list_statuses("default")
    assert not host.leases.list("default")

    verifier.write_text(f'#!/bin/sh\necho "$@" > {told}\n')
    await pull()
    assert told.read_text().split()[:4] == ["-name", where, "-digest", image.target.digest]
    assert host.images.get("default", "new:1").target.digest == image.target.digest
