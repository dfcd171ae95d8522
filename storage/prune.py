"""Pruning: the images that nobody needs are forgotten.

    all images --no container is of it--> unused --filters, age--> candidates --not pinned--> gone
                                             +--- only by its digest ---^  (unless `all`)

An image is one target: while a container is of one of its names, or of another name of the same
target, all of them stay. It is *dangling* when no name with a tag has its target. A pinned name,
by the label that CRI's pinned images bear, and every name of its target, stay in any case.

What only the forgotten ones held goes with the next collection.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .containers import Containers
from .content import ContentStore
from .digest import Digest
from .filters import compile_wrapped
from .footprint import Footprints, Key, joined
from .images import Image, Images, delete_image, image_field
from .labels import PIN_LABEL, PINNED
from .snapshotter import Snapshotter
from .store import Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which images are to go: those that match any of the filters, which are those of a list."""

    all: bool = False
    """Not the dangling ones alone."""
    filters: Sequence[str] = ()
    older_than_s: float = 0.0
    """Only what was not changed for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What went, or would, and how many bytes of content and snapshots nothing else needs."""

    images: Sequence[Image]
    freed_bytes: int


class Prune:
    """The verb."""

    def __init__(
        self,
        store: Store,
        content: ContentStore,
        images: Images,
        containers: Containers,
        snapshotters: Mapping[str, Snapshotter],
    ) -> None:
        self._store = store
        self._images = images
        self._containers = containers
        self._snapshotters = snapshotters
        self._footprints = Footprints(content, snapshotters)

    async def prune(self, namespace: str, wish: Wish, *, dry_run: bool = False) -> Pruned:
        """Forget the images that the wish means. Nothing changes in a dry run."""
        every = self._images.list(namespace)
        going = candidates(every, self._used(namespace), wish, time.time_ns())
        freed_bytes = await self._freed(namespace, every, going)
        if not dry_run:
            going = await self._forget(namespace, going)
        return Pruned(images=going, freed_bytes=freed_bytes)

    def _used(self, namespace: str) -> frozenset[str]:
        return frozenset(one.image for one in self._containers.list(namespace))

    async def _forget(self, namespace: str, going: Sequence[Image]) -> Sequence[Image]:
        def work(tx: Transaction) -> Sequence[Image]:
            # Meanwhile a container may have come to be, a name may have moved, or been pinned.
            used = {row.value["image"] for row in tx.scan("container", namespace)}
            gone: list[Image] = []
            for image in going:
                record = tx.get("image", namespace, image.name)
                if record is None or image.name in used:
                    continue
                if record["updated_at"] == image.updated_at:
                    delete_image(tx, namespace, image.name)
                    gone.append(image)
            return gone

        return await self._store.write(work) if going else ()

    async def _freed(self, namespace: str, every: Sequence[Image], going: Sequence[Image]) -> int:
        names = {image.name for image in going}
        parts: list[Mapping[Key, int]] = []
        kept = self._of_containers(namespace)
        seen: set[tuple[bool, Digest]] = set()
        for image in every:
            goes = image.name in names
            if (goes, image.target.digest) in seen:
                continue
            seen.add((goes, image.target.digest))
            found = (await self._footprints.of(namespace, image)).parts
            if goes:
                parts.append(found)
            else:
                kept |= found.keys()
        return sum(size for key, size in joined(parts).items() if key not in kept)

    def _of_containers(self, namespace: str) -> set[Key]:
        """The snapshots that containers stand on."""
        found: set[Key] = set()
        above: dict[Key, str] = {
            (name, one.name): one.parent
            for name, snapshotter in self._snapshotters.items()
            for one in snapshotter.walk(namespace)
        }
        for container in self._containers.list(namespace):
            key = container.snapshotter, container.snapshot_key
            while key[1] and key not in found:
                found.add(key)
                key = container.snapshotter, above.get(key, "")
        return found


def candidates(
    every: Sequence[Image], used: frozenset[str], wish: Wish, now_ns: int
) -> Sequence[Image]:
    """The images that go."""
    accepts = compile_wrapped(wish.filters)
    kept = {image.target.digest for image in every if image.name in used or is_pinned(image)}
    tagged = {image.target.digest for image in every if is_tagged(image.name)}
    latest_ns = now_ns - int(wish.older_than_s * 1e9)
    return [
        image
        for image in every
        if image.target.digest not in kept
        and (wish.all or image.target.digest not in tagged)
        and image.updated_at <= latest_ns
        and accepts(partial(image_field, image))
    ]


def is_pinned(image: Image) -> bool:
    """Whether it is to stay whatever is pruned."""
    return image.labels.get(PIN_LABEL) == PINNED


def is_tagged(name: str) -> bool:
    """Whether a name has a tag: `host/repository:tag`, perhaps with a digest behind."""
    return ":" in name.partition("@")[0].rpartition("/")[2] and not name.startswith("sha256:")
