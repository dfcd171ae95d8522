"""The record of a snapshot that another process keeps, and what follows from all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import trio

from .snapshotrecord import Index, Place
from .snapshotrecords import Records
from .snapshotter import Info, Kind
from .store import Change, Record, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSnapshot:
    """A record. `remote` is the other side's name for it. While a commit is under way, `target`
    is the name that it will have there, and `intended` says how it will be known here."""

    info: Info
    remote: str
    target: str = ""
    intended: Info | None = None
    lease: str = ""

    def stamped(self, now_ns: int) -> Self:
        """As it is written first."""
        return replace(self, info=replace(self.info, created_at=now_ns, updated_at=now_ns))

    def relabelled(self, labels: Mapping[str, str], now_ns: int) -> Self:
        """With other labels."""
        return replace(self, info=replace(self.info, labels=labels, updated_at=now_ns))

    def committing(self, name: str, target: str, labels: Mapping[str, str], lease: str) -> Self:
        """About to be committed under a name; `target` is that of the other side."""
        after = Info(kind=Kind.COMMITTED, name=name, parent=self.info.parent, labels=labels)
        return replace(self, target=target, intended=after, lease=lease)

    def committed(self) -> Self:
        """After the commit that was intended."""
        assert self.intended is not None
        return replace(self.undone(), info=self.intended, remote=self.target)

    def undone(self) -> Self:
        """Without the commit that was intended."""
        return replace(self, target="", intended=None, lease="")

    def to_record(self) -> Record:
        """As the store keeps it; a collector reads `parent` and `labels`."""
        record = _info_to(self.info) | {"remote": self.remote}
        if self.intended is not None:
            intended = _info_to(self.intended) | {"name": self.intended.name}
            record |= {"target": self.target, "intended": intended, "lease": self.lease}
        return record

    @classmethod
    def from_record(cls, key: str, record: Record) -> "RemoteSnapshot":
        """What `to_record` gave."""
        intended = record.get("intended")
        return cls(
            info=_info_from(key, record),
            remote=record["remote"],
            target=record.get("target", ""),
            intended=None if intended is None else _info_from(intended["name"], intended),
            lease=record.get("lease", ""),
        )


class RemoteIndex(Records[RemoteSnapshot]):
    """The records of one remote snapshotter. Read at any time on the loop; changed by
    transactions alone."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name, RemoteSnapshot.from_record)
        self._index: Index[str] = Index(self._prefix, id_field="remote")
        # Invariant: what the other side may still have, by its name there, with its namespace.
        self.left_over: dict[str, str] = {}
        self._more = trio.Event()
        for place, snapshot in self.scan(None):
            self._index.put(place, snapshot.remote, snapshot.info.parent)
        store.listen(self._follow)

    def namespaces(self) -> Sequence[str]:
        """Those that have records, or have had them since the start."""
        known = {place.namespace for place, _ in self.scan(None)}
        known.update(row.key for row in self.store.scan("namespace"))
        return sorted(known | set(self.left_over.values()))

    def has_children(self, place: Place) -> bool:
        """Whether some snapshot names this one its parent."""
        return self._index.has_children(place)

    def is_known(self, remote: str) -> bool:
        """Whether a record names this snapshot of the other side."""
        return self._index.has_record(remote)

    def leave(self, name: str, namespace: str) -> None:
        """The other side may have this one, and no record names it."""
        self.left_over.setdefault(name, namespace)
        self._more.set()
        self._more = trio.Event()

    async def wait_left_over(self) -> None:
        """Return when one more is left over."""
        await self._more.wait()

    def _follow(self, changes: Sequence[Change]) -> None:
        for name in self._index.change(changes):
            self.leave(name, name.partition("/")[0])


def _info_to(info: Info) -> dict[str, object]:
    return {
        "kind": info.kind.value,
        "parent": info.parent,
        "labels": dict(info.labels),
        "created_at": info.created_at,
        "updated_at": info.updated_at,
    }


def _info_from(name: str, record: Record) -> Info:
    return Info(
        kind=Kind(record["kind"]),
        name=name,
        parent=record["parent"],
        labels=record["labels"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )
