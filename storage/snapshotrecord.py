"""A snapshot's record, and what follows from all records together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .labels import map_field
from .snapshotter import Info, Kind, Usage
from .store import Change, Record


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


class Index:
    """What follows from the records: who has children, which directories have lost their last
    record. Changed with each commit of the store."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._places: dict[Place, tuple[int, str]] = {}
        self._records: Counter[int] = Counter()
        self._children: Counter[Place] = Counter()

    def put(self, place: Place, snapshot_id: int, parent: str) -> None:
        """A record is there, new or changed."""
        self.delete(place)
        self._places[place] = (snapshot_id, parent)
        self._records[snapshot_id] += 1
        if parent:
            self._children[Place(place.namespace, parent)] += 1

    def delete(self, place: Place) -> int | None:
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

    def change(self, changes: Sequence[Change]) -> list[int]:
        """Follow one commit; the ids that no record has any more."""
        touched: set[int] = set()
        for change in changes:
            if change.kind != "snapshot" or not change.key.startswith(self._prefix):
                continue
            place = Place(change.namespace, change.key.removeprefix(self._prefix))
            if change.value is not None:
                self.put(place, change.value["id"], change.value["parent"])
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

    def has_record(self, snapshot_id: int) -> bool:
        """Whether a record has this id."""
        return self._records.get(snapshot_id, 0) > 0

    def id_max(self) -> int:
        """The highest id of a record."""
        return max(self._records, default=0)
