"""Push: an image's content from the content store to a registry, what is pointed to first.

    which manifests --here, or there--> blobs --there? mounted? uploaded--> manifests --> indexes

What the registry has is not sent again, and what another of its repositories has is mounted from
there: whichever the labels `containerd.io/distribution.source.HOST` of a blob, or of what points to
it, name. A registry that does not mount is sent the bytes. They go in parts, a few blobs at a time;
after a part that broke off the registry is asked how much it has, and is sent the rest. Layers that
their makers let nobody hand on are left where they are.

An index without chosen platforms is pushed whole: each manifest that it lists must be here or
there. With chosen platforms, only theirs are sent. Where the registry has the others, the index
goes along as it is; else another one, which lists the chosen alone, takes its place: a registry
refuses, and a client cannot use, an index whose manifests are not there.
"""

import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import trio

from ...actors.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Refusal,
    Unknown,
)
from ..blobfiles import Blob
from ..content import ContentStore
from ..descriptor import (
    DOCKER_FOREIGN_LAYER,
    OCI_FOREIGN_LAYER,
    Descriptor,
    children,
    describe,
    is_index,
    is_manifest,
    read_index,
)
from ..document import canonical_json, parse_json
from ..platform import Platform, choose
from ..transfer import Progress, Report
from ..unpack import INDEX_DEPTH_MAX
from .client import PIECE_BYTES, Registry
from .fetch import ref_of
from .pull import each, progress_of
from .sources import note_source, sources_of
from .uploads import Upload

PART_BYTES = 4 << 20
BEGINS_MAX = 4
MOUNTS_MAX = 3
CANCEL_WITHIN_S = 5.0
# Answers of a registry that takes a blob as a whole alone.
NO_PARTS = (InvalidArgument, OutOfRange, Unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """A manifest or an index that is to be put, as it will be there."""

    target: Descriptor
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A blob that a manifest points to, and the repositories that may have it too."""

    target: Descriptor
    sources: Sequence[str]


async def push(
    content: ContentStore,
    namespace: str,
    registry: Registry,
    target: Descriptor,
    platforms: Sequence[Platform],
    report: Report,
) -> Descriptor:
    """Bring an image to the registry's reference; what that points to then."""
    if not is_index(target.media_type) and not is_manifest(target.media_type):
        raise InvalidArgument(f"only manifests may be pushed, not {target.media_type}")
    remote = registry.remote
    if remote.digest and remote.digest != target.digest:
        raise FailedPrecondition(
            f"{remote.text}: the image is {target.digest}: failed precondition"
        )
    pushing = _Push(content, namespace, registry, platforms, report)
    return await pushing.run(target)


@dataclass(slots=True)
class _Push:
    content: ContentStore
    namespace: str
    registry: Registry
    platforms: Sequence[Platform]
    report: Report
    _parts: dict[str, _Part] = field(default_factory=dict[str, _Part])
    # What is pointed to before what points there: a registry wants it so.
    _documents: dict[str, _Document] = field(default_factory=dict[str, _Document])

    async def run(self, target: Descriptor) -> Descriptor:
        remote = self.registry.remote
        await self.report(Progress(event="pushing content", name=remote.text))
        # Whether the registry answers, and lets us in, is found out once and not by each blob.
        await self.registry.has(target)
        top = await self._walk(target, (), INDEX_DEPTH_MAX)
        if remote.digest and remote.digest != top.digest:
            raise FailedPrecondition(
                f"{remote.text}: an index of the chosen platforms alone is {top.digest}, and the"
                " registry has not the others: push it by a tag: failed precondition"
            )
        await each([one.target for one in self._parts.values()], self._put_blob)
        for document in self._documents.values():
            await self._put_document(document, is_top=document.target.digest == top.digest)
        return top

    # -- what is to be there

    async def _walk(self, target: Descriptor, sources: Sequence[str], depth: int) -> Descriptor:
        """Gather a manifest or an index and all that it needs; what will be there for it."""
        if depth < 0:
            raise FailedPrecondition(f"index {target.digest}: nested too deeply")
        await self.content.obtain(self.namespace, target.digest)
        raw = await self.content.read_all(self.namespace, target.digest)
        sources = (*sources, *self._sources_of(target.digest))
        made = target
        if is_index(target.media_type):
            changed = await self._index(target, raw, sources, depth)
            if changed is not None:
                raw, new = changed, describe(changed, target.media_type)
                made = replace(target, digest=new.digest, size=new.size)
        else:
            for child in children(raw, target.media_type, f"content {target.digest}"):
                if not child.media_type.startswith((OCI_FOREIGN_LAYER, DOCKER_FOREIGN_LAYER)):
                    known = (*self._sources_of(child.digest), *sources)
                    self._parts[child.digest] = _Part(target=child, sources=known)
        self._documents.setdefault(made.digest, _Document(target=made, raw=raw))
        return made

    async def _index(
        self, target: Descriptor, raw: bytes, sources: Sequence[str], depth: int
    ) -> bytes | None:
        """Gather what an index lists; another index, if one has to take its place."""
        listed = read_index(raw, f"content {target.digest}")
        chosen = {one.digest for one in _chosen(listed, self.platforms)}
        if listed and not chosen:
            raise NotFound(f"{target.digest}: no match for platform in manifest: not found")
        made: dict[str, Descriptor] = {}
        absent: list[Descriptor] = []
        for child in listed:
            if not is_index(child.media_type) and not is_manifest(child.media_type):
                if child.digest in chosen:
                    self._parts[child.digest] = _Part(target=child, sources=sources)
                    made[child.digest] = child
            elif child.digest in chosen and await self._is_here(child):
                made[child.digest] = await self._walk(child, sources, depth - 1)
            elif await self.registry.has(child):
                made[child.digest] = child
            elif child.digest in chosen:
                absent.append(child)
        if absent:
            told = ", ".join(f"{one.platform or 'no platform'} ({one.digest})" for one in absent)
            raise NotFound(
                f"{self.registry.remote.text}: not here, and not in the registry: {told}; pull"
                " them, or choose platforms that are here with --platform: not found"
            )
        if all(made.get(one.digest) == one for one in listed):
            return None
        return _reduced(raw, listed, {key: one for key, one in made.items() if key in chosen})

    async def _is_here(self, target: Descriptor) -> bool:
        return await self.content.obtain(self.namespace, target.digest)

    def _sources_of(self, digest: str) -> Sequence[str]:
        """The repositories of this registry that its labels say to have it."""
        try:
            labels = self.content.info(self.namespace, digest).labels
        except NotFound:
            return ()
        remote = self.registry.remote
        return [one for one in sources_of(labels, remote.host) if one != remote.repository]

    # -- bringing it there

    async def _put_blob(self, target: Descriptor) -> None:
        if await self.registry.has(target):
            await self._tell("exists", target, target.size)
            await self._note(target)
            return
        await self._tell("uploading", target, 0)
        if not await self._is_here(target):
            raise NotFound(
                f"{self.registry.remote.text}: {ref_of(target)} is not here, and not in the"
                " registry: pull the image: not found"
            )
        size = self.content.info(self.namespace, target.digest).size
        if size != target.size:
            raise FailedPrecondition(
                f"{target.digest}: {size} bytes, its descriptor says {target.size}"
            )
        event = "complete"
        async with await self.content.open_blob(self.namespace, target.digest) as blob:
            for begun in range(1, BEGINS_MAX + 1):
                try:
                    event = await self._send(target, blob)
                    break
                except Aborted:  # lost half-way, and the registry does not know how far it was
                    if begun == BEGINS_MAX:
                        raise
                    await self._tell("uploading", target, 0)
        await self._tell(event, target, target.size)
        await self._note(target)

    async def _send(self, target: Descriptor, blob: Blob) -> str:
        """Upload a blob, or have it mounted; the word for which of the two it was."""
        upload = await self._begin(target)
        if upload is None:
            return "mounted"
        try:
            part_bytes = max(PART_BYTES, upload.part_bytes_min)
            while target.size - upload.offset > part_bytes:
                piece = await _read(blob, upload.offset, part_bytes)
                upload = await self.registry.upload_part(upload, piece)
                await self._tell("uploading", target, upload.offset)
            last = await _read(blob, upload.offset, target.size - upload.offset)
            await self.registry.finish_upload(upload, target, last)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._cancel(upload)
            if isinstance(error, NO_PARTS) and upload.offset == 0:
                await self._send_whole(target, blob)
                return "complete"
            if isinstance(error, NotFound):
                raise Aborted(f"{error}: the upload is lost") from error
            raise
        return "complete"

    async def _begin(self, target: Descriptor) -> Upload | None:
        """An upload; None once one of the repositories that may have the blob has given it."""
        repository = self.registry.remote.repository
        sources = sorted(
            dict.fromkeys(self._parts[target.digest].sources),
            key=lambda one: -len(os.path.commonpath([one, repository])),
        )
        upload: Upload | None = None
        for source in sources[:MOUNTS_MAX] or [""]:
            if upload is not None:
                await self._cancel(upload)
            upload = await self.registry.begin_upload(target, source)
            if upload is None:
                break
        return upload

    async def _cancel(self, upload: Upload) -> None:
        with trio.move_on_after(CANCEL_WITHIN_S):
            try:
                await self.registry.cancel_upload(upload)
            except Refusal:
                pass  # a registry forgets what nobody finishes

    async def _send_whole(self, target: Descriptor, blob: Blob) -> None:
        pieces = _pieces(blob)
        try:
            await self.registry.put_blob(target, pieces)
        finally:
            await pieces.aclose()

    async def _note(self, target: Descriptor) -> None:
        """Where the blob is too, from now on: another push may have it mounted."""
        try:
            await note_source(self.content, self.namespace, target.digest, self.registry.remote)
        except NotFound:
            pass  # gone meanwhile

    async def _put_document(self, document: _Document, *, is_top: bool) -> None:
        target = document.target
        if not is_top and await self.registry.has(target):
            await self._tell("exists", target, target.size)
            return
        await self._tell("uploading", target, 0)
        name = self.registry.remote.object if is_top else target.digest
        await self.registry.put_manifest(target, document.raw, name)
        await self._tell("complete", target, target.size)

    async def _tell(self, event: str, target: Descriptor, done: int) -> None:
        await self.report(progress_of(target, event, done))


def _chosen(listed: Sequence[Descriptor], platforms: Sequence[Platform]) -> Iterable[Descriptor]:
    """All entries, or what fits each platform best and what names none."""
    if not platforms:
        return listed
    named = [(one.platform, one) for one in listed if one.platform is not None]
    best = [one for platform in platforms for one in choose(named, platform)[:1]]
    return (*best, *(one for one in listed if best and one.platform is None))


def _reduced(raw: bytes, listed: Iterable[Descriptor], made: dict[str, Descriptor]) -> bytes:
    """An index that lists only what was made of its entries; all else as its author wrote it."""
    document = cast("dict[str, Any]", parse_json(raw, "index"))
    entries = cast("list[dict[str, Any]]", document["manifests"])
    kept = [
        {**entry, "digest": made[one.digest].digest, "size": made[one.digest].size}
        for entry, one in zip(entries, listed, strict=True)
        if one.digest in made
    ]
    return canonical_json({**document, "manifests": kept})


async def _read(blob: Blob, at: int, count: int) -> bytes:
    piece = await trio.to_thread.run_sync(os.pread, blob.fd, count, at)
    if len(piece) != count:
        raise DataLoss(f"blob {blob.path.name} ends before its {blob.size} bytes: data loss")
    return piece


async def _pieces(blob: Blob) -> AsyncGenerator[bytes]:
    at = 0
    while at < blob.size:
        piece = await _read(blob, at, min(PIECE_BYTES, blob.size - at))
        yield piece
        at += len(piece)
