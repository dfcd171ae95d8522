import io
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from holdfast.actors.errors import FailedPrecondition, InvalidArgument
from holdfast.actors.system import System
from holdfast.storage.content import ContentStore
from holdfast.storage.descriptor import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, describe
from holdfast.storage.imagecheck import ImageChecks
from holdfast.storage.images import Image
from holdfast.storage.imagetree import image_tree
from holdfast.storage.importer import import_archive
from holdfast.storage.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from archives import as_json, oci_archive

NAME = {"io.containerd.image.name": "many:1"}


@pytest.fixture
async def content(tmp_path: Path) -> AsyncGenerator[ContentStore, None]:
    async with System.open(), Store.open(tmp_path / "meta.db") as store:
        yield await ContentStore.open(tmp_path / "content", store)


async def put(content: ContentStore, value: object, media_type: str) -> Descriptor:
    raw = value if isinstance(value, bytes) else as_json(value)
    await content.write_blob("ns", "put", raw)
    return describe(raw, media_type)


async def test_a_tree_has_every_part_once(content: ContentStore) -> None:
    raw = oci_archive(NAME, architectures=("amd64", "arm64"), missing=("arm64",))
    ((_, target),) = (await import_archive(content, "ns", io.BytesIO(raw))).images
    tree = await image_tree(content, "ns", target)
    ours, theirs = tree.variants
    assert (str(ours.platform), str(theirs.platform)) == ("linux/amd64", "linux/arm64")
    assert ours.is_whole
    assert len(ours.chain) == 2
    assert not theirs.is_whole
    assert theirs.missing == (theirs.descriptor,)
    assert len(list(tree.blobs())) == 6
    twice = await put(content, {"manifests": [target.to_json()] * 2}, OCI_INDEX)
    tree = await image_tree(content, "ns", twice)
    assert len(tree.variants) == 2
    assert len(list(tree.blobs())) == 7


async def test_what_cannot_be_read_is_told_and_hides_nothing_else(content: ContentStore) -> None:
    raw = oci_archive(NAME)
    ((_, good),) = (await import_archive(content, "ns", io.BytesIO(raw))).images
    broken = await put(content, b"{", OCI_MANIFEST)
    config = await put(content, {"config": {"Env": ["none"]}}, OCI_CONFIG)
    odd = await put(content, {"config": config.to_json(), "layers": []}, OCI_MANIFEST)
    both = await put(content, {"manifests": [], "layers": []}, OCI_MANIFEST)
    listed = [one.to_json() for one in (broken, good, odd, both)]
    target = await put(content, {"manifests": listed}, OCI_INDEX)
    tree = await image_tree(content, "ns", target)
    assert set(tree.faults) == {broken.digest, config.digest, both.digest}
    assert [one.is_whole for one in tree.variants] == [False, True, True, False]
    found = await ImageChecks(content, {}).check("ns", Image(name="x", target=target))
    assert [one.state for one in found.platforms] == ["damaged", "complete", "damaged", "damaged"]
    assert not found.is_good
    tree = await image_tree(content, "ns", await put(content, {"manifests": 7}, OCI_INDEX))
    assert (len(tree.faults), tree.variants) == (1, [])


async def test_a_nest_without_end_and_what_is_no_image_are_refused(content: ContentStore) -> None:
    target = await put(content, {"manifests": []}, OCI_INDEX)
    for _ in range(10):
        target = await put(content, {"manifests": [target.to_json()]}, OCI_INDEX)
    with pytest.raises(FailedPrecondition, match="nested too deeply"):
        await image_tree(content, "ns", target)
    with pytest.raises(InvalidArgument, match="unexpected media type"):
        await image_tree(content, "ns", describe(b"x", "text/plain"))
