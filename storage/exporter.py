"""The exporter: images as one archive, an OCI layout that Docker reads too.

The same images give the same bytes, and no blob goes out that does not verify.
"""

import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import cast

import trio

from ..actors.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from .archive import (
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    MANIFEST_FILE,
    familiar,
    tag_of,
)
from .content import ContentStore
from .descriptor import (
    DOCKER_FOREIGN_LAYER,
    IMAGE_NAME,
    OCI_FOREIGN_LAYER,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    children,
    is_index,
    is_manifest,
    read_manifest,
)
from .digest import Digest, algorithm_of, digest_from, encoded_of, new_hash
from .document import canonical_json
from .platform import Platform, choose
from .unpack import INDEX_DEPTH_MAX

PIECE_BYTES = 1 << 20
FOREIGN_LAYERS = (OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One file of the archive that is written: a blob or a few bytes."""

    name: str
    size: int
    mode: int
    raw: bytes | None = None
    digest: Digest | None = None


class _Blobs(dict[Digest, Descriptor]):
    """The blobs that an archive gets."""

    def __init__(self, *, distributable_only: bool) -> None:
        super().__init__()
        self.distributable_only = distributable_only


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What of an index goes along."""

    platforms: Sequence[Platform]
    _: KW_ONLY
    skip_missing: bool

    def of(self, listed: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """The entries that do, those for the first platform first."""
        if not self.platforms:
            return listed
        named = [(one.platform, one) for one in listed if one.platform is not None]
        unnamed = [one for one in listed if one.platform is None]
        best = [one for platform in self.platforms for one in choose(named, platform)[:1]]
        return list({one.digest: one for one in (*best, *unnamed)}.values())


async def export_archive(
    content: ContentStore,
    namespace: str,
    images: Sequence[tuple[str, Descriptor]],
    write: Callable[[bytes], object],
    *,
    platforms: Sequence[Platform] = (),
    skip_missing: bool = False,
    docker_manifest: bool = True,
    distributable_only: bool = False,
) -> None:
    """Write images, each under its name, as one archive; `write` is called in a thread.

    With `platforms`, of an index only what fits each of them best goes along; an image that has
    something for none of them is refused. Without, everything it lists must be here, or with
    `skip_missing` what is not here as a whole is left out. The index itself is written as it is
    in any case. `distributable_only` leaves out layers that their makers let nobody hand on. The
    same images give the same bytes.
    """
    if not images:
        raise InvalidArgument("no image to export: invalid argument")
    targets = [
        target.named({IMAGE_NAME: name, REF_NAME: tag_of(name)}) if name else target
        for name, target in images
    ]
    blobs = _Blobs(distributable_only=distributable_only)
    wanted = _Wanted(platforms, skip_missing=skip_missing)
    names: dict[Digest, list[str]] = {}
    for (name, _), target in zip(images, targets, strict=True):
        if not is_index(target.media_type) and not is_manifest(target.media_type):
            raise InvalidArgument("only manifests may be exported: invalid argument")
        manifests = await _collect(content, namespace, target, wanted, blobs, INDEX_DEPTH_MAX)
        if manifests:
            # Docker knows no index: its name is the first that fits.
            listed = names.setdefault(manifests[0].digest, [])
            listed += [familiar(name)] if name else []
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [target.to_json() for target in targets],
    }
    records = [
        _bytes_record(LAYOUT_FILE, canonical_json({"imageLayoutVersion": LAYOUT_VERSION}), 0o444),
        _bytes_record(INDEX_FILE, canonical_json(index), 0o644),
    ]
    if docker_manifest:
        raw = await _docker_manifest(content, namespace, names)
        records.append(_bytes_record(MANIFEST_FILE, raw, 0o644))
    directories = {"blobs/"} | {f"blobs/{algorithm_of(digest)}/" for digest in blobs}
    records += [_Record(name=name, size=0, mode=0o755) for name in directories]
    records += [
        _Record(name=_blob_path(one.digest), size=one.size, mode=0o444, digest=one.digest)
        for one in blobs.values()
    ]
    records.sort(key=lambda record: record.name)
    for record in records:
        if record.digest is None:
            head = _header(record) + _padded(record.raw or b"")
            await trio.to_thread.run_sync(write, head)
        else:
            await _write_blob(content, namespace, record, write)
    await trio.to_thread.run_sync(write, b"\0" * tarfile.BLOCKSIZE * 2)


async def _collect(
    content: ContentStore,
    namespace: str,
    target: Descriptor,
    wanted: "_Wanted",
    blobs: "_Blobs",
    depth: int,
) -> Sequence[Descriptor]:
    """Add all that a target needs to `blobs`; the manifests, the best first."""
    if depth < 0:
        raise FailedPrecondition(f"index {target.digest}: nested too deeply")
    await content.obtain(namespace, target.digest)
    info = content.info(namespace, target.digest)
    blobs[target.digest] = replace(target, size=info.size)
    raw = await content.read_all(namespace, target.digest)
    pointed = children(raw, target.media_type, f"content {target.digest}")
    if is_manifest(target.media_type):
        for child in pointed:
            if blobs.distributable_only and child.media_type.startswith(FOREIGN_LAYERS):
                continue
            await content.obtain(namespace, child.digest)
            size = content.info(namespace, child.digest).size
            blobs[child.digest] = replace(child, size=size)
        return [target]
    manifests: list[Descriptor] = []
    for child in wanted.of(pointed):
        if is_index(child.media_type) or is_manifest(child.media_type):
            if wanted.skip_missing and not await _is_whole(content, namespace, child):
                continue
            manifests += await _collect(content, namespace, child, wanted, blobs, depth - 1)
    if not manifests and (wanted.platforms or wanted.skip_missing):
        raise NotFound("no manifest found for platform: not found")
    return manifests


async def _is_whole(content: ContentStore, namespace: str, target: Descriptor) -> bool:
    """Whether a manifest is here with all that it points to; an index, whether it is here."""
    if not await content.obtain(namespace, target.digest):
        return False
    if is_index(target.media_type):
        return True
    raw = await content.read_all(namespace, target.digest)
    for child in children(raw, target.media_type, f"content {target.digest}"):
        if not await content.obtain(namespace, child.digest):
            return False
    return True


async def _docker_manifest(
    content: ContentStore, namespace: str, names: Mapping[Digest, Sequence[str]]
) -> bytes:
    images: list[dict[str, object]] = []
    for digest, tags in names.items():
        manifest = read_manifest(await content.read_all(namespace, digest), f"manifest {digest}")
        images.append(
            {
                "Config": _blob_path(manifest.config.digest),
                "RepoTags": list(tags),
                "Layers": [_blob_path(layer.digest) for layer in manifest.layers],
            }
        )
    return canonical_json(images)


def _bytes_record(name: str, raw: bytes, mode: int) -> _Record:
    return _Record(name=name, size=len(raw), mode=mode, raw=raw)


def _blob_path(digest: Digest) -> str:
    return f"blobs/{algorithm_of(digest)}/{encoded_of(digest)}"


def _header(record: _Record) -> bytes:
    info = tarfile.TarInfo(record.name.rstrip("/"))
    info.size, info.mode = record.size, record.mode
    if record.name.endswith("/"):
        info.type = tarfile.DIRTYPE
    # GNU's form writes sizes above 8 GiB without an extended header.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % tarfile.BLOCKSIZE)


async def _write_blob(
    content: ContentStore, namespace: str, record: _Record, write: Callable[[bytes], object]
) -> None:
    digest = cast("Digest", record.digest)
    async with await content.open_blob(namespace, digest) as blob:

        def copy() -> None:
            write(_header(record))
            hash_ = new_hash(algorithm_of(digest))
            at = 0
            while piece := os.pread(blob.fd, min(PIECE_BYTES, record.size - at), at):
                trio.from_thread.check_cancelled()
                hash_.update(piece)
                write(piece)
                at += len(piece)
            if digest_from(hash_, algorithm_of(digest)) != digest:
                raise DataLoss(f"blob {digest} does not verify: data loss")
            write(b"\0" * (-record.size % tarfile.BLOCKSIZE))

        await trio.to_thread.run_sync(copy)
