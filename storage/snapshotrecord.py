"""A snapshot's record, and what follows from all records together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..actors.errors import FailedPrecondition, InvalidArgument, NotFound
from .labels import map_field, quoted
from .snapshotter import Info, Kind, Usage
from .store import Change, Record, Transaction


class Place(NamedTuple):
    """Where a snapshot is known: its namespace, its key or name."""

    namespace: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A record with what only this file needs of it."""

    id: int
    info: Info
    usage: Usage = field(default_factory=Usage)

    def to_record(self) -> Record:
        """As the store keeps it."""
        return {
            "id": self.id,
            "kind": self.info.kind.value,
            "parent": self.info.parent,
            "labels": dict(self.info.labels),
            "created_at": self.info.created_at,
            "updated_at": self.info.updated_at,
            "inodes": self.usage.inodes,
            "size_bytes": self.usage.size_bytes,
        }

    @classmethod
    def from_record(cls, key: str, record: Record) -> "Snapshot":
        """What `to_record` gave."""
        return cls(
            id=record["id"],
            info=Info(
                kind=Kind(record["kind"]),
                name=key,
                parent=record["parent"],
                labels=record["labels"],
                created_at=record["created_at"],
                updated_at=record["updated_at"],
            ),
            usage=Usage(inodes=record["inodes"], size_bytes=record["size_bytes"]),
        )


def snapshot_field(info: Info, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of a snapshot."""
    match path:
        case ["kind"]:
            return info.kind.value, True
        case ["name"]:
            return info.name, True
        case ["parent"]:
            return info.parent, True
        case ["labels", *rest]:
            return map_field(info.labels, rest)
        case _:
            return "", False


class Known(Protocol):
    """A record of any snapshotter."""

    @property
    def info(self) -> Info: ...


K = TypeVar("K", bound=Known)
Id = TypeVar("Id", int, str)


def existing(key: str, snapshot: K | None) -> K:
    """The snapshot, if it is there."""
    if snapshot is None:
        raise NotFound(f"snapshot {key} does not exist: not found")
    return snapshot


def check_parent(name: str, parent: K | None) -> K:
    """The parent, if it is there and may have children."""
    if parent is None:
        raise NotFound(f"parent snapshot {name} does not exist: not found")
    if parent.info.kind is not Kind.COMMITTED:
        raise InvalidArgument(f"parent {quoted(name)} is not committed snapshot: invalid argument")
    return parent


def check_active(snapshot: Known) -> None:
    """Refuse a view or a committed snapshot."""
    if snapshot.info.kind is not Kind.ACTIVE:
        raise FailedPrecondition(
            f"snapshot {quoted(snapshot.info.name)} is not active: failed precondition"
        )


def tell_prepared(tx: Transaction, namespace: str, snapshotter: str, key: str, parent: str) -> None:
    """An active snapshot is there."""
    payload = {"key": key, "parent": parent, "snapshotter": snapshotter}
    tx.emit(namespace, "/snapshot/prepare", "containerd.events.SnapshotPrepare", payload)


def tell_committed(tx: Transaction, namespace: str, snapshotter: str, key: str, name: str) -> None:
    """An active snapshot is committed."""
    payload = {"key": key, "name": name, "snapshotter": snapshotter}
    tx.emit(namespace, "/snapshot/commit", "containerd.events.SnapshotCommit", payload)


def tell_removed(tx: Transaction, namespace: str, snapshotter: str, key: str) -> None:
    """A snapshot is gone."""
    payload = {"key": key, "snapshotter": snapshotter}
    tx.emit(namespace, "/snapshot/remove", "containerd.events.SnapshotRemove", payload)


class Index(Generic[Id]):
    """What follows from the records: who has children, which ids, of directories or of another
    process's snapshots, have lost their last record. Changed with each commit of the store."""

    def __init__(self, prefix: str, id_field: str = "id") -> None:
        self._prefix = prefix
        self._id_field = id_field
        self._places: dict[Place, tuple[Id, str]] = {}
        self._records: Counter[Id] = Counter()
        self._children: Counter[Place] = Counter()

    def put(self, place: Place, snapshot_id: Id, parent: str) -> None:
        """A record is there, new or changed."""
        self.delete(place)
        self._places[place] = (snapshot_id, parent)
        self._records[snapshot_id] += 1
        if parent:
            self._children[Place(place.namespace, parent)] += 1

    def delete(self, place: Place) -> Id | None:
        """A record is gone; its id, if it was there."""
        known = self._places.pop(place, None)
        if known is None:
            return None
        snapshot_id, parent = known
        self._records[snapshot_id] -= 1
        if parent:
            parent_place = Place(place.namespace, parent)
            self._children[parent_place] -= 1
            if not self._children[parent_place]:
                del self._children[parent_place]
        return snapshot_id

    def change(self, changes: Sequence[Change]) -> list[Id]:
        """Follow one commit; the ids that no record has any more."""
        touched: set[Id] = set()
        for change in changes:
            if change.kind != "snapshot" or not change.key.startswith(self._prefix):
                continue
            place = Place(change.namespace, change.key.removeprefix(self._prefix))
            if change.value is not None:
                self.put(place, change.value[self._id_field], change.value["parent"])
            else:
                gone = self.delete(place)
                if gone is not None:
                    touched.add(gone)
        lost = sorted(snapshot_id for snapshot_id in touched if not self._records[snapshot_id])
        for snapshot_id in lost:
            del self._records[snapshot_id]
        return lost

    def has_children(self, place: Place) -> bool:
        """Whether some snapshot names this one its parent."""
        return self._children[place] > 0 if place in self._children else False

    def has_record(self, snapshot_id: Id) -> bool:
        """Whether a record has this id."""
        return self._records.get(snapshot_id, 0) > 0

    def ids(self) -> Iterable[Id]:
        """Every id of a record."""
        return self._records
