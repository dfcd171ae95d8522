"""Unpacking: an image's layers as a chain of committed snapshots.

The walk-through of one image:

    index --platform--> manifest --config--> diff ids --> chain ids
    for each layer, from the bottom:
        stat <chain id>                        there already: nothing to do
        prepare "extract-<nonce> <chain id>"   over the chain id below
        apply the blob; its diff id must be the config's
        commit <chain id>

What is written beside the snapshots are labels: `containerd.io/uncompressed` on a layer's blob,
`containerd.io/gc.ref.snapshot.<snapshotter>` on the config, and the references of index and
manifest; so that what one image needs is kept for as long as the image.

Layers may still be on their way while the ones below them are unpacked: each is waited for just
before it is read.

Two who unpack the same image at once do the same work beside each other; whoever commits second
finds the snapshot and drops his own.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from ..actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from .content import ContentStore
from .descriptor import (
    Descriptor,
    Manifest,
    children,
    gc_labels,
    is_index,
    is_manifest,
    read_index,
    read_manifest,
)
from .digest import Digest
from .document import Document
from .image_config import ImageConfig, chain_ids, read_image_config
from .mounts import Mount
from .platform import Platform, choose, rank
from .snapshotter import Snapshotter

UNCOMPRESSED = "containerd.io/uncompressed"
SNAPSHOT_REF = "containerd.io/snapshot.ref"
GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."

INDEX_DEPTH_MAX = 4
CLEAN_WITHIN_S = 30.0


Arrived = Callable[[Descriptor], Awaitable[None]]
"""Returns once a layer's blob is in the content store; raises when it will not come."""


class Apply(Protocol):
    """Applies a layer onto mounts: `Differs.apply`."""

    def __call__(
        self, namespace: str, layer: Descriptor, mounts: Sequence[Mount], /
    ) -> Awaitable[Descriptor]:
        """The descriptor of the uncompressed layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """An image for one platform: its manifest with what that points to, and its config."""

    descriptor: Descriptor
    manifest: Manifest
    config: ImageConfig

    @property
    def chain_id(self) -> str:
        """The snapshot of all its layers; empty, as a parent may be, when it has no layer."""
        return (chain_ids(self.config.diff_ids) or ("",))[-1]


async def resolve(
    content: ContentStore, namespace: str, target: Descriptor, platform: Platform
) -> Resolved:
    """The manifest of an image that fits a platform best, and whose content is here.

    `NotFound` when there is none.
    """
    for found in await _manifests(content, namespace, target, platform, INDEX_DEPTH_MAX):
        raw = await content.read_all(namespace, found.digest)
        manifest = read_manifest(raw, f"manifest {found.digest}")
        config_digest = manifest.config.digest
        what = f"config {config_digest}"
        raw = await content.read_all(namespace, config_digest)
        if found.platform is None and not _fits(Document.parse(raw, what), platform):
            continue
        config = read_image_config(raw, what)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidArgument(
                f"image {found.digest}: {len(manifest.layers)} layers,"
                f" but {len(config.diff_ids)} diff ids: invalid argument"
            )
        return Resolved(descriptor=found, manifest=manifest, config=config)
    raise NotFound(f"no match for platform in manifest {target.digest}: not found")


def _fits(document: Document, platform: Platform) -> bool:
    offered = Platform.from_document(document)
    # A config that names no platform runs wherever it is brought.
    return not offered.os or rank(offered, platform) is not None


async def _manifests(
    content: ContentStore, namespace: str, target: Descriptor, platform: Platform, depth: int
) -> Sequence[Descriptor]:
    if is_manifest(target.media_type):
        return [target]
    if not is_index(target.media_type):
        raise InvalidArgument(
            f"unexpected media type {target.media_type} for {target.digest}: invalid argument"
        )
    if depth == 0:
        raise FailedPrecondition(f"index {target.digest}: nested too deeply")
    raw = await content.read_all(namespace, target.digest)
    listed = read_index(raw, f"index {target.digest}")
    named = [(one.platform, one) for one in listed if one.platform is not None]
    unnamed = [one for one in listed if one.platform is None]
    found: list[Descriptor] = []
    for candidate in (*choose(named, platform), *unnamed):
        # An image brought in for one platform lists the others without having them.
        if not await content.obtain(namespace, candidate.digest):
            continue
        if is_manifest(candidate.media_type) or is_index(candidate.media_type):
            found += await _manifests(content, namespace, candidate, platform, depth - 1)
    return found


async def unpack(
    content: ContentStore,
    snapshotter: Snapshotter,
    apply: Apply,
    namespace: str,
    target: Descriptor,
    platform: Platform,
    *,
    lease: str = "",
    arrived: Arrived | None = None,
) -> Resolved:
    """Unpack an image for a platform; its top snapshot is the result's `chain_id`.

    Its manifest and config are there. A layer need not be: `arrived` is awaited before its blob
    is read, and for no layer whose snapshot is there already. What it raises ends the unpacking
    and leaves the layers below as they are.
    """
    image = await resolve(content, namespace, target, platform)
    # Afterwards: what another process had is here by now.
    await label_children(content, namespace, target)
    parent = ""
    for layer, diff_id, chain_id in zip(
        image.manifest.layers,
        image.config.diff_ids,
        chain_ids(image.config.diff_ids),
        strict=True,
    ):
        if not _exists(snapshotter, namespace, chain_id):
            await _unpack_layer(
                content,
                snapshotter,
                apply,
                namespace,
                layer,
                diff_id,
                parent,
                chain_id,
                lease,
                arrived,
            )
        parent = chain_id
    if parent:
        label = f"{GC_SNAPSHOT}{snapshotter.name}"
        config = image.manifest.config.digest
        await content.update(namespace, config, {label: parent}, [f"labels.{label}"])
    return image


def is_unpacked(snapshotter: Snapshotter, namespace: str, image: Resolved) -> bool:
    """Whether the image's top snapshot is there; those below it are then, too."""
    return not image.chain_id or _exists(snapshotter, namespace, image.chain_id)


def _exists(snapshotter: Snapshotter, namespace: str, name: str) -> bool:
    try:
        snapshotter.stat(namespace, name)
    except NotFound:
        return False
    return True


async def _unpack_layer(
    content: ContentStore,
    snapshotter: Snapshotter,
    apply: Apply,
    namespace: str,
    layer: Descriptor,
    diff_id: Digest,
    parent: str,
    chain_id: Digest,
    lease: str,
    arrived: Arrived | None,
) -> None:
    labels = {SNAPSHOT_REF: str(chain_id)}
    key = f"extract-{os.urandom(6).hex()} {chain_id}"
    try:
        mounts = await snapshotter.prepare(namespace, key, parent, labels, lease=lease)
    except AlreadyExists:
        # A remote snapshotter answers so when it has the layer itself.
        if _exists(snapshotter, namespace, chain_id):
            return
        raise
    committed = False
    try:
        if arrived is not None:
            # Only now: a snapshotter that had the layer itself has no need of the blob.
            await arrived(layer)
        applied = await apply(namespace, layer, mounts)
        if applied.digest != diff_id:
            raise FailedPrecondition(
                f"wrong diff id calculated on extraction {applied.digest},"
                f" expected {diff_id}: failed precondition"
            )
        try:
            await snapshotter.commit(namespace, chain_id, key, labels, lease=lease)
            committed = True
        except AlreadyExists:
            pass  # another was faster
    finally:
        if not committed:
            with trio.CancelScope(shield=True), trio.move_on_after(CLEAN_WITHIN_S):
                try:
                    await snapshotter.remove(namespace, key)
                except NotFound:
                    pass  # a collection was faster
    if content.has(namespace, layer.digest):  # or a differ of another process has read it there
        await content.update(
            namespace, layer.digest, {UNCOMPRESSED: diff_id}, [f"labels.{UNCOMPRESSED}"]
        )


async def label_children(content: ContentStore, namespace: str, target: Descriptor) -> None:
    """Write what an index or a manifest points to as its labels, all the way down.

    What is not here is passed over: an image may have been brought in for one platform.
    """
    pending = [(target, INDEX_DEPTH_MAX + 1)]
    while pending:
        parent, depth = pending.pop()
        pointing = is_index(parent.media_type) or is_manifest(parent.media_type)
        if not pointing or not content.has(namespace, parent.digest):
            continue
        if depth == 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        raw = await content.read_all(namespace, parent.digest)
        pointed = children(raw, parent.media_type, f"content {parent.digest}")
        labels = gc_labels(pointed)
        current = content.info(namespace, parent.digest).labels
        if not _includes(current, labels):
            paths = [f"labels.{key}" for key in labels]
            await content.update(namespace, parent.digest, labels, paths)
        pending += [(child, depth - 1) for child in pointed]


def _includes(whole: Mapping[str, str], part: Mapping[str, str]) -> bool:
    return all(whole.get(key) == value for key, value in part.items())
