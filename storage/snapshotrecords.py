"""The records of one snapshotter's snapshots, whoever keeps their trees.

A record's key is `<snapshotter>/<key or name>`. Read at any time on the loop; changed by
transactions alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from ..actors.errors import AlreadyExists
from .labels import quoted
from .snapshotrecord import Place, existing
from .snapshotter import Info
from .store import Record, Store, Transaction

# A remote snapshotter's client asks by this label whether a layer is there already.
LABEL_TARGET = "containerd.io/snapshot.ref"


class Kept(Protocol):
    """A snapshot as the store keeps it."""

    @property
    def info(self) -> Info: ...

    def to_record(self) -> Record: ...


K = TypeVar("K", bound=Kept)


class Records(Generic[K]):
    """What the store has of one snapshotter."""

    def __init__(
        self, store: Store, snapshotter: str, from_record: Callable[[str, Record], K]
    ) -> None:
        self.store = store
        self._prefix = f"{snapshotter}/"
        self._from_record = from_record

    def get(self, place: Place) -> K | None:
        """The committed record, or None."""
        record = self.store.get("snapshot", place.namespace, self._prefix + place.key)
        return None if record is None else self._from_record(place.key, record)

    def require(self, place: Place) -> K:
        """The committed record, else `NotFound`."""
        return existing(place.key, self.get(place))

    def scan(self, namespace: str | None) -> Iterator[tuple[Place, K]]:
        """The committed records in the order of their names; all namespaces for None."""
        for row in self.store.scan("snapshot", namespace, self._prefix):
            place = Place(row.namespace, row.key.removeprefix(self._prefix))
            yield place, self._from_record(place.key, row.value)

    def refuse_present(self, place: Place, labels: Mapping[str, str]) -> None:
        """Refuse the key of a layer that is there already, and a key in use."""
        # In this order: a client that hears of its target goes on with that.
        target = labels.get(LABEL_TARGET)
        if target and self.get(Place(place.namespace, target)) is not None:
            raise AlreadyExists(f"target snapshot {quoted(target)}: already exists")
        if self.get(place) is not None:
            raise AlreadyExists(f"snapshot {quoted(place.key)}: already exists")

    # -- within a transaction

    def find_in(self, tx: Transaction, place: Place) -> K | None:
        """The record as the transaction sees it, or None."""
        record = tx.get("snapshot", place.namespace, self._prefix + place.key)
        return None if record is None else self._from_record(place.key, record)

    def require_in(self, tx: Transaction, place: Place) -> K:
        """The record as the transaction sees it, else `NotFound`."""
        return existing(place.key, self.find_in(tx, place))

    def put_in(self, tx: Transaction, place: Place, snapshot: K) -> None:
        """Write the record, new or changed."""
        tx.put("snapshot", place.namespace, self._prefix + place.key, snapshot.to_record())

    def delete_in(self, tx: Transaction, place: Place) -> None:
        """Delete the record; what it stood for is left over when no other stands for it."""
        tx.delete("snapshot", place.namespace, self._prefix + place.key)
