"""Content lent to another daemon, which keeps its own records of it and removes it itself.

It lies in the namespace of lent snapshots, whatever the other side calls its namespaces: its refs
are unique across these. Nothing of ours refers to it, so each blob is a root for the collector;
what is not here is looked up nowhere else, so that two daemons never ask one another in a circle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .blobfiles import Blob
from .content import ContentInfo, ContentStore, IngestStatus
from .digest import Digest, parse_digest
from .ingest import Committed, Ingest, State
from .lentsnapshots import NAMESPACE, ROOT, ROOT_LABEL


class LentIngest:
    """An open ingest of the other daemon; its blob is a root."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self.ref = ingest.ref

    async def __aenter__(self) -> "LentIngest":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def state(self) -> State:
        """As `Ingest.state`."""
        return await self._ingest.state()

    async def write(self, data: bytes, offset: int | None = None) -> int:
        """As `Ingest.write`."""
        return await self._ingest.write(data, offset)

    async def commit(
        self,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Committed:
        """As `Ingest.commit`; a lease would be the other side's, and is not heeded."""
        return await self._ingest.commit(size, expected, {**(labels or {}), **ROOT})

    async def close(self) -> None:
        """As `Ingest.close`."""
        await self._ingest.close()


class LentContent:
    """The verbs of a content store for the other daemon; the namespace and the lease of each call
    are not heeded."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def obtain(self, namespace: str, digest: str, *, lease: str = "") -> bool:
        """Whether it is here."""
        return self._content.has(NAMESPACE, parse_digest(digest))

    def info(self, namespace: str, digest: str) -> ContentInfo:
        return _shown(self._content.info(NAMESPACE, digest))

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[ContentInfo]:
        return [_shown(info) for info in self._content.list(NAMESPACE, filters)]

    async def update(
        self, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()
    ) -> ContentInfo:
        kept = {**labels, **ROOT}
        return _shown(await self._content.update(NAMESPACE, digest, kept, paths))

    async def delete(self, namespace: str, digest: str, *, lease: str = "") -> None:
        await self._content.delete(NAMESPACE, digest)

    async def open_blob(self, namespace: str, digest: str) -> Blob:
        return await self._content.open_blob(NAMESPACE, digest)

    async def open_ingest(
        self, namespace: str, ref: str, *, total: int = 0, expected: str = "", lease: str = ""
    ) -> LentIngest:
        opened = await self._content.open_ingest(NAMESPACE, ref, total=total, expected=expected)
        return LentIngest(opened)

    async def status(self, namespace: str, ref: str) -> IngestStatus:
        return await self._content.status(NAMESPACE, ref)

    async def list_statuses(
        self, namespace: str, filters: Sequence[str] = ()
    ) -> Sequence[IngestStatus]:
        return await self._content.list_statuses(NAMESPACE, filters)

    async def abort(self, namespace: str, ref: str) -> None:
        await self._content.abort(NAMESPACE, ref)


def _shown(info: ContentInfo) -> ContentInfo:
    labels = {key: value for key, value in info.labels.items() if key != ROOT_LABEL}
    return replace(info, labels=labels)
