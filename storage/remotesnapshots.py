"""Snapshots that another process keeps: a proxy plugin, such as a lazy-pulling snapshotter.

The records, labels, leases and events are ours, as for every snapshotter; the trees are the other
side's, which knows each snapshot under a name of ours, `<namespace>/<host>-<id>/<key>`, for that
no two hosts or namespaces meet there.

    record:       prepare.........commit intended...commit.......remove
    other side: --prepare------------------commit-----------------------remove (left over)

A snapshot is made before its record, removed after it, and committed between two states of it; so
a crash leaves a snapshot without a record, which the next start removes, or an intended commit,
which it brings to its end. What cannot be asked now, because the other side does not answer, stays
for later: nothing of ours waits for it.
"""

import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Refusal
from .filters import compile_filters
from .labels import (
    check_label_paths,
    check_labels,
    check_namespace,
    masked_labels,
    quoted,
    stored_labels,
)
from .leases import lease_resource, release_resource
from .lentsnapshots import ROOT
from .mounts import Mount
from .remoterecord import RemoteIndex, RemoteSnapshot
from .snapshotrecord import (
    Place,
    check_active,
    check_parent,
    snapshot_field,
    tell_committed,
    tell_prepared,
    tell_removed,
)
from .snapshotrecords import LABEL_TARGET
from .snapshotter import Info, Kind, Usage
from .store import Store, Transaction

INHERITED = "containerd.io/snapshot/"
ASK_AGAIN_S = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Remote(Protocol):
    """The other side. Names are the other side's; each call has its own deadline, and Unavailable
    or DeadlineExceeded mean that it could not be asked."""

    async def prepare(
        self, namespace: str, kind: Kind, name: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]:
        """Make an active snapshot or a view."""
        ...

    async def mounts(self, namespace: str, name: str) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view."""
        ...

    async def commit(
        self, namespace: str, name: str, active: str, labels: Mapping[str, str]
    ) -> None:
        """Fix an active snapshot under a name."""
        ...

    async def remove(self, namespace: str, name: str) -> None:
        """Remove a snapshot that has no children."""
        ...

    async def update(self, namespace: str, name: str, labels: Mapping[str, str]) -> None:
        """Set all labels."""
        ...

    async def usage(self, namespace: str, name: str) -> Usage:
        """What it takes."""
        ...

    async def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        """All that it has."""
        ...

    async def cleanup(self, namespace: str) -> None:
        """Free what removed snapshots left."""
        ...


class RemoteSnapshots:
    """A `Snapshotter` whose trees another process keeps. Its `RemoteKeeper` cleans up behind it."""

    def __init__(self, store: Store, name: str, remote: Remote, host: str) -> None:
        self.name = name
        self.store = store
        self.remote = remote
        self.index = RemoteIndex(store, name)
        self._resource_type = f"snapshots/{name}"
        self._mark = host.replace("-", "")[:12]
        # Invariant: who works at a place holds its lock; it is there while one does.
        self._locks: dict[Place, trio.Lock] = {}
        # Invariant: snapshots being prepared upon each parent.
        self._awaited: Counter[Place] = Counter()
        # Invariant: names that are made or committed on the other side, their records not written.
        self._making: set[str] = set()
        self._removing = trio.Lock()

    # -- verbs; what they promise stands at `Snapshotter`

    def stat(self, namespace: str, key: str) -> Info:
        check_namespace(namespace)
        return self.index.require(Place(namespace, key)).info

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        check_namespace(namespace)
        accepts = compile_filters(filters)
        infos = (snapshot.info for _, snapshot in self.index.scan(namespace))
        return [info for info in infos if accepts(partial(snapshot_field, info))]

    async def update(self, namespace: str, info: Info, paths: Sequence[str] = ()) -> Info:
        check_namespace(namespace)
        check_label_paths(paths, f"snapshot {quoted(info.name)}")
        async with self._working(Place(namespace, info.name)) as place:
            old = self.index.require(place)
            labels = masked_labels(old.info.labels, info.labels, paths)
            check_labels("info.Labels", labels)
            if inherited(labels) != inherited(old.info.labels):
                await self.remote.update(namespace, old.remote, inherited(labels))

            def work(tx: Transaction) -> Info:
                new = self.index.require_in(tx, place).relabelled(labels, tx.now_ns)
                self.index.put_in(tx, place, new)
                return new.info

            return await self.store.write(work)

    async def usage(self, namespace: str, key: str) -> Usage:
        check_namespace(namespace)
        return await self.remote.usage(namespace, self.index.require(Place(namespace, key)).remote)

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        check_namespace(namespace)
        snapshot = self.index.require(Place(namespace, key))
        if snapshot.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"requested snapshot {key} not active or view: failed precondition"
            )
        return await self.remote.mounts(namespace, snapshot.remote)

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        return await self._create(Place(namespace, key), Kind.ACTIVE, parent, labels or {}, lease)

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        return await self._create(Place(namespace, key), Kind.VIEW, parent, labels or {}, lease)

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> None:
        check_namespace(namespace)
        if not name:
            raise InvalidArgument("snapshot name must not be empty: invalid argument")
        wanted = stored_labels(labels or {})
        check_labels("info.Labels", wanted)
        async with self._working(Place(namespace, key)) as place:
            before = self.index.get(place)
            if before is not None and before.target:  # nobody could tell how that commit ended
                await self._settle(place, before)
            if self.index.get(Place(namespace, name)) is not None:
                raise AlreadyExists(f"snapshot {quoted(name)}: already exists")
            active = self.index.require(place)
            check_active(active)
            target = self._remote_name(Place(namespace, name))
            intent = active.committing(name, target, wanted, lease)
            await self.store.write(lambda tx: self.index.put_in(tx, place, intent))
            failpoints.passed("remote.commit.intended")
            try:
                await self.remote.commit(namespace, intent.target, active.remote, inherited(wanted))
            except Refusal:
                await self._settle(place, intent)
                if self.index.get(place) is not None:
                    raise
                return
            failpoints.passed("remote.commit.committed")
            await self._record_commit(place, intent)

    async def remove(self, namespace: str, key: str) -> None:
        check_namespace(namespace)
        async with self._working(Place(namespace, key)) as place:
            self.index.require(place)
            if self.index.has_children(place) or self._awaited.get(place):
                raise FailedPrecondition("cannot remove snapshot with child: failed precondition")

            def work(tx: Transaction) -> None:
                self.index.require_in(tx, place)
                self.index.delete_in(tx, place)
                tell_removed(tx, namespace, self.name, key)

            await self.store.write(work)

    async def cleanup(self) -> None:
        while self.index.left_over:
            if not await self.remove_left_over():
                break
        for namespace in self.index.namespaces():
            await self.remote.cleanup(namespace)

    # -- how it is done

    async def _create(
        self, place: Place, kind: Kind, parent: str, labels: Mapping[str, str], lease: str
    ) -> Sequence[Mount]:
        namespace, key = place
        check_namespace(namespace)
        if not key:
            raise InvalidArgument("snapshot key must not be empty: invalid argument")
        check_labels("info.Labels", labels)
        above = Place(namespace, parent)
        async with self._working(place):
            self.index.refuse_present(place, labels)
            base = check_parent(parent, self.index.get(above)).remote if parent else ""
            name = self._remote_name(place)
            self._awaited[above] += 1
            self._making.add(name)
            try:
                try:
                    told = inherited(labels)
                    mounts = await self.remote.prepare(namespace, kind, name, base, told)
                except AlreadyExists:
                    if target := labels.get(LABEL_TARGET):
                        await self._adopt(Place(namespace, target), parent, base, labels, lease)
                    raise
                failpoints.passed("remote.prepare.made")
                snapshot = RemoteSnapshot(
                    info=Info(kind=kind, name=key, parent=parent, labels=stored_labels(labels)),
                    remote=name,
                )
                await self.store.write(partial(self._record_new, place, snapshot, lease))
            except BaseException:
                self.index.leave(name, namespace)
                raise
            finally:
                self._making.discard(name)
                self._awaited[above] -= 1
                if not self._awaited[above]:
                    del self._awaited[above]
            return mounts

    async def _adopt(
        self, place: Place, parent: str, base: str, labels: Mapping[str, str], lease: str
    ) -> None:
        """The other side has a layer already, which it was asked for by its label: record it, and
        tell the client that it need not be made."""
        clauses = [f'labels."{LABEL_TARGET}"=={quoted(place.key)}', f"parent=={quoted(base)}"]
        found = await self.remote.walk(place.namespace, [",".join(clauses)])
        ready = next((info for info in found if info.kind is Kind.COMMITTED), None)
        if ready is None:
            raise NotFound(f"target snapshot {quoted(place.key)} in backend: not found")
        kept = stored_labels(labels)
        info = Info(kind=Kind.COMMITTED, name=place.key, parent=parent, labels=kept)
        snapshot = RemoteSnapshot(info=info, remote=ready.name)
        await self.store.write(partial(self._record_new, place, snapshot, lease))
        raise AlreadyExists(f"target snapshot {quoted(place.key)}: already exists")

    def _record_new(
        self, place: Place, snapshot: RemoteSnapshot, lease: str, tx: Transaction
    ) -> None:
        namespace, key = place
        info = snapshot.info
        if self.index.find_in(tx, place) is not None:
            raise AlreadyExists(f"snapshot {quoted(key)}: already exists")
        if info.parent:
            check_parent(info.parent, self.index.find_in(tx, Place(namespace, info.parent)))
        lease_resource(tx, namespace, lease, self._resource_type, key)
        self.index.put_in(tx, place, snapshot.stamped(tx.now_ns))
        if info.kind is Kind.ACTIVE:
            tell_prepared(tx, namespace, self.name, key, info.parent)

    async def _record_commit(self, place: Place, intent: RemoteSnapshot) -> None:
        """The second half of a commit: the committed record takes over."""
        namespace, key = place
        committed = intent.committed()
        name = committed.info.name

        def work(tx: Transaction) -> None:
            self.index.put_in(tx, Place(namespace, name), committed.stamped(tx.now_ns))
            self.index.delete_in(tx, place)
            if tx.exists("lease", namespace, intent.lease):
                lease_resource(tx, namespace, intent.lease, self._resource_type, name)
                release_resource(tx, namespace, intent.lease, self._resource_type, key)
            tell_committed(tx, namespace, self.name, key, name)

        await self.store.write(work)
        self.index.left_over.pop(intent.remote, None)  # the commit took it

    def _remote_name(self, place: Place) -> str:
        return f"{place.namespace}/{self._mark}-{uuid.uuid4().hex[:12]}/{place.key}"

    async def _settle(self, place: Place, intent: RemoteSnapshot) -> None:
        """Bring an intended commit to its end where it took effect, else take it back. It stands
        while the other side cannot be asked, and that is raised."""
        names = [info.name for info in await self.remote.walk(place.namespace)]
        if intent.target in names:
            await self._record_commit(place, intent)
        else:
            undone = intent.undone()
            await self.store.write(lambda tx: self.index.put_in(tx, place, undone))

    @asynccontextmanager
    async def _working(self, place: Place) -> AsyncGenerator[Place]:
        """One at a time at one place."""
        lock = self._locks.setdefault(place, trio.Lock())
        try:
            async with lock:
                yield place
        finally:
            if not lock.locked():
                self._locks.pop(place, None)

    # -- the keeper's part

    async def recover(self) -> None:
        """Finish the commits that were cut short, and find what has no record."""
        for place, snapshot in list(self.index.scan(None)):
            if not snapshot.target:
                continue
            async with self._working(place):
                await self._settle(place, snapshot)
        if self.store.damaged:
            return  # a lost record may have kept what seems to have none
        for namespace in self.index.namespaces():
            for info in await self.remote.walk(namespace):
                ours = info.name.startswith(f"{namespace}/{self._mark}-")
                if ours and info.name not in self._making and not self.index.is_known(info.name):
                    self.index.leave(info.name, namespace)

    async def remove_left_over(self) -> bool:
        """Remove on the other side what no record names, children before their parents; whether
        any is gone that was there."""
        done = False
        async with self._removing:
            if self.index.left_over:
                # Writes are done in order: after this one, those before it are decided.
                await self.store.write(lambda tx: None)
            for name, namespace in list(self.index.left_over.items()):
                try:
                    if name not in self._making and not self.index.is_known(name):
                        await self.remote.remove(namespace, name)
                except NotFound:
                    pass
                except FailedPrecondition:
                    continue  # its children are removed first
                self.index.left_over.pop(name, None)
                done = True
        return done


class RemoteKeeper(Actor):
    """A remote snapshotter's place in the tree: brings it in order, and keeps it so."""

    def __init__(self, snapshots: RemoteSnapshots) -> None:
        super().__init__()
        self._snapshots = snapshots
        self._trouble = ""

    def describe_state(self) -> str:
        """Which snapshotter it keeps, and what is wrong with the other side."""
        name = self._snapshots.name
        return f"{name}, {self._trouble}" if self._trouble else name

    def on_start(self) -> None:
        """Ready at once: the other side may start after us."""
        self.spawn_task(self._keep)

    async def _keep(self) -> None:
        snapshots = self._snapshots
        recovered = False
        while True:
            try:
                if not recovered:
                    await snapshots.recover()
                    recovered = True
                while await snapshots.remove_left_over():
                    pass
                self._trouble = ""
            except Refusal as error:
                self._trouble = str(error)
                log.warning("snapshotter.unanswered", snapshotter=snapshots.name, reason=str(error))
            with trio.move_on_after(ASK_AGAIN_S if self._trouble or not recovered else 3600.0):
                await snapshots.index.wait_left_over()


def inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels for the other side: those that containerd gives on, and one that a side which
    collects garbage heeds, for it knows none of our references."""
    told = {
        key: value
        for key, value in labels.items()
        if key.startswith(INHERITED) or key == LABEL_TARGET
    }
    return told | ROOT
