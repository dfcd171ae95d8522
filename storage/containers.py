"""Containers: records of what is to run. A container is metadata; a task makes it run.

Invariants: (1) id, runtime and snapshotter never change. (2) A record with a snapshot key has a
snapshotter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..actors.errors import AlreadyExists, InvalidArgument, NotFound
from .filters import compile_wrapped
from .labels import (
    Labels,
    check_identifier,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
    stored_labels,
)
from .store import Record, Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """A message of somebody else's type, as protobuf's Any carries it."""

    type_url: str
    value: bytes


Extensions = Mapping[str, Opaque]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Which runtime runs the container, and with which options."""

    name: str
    options: Opaque | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container record. Times in nanoseconds since 1970; the store sets them."""

    id: str
    runtime: Runtime
    spec: Opaque | None
    labels: Labels = field(default_factory=dict[str, str])
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    extensions: Extensions = field(default_factory=dict[str, Opaque])
    sandbox: str = ""
    created_at: int = 0
    updated_at: int = 0


class Containers:
    """The verbs on containers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, namespace: str, container_id: str) -> Container:
        """The container, or `NotFound`."""
        check_namespace(namespace)
        record = self._store.get("container", namespace, container_id)
        if record is None:
            raise NotFound(
                f"container {quoted(container_id)} in namespace {quoted(namespace)}: not found"
            )
        return container_from_record(container_id, record)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Container]:
        """The containers that match, in the order of their ids."""
        check_namespace(namespace)
        accepts = compile_wrapped(filters)
        rows = self._store.scan("container", namespace)
        containers = [container_from_record(row.key, row.value) for row in rows]
        return [
            container for container in containers if accepts(partial(container_field, container))
        ]

    async def create(self, namespace: str, container: Container) -> Container:
        """Keep a new container. Refused when the id exists or the record is not sound."""
        check_namespace(namespace)
        try:
            check_container(container)
        except InvalidArgument as error:
            raise InvalidArgument(f"create container failed validation: {error}") from error

        def work(tx: Transaction) -> Container:
            if tx.exists("container", namespace, container.id):
                raise AlreadyExists(f"container {quoted(container.id)}: already exists")
            created = replace(
                container,
                labels=stored_labels(container.labels),
                created_at=tx.now_ns,
                updated_at=tx.now_ns,
            )
            tx.put("container", namespace, container.id, _to_record(created))
            _emit_create(tx, namespace, created)
            return created

        return await self._store.write(work)

    async def update(
        self, namespace: str, container: Container, paths: Sequence[str] = ()
    ) -> Container:
        """Change what may change: all of it without `paths`, else what they name.

        Paths: `labels`, `labels.<key>`, `spec`, `extensions`, `extensions.<key>`, `image`,
        `snapshotkey`.
        """
        check_namespace(namespace)
        if not container.id:
            raise InvalidArgument("Container.ID required")

        def work(tx: Transaction) -> Container:
            record = tx.get("container", namespace, container.id)
            if record is None:
                raise NotFound(f"container {quoted(container.id)}: not found")
            old = container_from_record(container.id, record)
            masked = masked_container(old, container, paths)
            try:
                check_container(masked)
            except InvalidArgument as error:
                raise InvalidArgument(f"update failed validation: {error}") from error
            updated = replace(masked, updated_at=tx.now_ns)
            tx.put("container", namespace, container.id, _to_record(updated))
            _emit_update(tx, namespace, updated)
            return updated

        return await self._store.write(work)

    async def delete(self, namespace: str, container_id: str) -> None:
        """Forget a container. Its task and snapshot are the caller's to remove."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            if not tx.delete("container", namespace, container_id):
                raise NotFound(f"container {container_id}: not found")
            tx.emit(
                namespace,
                "/containers/delete",
                "containerd.events.ContainerDelete",
                {"id": container_id},
            )

        await self._store.write(work)


def relabel(tx: Transaction, namespace: str, container_id: str, labels: Labels) -> None:
    """In a transaction of others: set these labels of a container; `NotFound` without it."""
    record = tx.get("container", namespace, container_id)
    if record is None:
        raise NotFound(f"container {quoted(container_id)}: not found")
    old = container_from_record(container_id, record)
    changed = replace(old, labels=stored_labels({**old.labels, **labels}), updated_at=tx.now_ns)
    tx.put("container", namespace, container_id, _to_record(changed))
    _emit_update(tx, namespace, changed)


MUTABLE = ("labels", "spec", "extensions", "image", "snapshotkey")


def masked_container(old: Container, new: Container, paths: Sequence[str]) -> Container:
    """The container after an update of `paths`, in their order; of all that may change without."""
    if not paths:
        if old.snapshotter != new.snapshotter:
            raise InvalidArgument("container.Snapshotter field is immutable: invalid argument")
        if old.runtime.name != new.runtime.name:
            raise InvalidArgument("container.Runtime.Name field is immutable: invalid argument")
    result = old
    for path in paths or MUTABLE:
        head, _, key = path.partition(".")
        match head, key:
            case "labels", _:
                labels = masked_labels(result.labels, new.labels, [path])
                result = replace(result, labels=labels)
            case "extensions", _:
                extensions = masked_extensions(result.extensions, new.extensions, key)
                result = replace(result, extensions=extensions)
            case "spec", "":
                result = replace(result, spec=new.spec)
            case "image", "":
                result = replace(result, image=new.image)
            case "snapshotkey", "":
                result = replace(result, snapshot_key=new.snapshot_key)
            case _:
                raise InvalidArgument(
                    f"cannot update {quoted(path)} field on {quoted(new.id)}: invalid argument"
                )
    return result


def masked_extensions(old: Extensions, new: Extensions, key: str) -> Extensions:
    """The extensions after an update of one of them, or without a key of all."""
    if not key:
        return new
    kept = {name: one for name, one in old.items() if name != key}
    return {**kept, key: new[key]} if key in new else kept


def check_container(container: Container) -> None:
    """Refuse a container that may not be stored."""
    try:
        check_identifier(container.id)
    except InvalidArgument as error:
        raise InvalidArgument(f"container.ID: {error}") from error
    if "" in container.extensions:
        raise InvalidArgument("container.Extension keys must not be zero-length: invalid argument")
    check_labels("containers.Labels", container.labels)
    if not container.runtime.name:
        raise InvalidArgument("container.Runtime.Name must be set: invalid argument")
    if container.spec is None:
        raise InvalidArgument("container.Spec must be set: invalid argument")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument(
            "container.Snapshotter must be set if container.SnapshotKey is set: invalid argument"
        )


def container_field(container: Container, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of a container."""
    match path:
        case ["id", *_]:
            return container.id, bool(container.id)
        case ["runtime", "name", *_]:
            return container.runtime.name, bool(container.runtime.name)
        case ["image", *_]:
            return container.image, bool(container.image)
        case ["labels", *rest]:
            return map_field(container.labels, rest)
        case _:
            return "", False


def container_from_record(container_id: str, record: Record) -> Container:
    """The container that a stored record is."""
    return Container(
        id=container_id,
        runtime=runtime_from(record["runtime"]),
        spec=opaque_from(record["spec"]),
        labels=record["labels"],
        image=record["image"],
        snapshotter=record["snapshotter"],
        snapshot_key=record["snapshot_key"],
        extensions=extensions_from(record["extensions"]),
        sandbox=record["sandbox"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )


def _to_record(container: Container) -> Record:
    return {
        "runtime": runtime_to(container.runtime),
        "spec": opaque_to(container.spec),
        "labels": dict(container.labels),
        "image": container.image,
        "snapshotter": container.snapshotter,
        "snapshot_key": container.snapshot_key,
        "extensions": extensions_to(container.extensions),
        "sandbox": container.sandbox,
        "created_at": container.created_at,
        "updated_at": container.updated_at,
    }


def opaque_from(record: Record | None) -> Opaque | None:
    """What `opaque_to` gave."""
    return None if record is None else Opaque(type_url=record["type_url"], value=record["value"])


def opaque_to(opaque: Opaque | None) -> dict[str, object] | None:
    """As plain values, for a record."""
    return None if opaque is None else {"type_url": opaque.type_url, "value": opaque.value}


def runtime_from(record: Record) -> Runtime:
    """What `runtime_to` gave."""
    return Runtime(name=record["name"], options=opaque_from(record["options"]))


def runtime_to(runtime: Runtime) -> Record:
    """As plain values, for a record."""
    return {"name": runtime.name, "options": opaque_to(runtime.options)}


def extensions_from(record: Record) -> Extensions:
    """What `extensions_to` gave."""
    return {
        key: Opaque(type_url=one["type_url"], value=one["value"]) for key, one in record.items()
    }


def extensions_to(extensions: Extensions) -> Record:
    """As plain values, for a record."""
    return {key: opaque_to(one) for key, one in extensions.items()}


def _emit_create(tx: Transaction, namespace: str, container: Container) -> None:
    runtime: dict[str, object] = {"name": container.runtime.name}
    if container.runtime.options is not None:
        runtime["options"] = opaque_to(container.runtime.options)
    tx.emit(
        namespace,
        "/containers/create",
        "containerd.events.ContainerCreate",
        {"id": container.id, "image": container.image, "runtime": runtime},
    )


def _emit_update(tx: Transaction, namespace: str, container: Container) -> None:
    tx.emit(
        namespace,
        "/containers/update",
        "containerd.events.ContainerUpdate",
        {
            "id": container.id,
            "image": container.image,
            "labels": dict(container.labels),
            "snapshot_key": container.snapshot_key,
        },
    )
