"""Image records are kept, changed by mask, leased and refused as containerd does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from holdfast.storage.descriptor import Descriptor
from holdfast.storage.expiry import EXPIRE_LABEL
from holdfast.storage.images import Image, Images
from holdfast.storage.leases import Leases, Resource
from holdfast.storage.store import Store

DIGEST = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TARGET = Descriptor(media_type=MANIFEST, digest=DIGEST, size=7, annotations={"a": "1"})
BUSYBOX = Image(name="busybox", target=TARGET, labels={"l": "1"})


@pytest.fixture
def images(store: Store) -> Images:
    return Images(store)


async def topics(store: Store) -> list[tuple[str, Any]]:
    return [(event.topic, event.payload) for event in await store.events.read(0)]


async def test_an_image_is_kept_as_it_was_given(store: Store, images: Images) -> None:
    created = await images.create("default", replace(BUSYBOX, labels={"l": "1", "no": ""}))
    assert created.created_at == created.updated_at > 1_500_000_000_000_000_000
    assert replace(created, created_at=0, updated_at=0) == BUSYBOX
    assert images.get("default", "busybox") == created
    assert images.list("default") == [created]
    await images.delete("default", "busybox")
    assert images.list("default") == []
    assert await topics(store) == [
        ("/images/create", {"name": "busybox", "labels": {"l": "1"}}),
        ("/images/delete", {"name": "busybox"}),
    ]


async def test_a_name_is_put_whether_it_exists_or_not(store: Store, images: Images) -> None:
    put = await images.put("default", BUSYBOX)
    moved = replace(BUSYBOX, target=replace(TARGET, digest=OTHER), labels={"m": "2"})
    moved = await images.put("default", moved)
    assert images.list("default") == [moved]
    assert (moved.target.digest, moved.labels) == (OTHER, {"l": "1", "m": "2"})
    assert moved.created_at == put.created_at < moved.updated_at
    tagged = await images.tag("default", "busybox", "other")
    assert (tagged.target, tagged.labels) == (moved.target, {})
    assert [topic for topic, _ in await topics(store)] == [
        "/images/create",
        "/images/update",
        "/images/create",
    ]
    with pytest.raises(NotFound, match='image "never": not found'):
        await images.tag("default", "never", "other")
    with pytest.raises(InvalidArgument, match="name must not be empty"):
        await images.tag("default", "busybox", "")


async def test_an_epoch_replaces_the_time_of_day(images: Images) -> None:
    created = await images.create("default", BUSYBOX, at_ns=5)
    assert (created.created_at, created.updated_at) == (5, 5)
    updated = await images.update("default", BUSYBOX, at_ns=9)
    assert (updated.created_at, updated.updated_at) == (5, 9)


async def test_what_is_missing_is_not_found(images: Images) -> None:
    why = '^image "busybox": not found$'
    with pytest.raises(NotFound, match=why):
        images.get("default", "busybox")
    with pytest.raises(NotFound, match=why):
        await images.update("default", BUSYBOX)
    with pytest.raises(NotFound, match=why):
        await images.delete("default", "busybox")


async def test_a_name_is_taken_once_in_a_namespace(images: Images) -> None:
    await images.create("one", BUSYBOX)
    await images.create("two", BUSYBOX)
    with pytest.raises(AlreadyExists, match=r'^image "busybox": already exists$'):
        await images.create("one", BUSYBOX)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (replace(BUSYBOX, name=""), "Image.Name required"),
        (replace(BUSYBOX, labels={"k": "v" * 4096}), "image.Labels: label key and value"),
        (
            replace(BUSYBOX, target=replace(TARGET, digest="x")),
            'Target.Digest "x" invalid: invalid checksum digest format: invalid argument',
        ),
        (
            replace(BUSYBOX, target=replace(TARGET, size=0)),
            "Target.Size must be greater than zero: invalid argument",
        ),
        (
            replace(BUSYBOX, target=replace(TARGET, media_type="")),
            "Target.MediaType must be set: invalid argument",
        ),
    ],
)
async def test_an_unsound_image_is_refused(
    store: Store, images: Images, image: Image, why: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await images.create("default", image)
    assert str(refusal.value).startswith(why)
    assert await topics(store) == []
    await images.create("default", BUSYBOX)
    with pytest.raises(InvalidArgument):
        await images.update("default", image)


async def test_a_namespace_is_required_by_each_verb(images: Images) -> None:
    with pytest.raises(FailedPrecondition):
        images.get("", "busybox")
    with pytest.raises(FailedPrecondition):
        images.list("")
    for verb in (
        images.create("", BUSYBOX),
        images.update("", BUSYBOX),
        images.delete("", "busybox"),
    ):
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            await verb


NEW = Image(
    name="busybox",
    target=Descriptor(media_type="m", digest=OTHER, size=9, annotations={"b": "2"}),
    labels={"n": "2"},
)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ((), NEW),
        (("labels",), replace(BUSYBOX, labels=NEW.labels)),
        (("labels.n",), replace(BUSYBOX, labels={"l": "1", "n": "2"})),
        (("labels.l",), replace(BUSYBOX, labels={})),
        (("target",), replace(BUSYBOX, target=NEW.target)),
        (("annotations",), replace(BUSYBOX, target=replace(TARGET, annotations={"b": "2"}))),
        (
            ("annotations.b",),
            replace(BUSYBOX, target=replace(TARGET, annotations={"a": "1", "b": "2"})),
        ),
        (("annotations.a",), replace(BUSYBOX, target=replace(TARGET, annotations={}))),
    ],
)
async def test_a_mask_says_what_changes(
    store: Store, images: Images, paths: tuple[str, ...], expected: Image
) -> None:
    created = await images.create("default", BUSYBOX)
    updated = await images.update("default", NEW, paths)
    assert updated == replace(
        expected, created_at=created.created_at, updated_at=updated.updated_at
    )
    assert images.get("default", "busybox") == updated
    assert (await topics(store))[-1] == (
        "/images/update",
        {"name": "busybox", "labels": dict(expected.labels)},
    )


async def test_an_unknown_field_is_not_updated(images: Images) -> None:
    await images.create("default", BUSYBOX)
    with pytest.raises(InvalidArgument, match=r'^cannot update "name" field on image "busybox": '):
        await images.update("default", BUSYBOX, ["name"])


async def test_a_delete_may_be_guarded_by_the_target(images: Images) -> None:
    await images.create("default", BUSYBOX)
    with pytest.raises(NotFound) as refusal:
        await images.delete("default", "busybox", target_digest=OTHER)
    assert str(refusal.value) == f'image "busybox" has target {DIGEST}, not {OTHER}: not found'
    await images.delete("default", "busybox", target_digest=DIGEST)


async def test_an_image_that_expires_is_held_by_the_lease(store: Store, images: Images) -> None:
    leases = Leases(store)
    await leases.create("default", "lease")
    expiring = replace(BUSYBOX, labels={EXPIRE_LABEL: "2030-01-01T00:00:00Z"})
    await images.create("default", replace(BUSYBOX, name="stays"), lease="lease")
    assert leases.list_resources("default", "lease") == []
    await images.create("default", expiring, lease="lease")
    assert leases.list_resources("default", "lease") == [Resource(type="images", id="busybox")]
    await images.delete("default", "busybox", lease="lease")
    assert leases.list_resources("default", "lease") == []
    with pytest.raises(NotFound, match=r"^lease does not exist: not found$"):
        await images.create("default", expiring, lease="none")
    with pytest.raises(NotFound):
        images.get("default", "busybox")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name==busybox", ["busybox"]),
        (f'target.digest=="{OTHER}"', ["other"]),
        ("target.mediatype==m", ["other"]),
        ("target", []),
        ("labels.l==1", ["busybox"]),
        ("annotations.b", ["other"]),
        ("nothing", []),
    ],
)
async def test_lists_are_filtered(images: Images, text: str, names: list[str]) -> None:
    await images.create("default", BUSYBOX)
    await images.create("default", replace(NEW, name="other"))
    assert [image.name for image in images.list("default", [text])] == names
