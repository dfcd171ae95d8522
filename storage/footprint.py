"""Footprints: what images take on the disk, in content and in snapshots; what is shared, once.

A blob counts as large as its record says, a snapshot as its snapshotter says, without its
parents; nothing, where that is another process that does not answer. Two images that share a
layer share both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..actors.errors import DeadlineExceeded, NotFound, Unavailable
from .content import ContentStore
from .images import Image
from .imagetree import ImageTree, image_tree
from .snapshotter import Snapshotter, Usage

Key = tuple[str, str]
"""A snapshotter's name and a snapshot's; an empty one and a digest for content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What is there of one image, with its sizes in bytes."""

    content: Mapping[Key, int] = field(default_factory=dict[Key, int])
    snapshots: Mapping[Key, int] = field(default_factory=dict[Key, int])

    @property
    def parts(self) -> Mapping[Key, int]:
        """All of it."""
        return {**self.content, **self.snapshots}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """What one image takes. `shared_bytes` of it other images need too."""

    name: str
    content_bytes: int
    snapshot_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usages:
    """What images take, each alone, and all together with what they share counted once."""

    images: Sequence[ImageUsage]
    content_bytes: int
    snapshot_bytes: int


class Footprints:
    """The verbs. Belongs to the stores it was made for."""

    def __init__(self, content: ContentStore, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._content = content
        self._snapshotters = snapshotters

    async def of(self, namespace: str, image: Image) -> Footprint:
        """What is there of an image, whichever platform it is for."""
        tree = await image_tree(self._content, namespace, image.target)
        content: dict[Key, int] = {}
        for blob in tree.blobs():
            if self._content.has(namespace, blob.digest):
                content["", blob.digest] = self._content.info(namespace, blob.digest).size
        snapshots: dict[Key, int] = {}
        for name, key in self.snapshots_of(namespace, tree):
            try:
                used = await self._snapshotters[name].usage(namespace, key)
            except NotFound:
                continue  # a collection was faster
            except (Unavailable, DeadlineExceeded):
                used = Usage()  # of another process, which does not answer
            snapshots[name, key] = used.size_bytes
        return Footprint(content=content, snapshots=snapshots)

    def snapshots_of(self, namespace: str, tree: ImageTree) -> Sequence[Key]:
        """The snapshots that an image is unpacked into, of each snapshotter."""
        found: dict[Key, None] = {}
        for variant in tree.variants:
            for name, snapshotter in self._snapshotters.items():
                for chain_id in variant.chain:
                    if has_snapshot(snapshotter, namespace, chain_id):
                        found[name, chain_id] = None
        return list(found)

    async def usages(
        self, namespace: str, chosen: Sequence[Image], others: Sequence[Image]
    ) -> Usages:
        """What the chosen images take. What the others have too is shared as well."""
        prints = [await self.of(namespace, image) for image in chosen]
        count = _counted(prints)
        # Several names of one target are one image.
        targets = {image.target.digest for image in chosen}
        for image in others:
            if image.target.digest not in targets:
                targets.add(image.target.digest)
                for key in (await self.of(namespace, image)).parts:
                    count[key] = count.get(key, 0) + 1
        return Usages(
            images=[
                ImageUsage(
                    name=image.name,
                    content_bytes=sum(one.content.values()),
                    snapshot_bytes=sum(one.snapshots.values()),
                    shared_bytes=sum(size for key, size in one.parts.items() if count[key] > 1),
                )
                for image, one in zip(chosen, prints, strict=True)
            ],
            content_bytes=sum(joined(one.content for one in prints).values()),
            snapshot_bytes=sum(joined(one.snapshots for one in prints).values()),
        )


def has_snapshot(snapshotter: Snapshotter, namespace: str, key: str) -> bool:
    """Whether there is a snapshot of that name."""
    try:
        snapshotter.stat(namespace, key)
    except NotFound:
        return False
    return True


def joined(parts: Iterable[Mapping[Key, int]]) -> dict[Key, int]:
    """All of them, each once."""
    return {key: size for one in parts for key, size in one.items()}


def _counted(prints: Iterable[Footprint]) -> dict[Key, int]:
    count: dict[Key, int] = {}
    for one in prints:
        for key in one.parts:
            count[key] = count.get(key, 0) + 1
    return count
