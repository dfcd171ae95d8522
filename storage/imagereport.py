"""The report of an image: its documents and what is known of each part, as JSON has it."""

from collections.abc import Mapping
from typing import Any

from ..actors.errors import Refusal
from .content import ContentStore
from .document import parse_json
from .footprint import has_snapshot
from .images import Image
from .imagetree import Variant, image_tree
from .snapshotter import Snapshotter


class ImageReports:
    """The verb."""

    def __init__(self, content: ContentStore, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._content = content
        self._snapshotters = snapshotters

    async def inspect(self, namespace: str, image: Image) -> Mapping[str, Any]:
        """What an image is: name, target, labels, and for each platform manifest, config, layers,
        sizes, where it is unpacked, and what of it is here."""
        tree = await image_tree(self._content, namespace, image.target)
        return {
            "name": image.name,
            "target": image.target.to_json(),
            "labels": dict(image.labels),
            "created_at_ns": image.created_at,
            "updated_at_ns": image.updated_at,
            "indexes": [
                {"descriptor": one.to_json(), "index": await self._document(namespace, one.digest)}
                for one in tree.indexes
            ],
            "platforms": [await self._platform(namespace, one) for one in tree.variants],
            "missing": [one.digest for one in tree.missing_indexes],
            "damaged": dict(tree.faults),
        }

    async def _platform(self, namespace: str, variant: Variant) -> Mapping[str, Any]:
        missing = {one.digest for one in variant.missing}
        manifest = variant.manifest
        return {
            "platform": "" if variant.platform is None else str(variant.platform),
            "descriptor": variant.descriptor.to_json(),
            "here": variant.is_whole,
            "size_bytes": sum(one.size for one in variant.blobs),
            "here_bytes": sum(one.size for one in variant.blobs if one.digest not in missing),
            "unpacked": {
                name: chain[-1]
                for name, snapshotter in self._snapshotters.items()
                if (chain := variant.chain) and has_snapshot(snapshotter, namespace, chain[-1])
            },
            "manifest": await self._document(namespace, variant.descriptor.digest),
            "config": None
            if manifest is None
            else await self._document(namespace, manifest.config.digest),
            "layers": self._layers(variant),
        }

    def _layers(self, variant: Variant) -> list[Mapping[str, Any]]:
        if variant.manifest is None:
            return []
        missing = {one.digest for one in variant.missing}
        diff_ids = () if variant.config is None else variant.config.diff_ids
        return [
            {
                **layer.to_json(),
                "diff_id": diff_ids[number] if number < len(diff_ids) else "",
                "here": layer.digest not in missing,
            }
            for number, layer in enumerate(variant.manifest.layers)
        ]

    async def _document(self, namespace: str, digest: str) -> object:
        try:
            raw = await self._content.read_all(namespace, digest)
            return parse_json(raw, f"content {digest}")
        except Refusal:
            return None  # not here, or damaged: told beside
