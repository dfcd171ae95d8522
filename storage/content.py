"""Content: blobs by their digest, written once, shared by namespaces.

    root/blobs/<algorithm>/<hex>     a blob, read-only, whole from the moment it has its name
    root/ingest/<hash>/data, ref     a blob on its way in

A blob is one file however many namespaces have it; each has a record of its own with its own
labels. The records say who has what; a file without a record is an orphan, left by a crash
between file and record, and removed at the next start.

    async with await content.open_ingest("ns", "layer-1", expected=digest) as ingest:
        await ingest.write(data)
        await ingest.commit(size, digest, labels)
    async with await content.open_blob("ns", digest) as blob:
        head = await blob.pread(0, 512)

Invariant: while a record is there its file is: the file comes before the record and goes after
the last one, both under the digest's lock.
"""

import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
import trio

from ..actors.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Refusal,
    ResourceExhausted,
    Unavailable,
)
from ..actors.exits import StartFailed
from ..actors.reference import Ref
from .blobfiles import (
    PIECE_BYTES,
    Blob,
    place,
    prepare,
    remove_directory,
    remove_file,
)
from .digest import (
    Digest,
    algorithm_of,
    digest_from,
    digest_of,
    encoded_of,
    new_hash,
    parse_digest,
)
from .expiry import left_ns, read_clock, stamp
from .filters import compile_filters
from .ingest import OPEN_WITHIN_S, Exists, Ingest, IngestActor, Order, Sealed, Shared
from .labels import (
    Labels,
    check_label_paths,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
    stored_labels,
)
from .leases import lease_resource, release_resource
from .refholds import RefHolds
from .refusal import refusal_of
from .store import Record, Store, Transaction
from .sweep import Garbage

log: structlog.stdlib.BoundLogger = structlog.get_logger()

REF_BYTES_MAX = 4096
# An ingest that no lease holds is garbage after this long without being opened, as containerd's.
INGEST_KEPT_NS = 24 * 3600 * 1_000_000_000

# On a namespace: what it has is had by others for the asking, also where that is not the rule.
SHAREABLE_LABEL = "containerd.io/namespace.shareable"

Spawn = Callable[[Order], Awaitable[Ref[IngestActor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentInfo:
    """A namespace's record of a blob. Times in nanoseconds since 1970."""

    digest: Digest
    size: int
    labels: Labels = field(default_factory=dict[str, str])
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestStatus:
    """How far an ingest has come. Times in nanoseconds since 1970."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: int
    updated_at: int


class ContentStore:
    """The verbs on content. Belongs to the loop it was opened in."""

    def __init__(self, root: Path, store: Store, spawn: Spawn, *, isolated: bool = False) -> None:
        self._root = root
        self._isolated = isolated
        self.store = store
        self._spawn = spawn
        self._holds = RefHolds()
        self._digest_locks: dict[Digest, tuple[trio.Lock, int]] = {}
        self.orphans: set[str] = set()
        """What had no record when the store was opened, and was kept: a damaged record may have
        named it. `sha256:...` for a blob, `ingest/...` for an ingest."""

    @classmethod
    async def open(
        cls,
        root: Path,
        store: Store,
        *,
        spawn: Spawn | None = None,
        isolated: bool = False,
    ) -> "ContentStore":
        """Open or make the store at `root`, and remove what a crash left without a record.

        `spawn` starts an ingest's actor, under a supervisor if the caller has one. `isolated`: a
        blob that another namespace has must be written anew to be had, unless that namespace is
        labelled containerd.io/namespace.shareable=true.
        """
        alone = partial(IngestActor.spawn, start_timeout_s=OPEN_WITHIN_S)
        content = cls(root, store, spawn or alone, isolated=isolated)
        digests = {row.key for row in store.scan("content")}
        ingests = {_ingest_name(row.namespace, row.key) for row in store.scan("ingest")}
        if store.damaged:
            # A record that cannot be read may be the one that a file is waiting for.
            log.warning("content.orphans_kept", reason="the store has damaged records")
        removed, kept = await trio.to_thread.run_sync(
            lambda: prepare(root, digests, ingests, sweep=not store.damaged)
        )
        content.orphans.update(kept)
        for name in removed:
            log.info("content.orphan_removed", file=name)
        return content

    # -- records

    def info(self, namespace: str, digest: str) -> ContentInfo:
        """The namespace's record of a blob."""
        check_namespace(namespace)
        return _info(digest, self._require(namespace, parse_digest(digest)))

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[ContentInfo]:
        """The records that match any of the filters, in the order of their digests."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        rows = self.store.scan("content", namespace)
        infos = [_info(row.key, row.value) for row in rows]
        return [info for info in infos if accepts(partial(content_field, info))]

    async def update(
        self, namespace: str, digest: str, labels: Labels, paths: Sequence[str] = ()
    ) -> ContentInfo:
        """Change labels: all without `paths`, else `labels` or `labels.<key>`."""
        check_namespace(namespace)
        parse_digest(digest)

        def work(tx: Transaction) -> ContentInfo:
            record = tx.get("content", namespace, digest)
            if record is None:
                raise _not_found(digest)
            check_label_paths(paths, f"content info {quoted(digest)}")
            kept = masked_labels(record["labels"], labels, paths)
            check_labels("info.Labels", kept)
            changed = {**record, "labels": kept, "updated_at": tx.now_ns}
            tx.put("content", namespace, digest, changed)
            return _info(digest, changed)

        return await self.store.write(work)

    async def delete(self, namespace: str, digest: str, *, lease: str = "") -> None:
        """Forget a blob in this namespace; its file goes with the last namespace that has it."""
        check_namespace(namespace)
        parsed = parse_digest(digest)

        def work(tx: Transaction) -> None:
            if not tx.delete("content", namespace, digest):
                raise _not_found(digest)
            release_resource(tx, namespace, lease, "content", digest)
            payload = {"digest": digest}
            tx.emit(namespace, "/content/delete", "containerd.events.ContentDelete", payload)

        async with self._locked(parsed):
            await self.store.write(work)
            await self._drop_file(parsed)

    async def obtain(self, namespace: str, digest: str, *, lease: str = "") -> bool:
        """Whether the namespace has the blob. A store with sources brings it first, and then lets
        the lease hold it: `sourcedcontent.py`."""
        check_namespace(namespace)
        return self.has(namespace, parse_digest(digest))

    async def hold(self, namespace: str, digest: Digest, lease: str) -> bool:
        """Let the lease hold a blob; whether it is there."""
        return await self.store.write(partial(_hold, namespace, digest, lease))

    async def reclaim(self, garbage: Garbage) -> None:
        """Remove from the disk what a collection forgot: a blob or an ingest."""
        match garbage.kind:
            case "content":
                digest = parse_digest(garbage.key)
                async with self._locked(digest):
                    await self._drop_file(digest)
            case "ingest":
                key = (garbage.namespace, garbage.key)
                if self._holds.get(*key) is None and self.store.get("ingest", *key) is None:
                    # Held while it goes, so that nobody opens it meanwhile.
                    hold = self._holds.take(*key)
                    try:
                        await trio.to_thread.run_sync(remove_directory, self.ingest_path(*key))
                    finally:
                        self._holds.release(*key, hold)
            case _:
                pass

    async def remove_orphan(self, name: str) -> None:
        """Remove what was kept without a record; left where it is when it has one by now."""
        self.orphans.discard(name)
        folder, slash, ingest = name.partition("/")
        if not slash:
            digest = parse_digest(folder)
            async with self._locked(digest):
                await self._drop_file(digest)
        elif not any(
            _ingest_name(row.namespace, row.key) == ingest for row in self.store.scan("ingest")
        ):
            await trio.to_thread.run_sync(remove_directory, self._root / "ingest" / ingest)

    # -- reading

    async def open_blob(self, namespace: str, digest: str) -> Blob:
        """The blob, to be read and closed."""
        check_namespace(namespace)
        record = self._require(namespace, parse_digest(digest))
        path = self.blob_path(digest)
        try:
            fd = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataLoss(f"blob {digest} has a record and no file: data loss") from error
        return Blob(path, fd, record["size"])

    def blob_path(self, digest: str) -> Path:
        """Where a blob of this digest lies, if there is one."""
        parsed = parse_digest(digest)
        return self._root / "blobs" / algorithm_of(parsed) / encoded_of(parsed)

    async def read(
        self, namespace: str, digest: str, offset: int = 0, size: int = 0
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Pieces with their offsets, from `offset` on; `size` 0 or too much reads to the end."""
        async with await self.open_blob(namespace, digest) as blob:
            at = max(offset, 0)
            if at > blob.size:
                raise OutOfRange(f"read past object length {blob.size} bytes")
            end = blob.size if size <= 0 else min(at + size, blob.size)
            while at < end:
                piece = await blob.pread(at, end - at)
                if not piece:
                    raise DataLoss(f"blob {digest} ends at {at}, its size is {blob.size}")
                yield at, piece
                at += len(piece)

    async def read_all(self, namespace: str, digest: str, bytes_max: int = 8 << 20) -> bytes:
        """All bytes of a small blob, verified; refused when it is larger than `bytes_max`."""
        async with await self.open_blob(namespace, digest) as blob:
            if blob.size > bytes_max:
                raise ResourceExhausted(
                    f"content {digest}: {blob.size} bytes, at most {bytes_max} are read"
                )
            pieces: list[bytes] = []
            at = 0
            while piece := await blob.pread(at, blob.size - at):
                pieces.append(piece)
                at += len(piece)
        raw = b"".join(pieces)
        if digest_of(raw, algorithm_of(Digest(digest))) != digest:
            raise DataLoss(f"blob {digest} does not verify: data loss")
        return raw

    async def verify(self, namespace: str, digest: str) -> None:
        """Read the whole blob and compare; `DataLoss` when it is not what its name says."""
        parsed = parse_digest(digest)
        async with await self.open_blob(namespace, digest) as blob:
            hash_ = new_hash(algorithm_of(parsed))
            at = 0

            def take(offset: int) -> int:
                piece = os.pread(blob.fd, PIECE_BYTES, offset)
                hash_.update(piece)
                return len(piece)

            while count := await trio.to_thread.run_sync(take, at):
                at += count
        if digest_from(hash_, algorithm_of(parsed)) != parsed:
            raise DataLoss(f"blob {digest} does not verify: data loss")

    # -- writing

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
        """Begin or resume writing under a ref, alone.

        `AlreadyExists` when the namespace has the expected blob (the lease holds it from now
        on); `Unavailable` while another has the ref open. The ref of a `job` is known to it alone,
        and does not outlive it.
        """
        check_namespace(namespace)
        if not ref:
            raise InvalidArgument("ref must not be empty: invalid argument")
        if len(ref.encode("utf-8", "surrogatepass")) > REF_BYTES_MAX or "\0" in ref:
            raise InvalidArgument(f'ref "{ref[:100]}" is malformed: invalid argument')
        digest = parse_digest(expected) if expected else None
        hold = await self._holds.take_when_free(namespace, ref)
        release = partial(self._holds.release, namespace, ref, hold)
        try:
            # The job looks again: collected since, it is written anew.
            if (
                digest is not None
                and self.has(namespace, digest)
                and await self.hold(namespace, digest, lease)
            ):
                raise AlreadyExists(f"content {digest}: already exists")
            shared = self._shareable(digest, total)
            total = max(total, 0)
            before = self.store.get("ingest", namespace, ref)
            record = await self.store.write(
                partial(_begin, namespace, ref, total, expected, lease, shared, job)
            )
            totals_differ = before is not None and total and before["total"] not in (0, total)
            order = Order(
                directory=self.ingest_path(namespace, ref),
                ref=f"{namespace}/{ref}",
                expected=digest,
                shared=shared,
                from_start=before is None or bool(totals_differ),
                publish=partial(self._publish, namespace, ref),
                released=release,
            )
            hold.actor = await self._spawn(order)
        except StartFailed as failed:
            # Its keeper has released the ref, if it came that far.
            release()
            if isinstance(failed.reason.exception, Refusal):
                raise failed.reason.exception from failed
            if isinstance(failed.reason.exception, OSError):
                raise refusal_of(failed.reason.exception, f"ref {ref}") from failed
            raise
        except BaseException:
            release()
            raise
        return Ingest(
            hold.actor, hold.released, ref=ref, total=record["total"], expected=record["expected"]
        )

    async def status(self, namespace: str, ref: str) -> IngestStatus:
        """How far an ingest has come, open or not."""
        check_namespace(namespace)
        record = self.store.get("ingest", namespace, ref)
        if record is None:
            raise NotFound(f"reference {ref}: not found")
        return await self._status(namespace, ref, record)

    async def list_statuses(
        self, namespace: str, filters: Sequence[str] = ()
    ) -> Sequence[IngestStatus]:
        """The ingests that match any of the filters, in the order of their refs."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        rows = [
            row
            for row in self.store.scan("ingest", namespace)
            if accepts(partial(_ref_field, row.key))
        ]
        return [await self._status(namespace, row.key, row.value) for row in rows]

    async def abort(self, namespace: str, ref: str) -> None:
        """Discard an ingest; whoever has it open is refused from then on."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            if not tx.delete("ingest", namespace, ref):
                raise NotFound(f"reference {ref}: not found")

        await self.store.write(work)
        hold = self._holds.get(namespace, ref)
        if hold is not None and hold.actor is not None:
            await Ingest(hold.actor, hold.released, ref=ref).abort()
        try:
            hold = self._holds.take(namespace, ref)
        except Unavailable:
            return  # opened anew meanwhile: it is that one's now
        try:
            if self.store.get("ingest", namespace, ref) is None:
                await trio.to_thread.run_sync(remove_directory, self.ingest_path(namespace, ref))
        finally:
            self._holds.release(namespace, ref, hold)

    async def end_jobs(self) -> None:
        """At a start, before there are jobs: abort the ingests of those that fell."""
        for row in list(self.store.scan("ingest")):
            if row.value.get("job"):
                try:
                    await self.abort(row.namespace, row.key)
                except (Refusal, OSError) as error:  # it expires like any other
                    log.warning("ingest.not_aborted", ref=row.key, reason=str(error))

    async def write_blob(
        self,
        namespace: str,
        ref: str,
        raw: bytes,
        *,
        labels: Labels | None = None,
        lease: str = "",
    ) -> Digest:
        """Store these bytes; their digest. Having them already is no refusal."""
        digest = digest_of(raw)
        try:
            async with await self.open_ingest(
                namespace, ref, total=len(raw), expected=digest, lease=lease
            ) as ingest:
                if (await ingest.state()).digest != digest:
                    await ingest.write(raw, 0)
                await ingest.commit(len(raw), digest, labels, lease=lease)
        except AlreadyExists:
            if labels:
                paths = [f"labels.{key}" for key in labels]
                await self.update(namespace, digest, labels, paths)
        return digest

    # -- inside

    def _require(self, namespace: str, digest: Digest) -> Record:
        record = self.store.get("content", namespace, digest)
        if record is None:
            raise _not_found(digest)
        return record

    def has(self, namespace: str, digest: Digest) -> bool:
        """Whether the namespace has the blob, record and file."""
        # A record whose file is lost does not count: the blob may be written anew.
        recorded = self.store.get("content", namespace, digest) is not None
        return recorded and self.blob_path(digest).exists()

    def shares(self, namespace: str) -> bool:
        """Whether other namespaces have its blobs for the asking."""
        if not self._isolated:
            return True
        record = self.store.get("namespace", "", namespace)
        return record is not None and record["labels"].get(SHAREABLE_LABEL) == "true"

    def _referenced(self, digest: Digest, *, shareable: bool = False) -> Record | None:
        """The record of a namespace that has the blob, if need be of one that shares."""
        for namespace in self.store.scan("namespace", ""):
            if shareable and namespace.value["labels"].get(SHAREABLE_LABEL) != "true":
                continue
            record = self.store.get("content", namespace.key, digest)
            if record is not None:
                return record
        return None

    def _shareable(self, digest: Digest | None, total: int) -> Shared | None:
        if digest is None:
            return None
        record = self._referenced(digest, shareable=self._isolated)
        if record is None or not self.blob_path(digest).exists():
            return None
        if total not in (0, record["size"]):
            # Most likely a mistake; the commit will tell. A negative one is none of its sizes.
            return None
        return Shared(blob=self.blob_path(digest), digest=digest, size=record["size"])

    async def _publish(self, namespace: str, ref: str, sealed: Sealed) -> None:
        """Link a sealed file into the store and record it. Called by the ingest's actor."""
        digest = sealed.digest

        def work(tx: Transaction) -> bool:
            tx.delete("ingest", namespace, ref)
            lease_resource(tx, namespace, sealed.lease, "content", digest)
            release_resource(tx, namespace, sealed.lease, "ingests", ref)
            if tx.exists("content", namespace, digest):
                return False
            record = {
                "size": sealed.size,
                "labels": stored_labels(sealed.labels),
                "created_at": tx.now_ns,
                "updated_at": tx.now_ns,
            }
            tx.put("content", namespace, digest, record)
            payload = {"digest": digest, "size": sealed.size}
            tx.emit(namespace, "/content/create", "containerd.events.ContentCreate", payload)
            return True

        async with self._locked(digest):
            target = self.blob_path(digest)
            if sealed.data is not None:
                await trio.to_thread.run_sync(place, sealed.data, target, sealed.size)
            elif not target.exists():
                raise Unavailable(f"content {digest} went away meanwhile: unavailable")
            try:
                created = await self.store.write(work)
            except BaseException:
                # The file must not stay linked twice: the ingest may write on.
                with trio.CancelScope(shield=True):
                    await self._drop_file(digest)
                raise
        if not created:
            raise Exists(AlreadyExists(f"content {digest}: already exists"))

    async def _drop_file(self, digest: Digest) -> None:
        """Remove the file when no namespace has the blob. The digest's lock is held."""
        if self._referenced(digest) is None:
            await trio.to_thread.run_sync(remove_file, self.blob_path(digest))

    async def _status(self, namespace: str, ref: str, record: Record) -> IngestStatus:
        path = self.ingest_path(namespace, ref) / "data"

        def look() -> tuple[int, int]:
            try:
                found = os.stat(path)
            except FileNotFoundError:
                return record["shared_size"], record["updated_at"]
            return found.st_size, max(found.st_mtime_ns, record["updated_at"])

        offset, updated_at = await trio.to_thread.run_sync(look)
        return IngestStatus(
            ref=ref,
            offset=offset,
            total=record["total"],
            expected=record["expected"],
            started_at=record["started_at"],
            updated_at=updated_at,
        )

    def ingest_path(self, namespace: str, ref: str) -> Path:
        """An ingest's directory, which goes with it; whoever has it open may keep more there."""
        return self._root / "ingest" / _ingest_name(namespace, ref)

    @asynccontextmanager
    async def _locked(self, digest: Digest) -> AsyncGenerator[None, None]:
        """Hold the digest: its file and its records change together."""
        lock, users = self._digest_locks.get(digest, (trio.Lock(), 0))
        self._digest_locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._digest_locks[digest]
            if users == 1:
                del self._digest_locks[digest]
            else:
                self._digest_locks[digest] = (lock, users - 1)


def content_field(info: ContentInfo, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of a record."""
    match path:
        case ["digest", *_]:
            return info.digest, True
        case ["labels", *rest]:
            return map_field(info.labels, rest)
        case _:
            return "", False


def _ref_field(ref: str, path: Sequence[str]) -> tuple[str, bool]:
    return (ref, True) if path and path[0] == "ref" else ("", False)


def _hold(namespace: str, digest: Digest, lease: str, tx: Transaction) -> bool:
    """Let the lease hold a blob, if it is there."""
    if not tx.exists("content", namespace, digest):
        return False
    try:
        lease_resource(tx, namespace, lease, "content", digest)
    except NotFound as error:
        raise NotFound(f"unable to lease content: {error}") from error
    return True


def _begin(
    namespace: str,
    ref: str,
    total: int,
    expected: str,
    lease: str,
    shared: Shared | None,
    job: bool,
    tx: Transaction,
) -> Record:
    before = tx.get("ingest", namespace, ref) or {}
    # A lease holds it as long as there is the lease: a job that fell leaves nothing longer.
    kept_ns = 0 if lease else INGEST_KEPT_NS
    kept = {"expires_at": tx.now_ns + kept_ns, "stamp": stamp()}
    if (left_ns("ingest", before, read_clock()) or 0) > kept_ns:
        kept = {"expires_at": before["expires_at"], "stamp": before.get("stamp") or stamp()}
    old_total = before.get("total", 0)
    begins = not before or bool(total and old_total and total != old_total)
    record = {
        "total": total or (shared.size if shared else 0) if begins else old_total,
        "expected": expected or before.get("expected", ""),
        "shared_size": shared.size if shared else 0,
        "started_at": before.get("started_at", tx.now_ns),
        "updated_at": tx.now_ns,
        **kept,
        **({"job": True} if job else {}),
    }
    lease_resource(tx, namespace, lease, "ingests", ref)
    tx.put("ingest", namespace, ref, record)
    return record


def _info(digest: str, record: Record) -> ContentInfo:
    return ContentInfo(
        digest=Digest(digest),
        size=record["size"],
        labels=record["labels"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )


def _not_found(digest: str) -> NotFound:
    return NotFound(f"content digest {digest}: not found")


def _ingest_name(namespace: str, ref: str) -> str:
    # A namespace holds no slash, so that the pair cannot be read in two ways.
    return hashlib.sha256(f"{namespace}/{ref}".encode("utf-8", "surrogatepass")).hexdigest()
