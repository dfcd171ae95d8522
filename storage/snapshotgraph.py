"""The graph of one snapshotter's snapshots: its records in the store, and where each one lies.

A record's key is `<snapshotter>/<key or name>`; its directory is `snapshots/<id>`, the id a
number that is never used again while its directory is there. A directory comes to be before
its record and goes after it, so a crash leaves at most a directory without a record.

    record:     prepare.......commit.......remove
    directory: ---make------------------------------(left over)

Invariants: (1) a record's parent is committed. (2) A snapshot with children is not removed.
(3) A committed snapshot's content was on the disk before its record was.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..actors.errors import DataLoss, FailedPrecondition
from .driver import Driver
from .labels import quoted
from .leftovers import Leftovers
from .mounts import Mount
from .snapshotrecord import Index, Place, Snapshot, check_parent
from .snapshotrecords import Records
from .store import Change, Store
from .workers import Workers


class Graph(Records[Snapshot]):
    """What is known of all snapshots of one snapshotter. Read at any time on the loop; changed
    by transactions alone."""

    def __init__(self, store: Store, driver: Driver, root: Path, workers: Workers) -> None:
        super().__init__(store, driver.name, Snapshot.from_record)
        self.name = driver.name
        self.resource_type = f"snapshots/{driver.name}"
        self.driver = driver
        self.workers = workers
        self.home = root / "snapshots"
        self.leftovers = Leftovers(driver.name, self.home, store, workers)
        # Invariant: ids of records whose directories are not on the disk, or not whole.
        self.missing: set[int] = set()
        # Invariant: ids of directories that no record names, kept while records are damaged.
        self.orphans: set[int] = set()
        self.recovered_at_ns = 0
        self._index: Index[int] = Index(self._prefix)
        # Invariant: directories being made, whose records are not written yet.
        self._making: set[int] = set()
        # Invariant: snapshots being prepared upon each parent.
        self._awaited: Counter[Place] = Counter()
        self._next_id = 1
        for row in store.scan("snapshot", None, self._prefix):
            place = Place(row.namespace, row.key.removeprefix(self._prefix))
            self._index.put(place, row.value["id"], row.value["parent"])
        store.listen(self._follow)

    # -- what follows from the records

    def has_record(self, snapshot_id: int) -> bool:
        """Whether a record has this id, or is about to."""
        return snapshot_id in self._making or self._index.has_record(snapshot_id)

    def refuse_parent(self, place: Place) -> None:
        """Refuse to take away what others stand upon, or are about to."""
        if self._index.has_children(place) or self._awaited.get(place):
            raise FailedPrecondition("cannot remove snapshot with child: failed precondition")

    # -- places on the disk

    def directory(self, snapshot_id: int) -> Path:
        """Where a snapshot lies."""
        return self.home / str(snapshot_id)

    def chain(self, namespace: str, parent: str) -> list[Path]:
        """The directories of a parent and of its own parents, the nearest first."""
        chain: list[Path] = []
        name = parent
        while name:
            snapshot = check_parent(name, self.get(Place(namespace, name)))
            chain.append(self.present(snapshot))
            name = snapshot.info.parent
        return chain

    def mounts(self, namespace: str, snapshot: Snapshot) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view, else `DataLoss`: never of nothing."""
        parents = self.chain(namespace, snapshot.info.parent)
        return self.driver.mounts(self.present(snapshot), snapshot.info.kind, parents)

    def present(self, snapshot: Snapshot) -> Path:
        """Where a snapshot lies, else `DataLoss`."""
        directory = self.directory(snapshot.id)
        if snapshot.id in self.missing:
            raise DataLoss(
                f"snapshot {quoted(snapshot.info.name)}: its directory {directory} is lost:"
                " data loss"
            )
        return directory

    # -- directories that come and go

    def reserve_ids(self, used: set[int]) -> None:
        """Give no id out again that a record or a directory has."""
        self._next_id = max(
            self._next_id, max(self._index.ids(), default=0) + 1, *(n + 1 for n in used)
        )

    @contextmanager
    def making(self, parent: Place) -> Generator[int, None, None]:
        """The id of a new snapshot upon `parent`, which is not removed meanwhile.

        Its directory is left over unless its record is written within.
        """
        snapshot_id = self._next_id
        self._next_id += 1
        self._making.add(snapshot_id)
        self._awaited[parent] += 1
        try:
            yield snapshot_id
        finally:
            self._making.discard(snapshot_id)
            self._awaited[parent] -= 1
            if not self._awaited[parent]:
                del self._awaited[parent]
            if not self._index.has_record(snapshot_id):
                # Cancelled within its write, the record may yet come.
                self.leftovers.add([snapshot_id], certain=False)

    def _follow(self, changes: Sequence[Change]) -> None:
        gone = self._index.change(changes)
        self.missing.difference_update(gone)
        lost = [snapshot_id for snapshot_id in gone if snapshot_id not in self._making]
        if lost:
            self.leftovers.add(lost)
