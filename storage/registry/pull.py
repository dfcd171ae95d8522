"""Pull: an image's content from a registry into the content store, each blob verified.

An index brings the manifests that fit the platforms asked for, a manifest its config and layers.
A few blobs come at a time; one that broke off goes on where it was, also with the next pull.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from ...actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ..content import ContentStore
from ..descriptor import (
    Descriptor,
    children,
    is_config,
    is_index,
    is_layer,
    is_manifest,
)
from ..ingest import Ingest
from ..platform import Platform, rank
from ..transfer import ImageStore, Progress, Report
from ..unpack import INDEX_DEPTH_MAX, label_children
from .client import Registry

BLOBS_AT_ONCE = 3
ATTEMPTS_MAX = 5
PAUSE_S = 0.2
TOLD_EVERY_BYTES = 4 << 20
BUSY_WITHIN_S = 600.0
SOURCE_LABEL = "containerd.io/distribution.source."


def ref_of(target: Descriptor) -> str:
    """Under which ref content is brought in: that of every client of containerd's."""
    kind = "unknown"
    if is_index(target.media_type):
        kind = "index"
    elif is_manifest(target.media_type):
        kind = "manifest"
    elif is_layer(target.media_type):
        kind = "layer"
    elif is_config(target.media_type):
        kind = "config"
    return f"{kind}-{target.digest}"


async def pull(
    content: ContentStore,
    namespace: str,
    registry: Registry,
    wanted: ImageStore,
    report: Report,
    lease: str,
) -> Descriptor:
    """Bring in what the registry's reference points to; its descriptor."""
    target = await registry.resolve()
    fetching = _Pull(content, namespace, registry, wanted, report, lease)
    await fetching.run(target)
    await label_children(content, namespace, target)
    return target


@dataclass(frozen=True, slots=True)
class _Pull:
    content: ContentStore
    namespace: str
    registry: Registry
    wanted: ImageStore
    report: Report
    lease: str

    async def run(self, target: Descriptor) -> None:
        await self.report(Progress(event="pulling image content", name=self.registry.remote.text))
        blobs: dict[str, Descriptor] = {}
        if not await self._walk(target, blobs, INDEX_DEPTH_MAX, metadata_only=False):
            raise NotFound("no match for platform in manifest: not found")
        await each(list(blobs.values()), self._fetch)

    async def _walk(
        self, target: Descriptor, blobs: dict[str, Descriptor], depth: int, *, metadata_only: bool
    ) -> bool:
        """Fetch manifests and gather what they point to; whether one of them was asked for."""
        if depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        await self._fetch(target)
        raw = await self.content.read_all(self.namespace, target.digest)
        pointed = children(raw, target.media_type, f"content {target.digest}")
        if is_manifest(target.media_type):
            for child in pointed:
                if not metadata_only or not is_layer(child.media_type):
                    blobs[child.digest] = child
            return not metadata_only
        chosen = chosen_of(pointed, self.wanted.platforms, self.wanted.manifests_max)
        found = False
        for child in pointed:
            if not is_index(child.media_type) and not is_manifest(child.media_type):
                continue
            skipped = metadata_only or child not in chosen
            if skipped and not self.wanted.all_metadata:
                continue
            found |= await self._walk(child, blobs, depth - 1, metadata_only=skipped)
        return found

    async def _fetch(self, target: Descriptor) -> None:
        name = ref_of(target)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                ingest = await self._open(target, name)
            except AlreadyExists:
                await self._tell("exists", name, target, target.size)
                return
            async with ingest:
                try:
                    await self._bring(ingest, name, target)
                    break
                except Unavailable:
                    if attempt == ATTEMPTS_MAX:
                        raise
                except (FailedPrecondition, ResourceExhausted):
                    # Not what was asked for: the next one must not go on from it.
                    await ingest.abort()
                    await self._forget(name)
                    raise
            await trio.sleep(PAUSE_S * 2**attempt)
        await self._tell("complete", name, target, target.size)

    async def _open(self, target: Descriptor, name: str) -> Ingest:
        """The ingest, once nobody else brings the same."""
        with trio.move_on_after(BUSY_WITHIN_S):
            while True:
                try:
                    return await self._begin(target, name)
                except Unavailable:
                    await self._tell("waiting", name, target, 0)
                    await trio.sleep(PAUSE_S)
        return await self._begin(target, name)

    async def _begin(self, target: Descriptor, name: str) -> Ingest:
        return await self.content.open_ingest(
            self.namespace, name, total=target.size, expected=target.digest, lease=self.lease
        )

    async def _bring(self, ingest: Ingest, name: str, target: Descriptor) -> None:
        offset = (await ingest.state()).offset
        await self._tell("downloading", name, target, offset)
        if offset < target.size:
            async with self.registry.get(target, offset) as (begins, pieces):
                if begins != offset:
                    await ingest.truncate()
                await self._write(ingest, name, target, begins, pieces)
        remote = self.registry.remote
        labels = {SOURCE_LABEL + remote.host: remote.repository}
        try:
            await ingest.commit(target.size, target.digest, labels, lease=self.lease)
        except AlreadyExists:
            pass  # another was faster

    async def _write(
        self, ingest: Ingest, name: str, target: Descriptor, at: int, pieces: AsyncIterator[bytes]
    ) -> None:
        told = at
        async for piece in pieces:
            at += len(piece)
            if at > target.size:
                raise FailedPrecondition(
                    f"{target.digest}: more than its {target.size} bytes: failed precondition"
                )
            await ingest.write(piece)
            if at - told >= TOLD_EVERY_BYTES:
                told = at
                await self._tell("downloading", name, target, at)
        if at < target.size:
            raise Unavailable(f"{target.digest}: only {at} of {target.size} bytes arrived")

    async def _forget(self, name: str) -> None:
        try:
            await self.content.abort(self.namespace, name)
        except NotFound:
            pass

    async def _tell(self, event: str, name: str, target: Descriptor, progress: int) -> None:
        await self.report(
            Progress(
                event=event, name=name, progress=progress, total=target.size, descriptor=target
            )
        )


def chosen_of(
    listed: Sequence[Descriptor], platforms: Sequence[Platform], count_max: int
) -> Sequence[Descriptor]:
    """Which of an index's entries are asked for: all, or those for these platforms, the best
    first, at most `count_max` unless that is 0."""
    if platforms:
        ranked: list[tuple[int, int, Descriptor]] = []
        for place, wanted in enumerate(platforms):
            for one in listed:
                found = None if one.platform is None else rank(one.platform, wanted)
                if found is not None:
                    ranked.append((place, found, one))
        best = [one for _, _, one in sorted(ranked, key=lambda entry: entry[:2])]
        unnamed = [one for one in listed if one.platform is None]
        listed = list({one.digest: one for one in (*best, *unnamed)}.values())
    return listed[:count_max] if count_max else listed


async def each(targets: Sequence[Descriptor], do: Callable[[Descriptor], Awaitable[None]]) -> None:
    """Do it with all, a few at a time; the first refusal ends the others and is raised alone."""
    room = trio.Semaphore(BLOBS_AT_ONCE)

    async def one(target: Descriptor) -> None:
        async with room:
            await do(target)

    try:
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(one, target)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__
