"""The image keeper: whole jobs on images, each under a lease of its own.

    take in     archive -> blobs, names
    unpack      name -> a chain of snapshots
    give out    names -> archive

The lease holds what a job has made until the image's name and labels hold it: a collection that
runs in between takes nothing away. Should the daemon fall in the middle, the next one gives it up.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

from ..actors.errors import AlreadyExists, InvalidArgument, NotFound
from .content import ContentStore
from .differs import Differs
from .exporter import export_archive
from .image_config import is_reserved
from .images import Image, Images
from .importer import import_archive
from .labels import Labels
from .leases import Leases
from .platform import Platform, host
from .snapshotter import Snapshotter
from .unpack import Resolved, is_unpacked, resolve, unpack


class ImageKeeper:
    """The verbs. `snapshotters` are found by the caller."""

    def __init__(
        self, content: ContentStore, images: Images, leases: Leases, differs: Differs
    ) -> None:
        self._content = content
        self._images = images
        self._leases = leases
        self._differs = differs

    async def take_in(
        self,
        namespace: str,
        source: BinaryIO,
        *,
        base_name: str = "",
        platforms: Sequence[Platform] | None = None,
    ) -> Sequence[Image]:
        """Bring in an OCI or Docker archive; its images, recorded under their names.

        A name that exists points to the new image afterwards. An archive whose images have no
        name is refused unless `base_name` gives them one, and what has nothing for one of the
        `platforms` is left out: this host's, unless others are given; for an empty list nothing
        is. `source` is read in a thread.
        """
        async with self._leases.held(namespace) as lease:
            found = await import_archive(
                self._content,
                namespace,
                source,
                base_name=base_name,
                digests=bool(base_name),
                platforms=(host(),) if platforms is None else platforms,
                lease=lease,
            )
            if not found.images:
                raise InvalidArgument(
                    "the archive's images have no names, or none is for the platform"
                )
            return [
                await self._record(namespace, Image(name=name, target=target))
                for name, target in found.images
            ]

    async def unpack(
        self,
        namespace: str,
        image: Image,
        snapshotter: Snapshotter,
        platform: Platform | None = None,
    ) -> Resolved:
        """The image for this host or another platform, all its layers committed as snapshots."""
        platform = platform or host()
        try:
            ready = await resolve(self._content, namespace, image.target, platform)
            if is_unpacked(snapshotter, namespace, ready):
                return ready
        except NotFound:
            pass  # told below, with what is missing
        async with self._leases.held(namespace) as lease:
            return await unpack(
                self._content,
                snapshotter,
                self._differs.apply,
                namespace,
                image.target,
                platform,
                lease=lease,
            )

    async def own_labels(self, namespace: str, image_name: str, labels: Labels) -> Labels:
        """The labels without those that decide something and stand so in the image's config:
        containerd's clients copy an image's labels, and do not say whose they are."""
        if not image_name or not any(is_reserved(key) for key in labels):
            return labels
        try:
            image = self._images.get(namespace, image_name)
            config = (await resolve(self._content, namespace, image.target, host())).config
        except (NotFound, InvalidArgument):
            return labels  # of an image that is not here, or is none, nobody has copied
        return {
            key: value
            for key, value in labels.items()
            if not is_reserved(key) or config.labels.get(key) != value
        }

    async def give_out(
        self,
        namespace: str,
        names: Sequence[str],
        write: Callable[[bytes], object],
        *,
        platforms: Sequence[Platform] = (),
        all_platforms: bool = False,
    ) -> None:
        """Write images as one OCI archive that Docker reads too; `write` is called in a thread.

        Of an index goes along what is for the `platforms`; without, what is here as a whole, or
        with `all_platforms` everything, and what is not here is refused.
        """
        chosen = [(name, self._images.get(namespace, name).target) for name in names]
        await export_archive(
            self._content,
            namespace,
            chosen,
            write,
            platforms=platforms,
            skip_missing=not all_platforms and not platforms,
        )

    async def _record(self, namespace: str, image: Image) -> Image:
        try:
            return await self._images.create(namespace, image)
        except AlreadyExists:
            current = self._images.get(namespace, image.name)
            return await self._images.update(
                namespace, replace(current, target=image.target), ["target"]
            )
