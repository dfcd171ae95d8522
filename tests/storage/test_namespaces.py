"""Namespaces come with their first object and go only when they are empty."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from holdfast.storage.leases import Leases, Resource
from holdfast.storage.namespaces import Namespace, Namespaces
from holdfast.storage.store import Store, Transaction

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def namespaces(store: Store) -> Namespaces:
    return Namespaces(store)


async def events(store: Store) -> list[tuple[str, str, Any]]:
    return [(event.namespace, event.topic, event.payload) for event in await store.events.read(0)]


async def test_a_namespace_is_created_listed_and_deleted(
    store: Store, namespaces: Namespaces
) -> None:
    made = await namespaces.create("two", {"a": "b", "empty": ""})
    await namespaces.create("one")
    # The answer shows what was given; a label without a value is not kept.
    assert made == Namespace(name="two", labels={"a": "b", "empty": ""})
    kept = Namespace(name="two", labels={"a": "b"})
    assert namespaces.list() == [Namespace(name="one"), kept]
    assert namespaces.get("two") == kept
    await namespaces.delete("two")
    assert [namespace.name for namespace in namespaces.list()] == ["one"]
    assert await events(store) == [
        ("two", "/namespaces/create", {"name": "two", "labels": {"a": "b", "empty": ""}}),
        ("one", "/namespaces/create", {"name": "one", "labels": {}}),
        ("two", "/namespaces/delete", {"name": "two"}),
    ]


async def test_an_unknown_namespace_has_no_labels(namespaces: Namespaces) -> None:
    assert namespaces.get("none") == Namespace(name="none")
    assert namespaces.list() == []


async def test_creation_is_refused(namespaces: Namespaces) -> None:
    await namespaces.create("one")
    with pytest.raises(AlreadyExists, match=r'^namespace "one": already exists$'):
        await namespaces.create("one")
    with pytest.raises(InvalidArgument, match="identifier"):
        await namespaces.create("a b")
    with pytest.raises(InvalidArgument, match=r"^namespace\.Labels: label key"):
        await namespaces.create("two", {"k": "v" * 4096})


async def test_labels_are_replaced_or_changed_one_by_one(
    store: Store, namespaces: Namespaces
) -> None:
    await namespaces.create("one", {"a": "1", "b": "2"})
    updated = await namespaces.update("one", {"a": "", "c": "3"}, ["labels.a", "labels.c"])
    assert updated.labels == {"b": "2", "c": "3"}
    assert (await namespaces.update("one", {"d": "4"})).labels == {"d": "4"}
    assert namespaces.get("one").labels == {"d": "4"}
    assert (await events(store))[-1] == (
        "one",
        "/namespaces/update",
        {"name": "one", "labels": {"d": "4"}},
    )
    with pytest.raises(InvalidArgument, match=r'^cannot update "name" field$'):
        await namespaces.update("one", {}, ["name"])


async def test_a_label_brings_a_namespace_into_being(namespaces: Namespaces) -> None:
    await namespaces.update("one", {"a": "1"}, ["labels.a"])
    assert namespaces.list() == [Namespace(name="one", labels={"a": "1"})]


async def test_a_namespace_with_objects_is_not_deleted(
    store: Store, namespaces: Namespaces
) -> None:
    def fill(tx: Transaction) -> None:
        tx.put("image", "one", "busybox", {})
        tx.put("content", "one", DIGEST, {})
        tx.put("container", "one", "web", {})
        for key in ("overlayfs/a", "overlayfs/b", "native/a"):
            tx.put("snapshot", "one", key, {})

    await store.write(fill)
    assert [namespace.name for namespace in namespaces.list()] == ["one"]
    with pytest.raises(FailedPrecondition) as refusal:
        await namespaces.delete("one")
    assert str(refusal.value) == (
        'namespace "one" must be empty, but it still has images, blobs, containers,'
        ' snapshots on "native" snapshotter, snapshots on "overlayfs" snapshotter:'
        " failed precondition"
    )
    with pytest.raises(NotFound, match=r'^namespace "none": not found$'):
        await namespaces.delete("none")


async def test_leases_go_with_their_namespace(store: Store, namespaces: Namespaces) -> None:
    leases = Leases(store)
    for name in ("one", "two"):
        await leases.create(name, "lease")
        await leases.add_resource(name, "lease", Resource(type="content", id=DIGEST))
    await namespaces.delete("one")
    assert store.count("lease") == store.count("lease_resource") == 1
    assert [namespace.name for namespace in namespaces.list()] == ["two"]
