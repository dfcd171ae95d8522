"""The graph of snapshots, kept in the store; a `Driver` knows how they lie on the disk.

A record's key is `<snapshotter>/<key or name>`; its directory is `snapshots/<id>`, the id a
number that is never used again while its directory is there. A directory comes to be before
its record and goes after it, so a crash leaves at most a directory without a record, which is
swept at the next start.

    record:     prepare.......commit.......remove
    directory: ---make------------------------------(reclaimed)

What is done to one snapshot is done in order, by an actor of its own that lives while there is
work and is passivated when it has been idle. The `SnapshotKeeper` is their parent and the
snapshotter's place in the tree: it recovers at its start and reclaims directories in the
background, also of those records that garbage collection deletes.

Invariants: (1) a record's parent is committed. (2) A snapshot with children is not removed.
(3) A committed snapshot's content was on the disk before its record was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, assert_never

import structlog
import trio

from ..actors.actor import Actor
from ..actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
    Unavailable,
)
from ..actors.exits import ActorExited
from ..actors.message import Request
from ..actors.reference import Ref
from .filters import compile_filters
from .labels import (
    check_labels,
    check_namespace,
    masked_labels,
    quoted,
    stored_labels,
)
from .layer import refusal_of
from .leases import lease_resource, release_resource
from .mounts import Mount
from .snapshotrecord import Index, Place, Snapshot, snapshot_field
from .snapshotter import Info, Kind, Usage
from .store import Change, Record, Store, Transaction
from .workers import Workers

log: structlog.stdlib.BoundLogger = structlog.get_logger()

R = TypeVar("R")

# A remote snapshotter's client asks by this label whether a layer is there already.
LABEL_TARGET = "containerd.io/snapshot.ref"
IDLE_S = 30.0
RECLAIM_AGAIN_S = 30.0


class Driver(Protocol):
    """How snapshots lie on the disk. Directories are `snapshots/<id>`; the nearest parent's
    comes first."""

    name: str

    async def make(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> None:
        """Make the directory of a new snapshot; half of it may stay when this fails."""
        ...

    def content(self, directory: Path) -> Path:
        """The tree whose size is the snapshot's usage."""
        ...

    def mounts(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Request[Sequence[Mount]]):
    """Sent by `prepare` and `view`; answered with the mounts."""

    kind: Kind
    parent: str
    labels: Mapping[str, str]
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit(Request[None]):
    """Sent by `commit`; answered once the committed record is on the disk."""

    name: str
    labels: Mapping[str, str]
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure(Request[Usage]):
    """Sent by `usage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove(Request[None]):
    """Sent by `remove`; answered once the record is gone."""


Message = Create | Commit | Measure | Remove


class Snapshots:
    """The verbs of one snapshotter: a `Snapshotter` over any driver.

    Usable while its `SnapshotKeeper` runs; `Unavailable` otherwise.
    """

    def __init__(
        self,
        store: Store,
        driver: Driver,
        root: Path,
        workers: Workers,
        *,
        idle_s: float = IDLE_S,
    ) -> None:
        self.name = driver.name
        self.driver = driver
        self.root = root
        self.idle_s = idle_s
        self._store = store
        self._workers = workers
        self._prefix = f"{driver.name}/"
        self._index = Index(self._prefix)
        # Invariant: directories being made, whose records are not written yet.
        self._making: set[int] = set()
        # Invariant: snapshots being prepared upon each parent.
        self._awaited: Counter[Place] = Counter()
        self._next_id = 1
        self._lost: list[int] = []
        self._reclaiming = 0
        self._lost_some = trio.Event()
        self._clean = trio.Event()
        self._keeper: SnapshotKeeper | None = None
        self._actors: dict[Place, Ref[SnapshotActor]] = {}
        self._calls: Counter[Place] = Counter()
        self._used_at_s: dict[Place, float] = {}
        self._starting: dict[Place, trio.Lock] = {}
        for row in store.scan("snapshot", None, self._prefix):
            place = Place(row.namespace, row.key.removeprefix(self._prefix))
            self._index.put(place, row.value["id"], row.value["parent"])
        store.listen(self._follow)

    # -- verbs

    def stat(self, namespace: str, key: str) -> Info:
        """The record of a snapshot of any kind."""
        check_namespace(namespace)
        return self._require(Place(namespace, key)).info

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        """The records that match any of the filters, in the order of their names."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        infos = (
            Snapshot.from_record(row.key.removeprefix(self._prefix), row.value).info
            for row in self._store.scan("snapshot", namespace, self._prefix)
        )
        return [info for info in infos if accepts(partial(snapshot_field, info))]

    async def update(self, namespace: str, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels: all without `paths`, else `labels` or `labels.<key>`."""
        check_namespace(namespace)
        place = Place(namespace, info.name)

        def work(tx: Transaction) -> Info:
            old = self._in(tx, place)
            for path in paths:
                if path != "labels" and not path.startswith("labels."):
                    raise InvalidArgument(
                        f"cannot update {quoted(path)} field on snapshot"
                        f" {quoted(info.name)}: invalid argument"
                    )
            labels = masked_labels(old.info.labels, info.labels, paths)
            check_labels("info.Labels", labels)
            new = replace(old, info=replace(old.info, labels=labels, updated_at=tx.now_ns))
            self._put(tx, place, new)
            return new.info

        return await self._store.write(work)

    async def usage(self, namespace: str, key: str) -> Usage:
        """What it takes: counted now for an active one, at its commit for a committed one."""
        check_namespace(namespace)
        snapshot = self._require(Place(namespace, key))
        if snapshot.info.kind is not Kind.ACTIVE:
            await trio.lowlevel.checkpoint()
            return snapshot.usage
        return await self._ask(Place(namespace, key), Measure())

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view."""
        check_namespace(namespace)
        await trio.lowlevel.checkpoint()
        snapshot = self._require(Place(namespace, key))
        if snapshot.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"requested snapshot {key} not active or view: failed precondition"
            )
        return self._mounts(namespace, snapshot)

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        """A new active snapshot over a committed parent, or over nothing."""
        return await self._create(namespace, key, Kind.ACTIVE, parent, labels or {}, lease)

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        """A new read-only snapshot of a committed parent, or of nothing."""
        return await self._create(namespace, key, Kind.VIEW, parent, labels or {}, lease)

    async def _create(
        self,
        namespace: str,
        key: str,
        kind: Kind,
        parent: str,
        labels: Mapping[str, str],
        lease: str,
    ) -> Sequence[Mount]:
        check_namespace(namespace)
        if not key:
            raise InvalidArgument("snapshot key must not be empty: invalid argument")
        check_labels("info.Labels", labels)
        place = Place(namespace, key)
        # Told at once, before an actor is started: it is what busy clients ask for most.
        self._refuse_present(place, labels)
        return await self._ask(place, Create(kind=kind, parent=parent, labels=labels, lease=lease))

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> None:
        """Fix an active snapshot under `name`."""
        check_namespace(namespace)
        if not name:
            raise InvalidArgument("snapshot name must not be empty: invalid argument")
        check_labels("info.Labels", labels or {})
        await self._ask(Place(namespace, key), Commit(name=name, labels=labels or {}, lease=lease))

    async def remove(self, namespace: str, key: str) -> None:
        """Forget a snapshot that has no children; its disk space follows soon after."""
        check_namespace(namespace)
        self._require(Place(namespace, key))
        await self._ask(Place(namespace, key), Remove())

    async def cleanup(self) -> None:
        """Return once what removed snapshots left on the disk is gone."""
        while self._lost or self._reclaiming:
            if self._keeper is None or not self._keeper.ref.is_alive():
                raise Unavailable(f"snapshotter {self.name}: not running")
            await self._clean.wait()
        await trio.lowlevel.checkpoint()

    # -- what a snapshot's actor does

    async def do_create(self, place: Place, message: Create) -> Sequence[Mount]:
        """Make the directory, then the record that makes it known."""
        self._refuse_present(place, message.labels)
        parents = self._chain(place.namespace, message.parent)
        parent_place = Place(place.namespace, message.parent)
        snapshot_id = self._next_id
        self._next_id += 1
        self._making.add(snapshot_id)
        self._awaited[parent_place] += 1
        try:
            directory = self.directory(snapshot_id)
            try:
                await self.driver.make(directory, message.kind, parents)
            except OSError as error:
                raise refusal_of(error, f"snapshot {quoted(place.key)}") from error

            def work(tx: Transaction) -> Snapshot:
                return self._record_new(tx, place, snapshot_id, message)

            snapshot = await self._store.write(work)
        finally:
            self._making.discard(snapshot_id)
            self._awaited[parent_place] -= 1
            if not self._awaited[parent_place]:
                del self._awaited[parent_place]
            if not self._index.has_record(snapshot_id):
                self._lose([snapshot_id])
        return self.driver.mounts(directory, snapshot.info.kind, parents)

    def _record_new(
        self, tx: Transaction, place: Place, snapshot_id: int, message: Create
    ) -> Snapshot:
        namespace, key = place
        if tx.exists("snapshot", namespace, self._prefix + key):
            raise AlreadyExists(f"snapshot {quoted(key)}: already exists")
        if message.parent:
            parent = self._find(tx, Place(namespace, message.parent))
            _check_parent(message.parent, parent)
        lease_resource(tx, namespace, message.lease, f"snapshots/{self.name}", key)
        snapshot = Snapshot(
            id=snapshot_id,
            info=Info(
                kind=message.kind,
                name=key,
                parent=message.parent,
                labels=stored_labels(message.labels),
                created_at=tx.now_ns,
                updated_at=tx.now_ns,
            ),
        )
        self._put(tx, place, snapshot)
        if message.kind is Kind.ACTIVE:
            tx.emit(
                namespace,
                "/snapshot/prepare",
                "containerd.events.SnapshotPrepare",
                {"key": key, "parent": message.parent, "snapshotter": self.name},
            )
        return snapshot

    async def do_commit(self, place: Place, message: Commit) -> None:
        """Bring the content to the disk, count it, then let the committed record take over."""
        namespace, key = place
        target = Place(namespace, message.name)
        if self._store.get("snapshot", namespace, self._prefix + message.name) is not None:
            raise AlreadyExists(f"snapshot {quoted(message.name)}: already exists")
        active = self._require(place)
        _check_active(active)
        directory = self.directory(active.id)
        await self._workers.sync(directory)
        usage = await self._workers.measure(self.driver.content(directory))

        def work(tx: Transaction) -> None:
            if tx.exists("snapshot", namespace, self._prefix + message.name):
                raise AlreadyExists(f"snapshot {quoted(message.name)}: already exists")
            old = self._in(tx, place)
            _check_active(old)
            info = Info(
                kind=Kind.COMMITTED,
                name=message.name,
                parent=old.info.parent,
                # An active snapshot's labels end with it.
                labels=stored_labels(message.labels),
                created_at=tx.now_ns,
                updated_at=tx.now_ns,
            )
            self._put(tx, target, Snapshot(id=old.id, info=info, usage=usage))
            tx.delete("snapshot", namespace, self._prefix + key)
            kind = f"snapshots/{self.name}"
            lease_resource(tx, namespace, message.lease, kind, message.name)
            release_resource(tx, namespace, message.lease, kind, key)
            tx.emit(
                namespace,
                "/snapshot/commit",
                "containerd.events.SnapshotCommit",
                {"key": key, "name": message.name, "snapshotter": self.name},
            )

        await self._store.write(work)

    async def do_measure(self, place: Place) -> Usage:
        """Count what an active snapshot takes by now."""
        snapshot = self._require(place)
        if snapshot.info.kind is not Kind.ACTIVE:
            return snapshot.usage
        return await self._workers.measure(self.driver.content(self.directory(snapshot.id)))

    async def do_remove(self, place: Place) -> None:
        """Delete the record; the directory is reclaimed once it is gone."""
        namespace, key = place

        def work(tx: Transaction) -> None:
            self._in(tx, place)
            tx.delete("snapshot", namespace, self._prefix + key)
            tx.emit(
                namespace,
                "/snapshot/remove",
                "containerd.events.SnapshotRemove",
                {"key": key, "snapshotter": self.name},
            )

        # Whoever prepares upon it from here on is behind this write, and finds it gone.
        if self._index.has_children(place) or self._awaited.get(place):
            raise FailedPrecondition("cannot remove snapshot with child: failed precondition")
        await self._store.write(work)

    # -- records

    def directory(self, snapshot_id: int) -> Path:
        """Where a snapshot lies."""
        return self.root / "snapshots" / str(snapshot_id)

    def _require(self, place: Place) -> Snapshot:
        record = self._store.get("snapshot", place.namespace, self._prefix + place.key)
        if record is None:
            raise NotFound(f"snapshot {place.key} does not exist: not found")
        return Snapshot.from_record(place.key, record)

    def _find(self, tx: Transaction, place: Place) -> Snapshot | None:
        record = tx.get("snapshot", place.namespace, self._prefix + place.key)
        return None if record is None else Snapshot.from_record(place.key, record)

    def _in(self, tx: Transaction, place: Place) -> Snapshot:
        found = self._find(tx, place)
        if found is None:
            raise NotFound(f"snapshot {place.key} does not exist: not found")
        return found

    def _put(self, tx: Transaction, place: Place, snapshot: Snapshot) -> None:
        tx.put("snapshot", place.namespace, self._prefix + place.key, snapshot.to_record())

    def _refuse_present(self, place: Place, labels: Mapping[str, str]) -> None:
        if self._store.get("snapshot", place.namespace, self._prefix + place.key) is not None:
            raise AlreadyExists(f"snapshot {quoted(place.key)}: already exists")
        target = labels.get(LABEL_TARGET)
        if target and self._store.get("snapshot", place.namespace, self._prefix + target):
            raise AlreadyExists(f"target snapshot {quoted(target)}: already exists")

    def _chain(self, namespace: str, parent: str) -> list[Path]:
        """The directories of a parent and of its own parents, the nearest first."""
        chain: list[Path] = []
        name = parent
        while name:
            record = self._store.get("snapshot", namespace, self._prefix + name)
            snapshot = None if record is None else Snapshot.from_record(name, record)
            chain.append(self.directory(_check_parent(name, snapshot).id))
            assert snapshot is not None
            name = snapshot.info.parent
        return chain

    def _mounts(self, namespace: str, snapshot: Snapshot) -> Sequence[Mount]:
        parents = self._chain(namespace, snapshot.info.parent)
        return self.driver.mounts(self.directory(snapshot.id), snapshot.info.kind, parents)

    # -- actors

    async def _ask(self, place: Place, request: Request[R]) -> R:
        self._calls[place] += 1
        try:
            actor = await self._actor(place)
            return await actor.call(request, timeout_s=None)
        except ActorExited as error:
            raise Unavailable(f"snapshot {place.key}: its actor ended: {error}") from error
        finally:
            self._calls[place] -= 1
            if not self._calls[place]:
                del self._calls[place]
            self._used_at_s[place] = trio.current_time()

    async def _actor(self, place: Place) -> "Ref[SnapshotActor]":
        lock = self._starting.setdefault(place, trio.Lock())
        async with lock:
            actor = self._actors.get(place)
            if actor is None or not actor.is_alive():
                if self._keeper is None or not self._keeper.ref.is_alive():
                    raise Unavailable(f"snapshotter {self.name}: not running")
                actor = await SnapshotActor.spawn(self, place, parent=self._keeper)
                self._actors[place] = actor
        # A waiter holds it by now, if there was one.
        if not lock.locked():
            self._starting.pop(place, None)
        return actor

    def passivate(self) -> None:
        """End the actors that nobody has called for a while."""
        limit_s = trio.current_time() - self.idle_s
        for place in [place for place, at_s in self._used_at_s.items() if at_s <= limit_s]:
            # Nobody else sends to it: without a call under way its mailbox is empty.
            if place not in self._calls and place not in self._starting:
                del self._used_at_s[place]
                actor = self._actors.pop(place, None)
                if actor is not None:
                    actor.shutdown()

    # -- the keeper's part

    async def recover(self, keeper: "SnapshotKeeper") -> None:
        """Make the disk agree with the records: the keeper's start."""
        directories = await trio.to_thread.run_sync(self._list)
        self._next_id = max(self._next_id, self._index.id_max() + 1, *(n + 1 for n in directories))
        orphans = [
            found
            for found in directories
            if not self._index.has_record(found) and found not in self._making
        ]
        if orphans:
            log.info("snapshots.swept", snapshotter=self.name, count=len(orphans))
            self._lose(orphans)
        for row in self._store.scan("snapshot", None, self._prefix):
            if row.value["id"] not in directories:
                await self._remake(row.namespace, row.key.removeprefix(self._prefix), row.value)
        self._actors.clear()
        self._used_at_s.clear()
        self._keeper = keeper

    async def _remake(self, namespace: str, key: str, record: Record) -> None:
        """A power loss took a directory whose record stayed: what was in it was not promised
        to last, unless it was committed."""
        snapshot = Snapshot.from_record(key, record)
        if snapshot.info.kind is Kind.COMMITTED:
            log.error("snapshot.lost", snapshotter=self.name, namespace=namespace, key=key)
            return
        try:
            parents = self._chain(namespace, snapshot.info.parent)
            await self.driver.make(self.directory(snapshot.id), snapshot.info.kind, parents)
        except (Refusal, OSError) as error:
            log.error(
                "snapshot.lost",
                snapshotter=self.name,
                namespace=namespace,
                key=key,
                reason=str(error),
            )

    def _list(self) -> set[int]:
        home = self.root / "snapshots"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {int(path.name) for path in home.iterdir() if path.name.isdecimal()}

    def _follow(self, changes: Sequence[Change]) -> None:
        self._lose(self._index.change(changes))

    def _lose(self, ids: Sequence[int]) -> None:
        lost = [snapshot_id for snapshot_id in ids if snapshot_id not in self._making]
        if lost:
            self._lost += lost
            self._lost_some.set()

    async def reclaim(self) -> None:
        """Remove lost directories one by one, for as long as the keeper lives."""
        while True:
            if not self._lost:
                self._clean.set()
                self._clean = trio.Event()
                self._lost_some = trio.Event()
                await self._lost_some.wait()
                continue
            snapshot_id = self._lost.pop(0)
            self._reclaiming += 1
            try:
                await self._workers.remove_tree(self.directory(snapshot_id))
            except Refusal as error:
                # Busy, or a disk that fails: it stays for the next start.
                log.warning(
                    "snapshot.not_reclaimed",
                    snapshotter=self.name,
                    id=snapshot_id,
                    reason=str(error),
                )
            finally:
                self._reclaiming -= 1


def _check_parent(name: str, parent: Snapshot | None) -> Snapshot:
    if parent is None:
        raise NotFound(f"parent snapshot {name} does not exist: not found")
    if parent.info.kind is not Kind.COMMITTED:
        raise InvalidArgument(f"parent {quoted(name)} is not committed snapshot: invalid argument")
    return parent


def _check_active(snapshot: Snapshot) -> None:
    if snapshot.info.kind is not Kind.ACTIVE:
        raise FailedPrecondition(
            f"snapshot {quoted(snapshot.info.name)} is not active: failed precondition"
        )


class SnapshotActor(Actor):
    """What is done to one snapshot, in order."""

    def __init__(self, snapshots: Snapshots, place: Place) -> None:
        super().__init__()
        self._snapshots = snapshots
        self._place = place

    def describe_state(self) -> str:
        """Which snapshot it is."""
        return f"{self._snapshots.name} {self._place.namespace}/{self._place.key}"

    async def on_receive(self, message: Message) -> object:
        """Do one thing to the snapshot."""
        match message:
            case Create():
                return await self._snapshots.do_create(self._place, message)
            case Commit():
                await self._snapshots.do_commit(self._place, message)
            case Measure():
                return await self._snapshots.do_measure(self._place)
            case Remove():
                await self._snapshots.do_remove(self._place)
            case _:
                assert_never(message)
        return None


class SnapshotKeeper(Actor):
    """A snapshotter's place in the tree: recovers at its start, reclaims in the background,
    parent of the snapshots' actors."""

    hosts_children = True

    def __init__(self, snapshots: Snapshots) -> None:
        super().__init__()
        self._snapshots = snapshots

    def describe_state(self) -> str:
        """Which snapshotter it keeps."""
        return self._snapshots.name

    async def on_start(self) -> None:
        """Recover, then keep house."""
        await self._snapshots.recover(self)
        self.spawn_task(self._snapshots.reclaim)
        self.spawn_task(self._passivate)

    async def _passivate(self) -> None:
        while True:
            await trio.sleep(max(self._snapshots.idle_s / 2, 0.05))
            self._snapshots.passivate()
