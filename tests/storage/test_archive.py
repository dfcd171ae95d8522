import gzip
import io
import sys
import tarfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.actors.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
    ResourceExhausted,
)
from holdfast.actors.system import System
from holdfast.storage.archive import familiar, image_name, tag_of
from holdfast.storage.collector import Collector
from holdfast.storage.content import ContentStore
from holdfast.storage.descriptor import (
    DOCKER_MANIFEST,
    IMAGE_NAME,
    OCI_INDEX,
    OCI_LAYER,
    REF_NAME,
    Descriptor,
    describe,
    read_index,
    read_manifest,
)
from holdfast.storage.differs import Differs
from holdfast.storage.exporter import export_archive
from holdfast.storage.image_keeper import ImageKeeper
from holdfast.storage.images import Images
from holdfast.storage.importer import Limits, import_archive
from holdfast.storage.leases import Leases
from holdfast.storage.platform import Platform
from holdfast.storage.store import Store
from holdfast.storage.unpack import resolve
from holdfast.storage.workers import Workers

sys.path.insert(0, str(Path(__file__).parent))
from archives import as_json, busybox_layers, docker_archive, link, oci_archive, sha256, tar

AMD64 = Platform(os="linux", architecture="amd64")
NAME = "docker.io/library/busybox:1"


@asynccontextmanager
async def opened(root: Path) -> AsyncGenerator[ContentStore, None]:
    root.mkdir(exist_ok=True)
    async with System.open(), Store.open(root / "meta.db") as store:
        yield await ContentStore.open(root / "content", store)


async def taken_in(content: ContentStore, raw: bytes, **options: object) -> dict[str, Descriptor]:
    imported = await import_archive(content, "ns", io.BytesIO(raw), **options)  # type: ignore[arg-type]
    assert await content.list_statuses("ns") == []
    return dict(imported.images)


async def exported(
    content: ContentStore, *images: tuple[str, Descriptor], **options: object
) -> bytes:
    out = io.BytesIO()
    await export_archive(content, "ns", images, out.write, **options)  # type: ignore[arg-type]
    return out.getvalue()


async def test_a_docker_archive_becomes_an_index_with_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as content:
        images = await taken_in(content, docker_archive(("busybox:1", "me/tool")))
        assert list(images) == [NAME, "docker.io/me/tool:latest"]
        target = images[NAME]
        assert target.media_type == DOCKER_MANIFEST
        assert target.platform == AMD64
        assert target.annotations == {IMAGE_NAME: NAME, REF_NAME: "1"}
        manifest = read_manifest(await content.read_all("ns", target.digest), "m")
        assert [layer.digest for layer in manifest.layers] == [sha256(x) for x in busybox_layers()]
        labels = content.info("ns", target.digest).labels
        assert labels["containerd.io/gc.ref.content.config"] == manifest.config.digest
        assert labels["containerd.io/gc.ref.content.l.1"] == manifest.layers[1].digest
        image = await resolve(content, "ns", target, AMD64)
        assert image.config.args == ("sh",)


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
async def test_an_oci_layout_is_read_however_compressed(tmp_path: Path, compress: str) -> None:
    raw = oci_archive({IMAGE_NAME: NAME, REF_NAME: "1"})
    if compress == "gzip":
        raw = gzip.compress(raw, 1)
    elif compress == "zstd":
        from backports import zstd

        raw = zstd.compress(raw)
    async with opened(tmp_path) as content:
        imported = await import_archive(content, "ns", io.BytesIO(raw), index_name="all")
        assert [name for name, _ in imported.images] == ["all", NAME]
        labels = content.info("ns", imported.index.digest).labels
        assert labels == {"containerd.io/gc.ref.content.m.0": imported.images[1][1].digest}


async def test_names_come_from_annotations_and_the_base(tmp_path: Path) -> None:
    full, tag = {IMAGE_NAME: "x.io/a:1", REF_NAME: "1"}, {REF_NAME: "1"}
    assert image_name(full, "base", strict=False) == "x.io/a:1"
    assert image_name(full, "x.io/a", strict=True) == "x.io/a:1"
    assert image_name(full, "x.io/b", strict=True) == ""
    assert image_name(tag, "base", strict=True) == "base:1"
    assert image_name(tag, "", strict=False) == "1"
    assert image_name({REF_NAME: "x.io/aa:1"}, "x.io/a", strict=True) == ""
    assert image_name({REF_NAME: "x.io/a:1"}, "", strict=False) == "x.io/a:1"
    assert image_name({}, "base", strict=False) == ""
    assert tag_of("x.io:5000/a") == "x.io:5000/a"
    assert tag_of(f"x.io/a@{sha256(b'')}") == sha256(b"")
    assert familiar("docker.io/library/a:1") == "a:1"
    assert familiar("NOT a name") == "NOT a name"
    async with opened(tmp_path) as content:
        images = await taken_in(content, oci_archive(), base_name="base", digests=True)
        assert [name.partition("@")[0] for name in images] == ["base"]


async def test_import_for_a_platform_leaves_out_what_has_nothing_for_it(tmp_path: Path) -> None:
    arm = Platform(os="linux", architecture="arm64")
    s390 = Platform(os="linux", architecture="s390x")
    async with opened(tmp_path) as content:
        assert await taken_in(content, docker_archive(), platforms=[s390]) == {}
        both = oci_archive({IMAGE_NAME: "a:1"}, architectures=("arm64", "amd64"))
        images = await taken_in(content, both, platforms=[arm])
        assert list(images) == ["a:1"]
        assert (await resolve(content, "ns", images["a:1"], arm)).config.platform == arm
        assert (await resolve(content, "ns", images["a:1"], AMD64)).config.platform == AMD64
        with pytest.raises(NotFound, match="no match for platform"):
            await resolve(content, "ns", images["a:1"], s390)
        assert await taken_in(content, both, platforms=[s390]) == {}


@pytest.mark.parametrize("make", [docker_archive, lambda: oci_archive({IMAGE_NAME: NAME})])
async def test_what_is_exported_can_be_imported(tmp_path: Path, make: object) -> None:
    assert callable(make)
    async with opened(tmp_path / "a") as content:
        images = await taken_in(content, make())
        raw = await exported(content, *images.items())
        assert raw == await exported(content, *images.items())
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        names = archive.getnames()
        assert names[:2] == ["blobs", "blobs/sha256"]
        assert {"index.json", "manifest.json", "oci-layout"} < set(names)
        assert len(names) == len(set(names))
        member = archive.extractfile("manifest.json")
        assert member is not None
        assert b'"RepoTags":["busybox:1"]' in member.read()
    async with opened(tmp_path / "b") as content:
        again = await taken_in(content, raw)
        assert {name: one.digest for name, one in again.items()} == {
            name: one.digest for name, one in images.items()
        }
        await resolve(content, "ns", again[NAME], AMD64)
    # The same file as a docker-archive: without its layout it is one.
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        members = [(m.name, archive.extractfile(m)) for m in archive.getmembers() if m.isfile()]
        kept = [(n, f.read()) for n, f in members if f is not None and n != "oci-layout"]
    async with opened(tmp_path / "c") as content:
        assert list(await taken_in(content, tar([x for x in kept if x[0] != "index.json"]))) == [
            NAME
        ]


async def test_an_index_is_exported_whole_or_for_one_platform(tmp_path: Path) -> None:
    raw = oci_archive({IMAGE_NAME: "a:1"}, architectures=("arm64", "amd64"), missing=("arm64",))
    async with opened(tmp_path) as content:
        images = await taken_in(content, raw)
        with pytest.raises(NotFound):
            await exported(content, *images.items())
        assert len(await exported(content, *images.items(), platforms=[AMD64])) > 1 << 20
        with pytest.raises(NotFound, match="no manifest found for platform"):
            await exported(
                content, *images.items(), platforms=[Platform(os="linux", architecture="riscv64")]
            )
        with pytest.raises(InvalidArgument, match="only manifests"):
            await exported(content, ("x", describe(b"", OCI_LAYER)))
        with pytest.raises(InvalidArgument, match="no image"):
            await exported(content)


async def test_an_index_is_exported_for_several_platforms_or_as_far_as_it_is_here(
    tmp_path: Path,
) -> None:
    three = ("arm64", "amd64", "s390x")
    raw = oci_archive({IMAGE_NAME: "a:1"}, architectures=three, missing=("arm64",))
    async with opened(tmp_path) as content:
        images = await taken_in(content, raw)
        ((_, target),) = images.items()
        listed = read_index(await content.read_all("ns", target.digest), "index")
        by_name = {one.platform.architecture: one.digest for one in listed if one.platform}

        async def manifests(**options: object) -> set[str]:
            out = await exported(content, *images.items(), **options)
            with tarfile.open(fileobj=io.BytesIO(out)) as archive:
                names = archive.getnames()
            assert f"blobs/{target.digest.replace(':', '/')}" in names
            return {
                name
                for name, digest in by_name.items()
                if f"blobs/{digest.replace(':', '/')}" in names
            }

        wanted = [Platform(os="linux", architecture=one) for one in ("s390x", "amd64")]
        assert await manifests(platforms=wanted[:1]) == {"s390x"}
        assert await manifests(platforms=wanted) == {"s390x", "amd64"}
        assert await manifests(skip_missing=True) == {"s390x", "amd64"}
        # A manifest whose layer is not here is not here as a whole.
        raw = await content.read_all("ns", by_name["s390x"])
        await content.delete("ns", read_manifest(raw, "manifest").config.digest)
        assert await manifests(skip_missing=True) == {"amd64"}
        await content.delete("ns", by_name["amd64"])
        with pytest.raises(NotFound, match="no manifest found"):
            await manifests(skip_missing=True)


async def test_a_damaged_blob_is_not_exported(tmp_path: Path) -> None:
    async with opened(tmp_path) as content:
        images = await taken_in(content, docker_archive())
        path = content.blob_path(sha256(busybox_layers()[1]))
        path.chmod(0o600)
        path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(DataLoss, match="does not verify"):
            await exported(content, *images.items())


LAYOUT = ("oci-layout", as_json({"imageLayoutVersion": "1.0.0"}))
HOSTILE: dict[str, tuple[bytes, type[Refusal]]] = {
    "nothing in it": (tar([]), InvalidArgument),
    "no tar": (b"no tar at all" * 100, InvalidArgument),
    "no index": (tar([LAYOUT]), InvalidArgument),
    "another version": (tar([("oci-layout", b'{"imageLayoutVersion":"2"}')]), InvalidArgument),
    "layout is a list": (tar([("oci-layout", b"[]")]), InvalidArgument),
    "index is no json": (tar([LAYOUT, ("index.json", b"{")]), InvalidArgument),
    "deep json": (tar([LAYOUT, ("index.json", b'{"manifests":' + b"[" * 99999)]), InvalidArgument),
    "digest with a path": (
        tar([LAYOUT, ("index.json", b'{"manifests":[{"digest":"sha256:../../x"}]}')]),
        InvalidArgument,
    ),
    "manifest is an object": (tar([("manifest.json", b"{}")]), InvalidArgument),
    "config missing": (tar([("manifest.json", b'[{"Config":"x"}]')]), NotFound),
    "config is the host's": (
        tar([("manifest.json", b'[{"Config":"/etc/passwd","Layers":["../../etc/shadow"]}]')]),
        NotFound,
    ),
    "link to the host": (
        tar([link("c", "/etc/passwd"), ("manifest.json", b'[{"Config":"c"}]')]),
        NotFound,
    ),
    "links in a ring": (
        tar([link("a", "b"), link("b", "a"), ("manifest.json", b'[{"Config":"a"}]')]),
        NotFound,
    ),
    "tag is no name": (
        tar([("c", b"{}"), ("manifest.json", b'[{"Config":"c","RepoTags":["A B"]}]')]),
        InvalidArgument,
    ),
    "blob is not its name": (tar([(f"blobs/sha256/{'0' * 64}", b"x")]), FailedPrecondition),
    "blob's name is a path": (tar([("blobs/sha256/../../../x", b"x"), LAYOUT]), InvalidArgument),
    "blob's name is no digest": (tar([("blobs/sha256/xyz", b"x")]), InvalidArgument),
    "cut short": (docker_archive()[:100_000], InvalidArgument),
    "gzip cut short": (gzip.compress(docker_archive(), 1)[:100_000], InvalidArgument),
    "too many entries": (tar([(f"{n}", b"") for n in range(300)]), ResourceExhausted),
    "huge document": (tar([("manifest.json", b" " * (2 << 20))]), ResourceExhausted),
    "bomb": (gzip.compress(b"\0" * (64 << 20)), Refusal),
    "index and manifest at once": (
        tar([LAYOUT, ("index.json", b'{"manifests":[],"config":{"digest":"x"}}')]),
        FailedPrecondition,
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_archive_is_refused_and_leaves_no_file(tmp_path: Path, what: str) -> None:
    raw, refusal = HOSTILE[what]
    limits = Limits(entries_max=200, document_bytes_max=1 << 20, stream_bytes_max=32 << 20)
    async with opened(tmp_path / "root") as content:
        with pytest.raises(refusal):
            await taken_in(content, raw, limits=limits)
        assert await content.list_statuses("ns") == []
        assert not list((tmp_path / "root" / "content" / "ingest").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


async def test_images_are_recorded_and_survive_a_collection(tmp_path: Path) -> None:
    async with opened(tmp_path) as content:
        images = Images(content.store)
        differs = Differs(content, Workers(1))
        keeper = ImageKeeper(content, images, Leases(content.store), differs)
        (image,) = await keeper.take_in("ns", io.BytesIO(docker_archive()))
        assert image.name == NAME
        await Collector(content.store, {"content": content.reclaim}).collect()
        await resolve(content, "ns", image.target, AMD64)
        one_layer = docker_archive(layers=busybox_layers()[:1])
        (changed,) = await keeper.take_in("ns", io.BytesIO(one_layer))
        assert changed.target.digest != image.target.digest
        out = io.BytesIO()
        await keeper.give_out("ns", [NAME], out.write)
        await images.delete("ns", NAME)
        await Collector(content.store, {"content": content.reclaim}).collect()
        assert content.list("ns") == []
        assert not list((tmp_path / "content" / "blobs" / "sha256").iterdir())
        (again,) = await keeper.take_in("ns", io.BytesIO(out.getvalue()))
        assert again.target.digest == changed.target.digest
        with pytest.raises(InvalidArgument, match="have no names"):
            await keeper.take_in("ns", io.BytesIO(oci_archive()))
        assert not list(content.store.scan("lease"))


async def test_an_index_that_nests_too_deeply_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as content:
        target = describe(b'{"manifests":[]}', OCI_INDEX)
        await content.write_blob("ns", "r", b'{"manifests":[]}')
        for _ in range(7):
            raw = as_json({"manifests": [target.to_json()]})
            await content.write_blob("ns", "r", raw)
            target = describe(raw, OCI_INDEX)
        with pytest.raises(FailedPrecondition, match="nested too deeply"):
            await resolve(content, "ns", target, AMD64)
        with pytest.raises(FailedPrecondition, match="nested too deeply"):
            await exported(content, ("n", target))
