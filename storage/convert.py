"""Conversion: another image of the same files. Layers are compressed anew, Docker's types become
OCI's, an index is reduced to some platforms.

    layer --plain bytes--> layer of the wanted compression   (the same diff id)
    manifest --layers, types--> manifest
    index --entries that fit--> index

What is as it should be stays, byte for byte: an image that needs no conversion is itself. The
same image gives the same bytes each time. A config is never changed, as the plain bytes of a
layer are not: what is unpacked of the one is unpacked of the other.

zstd is no compression of Docker's types: who asks for it is given OCI's. Formats that need a
snapshotter of their own, as eStargz does, are not made.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import trio

from ..actors.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from .compression import PackedStream, compression_of, plain_pieces
from .content import ContentStore
from .descriptor import (
    DOCKER_CONFIG,
    DOCKER_FOREIGN_LAYER,
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_FOREIGN_LAYER,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    describe,
    is_config,
    is_index,
    is_layer,
    is_manifest,
    read_index,
    read_manifest,
)
from .digest import Digest
from .document import canonical_json, parse_json
from .image_config import read_image_config
from .ingest import Ingest
from .layer import Limits
from .platform import Platform, rank
from .unpack import INDEX_DEPTH_MAX, UNCOMPRESSED, label_children

KEEP, PLAIN = "keep", "uncompressed"
COMPRESSIONS = (KEEP, PLAIN, "gzip", "zstd")
FOREIGN = (OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)
OCI_TYPES: Mapping[str, str] = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
}
PASS_BYTES = 1 << 20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What is to become of an image."""

    compression: str = KEEP
    """One of `COMPRESSIONS`."""
    oci: bool = False
    platforms: Sequence[Platform] = ()
    """Which of an index's entries stay; none named: all, and all must be here."""


@dataclass(slots=True)
class Converter:
    """One conversion. The lease holds what it makes until the caller has named it."""

    content: ContentStore
    namespace: str
    wish: Conversion
    lease: str
    _layers: dict[Digest, Descriptor] = field(default_factory=dict[Digest, Descriptor])

    def __post_init__(self) -> None:
        if self.wish.compression not in COMPRESSIONS:
            raise InvalidArgument(
                f"compression {self.wish.compression[:100]!r} is not one of"
                f" {', '.join(COMPRESSIONS)}: invalid argument"
            )
        if self.wish.compression == "zstd":
            self.wish = replace(self.wish, oci=True)

    async def convert(self, target: Descriptor) -> Descriptor:
        """The converted image, or the same target when there is nothing to do."""
        made = await self._convert(target, INDEX_DEPTH_MAX)
        if made is None:
            raise NotFound(
                f"image {target.digest}: nothing of it is for these platforms: not found"
            )
        await label_children(self.content, self.namespace, made)
        return made

    async def _convert(self, target: Descriptor, depth: int) -> Descriptor | None:
        if is_manifest(target.media_type):
            return await self._manifest(target)
        if not is_index(target.media_type):
            raise InvalidArgument(f"only images are converted, not {target.media_type[:100]}")
        if depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        return await self._index(target, depth)

    async def _index(self, target: Descriptor, depth: int) -> Descriptor | None:
        raw, document = await self._document(target)
        listed = read_index(raw, f"index {target.digest}")
        entries: list[Json] = []
        for entry, child in zip(
            cast("list[Json]", document.get("manifests") or []), listed, strict=True
        ):
            made: Descriptor | None = child
            if not self._fits(child.platform):
                made = None
            elif is_index(child.media_type) or is_manifest(child.media_type):
                made = await self._convert(child, depth - 1)
            if made is not None:
                entries.append(_pointing(entry, made))
        if not entries:
            return None
        return await self._write(target, {**document, "manifests": entries})

    def _fits(self, platform: Platform | None) -> bool:
        wanted = self.wish.platforms
        return (
            platform is None or not wanted or any(rank(platform, one) is not None for one in wanted)
        )

    async def _manifest(self, target: Descriptor) -> Descriptor:
        raw, document = await self._document(target)
        manifest = read_manifest(raw, f"manifest {target.digest}")
        diff_ids = await self._diff_ids(manifest.config)
        config = replace(manifest.config, media_type=self._type(manifest.config.media_type))
        layers: list[Json] = []
        entries = cast("list[Json]", document.get("layers") or [])
        for number, (entry, layer) in enumerate(zip(entries, manifest.layers, strict=True)):
            expected = diff_ids[number] if number < len(diff_ids) else ""
            layers.append(_pointing(entry, await self._layer(layer, expected)))
        changed = {**document, "config": _pointing(cast(Json, document["config"]), config)}
        if layers:
            changed["layers"] = layers
        return await self._write(target, changed)

    async def _diff_ids(self, config: Descriptor) -> Sequence[str]:
        """The digests of its layers' plain bytes, if it is an image's config."""
        await self._hold(config, "config")
        if not is_config(config.media_type):
            return ()
        what = f"config {config.digest}"
        raw = await self.content.read_all(self.namespace, config.digest)
        return read_image_config(raw, what).diff_ids

    async def _hold(self, target: Descriptor, what: str) -> None:
        """What stays as it is must outlive the image that it was found by."""
        found = await self.content.obtain(self.namespace, target.digest, lease=self.lease)
        if not found or not await self.content.hold(self.namespace, target.digest, self.lease):
            raise NotFound(f"{what} {target.digest} is not here: not found")

    async def _layer(self, layer: Descriptor, expected: str) -> Descriptor:
        if layer.media_type.startswith(FOREIGN):
            return replace(layer, media_type=self._type(layer.media_type))
        await self._hold(layer, "layer")
        if not is_layer(layer.media_type):
            return layer
        done = self._layers.get(layer.digest)
        if done is None:
            done = await self._repack(layer, expected)
            self._layers[layer.digest] = done
        return replace(layer, media_type=done.media_type, digest=done.digest, size=done.size)

    async def _repack(self, layer: Descriptor, expected: str) -> Descriptor:
        """The layer in the wanted compression; its plain bytes must have the expected digest."""
        async with await self.content.open_blob(self.namespace, layer.digest) as blob:
            current = compression_of(await blob.pread(0, 8))
            wanted = {KEEP: current, PLAIN: ""}.get(self.wish.compression, self.wish.compression)
            base = OCI_LAYER if self.wish.oci else _family(layer.media_type)
            media_type = _layer_type(base, wanted)
            if current == wanted:
                return replace(layer, media_type=media_type)
            ref = f"convert-{os.urandom(12).hex()}"
            ingest = await self.content.open_ingest(self.namespace, ref, lease=self.lease, job=True)
            try:
                async with ingest:
                    diff_id = await trio.to_thread.run_sync(_pass, blob.fd, wanted, ingest)
                    if expected and diff_id != expected:
                        raise DataLoss(
                            f"layer {layer.digest} has the plain digest {diff_id},"
                            f" its config says {expected}: data loss"
                        )
                    state = await ingest.state()
                    labels = {UNCOMPRESSED: diff_id} if wanted else {}
                    try:
                        await ingest.commit(state.offset, state.digest, labels, lease=self.lease)
                    except AlreadyExists:
                        pass  # made before
            finally:
                with trio.CancelScope(shield=True):
                    try:
                        await self.content.abort(self.namespace, ref)
                    except NotFound:
                        pass  # committed
        return replace(layer, media_type=media_type, digest=Digest(state.digest), size=state.offset)

    def _type(self, media_type: str) -> str:
        if not self.wish.oci:
            return media_type
        if media_type.startswith((DOCKER_LAYER, DOCKER_FOREIGN_LAYER)):
            compression = media_type.rpartition(".tar")[2].strip(".+")
            foreign = media_type.startswith(DOCKER_FOREIGN_LAYER)
            return _layer_type(OCI_FOREIGN_LAYER if foreign else OCI_LAYER, compression)
        return OCI_TYPES.get(media_type, media_type)

    async def _document(self, target: Descriptor) -> tuple[bytes, Json]:
        if not await self.content.obtain(self.namespace, target.digest, lease=self.lease):
            where = f" of {target.platform}" if target.platform else ""
            raise NotFound(
                f"the manifest{where}, {target.digest}, is not here: choose platforms that are:"
                " not found"
            )
        raw = await self.content.read_all(self.namespace, target.digest)
        return raw, cast(Json, parse_json(raw, f"content {target.digest}"))

    async def _write(self, target: Descriptor, document: Json) -> Descriptor:
        """Store a document that has changed; else its own descriptor."""
        media_type = self._type(target.media_type)
        if "mediaType" in document or media_type != target.media_type:
            document = {**document, "mediaType": media_type}
        raw = canonical_json(document)
        before = await self.content.read_all(self.namespace, target.digest)
        if document == parse_json(before, f"content {target.digest}"):
            return target
        await self.content.write_blob(
            self.namespace, f"convert-{os.urandom(12).hex()}", raw, lease=self.lease
        )
        made = describe(raw, media_type)
        return replace(target, media_type=media_type, digest=made.digest, size=made.size)


def _pointing(entry: Json, to: Descriptor) -> Json:
    """A descriptor as its author wrote it, that points elsewhere."""
    return {**entry, "mediaType": to.media_type, "digest": to.digest, "size": to.size}


def _family(media_type: str) -> str:
    return DOCKER_LAYER if media_type.startswith(DOCKER_LAYER) else OCI_LAYER


def _layer_type(base: str, compression: str) -> str:
    if not compression:
        return base
    return f"{base}{'.' if base.startswith('application/vnd.docker') else '+'}{compression}"


def _pass(fd: int, compression: str, ingest: Ingest) -> str:
    """Write a blob's plain bytes, compressed anew, into an ingest; the digest of the plain ones.
    Blocks; runs in a thread."""
    held = bytearray()

    def hand_on(data: bytes) -> None:
        held.extend(data)
        if len(held) >= PASS_BYTES:
            flush()

    def flush() -> None:
        trio.from_thread.run(ingest.write, bytes(held))
        held.clear()

    packed = PackedStream(hand_on, compression)
    size_bytes_max = Limits().stream_bytes_max
    with os.fdopen(os.dup(fd), "rb") as source:
        source.seek(0)
        for piece in plain_pieces(source):
            trio.from_thread.check_cancelled()
            packed.write(piece)
            if packed.size_bytes > size_bytes_max:
                raise ResourceExhausted(f"the layer inflates to more than {size_bytes_max} bytes")
    diff_id = packed.finish()
    if held:
        flush()
    return diff_id
