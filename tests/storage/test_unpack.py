import io
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from holdfast.actors.system import System
from holdfast.storage.collector import Collector
from holdfast.storage.content import ContentStore
from holdfast.storage.descriptor import OCI_LAYER, Descriptor, describe
from holdfast.storage.differs import Differs
from holdfast.storage.image_keeper import ImageKeeper
from holdfast.storage.images import Image, Images
from holdfast.storage.leases import Leases
from holdfast.storage.mounts import Mount
from holdfast.storage.native import Native
from holdfast.storage.platform import Platform
from holdfast.storage.snapshots import SnapshotKeeper, Snapshots
from holdfast.storage.snapshotter import Kind
from holdfast.storage.store import Store
from holdfast.storage.unpack import Resolved, resolve, unpack
from holdfast.storage.workers import Workers

sys.path.insert(0, str(Path(__file__).parent))
from archives import as_json, busybox_layers, docker_archive, oci_archive, sha256

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="snapshots are written as root")
AMD64 = Platform(os="linux", architecture="amd64")


class House:
    """Everything that unpacking needs."""

    def __init__(self, content: ContentStore, workers: Workers, snapshots: Snapshots) -> None:
        self.content, self.workers, self.snapshots = content, workers, snapshots
        self.differs = Differs(content, workers)
        self.keeper = ImageKeeper(
            content, Images(content.store), Leases(content.store), self.differs
        )

    async def take_in(self, raw: bytes) -> Image:
        """The one image of an archive."""
        (image,) = await self.keeper.take_in("ns", io.BytesIO(raw))
        return image


@asynccontextmanager
async def opened(root: Path) -> AsyncGenerator[House, None]:
    async with System.open(), Store.open(root / "meta.db") as store:
        content = await ContentStore.open(root / "content", store)
        workers = Workers(2)
        snapshots = Snapshots(store, Native(workers), root / "native", workers)
        await SnapshotKeeper.spawn(snapshots)
        try:
            yield House(content, workers, snapshots)
        finally:
            await workers.close()


@pytest.mark.parametrize("layout", ["docker", "oci"])
async def test_an_archive_becomes_a_root_that_runs(tmp_path: Path, layout: str) -> None:
    name = {"io.containerd.image.name": "b:1"}
    raw = docker_archive() if layout == "docker" else oci_archive(name)
    async with opened(tmp_path) as house:
        image = await house.take_in(raw)
        unpacked = await house.keeper.unpack("ns", image, house.snapshots)
        assert unpacked.config.env == ("PATH=/bin",)
        collector = Collector(house.content.store, {"content": house.content.reclaim})
        await collector.collect()
        infos = {info.name: info for info in house.snapshots.walk("ns")}
        assert len(infos) == 2
        assert infos[unpacked.chain_id].parent == sha256(busybox_layers()[0])
        assert infos[unpacked.chain_id].labels["containerd.io/snapshot.ref"] == unpacked.chain_id
        config = house.content.info("ns", unpacked.manifest.config.digest)
        assert config.labels == {"containerd.io/gc.ref.snapshot.native": unpacked.chain_id}
        for layer, plain in zip(unpacked.manifest.layers, busybox_layers(), strict=True):
            labels = house.content.info("ns", layer.digest).labels
            assert labels["containerd.io/uncompressed"] == sha256(plain)
        (mount,) = await house.snapshots.prepare("ns", "web", unpacked.chain_id)
        root = Path(mount.source)
        assert (root / "etc/motd").read_bytes() == b"hello\n"
        said = await trio.run_process([root / "bin/busybox", "echo", "runs"], capture_stdout=True)
        assert said.stdout == b"runs\n"
        again = await house.keeper.unpack("ns", image, house.snapshots)
        assert again.chain_id == unpacked.chain_id
        assert not list(house.content.store.scan("lease"))


async def test_two_who_unpack_at_once_share_the_result(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        image = await house.take_in(docker_archive())
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(house.keeper.unpack, "ns", image, house.snapshots)
        assert len(house.snapshots.walk("ns")) == 2


async def test_a_layer_is_waited_for_just_before_it_is_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        image = await house.take_in(docker_archive())
        resolved = await resolve(house.content, "ns", image.target, AMD64)
        kept = {
            layer.digest: await house.content.read_all("ns", layer.digest)
            for layer in resolved.manifest.layers
        }
        lower, upper = resolved.manifest.layers
        for layer in (lower, upper):
            await house.content.delete("ns", layer.digest)
        asked: list[str] = []

        async def arrived(layer: Descriptor) -> None:
            asked.append(layer.digest)
            committed = [s for s in house.snapshots.walk("ns") if s.kind is Kind.COMMITTED]
            # What is below is done, however late this one comes.
            assert len(committed) == (0 if layer == lower else 1)
            if asked == [lower.digest, upper.digest]:
                raise Unavailable("the registry is gone")
            await house.content.write_blob("ns", layer.digest, kept[layer.digest])

        async def again() -> Resolved:
            apply = house.differs.apply
            return await unpack(
                house.content, house.snapshots, apply, "ns", image.target, AMD64, arrived=arrived
            )

        with pytest.raises(Unavailable, match="the registry is gone"):
            await again()
        (left,) = house.snapshots.walk("ns")
        assert left.kind is Kind.COMMITTED
        assert (await again()).chain_id == resolved.chain_id
        assert (await again()).chain_id == resolved.chain_id
        assert asked == [lower.digest, upper.digest, upper.digest]
        assert len(house.snapshots.walk("ns")) == 2


async def test_a_layer_that_is_not_the_configs_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        image = await house.take_in(docker_archive())
        target = image.target

        async def wrong(namespace: str, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
            return describe(b"wrong", OCI_LAYER)

        with pytest.raises(FailedPrecondition, match="wrong diff id calculated on extraction"):
            await unpack(house.content, house.snapshots, wrong, "ns", target, AMD64)
        assert house.snapshots.walk("ns") == []


async def test_a_layer_is_applied_by_its_descriptor(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        raw = busybox_layers()[1]
        await house.content.write_blob("ns", "r", raw)
        mounts = await house.snapshots.prepare("ns", "k", "")
        applied = await house.differs.apply("ns", describe(raw, OCI_LAYER), mounts)
        assert (applied.digest, applied.size) == (sha256(raw), len(raw))
        with pytest.raises(NotFound):
            await house.differs.apply("ns", describe(b"none", OCI_LAYER), mounts)


async def test_a_manifest_that_does_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        config = as_json({"rootfs": {"diff_ids": [sha256(b"1")]}})
        await house.content.write_blob("ns", "c", config)
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = as_json(
            {"config": {"digest": sha256(config), "size": len(config)}, "layers": []}
        )
        await house.content.write_blob("ns", "m", manifest)
        with pytest.raises(InvalidArgument, match="0 layers"):
            await resolve(house.content, "ns", describe(manifest, kind), AMD64)
        with pytest.raises(InvalidArgument, match="unexpected media type"):
            await resolve(house.content, "ns", describe(config, OCI_LAYER), AMD64)


async def test_what_a_remote_snapshotter_has_is_not_applied(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        image = await house.take_in(docker_archive())
        await house.keeper.unpack("ns", image, house.snapshots)
        seen: list[str] = []

        class Remote:
            """Knows a layer only once it is asked to prepare it."""

            name = "remote"

            def stat(self, namespace: str, key: str) -> object:
                if key in seen:
                    return house.snapshots.stat(namespace, key)
                raise NotFound(key)

            async def prepare(
                self, namespace: str, key: str, parent: str, labels: dict[str, str], **_: str
            ) -> Sequence[Mount]:
                seen.append(labels["containerd.io/snapshot.ref"])
                raise AlreadyExists(key)

        async def never(namespace: str, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
            raise AssertionError

        done = await unpack(house.content, Remote(), never, "ns", image.target, AMD64)  # type: ignore[arg-type]
        assert seen[-1] == done.chain_id
        assert len(seen) == 2
