"""The ingest actor: one blob on its way in, from its first byte to its commit.

    OPEN --Append, Truncate--> OPEN --Commit--> gone, the blob is in the store
      +--Close--> gone, resumable: whoever opens the ref next goes on at its offset
      +--Abort--> gone, nothing is left

Terms. A *ref* is the name under which a client writes; it belongs to one open ingest at a
time. The *offset* is the size of the file `data`: what a write acknowledged is in the kernel's
page cache, so that it outlives this process; power loss is met by the digest at the commit.
An ingest is *shared* while it stands for a blob that another namespace has: it reports itself
as whole, and a commit costs no copy.

Invariants: (1) the hash has taken in exactly the bytes before the offset. (2) The file's inode
is no blob's: it is linked into the store by a commit that succeeds, and written no more.
(3) The ref is released after the file is closed, however the actor ends.
"""

import errno
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, assert_never

import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import FailedPrecondition, OutOfRange, Refusal, ResourceExhausted
from ..actors.exits import NORMAL, ActorExited, StopActor
from ..actors.message import Request
from ..actors.reference import Ref
from .digest import CANONICAL, Digest, Hash, algorithm_of, digest_from, new_hash
from .labels import check_labels, quoted

R = TypeVar("R")

PIECE_BYTES = 1 << 20
# A write this small is hashed and written on the loop: it costs less than the way to a thread.
INLINE_BYTES_MAX = 32 << 10

OPEN_WITHIN_S = 600.0
WRITE_WITHIN_S = 120.0
COMMIT_WITHIN_S = 600.0
CLOSE_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Append(Request[int]):
    """Sent by `Ingest.write`; answered with the offset after the bytes.

    `offset` is where the caller believes to be: 0 begins anew, another than the current one is
    refused; None asks no question.
    """

    data: bytes
    offset: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Request[None]):
    """Sent by `Ingest.truncate`: begin anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Request["Committed | Refusal"]):
    """Sent by `Ingest.commit`; the actor ends with a blob, also when it existed already."""

    size: int
    expected: Digest | None
    labels: Mapping[str, str]
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GetState(Request["State"]):
    """Sent by `Ingest.state`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Request[None]):
    """Sent by `ContentStore.abort`; the actor ends and leaves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Request[None]):
    """Sent by `Ingest.close`; the actor ends and leaves what it has on the disk."""


Message = Append | Truncate | Commit | GetState | Abort | Close


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where an ingest is. `digest` is that of the bytes so far."""

    offset: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The blob that an ingest became."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A whole blob, checked and on the disk, for the store to take over.

    `data` is None for a shared one: the store has the bytes.
    """

    data: Path | None
    digest: Digest
    size: int
    labels: Mapping[str, str]
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A blob of another namespace that an ingest may become at once."""

    blob: Path
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an ingest actor is started with, by the content store.

    `publish` makes a sealed blob the store's, and refuses with `AlreadyExists`; `released` is
    called once, when the file is closed for good.
    """

    directory: Path
    ref: str
    expected: Digest | None
    shared: Shared | None
    from_start: bool
    publish: Callable[[Sealed], Awaitable[None]] = field(repr=False)
    released: Callable[[], None] = field(repr=False)


class IngestFile:
    """The file of an ingest and the hash of its bytes. Everything here blocks.

    The methods may be called from any thread, one at a time: the lock makes sure that the
    descriptor is not closed, and its number not reused, under a write that still runs.
    """

    def __init__(self, order: Order) -> None:
        self._path = order.directory / "data"
        self._algorithm = algorithm_of(order.expected) if order.expected else CANONICAL
        self._lock = threading.Lock()
        self._shared = order.shared
        self._fd = -1
        self._sealed = False
        self._hash: Hash = new_hash(self._algorithm)
        self.offset = order.shared.size if order.shared else 0

    def open(self, directory: Path, ref: str, *, from_start: bool) -> None:
        """Make or resume the file; what it holds is hashed again."""
        with self._lock:
            if not directory.is_dir():
                failpoints.reach("ingest.open.mkdir")
                directory.mkdir(mode=0o700)
                failpoints.passed("ingest.open.made")
                (directory / "ref").write_text(ref, "utf-8", "surrogatepass")
                failpoints.passed("ingest.open.named")
            if self._shared is None:
                self._begin(from_start=from_start)

    def append(self, data: bytes) -> None:
        """Write at the end and hash. A write that fails leaves file and hash as they were."""
        with self._lock:
            if self._shared is not None and data:
                self._unshare()
            self._require_open(data)
            if self._sealed and os.fstat(self._fd).st_nlink > 1:
                raise FailedPrecondition("the ingest is committed: failed precondition")
            rest = memoryview(data)
            try:
                failpoints.reach("ingest.append.write")
                while rest:
                    rest = rest[os.pwrite(self._fd, rest, self.offset + len(data) - len(rest)) :]
            except OSError as error:
                os.ftruncate(self._fd, self.offset)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    text = f"write of {len(data)} bytes at {self.offset}: {error.strerror}"
                    raise ResourceExhausted(f"{text}: resource exhausted") from error
                raise
            failpoints.passed("ingest.append.written")
            self._hash.update(data)
            self.offset += len(data)

    def restart(self) -> None:
        """Begin anew, in a file of its own."""
        with self._lock:
            self._shared = None
            self._begin(from_start=True)

    def digest(self) -> Digest:
        """The digest of the bytes before the offset."""
        with self._lock:
            if self._shared is not None:
                return self._shared.digest
            return digest_from(self._hash, self._algorithm)

    def digest_by(self, algorithm: str) -> Digest:
        """The same by an algorithm that may be another one than was hashed by so far."""
        with self._lock:
            if self._shared is None and algorithm != self._algorithm:
                self._algorithm, self._hash = algorithm, new_hash(algorithm)
                self._rehash()
        return self.digest()

    def seal(self) -> Path | None:
        """Bring the bytes to the disk, read-only; the file's path, None when it is shared."""
        with self._lock:
            if self._shared is not None:
                return None
            self._require_open(b"")
            os.fchmod(self._fd, 0o444)
            failpoints.reach("ingest.seal.fsync")
            os.fsync(self._fd)
            failpoints.passed("ingest.seal.synced")
            self._sealed = True
            return self._path

    def close(self, *, remove: bool) -> None:
        """Close for good; keep what is there for the next one, or remove it."""
        with self._lock:
            if self._fd >= 0:
                if not remove:
                    failpoints.reach("ingest.close.fsync")
                    os.fdatasync(self._fd)
                os.close(self._fd)
                self._fd = -1
            if remove:
                failpoints.passed("ingest.close.remove")
                shutil.rmtree(self._path.parent, ignore_errors=True)
                failpoints.passed("ingest.close.removed")

    def _require_open(self, data: bytes) -> None:
        if self._fd < 0 and (self._shared is None or data):
            raise FailedPrecondition("cannot write on closed writer: failed precondition")

    def _begin(self, *, from_start: bool) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if from_start:
            self._path.unlink(missing_ok=True)
        elif self._path.exists() and os.stat(self._path).st_nlink > 1:
            # A commit was cut off after its link: the inode may be a blob by now.
            copy = self._path.with_name("copy")
            shutil.copyfile(self._path, copy)
            failpoints.reach("ingest.open.replace")
            os.replace(copy, self._path)
            failpoints.passed("ingest.open.replaced")
        self._sealed = False
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._hash = new_hash(self._algorithm)
        self._rehash()

    def _rehash(self) -> None:
        self.offset = 0
        while piece := os.pread(self._fd, PIECE_BYTES, self.offset):
            self._hash.update(piece)
            self.offset += len(piece)

    def _unshare(self) -> None:
        assert self._shared is not None
        blob = self._shared.blob
        self._path.unlink(missing_ok=True)
        shutil.copyfile(blob, self._path)
        self._shared = None
        self._begin(from_start=False)


class IngestActor(Actor):
    """Holds a ref and its file; see the top of this file."""

    mailbox_bound = 16

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order
        self._file = IngestFile(order)
        self._remove = False

    async def on_start(self) -> None:
        """Open or resume the file; ready once its bytes are hashed."""
        # First of all: whatever happens from here on, the ref is released.
        self.spawn_task(self._keep)
        order = self._order
        await trio.to_thread.run_sync(
            lambda: self._file.open(order.directory, order.ref, from_start=order.from_start)
        )

    async def on_receive(self, message: Message) -> object:
        """Do what is asked."""
        match message:
            case Append(data=data, offset=offset):
                return await self._append(data, offset)
            case Truncate():
                return await trio.to_thread.run_sync(self._file.restart)
            case Commit():
                return await self._commit(message)
            case GetState():
                return State(offset=self._file.offset, digest=self._file.digest())
            case Abort():
                self._remove = True
                raise StopActor(NORMAL, answer=None)
            case Close():
                raise StopActor(NORMAL, answer=None)
            case _:
                assert_never(message)

    async def _append(self, data: bytes, offset: int | None) -> int:
        current = self._file.offset
        if offset is not None and offset != current:
            if offset != 0:
                raise OutOfRange(f"write @{offset} must occur at current offset {current}")
            await trio.to_thread.run_sync(self._file.restart)
        if len(data) <= INLINE_BYTES_MAX:
            self._file.append(data)
        else:
            await trio.to_thread.run_sync(self._file.append, data)
        return self._file.offset

    async def _commit(self, commit: Commit) -> "Committed | Refusal":
        file = self._file
        size = file.offset
        check_size(self._order.ref.partition("/")[2], size, commit.size)
        algorithm = algorithm_of(commit.expected) if commit.expected else CANONICAL
        if commit.expected is None:
            digest = file.digest()
        else:
            digest = await trio.to_thread.run_sync(file.digest_by, algorithm)
        check_digests(digest, commit.expected)
        sealed = Sealed(
            data=await trio.to_thread.run_sync(file.seal),
            digest=digest,
            size=size,
            labels=commit.labels,
            lease=commit.lease,
        )
        try:
            await self._order.publish(sealed)
        except Exists as exists:
            self._remove = True
            raise StopActor(NORMAL, answer=exists.refusal) from exists
        self._remove = True
        raise StopActor(NORMAL, answer=Committed(digest=digest, size=size))

    async def _keep(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            # A file can be closed only when the last thread has let go of it; this waits for
            # it, and the deadline is the disk's.
            with trio.CancelScope(shield=True):
                try:
                    await trio.to_thread.run_sync(lambda: self._file.close(remove=self._remove))
                finally:
                    self._order.released()


class Exists(Exception):
    """Raised by `publish`: the namespace has this blob; the ingest has no more purpose."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def check_size(ref: str, size: int, expected: int) -> None:
    """Refuse another size than the expected one; 0 expects none."""
    if expected and size != expected:
        raise FailedPrecondition(
            f"{quoted(ref)} failed size validation: {size} != {expected}: failed precondition"
        )


def check_digests(digest: Digest, expected: Digest | None) -> None:
    """Refuse another digest than the expected one."""
    if expected is not None and digest != expected:
        raise FailedPrecondition(
            f"unexpected commit digest {digest}, expected {expected}: failed precondition"
        )


class Ingest:
    """An open ingest: the verbs of whoever holds the ref. Leave the `async with` to release it."""

    def __init__(
        self,
        actor: Ref[IngestActor],
        released: trio.Event,
        *,
        ref: str,
        total: int = 0,
        expected: str = "",
    ) -> None:
        self._actor = actor
        self._released = released
        self.ref = ref
        self.total = total
        self.expected = expected

    async def __aenter__(self) -> "Ingest":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def state(self) -> State:
        """The offset, and the digest of the bytes before it."""
        return await self._call(GetState(), WRITE_WITHIN_S)

    async def write(self, data: bytes, offset: int | None = None) -> int:
        """Append; the new offset. `offset` 0 begins anew, another than the current is refused."""
        return await self._call(Append(data=data, offset=offset), WRITE_WITHIN_S)

    async def truncate(self) -> None:
        """Begin anew."""
        await self._call(Truncate(), WRITE_WITHIN_S)

    async def commit(
        self,
        size: int = 0,
        expected: Digest | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Committed:
        """Make a blob of it: checked, on the disk, recorded. The ingest is over.

        Refused and still open when a label is too large, or size or digest differ;
        `AlreadyExists` and over when the namespace has the blob.
        """
        check_labels("info.Labels", labels or {})
        commit = Commit(size=size, expected=expected, labels=labels or {}, lease=lease)
        answer = await self._call(commit, COMMIT_WITHIN_S)
        await self._released.wait()
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def abort(self) -> None:
        """Leave nothing of it; one that is over already is no refusal."""
        await self._end(Abort())

    async def close(self) -> None:
        """Release the ref and keep what is written. Closing twice is no refusal."""
        await self._end(Close())

    async def _end(self, message: Abort | Close) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
            try:
                await self._actor.call(message, timeout_s=None)
            except ActorExited:
                pass  # it is over
            await self._released.wait()

    async def _call(self, request: Request[R], within_s: float) -> R:
        try:
            return await self._actor.call(request, timeout_s=within_s)
        except ActorExited as error:
            raise FailedPrecondition(
                f"ref {self.ref}: cannot write on closed writer: failed precondition"
            ) from error
