"""Namespaces: separate worlds of containers, images, content and snapshots in one store.

A namespace comes into being by `create`, by a label, or with the first object in it; it goes
by `delete` alone, and only when it holds neither images, blobs, containers, snapshots nor active
mounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from .labels import (
    Labels,
    check_identifier,
    check_labels,
    masked_labels,
    quoted,
    stored_labels,
)
from .store import Record, Store, Transaction

# What an emptied namespace may still hold; it goes with it.
GOES_ALONG = ("lease", "lease_resource", "ingest", "sandbox")

# What it may not hold, and what a refusal calls that; snapshots are told by their snapshotter.
REMAIN = (
    ("image", "images"),
    ("content", "blobs"),
    ("container", "containers"),
    ("mount", "mounts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace's name and labels."""

    name: str
    labels: Labels = field(default_factory=dict[str, str])


class Namespaces:
    """The verbs on namespaces."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, name: str) -> Namespace:
        """The namespace; one that does not exist has no labels and is not refused."""
        return _from_record(name, self._store.get("namespace", "", name) or {})

    def list(self) -> Sequence[Namespace]:
        """All namespaces in the order of their names."""
        return [_from_record(row.key, row.value) for row in self._store.scan("namespace", "")]

    async def create(self, name: str, labels: Labels | None = None) -> Namespace:
        """Make a namespace. Refused when it exists or its name is no identifier."""
        labels = labels or {}
        check_identifier(name)
        check_labels("namespace.Labels", labels)

        def work(tx: Transaction) -> Namespace:
            if tx.exists("namespace", "", name):
                raise AlreadyExists(f"namespace {quoted(name)}: already exists")
            tx.put("namespace", "", name, {"labels": stored_labels(labels)})
            _emit(tx, "create", "NamespaceCreate", name, labels)
            return Namespace(name=name, labels=labels)

        return await self._store.write(work)

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Namespace:
        """Replace all labels, or those of `labels.<key>` in `paths`; an empty value deletes.

        A namespace that does not exist comes into being with the first label.
        """
        check_identifier(name)
        for path in paths:
            if not path.startswith("labels."):
                raise InvalidArgument(f"cannot update {quoted(path)} field")
            key = path.removeprefix("labels.")
            check_labels("namespace.Labels", {key: labels.get(key, "")})
        if not paths:
            check_labels("namespace.Labels", labels)

        def work(tx: Transaction) -> Namespace:
            old = tx.get("namespace", "", name)
            kept = masked_labels((old or {}).get("labels", {}), labels, paths)
            if old is not None or labels or paths:
                tx.put("namespace", "", name, {"labels": kept})
            _emit(tx, "update", "NamespaceUpdate", name, labels)
            return Namespace(name=name, labels=kept)

        return await self._store.write(work)

    async def delete(self, name: str) -> None:
        """Delete an empty namespace. The refusal names what is still in it."""

        def work(tx: Transaction) -> None:
            if remains := _remains(tx, name):
                raise FailedPrecondition(
                    f"namespace {quoted(name)} must be empty, but it still has"
                    f" {', '.join(remains)}: failed precondition"
                )
            if not tx.delete("namespace", "", name):
                raise NotFound(f"namespace {quoted(name)}: not found")
            for kind in GOES_ALONG:
                for key in tx.keys(kind, name):
                    tx.delete(kind, name, key)
            tx.emit(name, "/namespaces/delete", "containerd.events.NamespaceDelete", {"name": name})

        await self._store.write(work)


def _remains(tx: Transaction, namespace: str) -> list[str]:
    remains = [word for kind, word in REMAIN if tx.keys(kind, namespace)]
    snapshotters = {key.partition("/")[0] for key in tx.keys("snapshot", namespace)}
    return remains + [f"snapshots on {quoted(name)} snapshotter" for name in sorted(snapshotters)]


def _emit(tx: Transaction, verb: str, event: str, name: str, labels: Labels) -> None:
    tx.emit(
        name,
        f"/namespaces/{verb}",
        f"containerd.events.{event}",
        {"name": name, "labels": dict(labels)},
    )


def _from_record(name: str, record: Record) -> Namespace:
    return Namespace(name=name, labels=record.get("labels", {}))
