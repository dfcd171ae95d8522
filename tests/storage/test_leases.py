"""Leases hold resources by type and id, as containerd's do."""

from __future__ import annotations

import pytest

from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from holdfast.storage.expiry import EXPIRE_LABEL
from holdfast.storage.leases import (
    Lease,
    Leases,
    Resource,
    lease_resource,
    release_resource,
)
from holdfast.storage.store import Store

DIGEST = "sha256:" + "0" * 64
RESOURCES = [
    Resource(type="content", id=DIGEST),
    Resource(type="images", id="docker.io/library/busybox:latest"),
    Resource(type="ingests", id="layer-1"),
    Resource(type="snapshots/overlayfs", id="a/b"),
]


@pytest.fixture
def leases(store: Store) -> Leases:
    return Leases(store)


async def test_a_lease_is_created_listed_and_deleted(leases: Leases) -> None:
    made = await leases.create("default", "one", {"a": "b", "no": ""})
    assert made == Lease(id="one", labels={"a": "b"}, created_at=made.created_at)
    assert made.created_at > 1_500_000_000_000_000_000
    other = await leases.create("default")
    assert other.id
    assert leases.list("default", ["id==one"]) == [made]
    assert leases.list("default", ["labels.a==b"]) == [made]
    assert leases.list("default", ["created"]) == []
    assert {lease.id for lease in leases.list("default")} == {"one", other.id}
    assert leases.list("other") == []
    await leases.delete("default", "one")
    assert leases.list("default") == [other]


async def test_refusals(leases: Leases) -> None:
    await leases.create("default", "one")
    with pytest.raises(AlreadyExists, match=r'^lease "one": already exists$'):
        await leases.create("default", "one")
    with pytest.raises(InvalidArgument):
        await leases.create("default", "a\0b")
    with pytest.raises(FailedPrecondition):
        await leases.create("")
    why = '^lease "none": not found$'
    with pytest.raises(NotFound, match=why):
        await leases.delete("default", "none")
    with pytest.raises(NotFound, match=why):
        await leases.add_resource("default", "none", RESOURCES[0])
    with pytest.raises(NotFound, match=why):
        await leases.delete_resource("default", "none", RESOURCES[0])
    with pytest.raises(NotFound, match=why):
        leases.list_resources("default", "none")


async def test_resources_are_added_listed_and_deleted(leases: Leases) -> None:
    await leases.create("default", "one")
    await leases.create("default", "one-more")
    for resource in reversed(RESOURCES):
        await leases.add_resource("default", "one", resource)
        await leases.add_resource("default", "one", resource)
    await leases.add_resource("default", "one-more", RESOURCES[0])
    assert leases.list_resources("default", "one") == RESOURCES
    await leases.delete_resource("default", "one", RESOURCES[1])
    await leases.delete_resource("default", "one", RESOURCES[1])
    assert leases.list_resources("default", "one") == [RESOURCES[0], *RESOURCES[2:]]


async def test_a_deleted_lease_holds_nothing_when_it_comes_anew(
    store: Store, leases: Leases
) -> None:
    await leases.create("default", "one")
    for resource in RESOURCES:
        await leases.add_resource("default", "one", resource)
    await leases.delete("default", "one")
    assert store.count("lease_resource") == 0
    await leases.create("default", "one")
    assert leases.list_resources("default", "one") == []


@pytest.mark.parametrize(
    ("resource", "refusal", "why"),
    [
        (
            Resource(type="content/x", id=DIGEST),
            InvalidArgument,
            "invalid resource type content/x: invalid argument",
        ),
        (
            Resource(type="content", id="x"),
            InvalidArgument,
            "invalid content resource id x: invalid checksum digest format: invalid argument",
        ),
        (
            Resource(type="snapshots", id="x"),
            InvalidArgument,
            "invalid snapshot resource type snapshots: invalid argument",
        ),
        (
            Resource(type="tasks", id="x"),
            Unimplemented,
            "resource type tasks not supported yet: not implemented",
        ),
    ],
)
async def test_an_unsound_resource_is_refused(
    leases: Leases, resource: Resource, refusal: type[Exception], why: str
) -> None:
    await leases.create("default", "one")
    with pytest.raises(refusal, match=f"^{why}$"):
        await leases.add_resource("default", "one", resource)
    with pytest.raises(refusal):
        await leases.delete_resource("default", "one", resource)


async def test_a_request_holds_what_it_makes(store: Store, leases: Leases) -> None:
    await leases.create("default", "one")
    await store.write(lambda tx: lease_resource(tx, "default", "one", "content", DIGEST))
    assert leases.list_resources("default", "one") == [RESOURCES[0]]
    await store.write(lambda tx: release_resource(tx, "default", "one", "content", DIGEST))
    assert leases.list_resources("default", "one") == []
    await store.write(lambda tx: lease_resource(tx, "default", "", "content", DIGEST))
    await store.write(lambda tx: release_resource(tx, "default", "", "content", DIGEST))
    with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
        await store.write(lambda tx: lease_resource(tx, "default", "none", "content", DIGEST))


async def test_the_leases_of_fallen_jobs_end_and_those_of_clients_stay(leases: Leases) -> None:
    await leases.create("default", "clients", {EXPIRE_LABEL: "2999-01-01T00:00:00Z"})
    async with leases.held("default") as job:
        resource = Resource(type="content", id=DIGEST)
        await leases.add_resource("default", job, resource)
        await leases.end_jobs()
        assert [lease.id for lease in leases.list("default")] == ["clients"]
        with pytest.raises(NotFound):
            leases.list_resources("default", job)
    await leases.end_jobs()
