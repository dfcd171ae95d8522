"""What keeps a record is told from its root on, and what does not is garbage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from holdfast.actors.errors import FailedPrecondition, InvalidArgument, NotFound
from holdfast.storage.expiry import EXPIRE_LABEL
from holdfast.storage.leases import FLAT_LABEL, Resource
from holdfast.storage.store import Store
from holdfast.storage.why import Reason, why

sys.path.insert(0, str(Path(__file__).parent))
from garbage import FUTURE, NS, PAST, World, digest

REF = "containerd.io/gc.ref.content.l.0"


async def told(world: World, kind: str, name: str, snapshotter: str = "overlayfs") -> Reason:
    return await why(world.store, world.collector, NS, kind, name, snapshotter=snapshotter)


async def chain(world: World, kind: str, name: str) -> list[tuple[str, str, str]]:
    reason = await told(world, kind, name)
    assert reason.kept
    return [(step.how, step.kind, step.key) for step in reason.chain]


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


async def test_the_chain_leads_from_an_image_to_a_parent_of_its_snapshot(world: World) -> None:
    await world.image("img", "Man")
    await world.blob("Man", {REF: digest("Cfg")})
    await world.blob("Cfg", {"containerd.io/gc.ref.snapshot.overlayfs": "top"})
    await world.snapshot("base")
    await world.snapshot("top", parent="base")
    assert await chain(world, "snapshot", "base") == [
        ("an image", "image", "img"),
        ("target", "content", digest("Man")),
        (REF, "content", digest("Cfg")),
        ("containerd.io/gc.ref.snapshot.overlayfs", "snapshot", "overlayfs/top"),
        ("parent", "snapshot", "overlayfs/base"),
    ]
    assert await chain(world, "image", "img") == [("an image", "image", "img")]


async def test_each_root_is_named(world: World) -> None:
    await world.leases.create(NS, "lease", {EXPIRE_LABEL: FUTURE})
    await world.leases.add_resource(NS, "lease", Resource(type="content", id=digest("Held")))
    await world.blob("Held")
    await world.blob("Root", {"containerd.io/gc.root": "x"})
    await world.blob("Back", {"containerd.io/gc.bref.container.x": "web"})
    await world.blob("Due")
    await world.snapshot("rw")
    await world.container("web", "rw")
    await world.put("ingest", "ref", expected=digest("Due"), expires_at=2 * 10**18)
    held = await told(world, "content", digest("Held"))
    assert [(step.how, step.kind) for step in held.chain] == [
        ("a lease", "lease"),
        ("held", "content"),
    ]
    assert held.left_s is not None
    assert held.left_s > 10**9
    assert (await told(world, "lease", "lease")).until_ns == held.until_ns
    root = await chain(world, "content", digest("Root"))
    assert root == [("label containerd.io/gc.root", "content", digest("Root"))]
    assert (await chain(world, "snapshot", "rw"))[0] == ("a container", "container", "web")
    back = await chain(world, "content", digest("Back"))
    assert back[1] == ("containerd.io/gc.bref.container.x", "content", digest("Back"))
    assert await chain(world, "container", "web") == [("a container", "container", "web")]
    due = await told(world, "content", digest("Due"))
    assert [step.kind for step in due.chain] == ["ingest", "content"]
    assert due.until_ns == 2 * 10**18


async def test_what_a_flat_lease_holds_is_told_as_flat(world: World) -> None:
    await world.leases.create(NS, "lease", {FLAT_LABEL: "1"})
    await world.leases.add_resource(NS, "lease", Resource(type="content", id=digest("Man")))
    await world.blob("Man", {REF: digest("Lay")})
    await world.blob("Lay")
    assert [step.flat for step in (await told(world, "content", digest("Man"))).chain] == [
        False,
        True,
    ]
    assert not (await told(world, "content", digest("Lay"))).kept


async def test_garbage_is_told_with_the_time_of_its_end(world: World) -> None:
    await world.blob("Lost")
    await world.leases.create(NS, "over", {EXPIRE_LABEL: PAST})
    reason = await told(world, "content", digest("Lost"))
    assert (reason.kept, reason.chain) == (False, ())
    assert "100 more writes" in reason.goes
    assert not (await told(world, "lease", "over")).kept
    # What `why` calls garbage is what a collection takes.
    assert await world.left() == set()


async def test_other_namespaces_that_have_the_blob_are_named(world: World) -> None:
    await world.blob("Man")
    for name, labels in (("one", {}), ("two", {"containerd.io/namespace.shareable": "true"})):
        await world.store.write(
            lambda tx, n=name, w=labels: tx.put("namespace", "", n, {"labels": w})
        )
        await world.put("content", digest("Man"), namespace=name, labels={})
    reason = await told(world, "content", digest("Man"))
    assert reason.also_in == ["one", "two (shareable)"]


async def test_refusals(world: World) -> None:
    with pytest.raises(NotFound, match=r'^image "none": not found$'):
        await told(world, "image", "none")
    await world.snapshot("top")
    with pytest.raises(NotFound, match=r'^snapshot "native/top": not found$'):
        await told(world, "snapshot", "top", "native")
    with pytest.raises(InvalidArgument, match='kind "task" is not one of content'):
        await told(world, "task", "x")
    with pytest.raises(FailedPrecondition):
        await why(world.store, world.collector, "", "image", "x")
