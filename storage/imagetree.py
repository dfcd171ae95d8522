"""An image's tree: the indexes, manifests, configs and layers that it consists of, and which of
them are here.

    target: index --> index, manifest --> config, layers
            manifest ---------------^

Nothing is brought from elsewhere. What is missing or damaged is told, not raised: an image may
have been brought in for one platform alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..actors.errors import DataLoss, FailedPrecondition, InvalidArgument, Refusal
from .content import ContentStore
from .descriptor import (
    Descriptor,
    Manifest,
    is_config,
    is_index,
    is_manifest,
    read_index,
    read_manifest,
)
from .digest import Digest
from .image_config import ImageConfig, chain_ids, read_image_config
from .platform import Platform, rank
from .unpack import INDEX_DEPTH_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One of an image's manifests. `manifest` is None while it is not here or damaged, `config`
    also where it is none of an image."""

    descriptor: Descriptor
    platform: Platform | None = None
    manifest: Manifest | None = None
    config: ImageConfig | None = None
    missing: Sequence[Descriptor] = ()

    @property
    def blobs(self) -> Sequence[Descriptor]:
        """All that it consists of, as far as that is known."""
        if self.manifest is None:
            return (self.descriptor,)
        return (self.descriptor, self.manifest.config, *self.manifest.layers)

    @property
    def chain(self) -> Sequence[Digest]:
        """The names of its layers' snapshots, from the bottom."""
        return () if self.config is None else chain_ids(self.config.diff_ids)

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here."""
        return self.manifest is not None and not self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTree:
    """A whole image."""

    target: Descriptor
    indexes: Sequence[Descriptor]
    """Those that are here."""
    variants: Sequence[Variant]
    missing_indexes: Sequence[Descriptor]
    faults: dict[Digest, str] = field(default_factory=dict[Digest, str])
    """Documents that are here and cannot be read, with the reason."""

    def blobs(self) -> Iterator[Descriptor]:
        """What it consists of, each once, here or not."""
        seen: set[Digest] = set()
        every = [*self.indexes, *self.missing_indexes]
        every += [blob for variant in self.variants for blob in variant.blobs]
        for blob in every:
            if blob.digest not in seen:
                seen.add(blob.digest)
                yield blob


async def image_tree(content: ContentStore, namespace: str, target: Descriptor) -> ImageTree:
    """The tree of an image."""
    walk = _Walk(content, namespace)
    await walk.enter(target, INDEX_DEPTH_MAX)
    return ImageTree(
        target=target,
        indexes=walk.indexes,
        variants=walk.variants,
        missing_indexes=walk.missing_indexes,
        faults=walk.faults,
    )


def fits(variant: Variant, platforms: Sequence[Platform]) -> bool:
    """Whether it runs on one of these; on all where none is named."""
    if not platforms:
        return True
    offered = variant.platform
    return offered is not None and any(rank(offered, one) is not None for one in platforms)


class _Walk:
    def __init__(self, content: ContentStore, namespace: str) -> None:
        self._content = content
        self._namespace = namespace
        self._seen: set[Digest] = set()
        self.indexes: list[Descriptor] = []
        self.missing_indexes: list[Descriptor] = []
        self.variants: list[Variant] = []
        self.faults: dict[Digest, str] = {}

    def _here(self, one: Descriptor) -> bool:
        return self._content.has(self._namespace, one.digest)

    async def enter(self, target: Descriptor, depth: int) -> None:
        if target.digest in self._seen:
            return
        self._seen.add(target.digest)
        if is_manifest(target.media_type):
            self.variants.append(await self._variant(target))
        elif not is_index(target.media_type):
            raise InvalidArgument(
                f"unexpected media type {target.media_type} for {target.digest}: invalid argument"
            )
        elif depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        elif not self._here(target):
            self.missing_indexes.append(target)
        else:
            self.indexes.append(target)
            raw = await self._read(target)
            if raw is None:
                return
            try:
                listed = read_index(raw, f"index {target.digest}")
            except (InvalidArgument, FailedPrecondition) as error:
                self.faults[target.digest] = str(error)
                return
            for child in listed:
                if is_index(child.media_type) or is_manifest(child.media_type):
                    await self.enter(child, depth - 1)

    async def _variant(self, target: Descriptor) -> Variant:
        if not self._here(target):
            return Variant(descriptor=target, platform=target.platform, missing=(target,))
        raw = await self._read(target)
        if raw is None:
            return Variant(descriptor=target, platform=target.platform)
        try:
            manifest = read_manifest(raw, f"manifest {target.digest}")
        except (InvalidArgument, FailedPrecondition) as error:
            self.faults[target.digest] = str(error)
            return Variant(descriptor=target, platform=target.platform)
        missing = [one for one in (manifest.config, *manifest.layers) if not self._here(one)]
        config = await self._config(manifest.config)
        platform = target.platform
        if platform is None and config is not None and config.platform.os:
            platform = config.platform
        return Variant(
            descriptor=target,
            platform=platform,
            manifest=manifest,
            config=config,
            missing=missing,
        )

    async def _config(self, target: Descriptor) -> ImageConfig | None:
        if not is_config(target.media_type) or not self._here(target):
            return None
        raw = await self._read(target)
        if raw is None:
            return None
        try:
            return read_image_config(raw, f"config {target.digest}")
        except Refusal as error:
            self.faults[target.digest] = str(error)
            return None

    async def _read(self, target: Descriptor) -> bytes | None:
        try:
            return await self._content.read_all(self._namespace, target.digest)
        except (DataLoss, InvalidArgument) as error:
            self.faults[target.digest] = str(error)
            return None
