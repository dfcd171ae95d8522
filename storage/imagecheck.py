"""The check of images: what of them is here, is unpacked, and is what its digest says.

A platform is

    complete    all of it is here
    partial     its manifest is here, and something that this points to is not
    absent      its manifest is not here: it was not asked for
    damaged     something of it is not what its digest or its kind says
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..actors.errors import DataLoss
from .content import ContentStore
from .digest import Digest
from .footprint import has_snapshot
from .images import Image
from .imagetree import ImageTree, Variant, image_tree
from .snapshotter import Snapshotter

COMPLETE, PARTIAL, ABSENT, DAMAGED = "complete", "partial", "absent", "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPlatform:
    """One of an image's manifests. Sizes in bytes."""

    platform: str
    digest: Digest
    state: str
    here: int
    blobs: int
    here_bytes: int
    size_bytes: int
    unpacked: Sequence[str]
    """The snapshotters that have all its layers."""
    missing: Sequence[Digest]
    damaged: Sequence[Digest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An image."""

    name: str
    digest: Digest
    platforms: Sequence[CheckedPlatform]
    missing: Sequence[Digest]
    """Indexes that are not here."""
    damaged: Mapping[Digest, str]
    """What is not what it should be, in all of the image, and why."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is damaged, what was asked for is whole, and that is something."""
        states = {one.state for one in self.platforms}
        return not self.damaged and COMPLETE in states and PARTIAL not in states


class ImageChecks:
    """The verb."""

    def __init__(self, content: ContentStore, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._content = content
        self._snapshotters = snapshotters

    async def check(self, namespace: str, image: Image, *, verify: bool = False) -> Checked:
        """Look at all of an image; with `verify` each blob is read and hashed."""
        tree = await image_tree(self._content, namespace, image.target)
        damaged = dict(tree.faults)
        if verify:
            damaged |= await self._verify(namespace, tree)
        return Checked(
            name=image.name,
            digest=image.target.digest,
            platforms=[self._platform(namespace, one, damaged) for one in tree.variants],
            missing=[one.digest for one in tree.missing_indexes],
            damaged=damaged,
        )

    async def _verify(self, namespace: str, tree: ImageTree) -> dict[Digest, str]:
        damaged: dict[Digest, str] = {}
        for blob in tree.blobs():
            if self._content.has(namespace, blob.digest):
                size = self._content.info(namespace, blob.digest).size
                if size != blob.size:
                    damaged[blob.digest] = f"{size} bytes, its descriptor says {blob.size}"
                    continue
                try:
                    await self._content.verify(namespace, blob.digest)
                except DataLoss as error:
                    damaged[blob.digest] = str(error)
        return damaged

    def _platform(
        self, namespace: str, variant: Variant, damaged: Mapping[Digest, str]
    ) -> CheckedPlatform:
        missing = {one.digest for one in variant.missing}
        here = [one for one in variant.blobs if one.digest not in missing]
        own = [one.digest for one in variant.blobs if one.digest in damaged]
        if own:
            state = DAMAGED
        elif variant.descriptor.digest in missing:
            state = ABSENT
        else:
            state = PARTIAL if missing else COMPLETE
        chain = variant.chain
        return CheckedPlatform(
            platform="" if variant.platform is None else str(variant.platform),
            digest=variant.descriptor.digest,
            state=state,
            here=len(here),
            blobs=len(variant.blobs),
            here_bytes=sum(one.size for one in here),
            size_bytes=sum(one.size for one in variant.blobs),
            unpacked=[
                name
                for name, snapshotter in self._snapshotters.items()
                if chain and has_snapshot(snapshotter, namespace, chain[-1])
            ],
            missing=sorted(missing),
            damaged=own,
        )
