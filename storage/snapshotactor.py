"""The actor of one snapshot: what is done to it is done in order.

It lives while there is work, and is passivated when the snapshot has left its place or nobody has
asked for a while; all that it knows is in the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import AlreadyExists
from ..actors.message import Request
from .labels import quoted, stored_labels
from .leases import lease_resource, release_resource, require_lease
from .mounts import Mount
from .refusal import refusal_of
from .snapshotgraph import Graph
from .snapshotrecord import (
    Place,
    Snapshot,
    check_active,
    check_parent,
    tell_committed,
    tell_prepared,
    tell_removed,
)
from .snapshotter import Info, Kind, Usage
from .store import Transaction

LABEL_MAX = 60


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


class SnapshotActor(Actor):
    """What is done to the snapshot in one place."""

    def __init__(self, graph: Graph, place: Place) -> None:
        super().__init__()
        self._graph = graph
        self._place = place
        label = f"snapshot:{place.namespace}/{place.key}"
        # A layer's key ends in a digest: what comes before it tells enough.
        self.label = label if len(label) <= LABEL_MAX else label[: LABEL_MAX - 1] + "…"

    def describe_state(self) -> str:
        """Which snapshot it is."""
        return f"{self._graph.name} {self._place.namespace}/{self._place.key}"

    async def on_receive(self, message: Message) -> object:
        """Do one thing to the snapshot."""
        match message:
            case Create():
                return await self._create(message)
            case Commit():
                await self._commit(message)
            case Measure():
                return await self._measure()
            case Remove():
                await self._remove()
            case _:
                assert_never(message)
        return None

    async def _create(self, message: Create) -> Sequence[Mount]:
        """Make the directory, then the record that makes it known."""
        graph, place = self._graph, self._place
        graph.refuse_present(place, message.labels)
        parents = graph.chain(place.namespace, message.parent)
        require_lease(graph.store, place.namespace, message.lease)
        with graph.making(Place(place.namespace, message.parent)) as snapshot_id:
            directory = graph.directory(snapshot_id)
            try:
                await graph.driver.make(directory, message.kind, parents)
            except OSError as error:
                raise refusal_of(error, f"snapshot {quoted(place.key)}") from error

            def work(tx: Transaction) -> None:
                self._record_new(tx, snapshot_id, message)

            failpoints.reach("snapshot.record.write")
            await graph.store.write(work)
            failpoints.passed("snapshot.record.written")
        return graph.driver.mounts(directory, message.kind, parents)

    def _record_new(self, tx: Transaction, snapshot_id: int, message: Create) -> None:
        graph = self._graph
        namespace, key = self._place
        if graph.find_in(tx, self._place) is not None:
            raise AlreadyExists(f"snapshot {quoted(key)}: already exists")
        if message.parent:
            check_parent(message.parent, graph.find_in(tx, Place(namespace, message.parent)))
        lease_resource(tx, namespace, message.lease, graph.resource_type, key)
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
        graph.put_in(tx, self._place, snapshot)
        if message.kind is Kind.ACTIVE:
            tell_prepared(tx, namespace, graph.name, key, message.parent)

    async def _commit(self, message: Commit) -> None:
        """Bring the content to the disk, count it, then let the committed record take over."""
        graph = self._graph
        namespace, key = self._place
        target = Place(namespace, message.name)
        if graph.get(target) is not None:
            raise AlreadyExists(f"snapshot {quoted(message.name)}: already exists")
        require_lease(graph.store, namespace, message.lease)
        active = graph.require(self._place)
        check_active(active)
        directory = graph.present(active)
        await graph.workers.sync(directory)
        failpoints.passed("snapshot.commit.synced")
        usage = await graph.workers.measure(graph.driver.content(directory))

        def work(tx: Transaction) -> None:
            if graph.find_in(tx, target) is not None:
                raise AlreadyExists(f"snapshot {quoted(message.name)}: already exists")
            old = graph.require_in(tx, self._place)
            check_active(old)
            info = Info(
                kind=Kind.COMMITTED,
                name=message.name,
                parent=old.info.parent,
                # An active snapshot's labels end with it.
                labels=stored_labels(message.labels),
                created_at=tx.now_ns,
                updated_at=tx.now_ns,
            )
            graph.put_in(tx, target, Snapshot(id=old.id, info=info, usage=usage))
            graph.delete_in(tx, self._place)
            lease_resource(tx, namespace, message.lease, graph.resource_type, message.name)
            release_resource(tx, namespace, message.lease, graph.resource_type, key)
            tell_committed(tx, namespace, graph.name, key, message.name)

        await graph.store.write(work)
        failpoints.passed("snapshot.commit.written")

    async def _measure(self) -> Usage:
        """Count what an active snapshot takes by now."""
        graph = self._graph
        snapshot = graph.require(self._place)
        if snapshot.info.kind is not Kind.ACTIVE:
            return snapshot.usage
        return await graph.workers.measure(graph.driver.content(graph.present(snapshot)))

    async def _remove(self) -> None:
        """Delete the record; the directory is left over once it is gone."""
        graph, place = self._graph, self._place

        def work(tx: Transaction) -> None:
            graph.require_in(tx, place)
            graph.delete_in(tx, place)
            tell_removed(tx, place.namespace, graph.name, place.key)

        # Whoever prepares upon it from here on is behind this write, and finds it gone.
        graph.refuse_parent(place)
        await graph.store.write(work)
        failpoints.passed("snapshot.remove.written")
