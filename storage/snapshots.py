"""Snapshots over any driver: the verbs, and the actors that do the work.

What is done to one snapshot is done in order, by an actor of its own that lives while there is
work. The `SnapshotKeeper` is their parent and the snapshotter's place in the tree: it recovers
at its start, and removes in the background what removed snapshots left on the disk, also those
that garbage collection forgot. `snapshotgraph.py` says how records and directories hang together.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from ..actors.actor import Actor
from ..actors.eager import Holding
from ..actors.errors import FailedPrecondition, InvalidArgument, Unavailable
from ..actors.exits import ActorExited
from ..actors.message import Request
from ..actors.reference import Ref
from .driver import Driver
from .filters import compile_filters
from .labels import check_label_paths, check_labels, check_namespace, masked_labels, quoted
from .mounts import Mount
from .snapshotactor import Commit, Create, Measure, Remove, SnapshotActor
from .snapshotgraph import Graph
from .snapshotrecord import Place, check_parent, snapshot_field
from .snapshotrecovery import recover
from .snapshotter import Info, Kind, Usage
from .store import Store, Transaction
from .workers import Workers

__all__ = ["Driver", "SnapshotKeeper", "Snapshots"]

R = TypeVar("R")

IDLE_S = 30.0


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
        self.graph = Graph(store, driver, root, workers)
        self._keeper: SnapshotKeeper | None = None
        self._actors: dict[Place, Ref[SnapshotActor]] = {}
        self._calls: Counter[Place] = Counter()
        self._used_at_s: dict[Place, float] = {}
        self._starting: dict[Place, trio.Lock] = {}

    # -- verbs

    def stat(self, namespace: str, key: str) -> Info:
        """The record of a snapshot of any kind."""
        check_namespace(namespace)
        return self.graph.require(Place(namespace, key)).info

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        """The records that match any of the filters, in the order of their names."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        infos = (snapshot.info for _, snapshot in self.graph.scan(namespace))
        return [info for info in infos if accepts(partial(snapshot_field, info))]

    async def update(self, namespace: str, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels: all without `paths`, else `labels` or `labels.<key>`."""
        check_namespace(namespace)
        if not info.name:
            raise InvalidArgument("invalid argument")
        place = Place(namespace, info.name)

        def work(tx: Transaction) -> Info:
            old = self.graph.require_in(tx, place)
            check_label_paths(paths, f"snapshot {quoted(info.name)}")
            labels = masked_labels(old.info.labels, info.labels, paths)
            check_labels("info.Labels", labels)
            new = replace(old, info=replace(old.info, labels=labels, updated_at=tx.now_ns))
            self.graph.put_in(tx, place, new)
            return new.info

        return await self.graph.store.write(work)

    async def usage(self, namespace: str, key: str) -> Usage:
        """What it takes: counted now for an active one, at its commit for a committed one."""
        check_namespace(namespace)
        snapshot = self.graph.require(Place(namespace, key))
        if snapshot.info.kind is not Kind.ACTIVE:
            await trio.lowlevel.checkpoint()
            return snapshot.usage
        return await self._ask(Place(namespace, key), Measure())

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view."""
        check_namespace(namespace)
        await trio.lowlevel.checkpoint()
        snapshot = self.graph.require(Place(namespace, key))
        if snapshot.info.kind is Kind.COMMITTED:
            raise FailedPrecondition(
                f"requested snapshot {key} not active or view: failed precondition"
            )
        return self.graph.mounts(namespace, snapshot)

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
        check_labels("info.Labels", labels)
        place = Place(namespace, key)
        if not key:
            if parent:
                check_parent(parent, self.graph.get(Place(namespace, parent)))
            raise InvalidArgument("snapshot key must not be empty: invalid argument")
        # Told at once, before an actor is started: it is what busy clients ask for most.
        self.graph.refuse_present(place, labels)
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
        check_labels("info.Labels", labels or {})
        if not name:
            raise InvalidArgument("snapshot name must not be empty: invalid argument")
        place = Place(namespace, key)
        await self._ask(place, Commit(name=name, labels=labels or {}, lease=lease))
        self._passivate(place)

    async def remove(self, namespace: str, key: str) -> None:
        """Forget a snapshot that has no children; its disk space follows soon after."""
        check_namespace(namespace)
        place = Place(namespace, key)
        self.graph.require(place)
        await self._ask(place, Remove())
        self._passivate(place)

    async def cleanup(self) -> None:
        """Return once what removed snapshots left on the disk is gone."""
        while self.graph.leftovers:
            self._running_keeper()
            await self.graph.leftovers.wait_change()
        await trio.lowlevel.checkpoint()

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

    async def _actor(self, place: Place) -> Ref[SnapshotActor]:
        lock = self._starting.setdefault(place, trio.Lock())
        async with Holding(lock):
            actor = self._actors.get(place)
            if actor is None or not actor.is_alive():
                actor = await SnapshotActor.spawn(self.graph, place, parent=self._running_keeper())
                self._actors[place] = actor
        # A waiter holds it by now, if there was one.
        if not lock.locked():
            self._starting.pop(place, None)
        return actor

    def passivate(self) -> None:
        """End the actors that nobody has called for a while."""
        limit_s = trio.current_time() - self.idle_s
        for place in [place for place, at_s in self._used_at_s.items() if at_s <= limit_s]:
            self._passivate(place)

    def _passivate(self, place: Place) -> None:
        # Nobody else sends to it: without a call under way its mailbox is empty.
        if place not in self._calls and place not in self._starting:
            self._used_at_s.pop(place, None)
            actor = self._actors.pop(place, None)
            if actor is not None:
                actor.shutdown()

    # -- the keeper's part

    def attach(self, keeper: "SnapshotKeeper") -> None:
        """Serve under this keeper; actors under an earlier one are gone."""
        self._actors.clear()
        self._used_at_s.clear()
        self._keeper = keeper

    def _running_keeper(self) -> "SnapshotKeeper":
        if self._keeper is None or not self._keeper.ref.is_alive():
            raise Unavailable(f"snapshotter {self.name}: not running")
        return self._keeper


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
        graph = self._snapshots.graph
        await recover(graph)
        self._snapshots.attach(self)
        self.spawn_task(graph.leftovers.remove, graph.has_record)
        self.spawn_task(self._passivate)

    async def _passivate(self) -> None:
        while True:
            await trio.sleep(max(self._snapshots.idle_s / 2, 0.05))
            self._snapshots.passivate()
