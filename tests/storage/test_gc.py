"""What is referred to stays; what is not goes, and nothing half."""

from __future__ import annotations

import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import NotFound
from holdfast.storage.collector import Collector, Pace
from holdfast.storage.expiry import EXPIRE_LABEL, Clock, parse_time_ns, read_clock
from holdfast.storage.gc import Marks, Node, label_links, mark, node_of, note_backward, reach
from holdfast.storage.leases import FLAT_LABEL, Resource
from holdfast.storage.store import Store, Transaction
from holdfast.storage.sweep import Garbage
from holdfast.storage.turns import Turns

sys.path.insert(0, str(Path(__file__).parent))
from garbage import FUTURE, NS, PAST, World, digest

NOW = Clock(wall_ns=0, boot_ns=0, boot="this")


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


async def test_an_image_keeps_its_tree_until_it_is_deleted(world: World) -> None:
    await world.blob(
        "Man",
        {
            "containerd.io/gc.ref.content.config": digest("Cfg"),
            "containerd.io/gc.ref.content.l.0": digest("Lay"),
        },
    )
    await world.blob("Cfg", {"containerd.io/gc.ref.snapshot.overlayfs": "top"})
    await world.blob("Lay")
    await world.blob("Lost")
    await world.snapshot("base")
    await world.snapshot("top", parent="base")
    await world.snapshot("stray", parent="base")
    await world.image("img", "Man")
    assert await world.left() == {"Man", "Cfg", "Lay", "base", "top", "img"}
    assert sorted(world.reclaimed) == [
        ("content", NS, digest("Lost")),
        ("snapshot", NS, "overlayfs/stray"),
    ]
    await world.images.delete(NS, "img")
    assert await world.left() == set()
    # Children are reclaimed before their parents.
    keys = [key for kind, _, key in world.reclaimed if kind == "snapshot"]
    assert keys.index("overlayfs/top") < keys.index("overlayfs/base")
    removed = [event.payload for event in await world.store.events.read(0)]
    assert {"key": "top", "snapshotter": "overlayfs"} in removed


async def test_namespaces_do_not_keep_each_others_records(world: World) -> None:
    await world.blob("Man")
    await world.put("content", digest("Man"), namespace="other", labels={})
    await world.image("img", "Man")
    await world.collector.collect()
    assert world.reclaimed == [("content", "other", digest("Man"))]


async def test_a_container_keeps_its_snapshot_and_its_parents(world: World) -> None:
    await world.snapshot("base")
    await world.snapshot("rw", parent="base")
    await world.blob("Ref")
    await world.container("web", "rw", **{"containerd.io/gc.ref.content.x": digest("Ref")})
    assert await world.left() == {"base", "rw", "web", "Ref"}
    await world.containers.delete(NS, "web")
    assert await world.left() == set()


async def test_a_root_label_keeps(world: World) -> None:
    await world.blob("Root", {"containerd.io/gc.root": "2020"})
    await world.snapshot("root", labels={"containerd.io/gc.root": ""})
    await world.blob("Lost", {"containerd.io/other": "x"})
    assert await world.left() == {"Root", "root"}


async def test_a_lease_keeps_its_resources_and_what_they_refer_to(world: World) -> None:
    await world.blob("Man", {"containerd.io/gc.ref.content": digest("Lay")})
    await world.blob("Lay")
    await world.snapshot("base")
    await world.snapshot("rw", parent="base")
    await world.put("ingest", "ref", expected=digest("Due"), expires_at=1)
    await world.put("ingest", "lost", expires_at=1)
    await world.blob("Due")
    await world.leases.create(NS, "lease")
    for resource_type, name in (
        ("content", digest("Man")),
        ("snapshots/overlayfs", "rw"),
        ("ingests", "ref"),
        ("content", digest("None")),
    ):
        resource = Resource(type=resource_type, id=name)
        await world.leases.add_resource(NS, "lease", resource)
    assert await world.left() == {"Man", "Lay", "base", "rw", "ref", "Due", "lease"}
    assert world.reclaimed == [("ingest", NS, "lost")]
    await world.leases.delete(NS, "lease")
    assert await world.left() == set()


async def test_a_flat_lease_keeps_the_resources_alone(world: World) -> None:
    await world.blob("Man", {"containerd.io/gc.ref.content": digest("Lay")})
    await world.blob("Lay")
    await world.snapshot("base", labels={"containerd.io/gc.ref.content": digest("Lay")})
    await world.snapshot("rw", parent="base")
    await world.image("img", "Tgt", {EXPIRE_LABEL: PAST, "containerd.io/gc.ref.content": "x"})
    await world.blob("Tgt", {"containerd.io/gc.ref.content": digest("Lay")})
    await world.leases.create(NS, "lease", {FLAT_LABEL: "1"})
    for resource_type, name in (
        ("content", digest("Man")),
        ("snapshots/overlayfs", "rw"),
        ("images", "img"),
    ):
        resource = Resource(type=resource_type, id=name)
        await world.leases.add_resource(NS, "lease", resource)
    assert await world.left() == {"Man", "base", "rw", "img", "Tgt", "lease"}


async def test_an_expired_lease_goes_with_what_it_held(world: World) -> None:
    for lease, expiry in (("past", PAST), ("future", FUTURE), ("odd", "tomorrow")):
        await world.blob(lease)
        await world.leases.create(NS, lease, {EXPIRE_LABEL: expiry})
        resource = Resource(type="content", id=digest(lease))
        await world.leases.add_resource(NS, lease, resource)
    assert await world.left() == {"future", "odd"}
    assert world.store.count("lease_resource") == 2
    # The boot's clock says when.
    expiry_ns = parse_time_ns(FUTURE)
    assert expiry_ns is not None
    assert world.collector._next_expiry_ns is not None
    now = read_clock()
    left_s = (world.collector._next_expiry_ns - now.boot_ns) / 1e9
    assert left_s == pytest.approx((expiry_ns - now.wall_ns) / 1e9, abs=5)


async def test_an_expired_image_goes_unless_it_is_referred_to(world: World) -> None:
    await world.image("past", "One", {EXPIRE_LABEL: PAST})
    await world.image("future", "Two", {EXPIRE_LABEL: FUTURE})
    await world.image("held", "Three", {EXPIRE_LABEL: PAST})
    await world.image("holder", "Two", {"containerd.io/gc.ref.image.x": "held"})
    for name in ("One", "Two", "Three"):
        await world.blob(name)
    assert await world.left() == {"future", "Two", "held", "Three", "holder"}
    events = [(event.topic, event.payload) for event in await world.store.events.read(0)]
    assert ("/images/delete", {"name": "past"}) in events


async def test_a_backward_label_keeps_as_long_as_the_named_one(world: World) -> None:
    await world.blob("Sig", {"containerd.io/gc.bref.content.x": digest("Man")})
    await world.blob("Sbom", {"containerd.io/gc.bref.image": "img"})
    await world.blob("Log", {"containerd.io/gc.bref.container": "web"})
    await world.blob("Idx", {"containerd.io/gc.bref.snapshot.overlayfs/x": "rw"})
    await world.image("exp", "Man", {EXPIRE_LABEL: PAST, "containerd.io/gc.bref.container": "web"})
    await world.blob("Man")
    await world.snapshot("rw")
    await world.container("web", "rw")
    await world.image("img", "Man")
    everything = {"Sig", "Sbom", "Log", "Idx", "Man", "rw", "web", "img", "exp"}
    assert await world.left() == everything
    await world.containers.delete(NS, "web")
    assert await world.left() == {"Sig", "Sbom", "Man", "img"}
    await world.images.delete(NS, "img")
    assert await world.left() == set()


async def test_an_open_ingest_keeps_until_it_expires(world: World) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    await world.put("ingest", "open", expires_at=int(later.timestamp() * 1e9))
    await world.put("ingest", "ever")
    await world.put("ingest", "old", expires_at=1)
    assert await world.left() == {"open", "ever"}


async def test_a_sandbox_keeps_what_its_labels_name(world: World) -> None:
    await world.put("sandbox", "pod", labels={"containerd.io/gc.ref.content.x": digest("Ref")})
    await world.blob("Ref")
    assert await world.left() == {"Ref"}


@pytest.mark.parametrize(
    ("label", "node"),
    [
        ("containerd.io/gc.ref.content", node_of("content", NS, "v")),
        ("containerd.io/gc.ref.content.m.0", node_of("content", NS, "v")),
        ("containerd.io/gc.ref.content/m", node_of("content", NS, "v")),
        ("containerd.io/gc.ref.contents", None),
        ("containerd.io/gc.ref.image", node_of("image", NS, "v")),
        ("containerd.io/gc.ref.snapshot.native", node_of("snapshot", NS, "native/v")),
        ("containerd.io/gc.ref.snapshot.native/x", node_of("snapshot", NS, "native/v")),
        ("containerd.io/gc.ref.snapshot", None),
        ("containerd.io/gc.ref.snapshot/native", None),
        ("containerd.io/gc.ref.container", None),
        ("containerd.io/gc.root", None),
    ],
)
def test_labels_name_nodes(label: str, node: Node | None) -> None:
    expected = [] if node is None else [(label, node)]
    assert list(label_links(NS, {label: "v"}, "containerd.io/gc.ref.")) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01T01:00:01+01:00", 1),
        ("1970-01-01t00:00:01.5z", 1.5),
        ("1970-01-01T00:00:01.123456789Z", 1.123456),
        ("1970-01-01", None),
        ("1970-13-01T00:00:00Z", None),
        ("", None),
    ],
)
def test_times_are_rfc_3339(text: str, seconds: float | None) -> None:
    expected = None if seconds is None else round(seconds * 1e9)
    assert parse_time_ns(text) == expected


KEYS = st.sampled_from([f"{letter}" for letter in "abcdefgh"])
GRAPH = st.dictionaries(KEYS, st.dictionaries(KEYS, st.sampled_from(["ref", "bref"]), max_size=3))


@given(GRAPH, st.sets(KEYS, max_size=3))
def test_marking_is_reachability(graph: dict[str, dict[str, str]], start: set[str]) -> None:
    labels = {
        key: {f"containerd.io/gc.{way}.content.{to}": to for to, way in edges.items()}
        for key, edges in graph.items()
    }
    marks = Marks(NOW)
    for key in graph:
        note_backward(node_of("content", "n", key), {"labels": labels[key]}, marks)

    def get(kind: str, namespace: str, key: str) -> dict[str, Any] | None:
        return {"labels": labels[key]} if key in labels else None

    marks.pending += [node_of("content", "n", key) for key in start]
    for _ in reach(marks, get):
        pass
    edges = {(a, b) for a, out in graph.items() for b, way in out.items() if way == "ref"}
    edges |= {(b, a) for a, out in graph.items() for b, way in out.items() if way == "bref"}
    expected = set(start)
    while grown := {b for a, b in edges if a in expected} - expected:
        expected |= grown
    assert {node[2] for node in marks.kept} == expected


class Interloper(Collector):
    """A collector with writers between its marking and its sweep."""

    meddle: Callable[[], Any]

    async def _sweep(self, *arguments: Any) -> tuple[Sequence[Garbage], int]:
        meddle, self.meddle = self.meddle, trio.lowlevel.checkpoint
        await meddle()
        return await super()._sweep(*arguments)


async def test_what_is_referred_to_while_marking_is_kept(world: World) -> None:
    world.collector = collector = Interloper(world.store, {})
    await world.blob("Man", {"containerd.io/gc.ref.content.x": digest("Lay")})
    await world.blob("Lay")
    await world.blob("Held")
    await world.blob("Lost")
    await world.snapshot("base")
    await world.leases.create(NS, "lease")

    async def meddle() -> None:
        await world.image("img", "Man")
        await world.leases.add_resource(NS, "lease", Resource(type="content", id=digest("Held")))
        await world.snapshot("rw", parent="base")
        await world.blob("New")

    collector.meddle = meddle
    assert await world.left() == {"Man", "Lay", "Held", "base", "rw", "New", "img", "lease"}
    assert await world.left() == {"Man", "Lay", "Held", "img", "lease"}


async def test_a_reference_made_in_the_sweeps_own_group_counts(world: World) -> None:
    """The image's job and the sweep's may share a commit; the sweep must see the image."""
    gate, begun = threading.Event(), threading.Event()
    world.collector = collector = Interloper(world.store, {})
    await world.blob("Man")

    def hold(_: Transaction) -> None:
        begun.set()
        gate.wait(5)

    async with trio.open_nursery() as nursery:

        async def meddle() -> None:
            nursery.start_soon(world.store.write, hold)
            await trio.to_thread.run_sync(begun.wait, 5)
            nursery.start_soon(world.image, "img", "Man")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(trio.to_thread.run_sync, gate.set)

        collector.meddle = meddle
        await collector.collect()
    assert await world.left() == {"Man", "img"}


async def test_a_refused_reclaim_is_counted_and_the_rest_goes_on(world: World) -> None:
    async def refuse(garbage: Garbage) -> None:
        if garbage.key == digest("One"):
            raise NotFound("gone already")
        world.reclaimed.append((garbage.kind, garbage.namespace, garbage.key))

    world.collector = Collector(world.store, {"content": refuse})
    await world.blob("One")
    await world.blob("Two")
    collection = await world.collector.collect()
    assert collection.removed == {"content": 2}
    assert collection.unreclaimed == 1
    assert world.reclaimed == [("content", NS, digest("Two"))]
    assert world.collector.last == collection


async def test_marking_gives_way_to_others(world: World) -> None:
    labels = {"containerd.io/gc.root": ""}

    def fill(tx: Transaction) -> None:
        for number in range(3000):
            tx.put("content", NS, digest(str(number)), {"labels": labels})

    await world.store.write(fill)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await Turns().walk(mark(world.store, Marks(NOW)))
        nursery.cancel_scope.cancel()
    assert turns >= 3


# When to collect.

QUICK = Pace(start_delay_s=0.0, share_max=0.5, collection_min_s=0.001)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        # The collector tells nobody of its schedule; the store's time is the real one.
        while not condition():
            await trio.sleep(0.002)


async def test_deletions_make_a_collection_due(world: World) -> None:
    world.collector = collector = Collector(world.store, {}, QUICK)
    await world.blob("Man")
    await world.image("img", "Man")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector.last.kept > 0)
        first = collector.last
        await world.blob("Lost")
        await trio.sleep(0.02)
        assert collector.last is first
        await world.images.delete(NS, "img")
        await until(lambda: world.store.count("content") == 0)
        # Its own deletions are no reason to collect again.
        await trio.sleep(0.02)
        assert collector.last.removed == {"content": 2}
        nursery.cancel_scope.cancel()
    assert world.store._listeners == []


async def test_many_writes_make_a_collection_due(world: World) -> None:
    pace = Pace(start_delay_s=0.0, share_max=0.5, collection_min_s=0.001, writes_max=5)
    collector = Collector(world.store, {}, pace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector._done == 1)
        for number in range(5):
            await world.blob(f"B{number}")
        await until(lambda: world.store.count("content") == 0)
        nursery.cancel_scope.cancel()


async def test_many_deletions_end_the_pause(world: World) -> None:
    pace = Pace(start_delay_s=0.0, collection_min_s=60.0, deletions_max=2)
    collector = Collector(world.store, {}, pace)
    for name in ("One", "Two", "Three"):
        await world.blob(name)
        await world.image(name, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector._done == 1)
        await world.images.delete(NS, "One")
        await trio.sleep(0.05)
        # One deletion waits for its share of the time.
        assert world.store.count("content") == 3
        assert re.fullmatch(r"within 2\d{3}\.\d s", collector.outlook())
        await world.images.delete(NS, "Two")
        await until(lambda: world.store.count("content") == 1)
        nursery.cancel_scope.cancel()


async def test_what_is_due_waits_for_the_delay(world: World) -> None:
    pace = Pace(start_delay_s=0.0, share_max=0.5, collection_min_s=0.001, delay_s=0.2)
    collector = Collector(world.store, {}, pace)
    await world.blob("One")
    await world.image("One", "One")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector._done == 1)
        began_s = trio.current_time()
        await world.images.delete(NS, "One")
        await until(lambda: world.store.count("content") == 0)
        assert trio.current_time() - began_s >= 0.2
        nursery.cancel_scope.cancel()


async def test_a_caller_that_leaves_leaves_no_file_without_a_record(world: World) -> None:
    begun, gate = trio.Event(), trio.Event()

    async def reclaim(garbage: Garbage) -> None:
        begun.set()
        await gate.wait()
        world.reclaimed.append((garbage.kind, garbage.namespace, garbage.key))

    collector = Collector(world.store, {"content": reclaim})
    await world.blob("One")
    await world.blob("Two")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.collect)
        await begun.wait()
        nursery.cancel_scope.cancel()
        gate.set()
    deleted = 2 - world.store.count("content")
    assert deleted > 0
    assert len(world.reclaimed) == deleted


async def test_an_expiry_makes_a_collection_due(world: World) -> None:
    collector = Collector(world.store, {}, QUICK)
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    await world.leases.create(NS, "lease", {EXPIRE_LABEL: soon.isoformat()})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector.last.kept == 1)
        assert world.store.count("lease") == 1
        await until(lambda: world.store.count("lease") == 0)
        nursery.cancel_scope.cancel()


async def test_waiters_share_a_collection_that_began_after_they_asked(world: World) -> None:
    collector = Interloper(world.store, {})
    await world.blob("One")
    gate = trio.Event()
    collector.meddle = gate.wait
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(collector.collect)
        await trio.testing.wait_all_tasks_blocked()
        await world.blob("Two")
        nursery.start_soon(collector.collect)
        gate.set()
    # The first alone, then one for the four that came while it ran and for the last.
    assert collector._done == 2
    assert world.store.count("content") == 0


async def test_a_failed_collection_is_nobodys_answer(world: World) -> None:
    collector = Interloper(world.store, {})
    await world.blob("One")

    async def fail() -> None:
        raise ZeroDivisionError

    collector.meddle = fail
    with pytest.raises(ZeroDivisionError):
        await collector.collect()
    assert (await collector.collect()).removed == {"content": 1}


@pytest.mark.parametrize(
    ("share", "mean_s", "pause_s"),
    [(0.02, 0.005, 0.245), (0.02, 1.0, 49.0), (0.5, 0.001, 0.005), (0.9, 1.0, 1.0), (0, 9, 1.0)],
)
def test_the_pause_keeps_the_share(share: float, mean_s: float, pause_s: float) -> None:
    assert Pace(share_max=share).pause_s(mean_s) == pytest.approx(pause_s)


@pytest.mark.parametrize(("kind", "kept"), [("image", True), ("?mage", True), ("task", False)])
async def test_what_a_damaged_record_may_have_kept_stays(
    tmp_path: Path, kind: str, kept: bool
) -> None:
    path = tmp_path / "damaged.db"
    async with Store.open(path) as store:
        world = World(store)
        await world.blob("One")
        await world.put(kind, "name")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE record SET value = x'00' WHERE kind = ?", (kind,))
        connection.commit()
    async with Store.open(path) as store:
        assert [one.kind for one in store.damaged] == [kind]
        world = World(store)
        assert await world.left() == ({"One"} if kept else set())
        await store.forget_damaged(store.damaged)
        assert await world.left() == set()
