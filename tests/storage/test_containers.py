"""Container records are kept, changed by mask, and refused as containerd does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
)
from holdfast.storage.containers import Container, Containers, Opaque, Runtime
from holdfast.storage.store import Store

SPEC = Opaque(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b"{}")
OPTIONS = Opaque(type_url="containerd.runc.v1.Options", value=b"\x08\x01")
WEB = Container(
    id="web",
    runtime=Runtime(name="io.containerd.runc.v2", options=OPTIONS),
    spec=SPEC,
    labels={"tier": "front"},
    image="docker.io/library/nginx:latest",
    snapshotter="overlayfs",
    snapshot_key="web",
    extensions={"x": Opaque(type_url="t", value=b"\x00")},
    sandbox="pod",
)


@pytest.fixture
def containers(store: Store) -> Containers:
    return Containers(store)


async def topics(store: Store) -> list[tuple[str, Any]]:
    return [(event.topic, event.payload) for event in await store.events.read(0)]


async def test_a_container_is_kept_as_it_was_given(containers: Containers) -> None:
    created = await containers.create("default", replace(WEB, labels={"tier": "front", "no": ""}))
    assert created.created_at == created.updated_at > 1_500_000_000_000_000_000
    assert created == replace(WEB, created_at=created.created_at, updated_at=created.updated_at)
    assert containers.get("default", "web") == created
    assert containers.list("default") == [created]
    assert containers.list("other") == []


async def test_creation_and_deletion_are_told(store: Store, containers: Containers) -> None:
    await containers.create("default", WEB)
    await containers.create("default", Container(id="b", runtime=Runtime(name="r"), spec=SPEC))
    await containers.delete("default", "web")
    assert await topics(store) == [
        (
            "/containers/create",
            {
                "id": "web",
                "image": "docker.io/library/nginx:latest",
                "runtime": {
                    "name": "io.containerd.runc.v2",
                    "options": {"type_url": OPTIONS.type_url, "value": OPTIONS.value},
                },
            },
        ),
        ("/containers/create", {"id": "b", "image": "", "runtime": {"name": "r"}}),
        ("/containers/delete", {"id": "web"}),
    ]


async def test_what_is_missing_is_not_found(containers: Containers) -> None:
    with pytest.raises(NotFound, match=r'^container "web" in namespace "default": not found$'):
        containers.get("default", "web")
    with pytest.raises(NotFound, match=r'^container "web": not found$'):
        await containers.update("default", WEB)
    with pytest.raises(NotFound):
        await containers.delete("default", "web")


async def test_an_id_is_taken_once_in_a_namespace(containers: Containers) -> None:
    await containers.create("one", WEB)
    await containers.create("two", WEB)
    with pytest.raises(AlreadyExists, match=r'^container "web": already exists$'):
        await containers.create("one", WEB)


@pytest.mark.parametrize(
    ("container", "why"),
    [
        (replace(WEB, id=""), "container.ID: identifier must not be empty"),
        (replace(WEB, id="a/b"), 'container.ID: identifier "a/b" must match'),
        (replace(WEB, extensions={"": SPEC}), "container.Extension keys must not be zero-length"),
        (replace(WEB, labels={"k": "v" * 4096}), "containers.Labels: label key and value"),
        (replace(WEB, runtime=Runtime(name="")), "container.Runtime.Name must be set"),
        (replace(WEB, spec=None), "container.Spec must be set"),
        (replace(WEB, snapshotter=""), "container.Snapshotter must be set if"),
    ],
)
async def test_an_unsound_container_is_refused(
    store: Store, containers: Containers, container: Container, why: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await containers.create("default", container)
    assert str(refusal.value).startswith(f"create container failed validation: {why}")
    assert str(refusal.value).endswith(": invalid argument")
    assert await topics(store) == []


async def test_a_namespace_is_required_by_each_verb(containers: Containers) -> None:
    with pytest.raises(FailedPrecondition):
        containers.get("", "web")
    with pytest.raises(FailedPrecondition):
        containers.list("")
    for verb in (
        containers.create("", WEB),
        containers.update("", WEB),
        containers.delete("", "web"),
    ):
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            await verb


NEW = replace(
    WEB,
    labels={"tier": "back", "new": "1"},
    image="image",
    snapshot_key="key",
    spec=Opaque(type_url="s", value=b"2"),
    extensions={"y": SPEC},
)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), NEW),
        (("labels",), replace(WEB, labels=NEW.labels)),
        (("labels.new",), replace(WEB, labels={"tier": "front", "new": "1"})),
        (("labels.gone",), WEB),
        (("image", "snapshotkey"), replace(WEB, image="image", snapshot_key="key")),
        (("spec",), replace(WEB, spec=NEW.spec)),
        (("extensions",), replace(WEB, extensions=NEW.extensions)),
        (("extensions.y",), replace(WEB, extensions={**WEB.extensions, "y": SPEC})),
        (("extensions.x",), replace(WEB, extensions={})),
    ],
)
async def test_a_mask_says_what_changes(
    store: Store, containers: Containers, paths: tuple[str, ...], expected: Container
) -> None:
    created = await containers.create("default", WEB)
    updated = await containers.update("default", NEW, paths)
    assert updated == replace(
        expected, created_at=created.created_at, updated_at=updated.updated_at
    )
    assert updated.updated_at > created.updated_at
    assert containers.get("default", "web") == updated
    assert (await topics(store))[-1] == (
        "/containers/update",
        {
            "id": "web",
            "image": expected.image,
            "labels": dict(expected.labels),
            "snapshot_key": expected.snapshot_key,
        },
    )


@pytest.mark.parametrize(
    ("container", "paths", "why"),
    [
        (replace(WEB, id=""), (), "Container.ID required"),
        (replace(WEB, snapshotter="x"), (), "container.Snapshotter field is immutable"),
        (
            replace(WEB, runtime=Runtime(name="x")),
            (),
            "container.Runtime.Name field is immutable",
        ),
        (WEB, ("runtime",), 'cannot update "runtime" field on "web"'),
        (WEB, ("created_at",), 'cannot update "created_at" field on "web"'),
        (replace(WEB, spec=None), ("spec",), "update failed validation: container.Spec must"),
    ],
)
async def test_an_update_is_refused(
    containers: Containers, container: Container, paths: tuple[str, ...], why: str
) -> None:
    created = await containers.create("default", WEB)
    with pytest.raises(InvalidArgument) as refusal:
        await containers.update("default", container, paths)
    assert str(refusal.value).startswith(why)
    assert containers.get("default", "web") == created


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("id==web", ["web"]),
        ("runtime.name==r", ["db"]),
        ("runtime", []),
        ('image~="nginx"', ["web"]),
        ("labels.tier", ["web"]),
        ("labels.tier!=front", ["db"]),
        ("nothing", []),
    ],
)
async def test_lists_are_filtered(containers: Containers, text: str, ids: list[str]) -> None:
    await containers.create("default", WEB)
    await containers.create("default", Container(id="db", runtime=Runtime(name="r"), spec=SPEC))
    assert [container.id for container in containers.list("default", [text])] == ids
    with pytest.raises(Refusal):
        containers.list("default", ["=="])
