"""Push: an image's content from the content store to a registry, what is pointed to first.

What the registry has is not sent again, and what another of its repositories has is mounted from
there. Layers that their makers let nobody hand on are left where they are.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import trio

from ...actors.errors import FailedPrecondition, InvalidArgument
from ..content import ContentStore
from ..descriptor import (
    DOCKER_FOREIGN_LAYER,
    OCI_FOREIGN_LAYER,
    Descriptor,
    children,
    is_index,
    is_manifest,
)
from ..platform import Platform
from ..transfer import Progress, Report
from ..unpack import INDEX_DEPTH_MAX
from .client import PIECE_BYTES, Registry
from .pull import SOURCE_LABEL, chosen_of, each, ref_of


async def push(
    content: ContentStore,
    namespace: str,
    registry: Registry,
    target: Descriptor,
    platforms: Sequence[Platform],
    report: Report,
) -> None:
    """Bring an image to the registry's reference. All that it needs must be here."""
    if not is_index(target.media_type) and not is_manifest(target.media_type):
        raise InvalidArgument(f"only manifests may be pushed, not {target.media_type}")
    remote = registry.remote
    if remote.digest and remote.digest != target.digest:
        raise FailedPrecondition(
            f"{remote.text}: the image is {target.digest}: failed precondition"
        )
    pushing = _Push(content, namespace, registry, platforms, report)
    await pushing.run(target)


@dataclass(frozen=True, slots=True)
class _Push:
    content: ContentStore
    namespace: str
    registry: Registry
    platforms: Sequence[Platform]
    report: Report

    async def run(self, target: Descriptor) -> None:
        await self.report(Progress(event="pushing content", name=self.registry.remote.text))
        blobs: dict[str, Descriptor] = {}
        manifests: dict[str, Descriptor] = {}
        await self._walk(target, blobs, manifests, INDEX_DEPTH_MAX)
        # Whether the registry answers, and lets us in, is found out once and not by each blob.
        await self.registry.has(target)
        await each(list(blobs.values()), self._put_blob)
        # Gathered from the top: a registry wants what is pointed to before what points there.
        for manifest in reversed(manifests.values()):
            remote = self.registry.remote
            top = manifest.digest == target.digest
            await self._put_manifest(manifest, remote.object if top else manifest.digest)

    async def _walk(
        self,
        target: Descriptor,
        blobs: dict[str, Descriptor],
        manifests: dict[str, Descriptor],
        depth: int,
    ) -> None:
        if depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        manifests.pop(target.digest, None)
        manifests[target.digest] = target
        raw = await self.content.read_all(self.namespace, target.digest)
        pointed = children(raw, target.media_type, f"content {target.digest}")
        if is_index(target.media_type):
            pointed = tuple(chosen_of(pointed, self.platforms, 0))
        for child in pointed:
            if is_index(child.media_type) or is_manifest(child.media_type):
                await self._walk(child, blobs, manifests, depth - 1)
            elif not child.media_type.startswith((OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)):
                blobs[child.digest] = child

    async def _put_blob(self, target: Descriptor) -> None:
        name = ref_of(target)
        if await self.registry.has(target):
            await self._tell("exists", name, target)
            return
        await self._tell("uploading", name, target)
        await self.content.obtain(self.namespace, target.digest)
        info = self.content.info(self.namespace, target.digest)
        if info.size != target.size:
            raise FailedPrecondition(
                f"{target.digest}: {info.size} bytes, its descriptor says {target.size}"
            )
        remote = self.registry.remote
        others = info.labels.get(SOURCE_LABEL + remote.host, "").split(",")
        source = next((one for one in others if one and one != remote.repository), "")
        pieces = self._pieces(target)
        try:
            await self.registry.put_blob(target, pieces, mounted_from=source)
        finally:
            await pieces.aclose()
        await self._tell("complete", name, target)

    async def _pieces(self, target: Descriptor) -> AsyncGenerator[bytes]:
        async with await self.content.open_blob(self.namespace, target.digest) as blob:
            at = 0
            while at < blob.size:
                piece = await trio.to_thread.run_sync(os.pread, blob.fd, PIECE_BYTES, at)
                yield piece
                at += len(piece)

    async def _put_manifest(self, target: Descriptor, name: str) -> None:
        raw = await self.content.read_all(self.namespace, target.digest)
        await self._tell("uploading", ref_of(target), target)
        await self.registry.put_manifest(target, raw, name)
        await self._tell("complete", ref_of(target), target)

    async def _tell(self, event: str, name: str, target: Descriptor) -> None:
        done = 0 if event == "uploading" else target.size
        await self.report(
            Progress(event=event, name=name, progress=done, total=target.size, descriptor=target)
        )
