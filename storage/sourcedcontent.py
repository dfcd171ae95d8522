"""Content that other processes have too: what our store lacks is looked up there.

    asked for --here--------------------------------------------------> the blob
        +--not here--> each source in turn --has it--> ingest --checked--^
                               +--none has it--> not found

A *source* is another process's content store. Nothing it says is believed: a blob comes in by an
ingest of ours, and is there once its size and digest are found to be right; from then on it is a
blob like any other, which leases and references keep, or the collector removes. Of its labels it
brings those that say which content it refers to, `containerd.io/gc.ref.content`, so that an image
keeps its layers.

A fetch that was cut short, by whatever end, leaves an ingest, and the next goes on from it. Who
is not answered, or wrongly, has not found the blob there: a source is an offer, and never a reason
to refuse what could be had in another way.

Invariant: a namespace fetches a blob once at a time; who asks meanwhile is told what became of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
import trio

from ..actors import failpoints
from ..actors.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    Refusal,
    ResourceExhausted,
)
from .blobfiles import Blob
from .content import ContentInfo, ContentStore, Spawn
from .digest import Digest, fault_of_digest, parse_digest
from .ingest import Ingest
from .labels import Labels, check_namespace
from .lentsnapshots import NAMESPACE as LENT
from .store import Store

# Each piece has a deadline of its own: so much a source must bring in that time.
PIECE_BYTES = 4 << 20
REFERS = "containerd.io/gc.ref.content"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class BlobSource(Protocol):
    """Another process's content. Each call has its own deadline; a Refusal of any kind means that
    the blob is not to be had there now, NotFound that it has none."""

    name: str

    async def info(self, namespace: str, digest: Digest) -> ContentInfo:
        """Its record of a blob, which nobody has checked."""
        ...

    async def read(self, namespace: str, digest: Digest, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of it from `offset` on."""
        ...


@dataclass(slots=True)
class _Fetch:
    """One that is under way. `found` None when it ends: its caller went away, and nobody knows."""

    ended: trio.Event = field(default_factory=trio.Event)
    found: bool | None = None


class SourcedContent(ContentStore):
    """A content store with sources, which are set before it is used."""

    def __init__(self, root: Path, store: Store, spawn: Spawn, *, isolated: bool = False) -> None:
        super().__init__(root, store, spawn, isolated=isolated)
        self.sources: Sequence[BlobSource] = ()
        self._fetches: dict[tuple[str, Digest], _Fetch] = {}
        # Invariant: what each source was last found wanting in; said once, not at every ask.
        self._troubles: dict[str, str] = {}

    async def obtain(self, namespace: str, digest: str, *, lease: str = "") -> bool:
        """Whether the namespace has the blob, brought from a source if need be."""
        check_namespace(namespace)
        parsed = parse_digest(digest)
        if self.has(namespace, parsed):
            return True
        if namespace == LENT or not await self._fetched(namespace, parsed):
            return False
        return not lease or await self.hold(namespace, parsed, lease)

    async def open_blob(self, namespace: str, digest: str) -> Blob:
        """The blob, brought if need be, to be read and closed."""
        await self.obtain(namespace, digest)
        return await super().open_blob(namespace, digest)

    async def open_ingest(
        self,
        namespace: str,
        ref: str,
        *,
        total: int = 0,
        expected: str = "",
        lease: str = "",
        job: bool = False,
    ) -> Ingest:
        """As in any store; `AlreadyExists` also when a source had the expected blob."""
        if ref and expected and not fault_of_digest(expected):
            await self.obtain(namespace, expected)
        return await super().open_ingest(
            namespace, ref, total=total, expected=expected, lease=lease, job=job
        )

    async def _fetched(self, namespace: str, digest: Digest) -> bool:
        """Fetch it, or wait for who does; whether it is here."""
        key = (namespace, digest)
        while (other := self._fetches.get(key)) is not None:
            await other.ended.wait()
            if other.found is not None:
                return other.found
        own = self._fetches[key] = _Fetch()
        try:
            own.found = await self._fetch(namespace, digest)
            return own.found
        finally:
            del self._fetches[key]
            own.ended.set()

    async def _fetch(self, namespace: str, digest: Digest) -> bool:
        for source in self.sources:
            try:
                await self._bring(source, namespace, digest)
            except NotFound:
                self._troubles.pop(source.name, None)  # it answers
            except Refusal as error:
                if self._troubles.get(source.name) is None:
                    log.warning(
                        "content.source_failed",
                        source=source.name,
                        digest=digest,
                        reason=str(error),
                    )
                self._troubles[source.name] = str(error)
            else:
                self._troubles.pop(source.name, None)
                log.info("content.fetched", source=source.name, namespace=namespace, digest=digest)
                return True
        return False

    async def _bring(self, source: BlobSource, namespace: str, digest: Digest) -> None:
        told = await source.info(namespace, digest)
        if told.size < 0:
            raise DataLoss(f"content {digest}: {source.name} tells of {told.size} bytes")
        ref = f"source-{source.name}-{digest}"
        try:
            # The store's own: it must not ask the sources in turn.
            async with await super().open_ingest(
                namespace, ref, total=told.size, expected=digest
            ) as ingest:
                try:
                    await self._copy(source, namespace, told.size, ingest, digest)
                    await ingest.commit(told.size, digest, _references(told.labels))
                except (DataLoss, FailedPrecondition, ResourceExhausted):
                    # Not what was asked for, or too much: the next one must not go on from it.
                    await ingest.close()
                    await self.abort(namespace, ref)
                    raise
        except AlreadyExists:
            pass  # somebody else brought it meanwhile

    async def _copy(
        self, source: BlobSource, namespace: str, size: int, ingest: Ingest, digest: Digest
    ) -> None:
        at = (await ingest.state()).offset
        while at < size:
            wanted = min(PIECE_BYTES, size - at)
            piece = await source.read(namespace, digest, at, wanted)
            if len(piece) != wanted:
                raise DataLoss(
                    f"content {digest}: {source.name} gave {len(piece)} bytes of {wanted} at {at}"
                )
            at = await ingest.write(piece, at)
            failpoints.passed("content.fetch.piece")


def _references(labels: Labels) -> Labels:
    """Those labels that say which content a blob refers to."""
    return {
        key: value
        for key, value in labels.items()
        if (key == REFERS or key.startswith(f"{REFERS}.")) and not fault_of_digest(value)
    }
