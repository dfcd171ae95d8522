"""Pull: an image's content from a registry into the content store, each blob verified.

    pulling = Pull(...)
    async with pulling.begun(judge):
        pulling.target              what the reference points to; all manifests are here
        await pulling.documents()   the configs are here too
        await pulling.arrived(...)  this blob is here
                                    at the end of the block all are
    await pulling.done()            the image has been recorded

What came is held by a lease of a day, so that a pull that came to nothing, by whatever end, costs
the next one nothing. It goes with the pull that is done.

An index brings the manifests that fit the platforms asked for, a manifest its config and layers.
A few blobs come at a time; one that broke off goes on where it was, also with the next pull.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import trio

from ...actors.errors import FailedPrecondition, NotFound, ResourceExhausted
from ..content import ContentStore
from ..descriptor import Descriptor, children, is_index, is_layer, is_manifest
from ..leases import Leases
from ..platform import Platform, choose
from ..transfer import ImageStore, Progress, Report
from ..unpack import INDEX_DEPTH_MAX, label_children
from .client import DOCUMENT_BYTES_MAX
from .download import Source
from .fetch import ref_of
from .fetches import Fetches
from .sources import note_source

BLOBS_AT_ONCE = 3
# On the lease that keeps what came for an image until it is whole: of which reference.
KEEPER_LABEL = "io.holdfast/pull"


class Pull:
    """One pull of one image."""

    def __init__(
        self,
        content: ContentStore,
        fetches: Fetches,
        namespace: str,
        source: Source,
        wanted: ImageStore,
        report: Report,
        lease: str,
        keeper: Leases | None = None,
    ) -> None:
        self._content = content
        self._fetches = fetches
        self._namespace = namespace
        self._source = source
        self._wanted = wanted
        self._report = report
        self._lease = lease
        self._keeper = keeper
        # Configs before layers, and layers in the order in which they are unpacked.
        self._blobs: dict[str, Descriptor] = {}
        self._here: dict[str, trio.Event] = {}
        self._target: Descriptor | None = None

    @property
    def target(self) -> Descriptor:
        """What the reference points to."""
        assert self._target is not None
        return self._target

    @asynccontextmanager
    async def begun(self, judge: Callable[[Descriptor], Awaitable[None]]) -> AsyncGenerator[None]:
        """The manifests are here, and their blobs are coming; at the end of the block all are
        here. What goes wrong with one of them ends the block. `judge` may refuse what the name
        was resolved to, before anything is fetched."""
        registry = self._source.registry
        self._target = await registry.resolve()
        await judge(self._target)
        await self._report(Progress(event="pulling image content", name=registry.remote.text))
        if not await self._walk(self._target, INDEX_DEPTH_MAX, metadata_only=False):
            raise NotFound("no match for platform in manifest: not found")
        self._here = {digest: trio.Event() for digest in self._blobs}
        # What points there, before what it points to may be collected under another's lease.
        await label_children(self._content, self._namespace, self._target)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._bring)
                yield
        except BaseExceptionGroup as group:
            first = first_of(group)
            raise first from first.__cause__

    async def done(self) -> None:
        """The image has its name, and needs nobody else to keep what came."""
        if self._keeper is not None:
            try:
                await self._keeper.delete(self._namespace, self._keeper_id)
            except NotFound:
                pass  # another pull of the same was done, too

    @property
    def _keeper_id(self) -> str:
        return f"pull-{self.target.digest}"

    async def documents(self) -> None:
        """Wait for what is no layer: after this the image can be read."""
        for blob in list(self._blobs.values()):
            if not is_layer(blob.media_type):
                await self.arrived(blob)

    async def arrived(self, blob: Descriptor) -> None:
        """Wait for one blob; one that this pull does not bring is waited for no longer."""
        if (event := self._here.get(blob.digest)) is not None:
            await event.wait()

    async def _bring(self) -> None:
        blobs = sorted(self._blobs.values(), key=lambda blob: is_layer(blob.media_type))
        await each(blobs, self._bring_one, self._fetches.limits.blobs_at_once)

    async def _bring_one(self, blob: Descriptor) -> None:
        await self._fetch(blob)
        self._here[blob.digest].set()

    async def _walk(self, target: Descriptor, depth: int, *, metadata_only: bool) -> bool:
        """Fetch manifests and gather what they point to; whether one of them was asked for."""
        if depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        if target.size > DOCUMENT_BYTES_MAX:
            raise ResourceExhausted(f"manifest {target.digest}: of {target.size} bytes")
        await self._fetch(target)
        raw = await self._content.read_all(self._namespace, target.digest)
        pointed = children(raw, target.media_type, f"content {target.digest}")
        if is_manifest(target.media_type):
            for child in pointed:
                if not metadata_only or not is_layer(child.media_type):
                    self._blobs[child.digest] = child
            return not metadata_only
        chosen = chosen_of(pointed, self._wanted.platforms, self._wanted.manifests_max)
        found = False
        for child in pointed:
            if not is_index(child.media_type) and not is_manifest(child.media_type):
                continue
            skipped = metadata_only or child not in chosen
            if skipped and not self._wanted.all_metadata:
                continue
            found |= await self._walk(child, depth - 1, metadata_only=skipped)
        return found

    async def _fetch(self, target: Descriptor) -> None:
        tell = partial(self._tell, target)
        await self._fetches.fetch(self._namespace, target, self._source, self._lease, tell)
        await self._hold(target)
        await note_source(
            self._content, self._namespace, target.digest, self._source.registry.remote
        )

    async def _hold(self, target: Descriptor) -> None:
        """Should the pull come to nothing, the next one finds it."""
        if self._keeper is None:
            return
        if target is self.target:  # it comes first
            labels = {KEEPER_LABEL: self._source.registry.remote.text}
            await self._keeper.keep_for_a_day(self._namespace, self._keeper_id, labels)
        try:
            await self._content.hold(self._namespace, target.digest, self._keeper_id)
        except NotFound:
            pass  # another pull of the same is done, and let it go

    async def _tell(self, target: Descriptor, event: str, done: int) -> None:
        await self._report(progress_of(target, event, done))


def progress_of(target: Descriptor, event: str, done: int) -> Progress:
    """What is told of a blob of which so many bytes have come or gone."""
    return Progress(
        event=event,
        name=ref_of(target),
        progress=done,
        total=target.size,
        descriptor=target,
    )


def chosen_of(
    listed: Sequence[Descriptor], platforms: Sequence[Platform], count_max: int
) -> Sequence[Descriptor]:
    """Which of an index's entries are asked for: all, or those for these platforms, the best
    first, at most `count_max` unless that is 0."""
    if platforms:
        named = [(one.platform, one) for one in listed if one.platform is not None]
        best = [one for wanted in platforms for one in choose(named, wanted)]
        unnamed = [one for one in listed if one.platform is None]
        listed = list({one.digest: one for one in (*best, *unnamed)}.values())
    return listed[:count_max] if count_max else listed


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, where one refusal is the answer for all."""
    first = group.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
    return first


async def each(
    targets: Sequence[Descriptor],
    do: Callable[[Descriptor], Awaitable[None]],
    at_once: int = BLOBS_AT_ONCE,
) -> None:
    """Do it with all, a few at a time; the first refusal ends the others and is raised alone."""
    room = trio.Semaphore(at_once)

    async def one(target: Descriptor) -> None:
        async with room:
            await do(target)

    try:
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(one, target)
    except BaseExceptionGroup as group:
        first = first_of(group)
        raise first from first.__cause__
