"""The importer: an archive's blobs into the store, and the names it gives to images.

The layouts are those of `archive.py`, plain, gzip or zstd. An archive with `oci-layout` is an
OCI layout, whatever else it holds.

An archive is a stranger's. Nothing is extracted: a member is a JSON document of bounded size or
goes into the content store under its digest, and a name is only ever a key to look up. Members,
documents and blobs are counted against `Limits`. A blob whose name in the layout is not the
digest of its bytes is refused.
"""

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Protocol, cast

import trio

from ..actors.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from .archive import (
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    MANIFEST_FILE,
    image_name,
    tag_of,
)
from .compression import compression_of, plain_pieces
from .content import ContentStore
from .descriptor import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    IMAGE_NAME,
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    is_index,
    read_index,
)
from .digest import Digest, parse_digest
from .document import Document, canonical_json, parse_objects
from .platform import Platform, rank
from .reference import normalize
from .tar import Bounds, EntryKind, TarReader
from .unpack import label_children

LINKS_MAX = 8

MEDIA_TYPES: Mapping[str, str] = {
    "": DOCKER_LAYER,
    "gzip": DOCKER_LAYER_GZIP,
    "zstd": DOCKER_LAYER_ZSTD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may ask for."""

    entries_max: int = 100_000
    document_bytes_max: int = 8 << 20
    stream_bytes_max: int = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an archive held: the index of it all, and the images by their names."""

    index: Descriptor
    images: Sequence[tuple[str, Descriptor]]


@dataclass(slots=True)
class _Members:
    """What has been read of an archive so far."""

    layout: bytes | None = None
    index: bytes | None = None
    manifest: bytes | None = None
    blobs: dict[str, Descriptor] = field(default_factory=dict[str, Descriptor])
    links: dict[str, str] = field(default_factory=dict[str, str])


async def import_archive(
    content: ContentStore,
    namespace: str,
    source: "Source",
    *,
    base_name: str = "",
    index_name: str = "",
    digests: bool = False,
    strict: bool = False,
    platforms: Sequence[Platform] = (),
    lease: str = "",
    limits: Limits | None = None,
) -> Imported:
    """Bring an archive's blobs into the store; the names are for the caller to record.

    An image's name is its annotation `io.containerd.image.name`, else `<base_name>:<tag>` of
    `org.opencontainers.image.ref.name`. With `strict` only names under `base_name` count; with
    `digests` each manifest is also named `<base_name>@<digest>`; `index_name` names the whole.
    With `platforms`, an image that has nothing for any of them is left out. `source` is read in a
    thread. Until they are named, the lease holds the blobs.
    """
    limits = limits or Limits()
    members = _Members()

    def keep(name: str, expected: Digest | None, size: int, pieces: Iterator[bytes]) -> None:
        first = next(pieces, b"")
        ref = f"tar-{os.urandom(6).hex()}-{name[:200]}"
        blob = trio.from_thread.run(_Sink(content, namespace, ref, lease).open, size)
        try:
            piece = first
            while piece:
                trio.from_thread.run(blob.write, piece)
                piece = next(pieces, b"")
            digest = trio.from_thread.run(blob.commit, size, expected)
        finally:
            trio.from_thread.run(blob.close)
        media_type = MEDIA_TYPES[compression_of(first[:8])]
        members.blobs[name] = Descriptor(media_type=media_type, digest=digest, size=size)

    await trio.to_thread.run_sync(lambda: _read_members(source, members, limits, keep))
    if members.layout is not None:
        index = await _oci_index(content, namespace, members, lease)
    elif members.manifest is not None:
        index = await _docker_index(content, namespace, members, lease)
    else:
        raise InvalidArgument("unrecognized image format: invalid argument")
    await label_children(content, namespace, index)
    raw = await content.read_all(namespace, index.digest)
    images: list[tuple[str, Descriptor]] = [(index_name, index)] if index_name else []
    for target in read_index(raw, INDEX_FILE):
        if not await _offers(content, namespace, target, platforms):
            continue
        name = image_name(target.annotations, base_name, strict=strict)
        if name:
            images.append((name, target))
        if digests and base_name:
            images.append((f"{base_name}@{target.digest}", target))
    return Imported(index=index, images=images)


class _Sink:
    """One blob on its way from the tar's thread into the store."""

    def __init__(self, content: ContentStore, namespace: str, ref: str, lease: str) -> None:
        self._content, self._namespace, self._ref, self._lease = content, namespace, ref, lease

    async def open(self, size: int) -> "_Sink":
        self._ingest = await self._content.open_ingest(
            self._namespace, self._ref, total=size, lease=self._lease
        )
        return self

    async def write(self, piece: bytes) -> None:
        await self._ingest.write(piece)

    async def commit(self, size: int, expected: Digest | None) -> Digest:
        if expected is None:
            expected = (await self._ingest.state()).digest
        try:
            await self._ingest.commit(size, expected, lease=self._lease)
        except AlreadyExists:
            pass  # so much the better
        return expected

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._ingest.close()
            try:
                await self._content.abort(self._namespace, self._ref)
            except NotFound:
                pass  # committed


def _read_members(
    source: "Source",
    members: _Members,
    limits: Limits,
    keep: Callable[[str, Digest | None, int, Iterator[bytes]], None],
) -> None:
    """Read the stream to its end, once. Blocks; runs in a thread."""
    stream = _Plain(source, limits.stream_bytes_max)
    reader = TarReader(stream.read, Bounds(entries_max=limits.entries_max))
    for entry in reader:
        trio.from_thread.check_cancelled()
        name = _clean(entry.name)
        if entry.kind in (EntryKind.SYMLINK, EntryKind.HARD_LINK):
            link = entry.link.decode("utf-8", "surrogateescape")
            if entry.kind is EntryKind.SYMLINK:
                link = posixpath.join(posixpath.dirname(name), link)
            members.links[name] = _clean(os.fsencode(link))
        elif entry.kind is EntryKind.FILE:
            if entry.pieces is not None:
                raise InvalidArgument(f"archive: {name} is sparse")
            if name in (LAYOUT_FILE, INDEX_FILE, MANIFEST_FILE):
                raw = _document(name, entry.size_bytes, reader.data(), limits)
                if name == LAYOUT_FILE:
                    members.layout = raw
                elif name == INDEX_FILE:
                    members.index = raw
                else:
                    members.manifest = raw
            elif posixpath.basename(name) not in ("repositories", "VERSION"):
                keep(name, _blob_name(name), entry.size_bytes, reader.data())


def _document(name: str, size: int, pieces: Iterator[bytes], limits: Limits) -> bytes:
    if size > limits.document_bytes_max:
        raise ResourceExhausted(
            f"archive: {name} has {size} bytes, at most {limits.document_bytes_max} are read"
        )
    return b"".join(pieces)


def _clean(name: bytes) -> str:
    """A member's name as a key: relative and normal."""
    return posixpath.normpath("/" + name.decode("utf-8", "surrogateescape")).lstrip("/")


def _blob_name(name: str) -> Digest | None:
    """The digest that a member of an OCI layout claims to have."""
    match name.split("/"):
        case ["blobs", algorithm, encoded]:
            return parse_digest(f"{algorithm}:{encoded}")
        case _:
            return None


class Source(Protocol):
    """An archive's bytes. `read` is called in a thread, and may block."""

    def read(self, count: int, /) -> bytes:
        """Between 1 and `count` bytes; none at the end."""
        ...


class _Plain:
    """The plain bytes of a stream by `read`, counted."""

    def __init__(self, source: Source, bytes_max: int) -> None:
        self._pieces = plain_pieces(cast("BinaryIO", source))
        self._current: bytes = b""
        self._at = 0
        self._left = bytes_max
        self._bytes_max = bytes_max

    def read(self, count: int) -> bytes:
        """Between 1 and `count` bytes; none at the end."""
        if self._at == len(self._current):
            self._current = next(self._pieces, b"")
            self._at = 0
            self._left -= len(self._current)
            if self._left < 0:
                raise ResourceExhausted(f"archive: more than {self._bytes_max} bytes")
        start = self._at
        self._at = min(start + count, len(self._current))
        return self._current[start : self._at]


async def _oci_index(
    content: ContentStore, namespace: str, members: _Members, lease: str
) -> Descriptor:
    assert members.layout is not None
    version = Document.parse(members.layout, LAYOUT_FILE).text("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise InvalidArgument(f"unsupported OCI version {version!r}: invalid argument")
    if members.index is None:
        raise InvalidArgument(f"missing index.json in OCI layout {version}: invalid argument")
    read_index(members.index, INDEX_FILE)
    return await _store(content, namespace, members.index, OCI_INDEX, lease)


async def _docker_index(
    content: ContentStore, namespace: str, members: _Members, lease: str
) -> Descriptor:
    """Write the manifests and the index that a docker-archive lacks."""
    assert members.manifest is not None
    entries: list[dict[str, object]] = []
    for image in parse_objects(members.manifest, MANIFEST_FILE):
        config = replace(
            _member(members, image.text("Config"), "image config"), media_type=DOCKER_CONFIG
        )
        layers = [_member(members, name, "layer") for name in image.texts("Layers")]
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        raw = canonical_json(manifest)
        target = await _store(content, namespace, raw, DOCKER_MANIFEST, lease)
        raw = await content.read_all(namespace, config.digest)
        platform = Platform.from_document(Document.parse(raw, "image config"))
        if platform.os and platform.architecture:
            target = replace(target, platform=platform)
        tags = image.texts("RepoTags")
        names = [normalize(tag) for tag in tags]
        entries += [
            target.named({IMAGE_NAME: name, REF_NAME: tag_of(name)}).to_json() for name in names
        ] or [target.to_json()]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return await _store(content, namespace, canonical_json(index), OCI_INDEX, lease)


def _member(members: _Members, name: str, what: str) -> Descriptor:
    key = _clean(os.fsencode(name.encode("utf-8", "surrogatepass")))
    for _ in range(LINKS_MAX):
        if key in members.blobs:
            return members.blobs[key]
        if key not in members.links:
            break
        key = members.links[key]
    raise NotFound(f'{what} "{name[:200]}" not found in the archive: not found')


async def _store(
    content: ContentStore, namespace: str, raw: bytes, media_type: str, lease: str
) -> Descriptor:
    ref = f"import-{os.urandom(6).hex()}"
    digest = await content.write_blob(namespace, ref, raw, lease=lease)
    return Descriptor(media_type=media_type, digest=digest, size=len(raw))


async def _offers(
    content: ContentStore, namespace: str, target: Descriptor, platforms: Sequence[Platform]
) -> bool:
    """Whether an image has something for a platform; one that does not say has."""
    if not platforms:
        return True

    def fits(offered: Platform | None) -> bool:
        return offered is None or any(rank(offered, one) is not None for one in platforms)

    if target.platform is not None:
        return fits(target.platform)
    if not is_index(target.media_type) or not content.has(namespace, target.digest):
        return True
    raw = await content.read_all(namespace, target.digest)
    listed = read_index(raw, f"index {target.digest}")
    return any(fits(one.platform) for one in listed)
