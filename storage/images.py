"""Images: names for content. An image is a record: a name, the descriptor of its target, labels.

The content itself is pulled, stored and collected by others; the collector keeps what an image
refers to, directly and through labels of the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..actors.errors import AlreadyExists, InvalidArgument, NotFound
from .descriptor import Descriptor
from .digest import Digest, fault_of_digest
from .expiry import EXPIRE_LABEL, stamp_if_expiring
from .filters import compile_wrapped
from .labels import (
    Labels,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
    stored_labels,
)
from .leases import lease_resource, release_resource
from .store import Record, Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image record. Times in nanoseconds since 1970; the store sets them."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict[str, str])
    created_at: int = 0
    updated_at: int = 0


class Images:
    """The verbs on images."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, namespace: str, name: str) -> Image:
        """The image, or `NotFound`."""
        check_namespace(namespace)
        record = self._store.get("image", namespace, name)
        if record is None:
            raise NotFound(f"image {quoted(name)}: not found")
        return image_from_record(name, record)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Image]:
        """The images that match, in the order of their names."""
        check_namespace(namespace)
        accepts = compile_wrapped(filters)
        rows = self._store.scan("image", namespace)
        images = [image_from_record(row.key, row.value) for row in rows]
        return [image for image in images if accepts(partial(image_field, image))]

    async def create(
        self, namespace: str, image: Image, *, lease: str = "", at_ns: int | None = None
    ) -> Image:
        """Name a target. Refused when the name exists. `at_ns` replaces the time of day.

        An image that expires is held by the request's lease.
        """
        check_namespace(namespace)
        if not image.name:
            raise InvalidArgument("Image.Name required")

        def work(tx: Transaction) -> Image:
            check_image(image)
            _lease_if_expiring(tx, namespace, lease, image)
            if tx.exists("image", namespace, image.name):
                raise AlreadyExists(f"image {quoted(image.name)}: already exists")
            now_ns = tx.now_ns if at_ns is None else at_ns
            created = _kept(replace(image, created_at=now_ns, updated_at=now_ns))
            record = {**_to_record(created), **stamp_if_expiring(created.labels)}
            tx.put("image", namespace, image.name, record)
            _emit(tx, namespace, "create", "ImageCreate", created)
            return created

        return await self._store.write(work)

    async def update(
        self,
        namespace: str,
        image: Image,
        paths: Sequence[str] = (),
        *,
        lease: str = "",
        at_ns: int | None = None,
    ) -> Image:
        """Change target, labels or annotations: all without `paths`, else those named.

        Paths: `labels`, `labels.<key>`, `target`, `annotations`, `annotations.<key>`.
        """
        check_namespace(namespace)
        if not image.name:
            raise InvalidArgument("Image.Name required")

        def work(tx: Transaction) -> Image:
            record = tx.get("image", namespace, image.name)
            if record is None:
                raise NotFound(f"image {quoted(image.name)}: not found")
            old = image_from_record(image.name, record)
            masked = masked_image(old, image, paths) if paths else image
            check_image(masked)
            _lease_if_expiring(tx, namespace, lease, masked)
            now_ns = tx.now_ns if at_ns is None else at_ns
            updated = _kept(replace(masked, created_at=old.created_at, updated_at=now_ns))
            stamped = stamp_if_expiring(updated.labels, record)
            tx.put("image", namespace, image.name, {**_to_record(updated), **stamped})
            _emit(tx, namespace, "update", "ImageUpdate", updated)
            return updated

        return await self._store.write(work)

    async def put(self, namespace: str, image: Image) -> Image:
        """Name a target; a name that exists points to it afterwards, and keeps its other labels."""
        check_namespace(namespace)
        check_image(image)
        return await self._store.write(lambda tx: _put(tx, namespace, image))

    async def tag(self, namespace: str, source: str, name: str) -> Image:
        """Give an image a further name, or let that name point to it from now on."""
        check_namespace(namespace)

        def work(tx: Transaction) -> Image:
            record = tx.get("image", namespace, source)
            if record is None:
                raise NotFound(f"image {quoted(source)}: not found")
            target = image_from_record(source, record).target
            tagged = Image(name=name, target=target)
            check_image(tagged)
            return _put(tx, namespace, tagged)

        return await self._store.write(work)

    async def delete(
        self, namespace: str, name: str, *, target_digest: str = "", lease: str = ""
    ) -> None:
        """Forget a name; with `target_digest` only when that is still its target.

        What only this name held is collected by the next garbage collection.
        """
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            record = tx.get("image", namespace, name)
            if record is None:
                raise NotFound(f"image {quoted(name)}: not found")
            target = record["target"]["digest"]
            if target_digest and target_digest != target:
                raise NotFound(
                    f"image {quoted(name)} has target {target}, not {target_digest}: not found"
                )
            release_resource(tx, namespace, lease, "images", name)
            delete_image(tx, namespace, name)

        await self._store.write(work)


def delete_image(tx: Transaction, namespace: str, name: str) -> None:
    """Delete the record and tell of it."""
    tx.delete("image", namespace, name)
    event = "containerd.services.images.v1.ImageDelete"
    tx.emit(namespace, "/images/delete", event, {"name": name})


def masked_image(old: Image, new: Image, paths: Sequence[str]) -> Image:
    """The image after an update of `paths`, in their order."""
    result = old
    for path in paths:
        head, _, key = path.partition(".")
        match head, key:
            case "labels", _:
                labels = masked_labels(result.labels, new.labels, [path])
                result = replace(result, labels=labels)
            case "target", "":
                result = replace(result, target=new.target)
            case "annotations", "":
                target = replace(result.target, annotations=new.target.annotations)
                result = replace(result, target=target)
            case "annotations", _:
                value = new.target.annotations.get(key, "")
                annotations = {**result.target.annotations, key: value}
                result = replace(result, target=replace(result.target, annotations=annotations))
            case _:
                raise InvalidArgument(
                    f"cannot update {quoted(path)} field on image {quoted(new.name)}:"
                    " invalid argument"
                )
    return result


def check_image(image: Image) -> None:
    """Refuse an image that may not be stored."""
    if not image.name:
        raise InvalidArgument("image name must not be empty: invalid argument")
    check_labels("image.Labels", image.labels)
    if fault := fault_of_digest(image.target.digest):
        raise InvalidArgument(
            f"Target.Digest {quoted(image.target.digest)} invalid: {fault}: invalid argument"
        )
    if image.target.size <= 0:
        raise InvalidArgument("Target.Size must be greater than zero: invalid argument")
    if not image.target.media_type:
        raise InvalidArgument("Target.MediaType must be set: invalid argument")


def image_field(image: Image, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of an image."""
    match path:
        case ["name", *_]:
            return image.name, bool(image.name)
        case ["target", "digest", *_]:
            return image.target.digest, bool(image.target.digest)
        case ["target", "mediatype", *_]:
            return image.target.media_type, bool(image.target.media_type)
        case ["labels", *rest]:
            return map_field(image.labels, rest)
        case ["annotations", *rest]:
            return map_field(image.target.annotations, rest)
        case _:
            return "", False


def image_from_record(name: str, record: Record) -> Image:
    """The image that a stored record is."""
    target = record["target"]
    return Image(
        name=name,
        target=Descriptor(
            media_type=target["media_type"],
            digest=Digest(target["digest"]),
            size=target["size"],
            annotations=target["annotations"],
        ),
        labels=record["labels"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )


def _to_record(image: Image) -> Record:
    target = image.target
    return {
        "target": {
            "media_type": target.media_type,
            "digest": target.digest,
            "size": target.size,
            "annotations": dict(target.annotations),
        },
        "labels": dict(image.labels),
        "created_at": image.created_at,
        "updated_at": image.updated_at,
    }


def _kept(image: Image) -> Image:
    target = replace(image.target, annotations=stored_labels(image.target.annotations))
    return replace(image, labels=stored_labels(image.labels), target=target)


def _put(tx: Transaction, namespace: str, image: Image) -> Image:
    record = tx.get("image", namespace, image.name)
    old = None if record is None else image_from_record(image.name, record)
    made = _kept(
        replace(
            image,
            labels={**({} if old is None else old.labels), **image.labels},
            created_at=tx.now_ns if old is None else old.created_at,
            updated_at=tx.now_ns,
        )
    )
    stamped = stamp_if_expiring(made.labels, record) if record else stamp_if_expiring(made.labels)
    tx.put("image", namespace, made.name, {**_to_record(made), **stamped})
    verb, event = ("create", "ImageCreate") if old is None else ("update", "ImageUpdate")
    _emit(tx, namespace, verb, event, made)
    return made


def _lease_if_expiring(tx: Transaction, namespace: str, lease: str, image: Image) -> None:
    if EXPIRE_LABEL in image.labels:
        lease_resource(tx, namespace, lease, "images", image.name)


def _emit(tx: Transaction, namespace: str, verb: str, event: str, image: Image) -> None:
    tx.emit(
        namespace,
        f"/images/{verb}",
        f"containerd.services.images.v1.{event}",
        {"name": image.name, "labels": dict(image.labels)},
    )
