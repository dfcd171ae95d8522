"""Garbage is removed a little at a time, and yet nothing that somebody refers to."""

from __future__ import annotations

import gc
import random
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.storage import sweep as sweeping
from holdfast.storage.collector import Collector
from holdfast.storage.expiry import Clock
from holdfast.storage.gc import Marks, node_of
from holdfast.storage.leases import Resource, resource_key
from holdfast.storage.store import Change, Record, Store, Transaction
from holdfast.storage.sweep import Groups, put_in_order
from holdfast.storage.turns import Turns

NS = "default"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2199-01-01T00:00:00Z"
NOW = Clock(wall_ns=1_700_000_000 * 10**9, boot_ns=10**12, boot="this")
RECENT, LONG_AGO = "2023-11-14T22:13:00Z", "2023-01-01T00:00:00Z"
CONTENT = [f"sha256:{letter * 64}" for letter in "abcdef"]
SNAPSHOTS = ["s1", "s2", "s3", "s4"]
IMAGES, LEASES, CONTAINERS = ["i1", "i2", "i3"], ["l1", "l2"], ["c1", "c2"]

ASKED = "asked"

Key = tuple[str, str]


# The model: what a collector that stops the world would leave, from the rules' own words.


def expired(labels: Mapping[str, str]) -> bool:
    return labels.get("containerd.io/gc.expire") == PAST


def reachable(records: Mapping[Key, Record]) -> set[Key]:
    """All that is kept."""
    full, flat = marked(records)
    return full | flat


def marked(records: Mapping[Key, Record]) -> tuple[set[Key], set[Key]]:
    """What is kept with all that it refers to, and what is kept flat."""
    full: set[Key] = set()
    flat: set[Key] = set()
    alive = {
        key: "containerd.io/gc.flat" in record["labels"]
        for (kind, key), record in records.items()
        if kind == "lease" and not expired(record["labels"])
    }
    for (kind, key), record in records.items():
        labels = record.get("labels", {})
        if kind in ("container", "sandbox") or (kind == "lease" and key in alive):
            full.add((kind, key))
        if kind == "image" and not expired(labels):
            full.add((kind, key))
        if kind == "ingest" and record["expires_at"] > NOW.wall_ns:
            full.add((kind, key))
        if kind in ("content", "snapshot") and "containerd.io/gc.root" in labels:
            full.add((kind, key))
        if kind == "lease_resource":
            lease, type_, name = key.split("\0")
            if lease in alive:
                held = ("snapshot", f"o/{name}") if "/" in type_ else (type_.rstrip("s"), name)
                (flat if alive[lease] else full).add(held)
    while True:
        new_full = {to for one in full for to in forward(one, records)}
        new_full |= {
            one
            for one, record in records.items()
            for to in named(record.get("labels", {}), "containerd.io/gc.bref.")
            if to in full and one[0] in ("content", "snapshot", "image", "container")
        }
        new_flat = {to for one in flat for to in upward(one, records)}
        if new_full <= full and new_flat <= flat:
            return full, flat
        full |= new_full
        flat |= new_flat


def forward(one: Key, records: Mapping[Key, Record]) -> set[Key]:
    record = records.get(one)
    if record is None:
        return set()
    found = upward(one, records)
    if one[0] == "container":
        found.add(("snapshot", f"o/{record['snapshot_key']}"))
    if one[0] == "ingest":
        found.add(("content", record["expected"]))
    if one[0] in ("ingest", "lease", "lease_resource"):
        return found
    labels = record["labels"]
    found |= named(labels, "containerd.io/gc.ref.")
    for label, value in labels.items():
        if label.startswith("containerd.io/gc.cond") and one[0] in ("content", "image"):
            snapshot = ("snapshot", "o/" + value.partition("|")[2])
            used = records.get(snapshot, {}).get("labels", {})
            if used.get("containerd.io/gc.cond.value-usedat") == RECENT:
                found.add(snapshot)
    return found


def upward(one: Key, records: Mapping[Key, Record]) -> set[Key]:
    record = records.get(one, {})
    if one[0] == "image" and record:
        return {("content", record["target"]["digest"])}
    if one[0] == "snapshot" and record.get("parent"):
        return {("snapshot", f"o/{record['parent']}")}
    return set()


def named(labels: Mapping[str, str], prefix: str) -> set[Key]:
    found: set[Key] = set()
    for label, value in labels.items():
        if label.startswith(prefix):
            kind = label.removeprefix(prefix).split(".")[0]
            found.add((kind, f"o/{value}" if kind == "snapshot" else value))
    return found


class World:
    """A store whose records change at random, and a mirror that checks each removal."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.mirror: dict[Key, Record] = {}
        self.asked: set[Key] = set()
        """What a writer is deleting itself."""
        self.wrong: list[str] = []
        """What the mirror found; a listener may not raise."""
        self.flat: set[Key] = set()
        """What was kept flat at some time: what it refers to may be gone."""
        store.listen(self.heard)

    def heard(self, changes: Sequence[Change]) -> None:
        for at, (kind, _, key, value) in enumerate(changes):
            one = (kind, key)
            if value is not None:
                if ASKED in value:
                    self.asked.add(one)
                    continue
                self.mirror[one] = value
                self.flat |= marked(self.mirror)[1]
                continue
            if one in self.asked:
                self.asked.remove(one)
            elif kind != "lease_resource":
                self.check(one, {(change.kind, change.key) for change in changes[at:]})
            self.mirror.pop(one, None)

    def check(self, gone: Key, with_it: set[Key]) -> None:
        """It was garbage, and nobody is there who refers to it, unless he was kept flat."""
        kept = reachable(self.mirror)
        if gone in kept:
            self.wrong.append(f"{gone} was kept")
        for one in self.mirror.keys() - kept - with_it - self.flat:
            if gone in forward(one, self.mirror) and one[0] in ("content", "snapshot", "image"):
                self.wrong.append(f"{one} is half gone: without {gone}")

    def labels(self, kind: str) -> dict[str, str]:
        choose = self.random.choice
        labels: dict[str, str] = {}
        for number in range(self.random.choice([0, 1, 1, 2])):
            way = choose(["ref.", "ref.", "bref."])
            to = choose(["content", "snapshot.o", "image"])
            value = choose(CONTENT if to == "content" else IMAGES if to == "image" else SNAPSHOTS)
            if way == "bref." and self.random.random() < 0.2:
                to, value = "container", choose(CONTAINERS)
            suffix = f"/{number}" if to == "snapshot.o" else f".{number}"
            labels[f"containerd.io/gc.{way}{to}{suffix}"] = value
        if kind in ("image", "content") and self.random.random() < 0.2:
            labels["containerd.io/gc.cond.snapshot.o"] = f"usedat<1h|{choose(SNAPSHOTS)}"
        if kind == "snapshot" and self.random.random() < 0.5:
            labels["containerd.io/gc.cond.value-usedat"] = choose([RECENT, LONG_AGO])
        if self.random.random() < 0.1:
            labels["containerd.io/gc.root"] = "x"
        return labels

    def change(self, tx: Transaction) -> None:
        """One random write."""
        choose, chance = self.random.choice, self.random.random
        at = {"created_at": 0, "updated_at": 0}
        match choose(["content"] * 3 + ["snapshot"] * 3 + ["image"] * 3 + ["lease", "hold"] * 2
                     + ["container", "ingest", "sandbox"]):  # fmt: skip
            case "content":
                key = choose(CONTENT)
                self._put(tx, "content", key, {"size": 1, "labels": self.labels("content"), **at})
            case "snapshot":
                number = self.random.randrange(4)
                parent = choose(["", *SNAPSHOTS[:number]])
                record = {"id": number, "kind": "committed", "parent": parent, **at}
                record["labels"] = self.labels("snapshot")
                self._put(tx, "snapshot", f"o/{SNAPSHOTS[number]}", record)
            case "image":
                labels = self.labels("image")
                if chance() < 0.4:
                    labels["containerd.io/gc.expire"] = choose([PAST, FUTURE])
                target = {"media_type": "m", "digest": choose(CONTENT), "annotations": {}}
                record = {"target": target, "labels": labels, **at}
                self._put(tx, "image", choose(IMAGES), record)
            case "lease":
                key = choose(LEASES)
                labels = {"containerd.io/gc.flat": "1"} if chance() < 0.3 else {}
                if chance() < 0.3:
                    labels["containerd.io/gc.expire"] = PAST
                if not self._delete(tx, "lease", key):
                    tx.put("lease", NS, key, {"labels": labels, "created_at": 0})
                for resource in tx.keys("lease_resource", NS, key + "\0"):
                    self._delete(tx, "lease_resource", resource)
            case "hold":
                key = choose(LEASES)
                kind = choose(["content", "snapshots/o", "images"])
                names = CONTENT if kind == "content" else IMAGES if kind == "images" else SNAPSHOTS
                resource = resource_key(key, Resource(type=kind, id=choose(names)))
                if tx.exists("lease", NS, key):
                    self._put(tx, "lease_resource", resource, {})
            case "container":
                record = {"snapshotter": "o", "snapshot_key": choose(SNAPSHOTS)}
                record["labels"] = self.labels("")
                self._put(tx, "container", choose(CONTAINERS), record)
            case "ingest":
                record = {"expected": choose(CONTENT), "expires_at": choose([0, 2 * NOW.wall_ns])}
                self._put(tx, "ingest", "r", record)
            case _:
                self._put(tx, "sandbox", "b", {"labels": self.labels("")})

    def _put(self, tx: Transaction, kind: str, key: str, record: Record) -> None:
        if tx.exists(kind, NS, key) and self.random.random() < 0.4:
            self._delete(tx, kind, key)
        else:
            tx.put(kind, NS, key, record)

    def _delete(self, tx: Transaction, kind: str, key: str) -> bool:
        record = tx.get(kind, NS, key)
        if record is None:
            return False
        # Told by the commit itself: the collector may be deleting it too, a commit before.
        tx.put(kind, NS, key, {**record, ASKED: True})
        return tx.delete(kind, NS, key)

    def changes(self, count: int) -> Any:
        return lambda tx: [self.change(tx) for _ in range(count)]

    def present(self) -> set[Key]:
        return {one for one in self.mirror if one[0] not in ("namespace", "lease_resource")}


class Disturbed(Turns):
    """Turns in whose every gap somebody may write."""

    def __init__(self, world: World, share: float) -> None:
        super().__init__()
        self._world = world
        self._share = share

    async def walk(self, steps: Iterable[object]) -> None:
        for _ in steps:
            if self._world.random.random() < self._share:
                await self._world.store.write(self._world.changes(1))
        await trio.lowlevel.checkpoint()

    async def rest(self, took_s: float) -> None:
        await self.walk([None, None])


class Crowded(Collector):
    """A collector whose transactions share commits with those of others."""

    world: World

    async def _sweep(self, *arguments: Any) -> Any:
        async with trio.open_nursery() as nursery:
            if self.world.random.random() < 0.5:
                writes = self.world.changes(self.world.random.choice([1, 3]))
                nursery.start_soon(self.world.store.write, writes)
            return await super()._sweep(*arguments)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_nothing_that_is_referred_to_goes_and_all_else_does(seed: int) -> None:
    async def main() -> None:
        folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(dir=folder) as base:
            async with Store.open(Path(base) / "meta.db") as store:
                world = World(store, seed)
                await store.write(world.changes(30))
                collector = Crowded(
                    store, {}, clock=lambda: NOW, turns=lambda: Disturbed(world, 0.05)
                )
                collector.world = world
                for _ in range(2):
                    await collector.collect()
                await Collector(store, {}, clock=lambda: NOW).collect()
                assert world.wrong == []
                kept = reachable(world.mirror) & world.present()
                assert world.present() == kept
                live = {key for kind, key in world.present() if kind == "lease"}
                resources = {key for kind, key in world.mirror if kind == "lease_resource"}
                assert {key.split("\0")[0] for key in resources} <= live

    with pytest.MonkeyPatch.context() as patch:
        # So that each group has a transaction of its own, and some must wait for the loop.
        patch.setattr(sweeping, "TRANSACTION_S", 0.0)
        patch.setattr(sweeping, "MARKED_MAX", 2)
        trio.run(main)


GRAPH = st.dictionaries(
    st.integers(0, 9), st.frozensets(st.integers(0, 9), max_size=4), max_size=10
)


@given(GRAPH)
def test_who_refers_goes_before_what_he_refers_to_and_circles_at_once(
    graph: dict[int, frozenset[int]],
) -> None:
    def get(kind: str, namespace: str, key: str) -> Record | None:
        to = {f"containerd.io/gc.ref.content.{n}": str(n) for n in graph[int(key)]}
        return {"labels": to}

    garbage = [node_of("content", NS, str(number)) for number in graph]
    groups: Groups = deque()
    for _ in put_in_order(set(garbage), get, Marks(NOW), groups):
        pass
    place = {int(node[2]): at for at, group in enumerate(groups) for node in group}
    assert sorted(place) == sorted(graph)

    def reaches(one: int) -> set[int]:
        found: set[int] = set()
        pending = [one]
        while pending:
            new = (graph.get(pending.pop(), frozenset()) & graph.keys()) - found
            found |= new
            pending += new
        return found

    for one in graph:
        for other in reaches(one):
            if one in reaches(other):
                assert place[one] == place[other]
            else:
                assert place[one] < place[other]


async def test_a_large_collection_holds_nobody_up_for_long(store: Store) -> None:
    """In processor time, so that a busy machine does not count."""
    count = 6000

    def fill(tx: Transaction, start: int) -> None:
        for number in range(start, start + 500):
            parent = str(number - 1) if number % 5 else ""
            tx.put("snapshot", NS, f"o/{number}", {"parent": parent, "labels": {}})
            tx.put("content", NS, f"sha256:{number:064x}", {"size": 1, "labels": {}})

    for start in range(0, count, 500):
        await store.write(lambda tx, s=start: fill(tx, s))
    past = {"containerd.io/gc.expire": PAST}
    await store.write(lambda tx: tx.put("lease", NS, "big", {"labels": past, "created_at": 0}))

    def hold(tx: Transaction, start: int) -> None:
        for number in range(start, start + 500):
            held = Resource(type="snapshots/o", id=str(number))
            tx.put("lease_resource", NS, resource_key("big", held), {})

    for start in range(0, count, 500):
        await store.write(lambda tx, s=start: hold(tx, s))
    # Python's own collector walks over all that the tests before this one left.
    gc.collect()
    gc.freeze()
    try:
        collection = await Collector(store, {}).collect()
    finally:
        gc.unfreeze()
    assert collection.removed == {"snapshot": count, "content": count, "lease": 1}
    assert store.count("lease_resource") == 0
    assert collection.longest_s < 0.02
