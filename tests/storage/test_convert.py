import gzip
import io
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.actors.errors import DataLoss, InvalidArgument, NotFound
from holdfast.actors.system import System
from holdfast.storage.collector import Collector
from holdfast.storage.content import ContentStore
from holdfast.storage.conversions import Conversions
from holdfast.storage.convert import Conversion
from holdfast.storage.descriptor import OCI_LAYER, OCI_MANIFEST, describe, read_manifest
from holdfast.storage.images import Image, Images
from holdfast.storage.importer import import_archive
from holdfast.storage.leases import Leases
from holdfast.storage.platform import Platform
from holdfast.storage.store import Store
from holdfast.storage.unpack import label_children

sys.path.insert(0, str(Path(__file__).parent))
from archives import as_json, config_of, oci_archive, sha256, tar

LAYER = tar([("file", b"x" * 100_000)])
ARM64 = Platform(os="linux", architecture="arm64")


@dataclass
class House:
    content: ContentStore
    images: Images
    verb: Conversions
    collector: Collector

    async def add(self, name: str, layer: bytes, plain: bytes, **more: Any) -> Image:
        """An image of one layer, whose config says that its plain bytes are these."""
        config = as_json(config_of([plain]))
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config, "application/vnd.oci.image.config.v1+json").to_json(),
            "layers": [{**describe(layer, OCI_LAYER + "+gzip").to_json(), **more}],
            "annotations": {"kept": "yes"},
        }
        raw = as_json(manifest)
        for each in (config, layer, raw):
            await self.content.write_blob("ns", sha256(each), each)
        target = describe(raw, OCI_MANIFEST)
        image = await self.images.create("ns", Image(name=name, target=target))
        await label_children(self.content, "ns", target)
        return image

    async def manifest(self, image: Image) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.content.read_all("ns", image.target.digest))
        return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House, None]:
    async with opened(tmp_path) as it:
        yield it


@asynccontextmanager
async def opened(root: Path) -> AsyncGenerator[House, None]:
    async with System.open(), Store.open(root / "meta.db") as store:
        content = await ContentStore.open(root / "content", store)
        images = Images(store)
        verb = Conversions(content, images, Leases(store))
        yield House(content, images, verb, Collector(store, {"content": content.reclaim}))


async def test_what_is_made_outlives_the_source_and_nothing_else_is_left(house: House) -> None:
    await house.add("old", gzip.compress(LAYER, mtime=0), LAYER, annotations={"note": "1"})
    made = await house.verb.convert("ns", "old", "new", Conversion(compression="zstd"))
    assert made.changed
    await house.images.delete("ns", "old")
    await house.collector.collect()
    manifest = await house.manifest(made.image)
    assert manifest["annotations"] == {"kept": "yes"}
    (layer,) = manifest["layers"]
    assert layer["annotations"] == {"note": "1"}
    assert layer["mediaType"] == OCI_LAYER + "+zstd"
    info = house.content.info("ns", layer["digest"])
    assert info.labels["containerd.io/uncompressed"] == sha256(LAYER)
    assert len(house.content.list("ns")) == 3
    assert not await house.content.list_statuses("ns")
    again = await house.verb.convert("ns", "new", "again", Conversion(compression="zstd", oci=True))
    assert (again.changed, again.image.target.digest) == (False, made.image.target.digest)


async def test_a_type_that_lies_is_set_right_by_the_bytes(house: House) -> None:
    await house.add("old", LAYER, LAYER)  # it is said to be gzip
    made = await house.verb.convert("ns", "old", "new", Conversion())
    (layer,) = (await house.manifest(made.image))["layers"]
    assert (layer["mediaType"], layer["digest"]) == (OCI_LAYER, sha256(LAYER))


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
async def test_other_bytes_than_the_config_names_are_refused(
    house: House, compression: str
) -> None:
    await house.add("old", gzip.compress(b"something else", mtime=0), LAYER)
    before = [one.digest for one in house.content.list("ns")]
    with pytest.raises(DataLoss, match=f"its config says {sha256(LAYER)}"):
        await house.verb.convert("ns", "old", "new", Conversion(compression=compression))
    await house.collector.collect()
    assert [one.digest for one in house.content.list("ns")] == before
    assert not await house.content.list_statuses("ns")
    assert [one.name for one in house.images.list("ns")] == ["old"]


async def test_what_cannot_be_converted_is_refused(house: House) -> None:
    image = await house.add("old", gzip.compress(LAYER, mtime=0), LAYER)
    with pytest.raises(InvalidArgument, match="is not one of"):
        await house.verb.convert("ns", "old", "new", Conversion(compression="estargz"))
    with pytest.raises(NotFound):
        await house.verb.convert("ns", "never", "new", Conversion())
    await house.add("cut", gzip.compress(LAYER + b"\0", mtime=0)[:-20], LAYER + b"\0")
    with pytest.raises(InvalidArgument, match="ends too early"):
        await house.verb.convert("ns", "cut", "new", Conversion(compression="zstd"))
    manifest = read_manifest(await house.content.read_all("ns", image.target.digest), "manifest")
    await house.content.delete("ns", manifest.layers[0].digest)
    with pytest.raises(NotFound, match="is not here"):
        await house.verb.convert("ns", "old", "new", Conversion(compression="zstd"))


async def test_an_index_keeps_what_fits_and_all_of_it_must_be_here(house: House) -> None:
    name = {"io.containerd.image.name": "many:1"}
    raw = oci_archive(name, architectures=("amd64", "arm64"), missing=("amd64",))
    found = await import_archive(house.content, "ns", io.BytesIO(raw))
    ((_, target),) = found.images
    await house.images.create("ns", Image(name="many", target=target))
    with pytest.raises(NotFound, match=r"linux/amd64, sha256:.* is not here: choose platforms"):
        await house.verb.convert("ns", "many", "new", Conversion(compression="zstd"))
    wish = Conversion(compression="zstd", platforms=[ARM64])
    made = await house.verb.convert("ns", "many", "new", wish, {"a": "b"})
    (entry,) = (await house.manifest(made.image))["manifests"]
    assert entry["platform"] == {"os": "linux", "architecture": "arm64"}
    assert made.image.labels == {"a": "b"}
    await house.images.delete("ns", "many")
    await house.collector.collect()
    assert len(house.content.list("ns")) == 5
