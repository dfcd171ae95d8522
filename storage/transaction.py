"""A transaction: what a write job sees and changes, in the writer's thread.

A job reads its own changes and those of the jobs before it. When it raises, only its own
changes are undone. Records and events of one job become visible together, once they are on
disk, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cbor2

from ..actors.errors import DataLoss, ResourceExhausted
from .database import Damaged, Database, Journal, Record, Row, decode_record, encode
from .events import Event

# The kinds whose first record brings their namespace into being.
MAKES_NAMESPACE = frozenset(
    {"container", "image", "lease", "content", "snapshot", "ingest", "sandbox", "mount"}
)


# How processes end, and that they are brought back, is recorded also when space is scarce.
ALWAYS_KEPT = frozenset({"task", "exec", "exit", "restart"})


class Change(NamedTuple):
    """One record put (`value`) or deleted (`None`) by a committed job."""

    kind: str
    namespace: str
    key: str
    value: Record | None


@dataclass(slots=True)
class Transaction:
    """Reads and changes records, emits events. Valid only inside its job."""

    _database: Database
    now_ns: int = field(default_factory=time.time_ns)
    """The time of this job, for created_at and updated_at."""
    frugal: bool = False
    """Space is scarce: new records are refused with `ResourceExhausted`."""
    changes: list[Change] = field(default_factory=list[Change])
    events: list[Event] = field(default_factory=list[Event])

    def get(self, kind: str, namespace: str, key: str) -> Record | None:
        """The record, or None. `DataLoss` when it does not verify."""
        row = self._database.connection.execute(
            "SELECT value, checksum FROM record WHERE kind = ? AND namespace = ? AND key = ?",
            (kind, namespace, key),
        ).fetchone()
        return None if row is None else _verified(kind, namespace, key, *row)

    def put(self, kind: str, namespace: str, key: str, value: Record) -> None:
        """Write the record whole. Its namespace comes into being where containerd's would."""
        if self.frugal and kind not in ALWAYS_KEPT and not self.exists(kind, namespace, key):
            raise ResourceExhausted("store: no space left on device")
        if kind in MAKES_NAMESPACE and not self.exists("namespace", "", namespace):
            self._put("namespace", "", namespace, {"labels": {}})
        self._put(kind, namespace, key, value)

    def _put(self, kind: str, namespace: str, key: str, value: Record) -> None:
        data, checksum = encode(value, kind, namespace, key)
        for journal in self._database.journals:
            journal.keys.append((kind, namespace, key))
        self._database.connection.execute(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)",
            (kind, namespace, key, data, checksum),
        )
        # Readers get what the bytes say, not the caller's object: later changes to it stay his.
        self.changes.append(Change(kind, namespace, key, cbor2.loads(data)))

    def delete(self, kind: str, namespace: str, key: str) -> bool:
        """Delete the record; False when there is none."""
        cursor = self._database.connection.execute(
            "DELETE FROM record WHERE kind = ? AND namespace = ? AND key = ?",
            (kind, namespace, key),
        )
        if cursor.rowcount == 0:
            return False
        self.changes.append(Change(kind, namespace, key, None))
        return True

    def scan(self, kind: str, namespace: str | None = None, prefix: str = "") -> Iterator[Row]:
        """The records of a kind, in the order of (namespace, key); all namespaces for None.

        The rows are those of the moment of the call: the job may change them while it walks.
        """
        where, arguments = "kind = ?", [kind]
        if namespace is not None:
            where, arguments = where + " AND namespace = ?", [*arguments, namespace]
        if prefix:
            where, arguments = where + " AND key >= ?", [*arguments, prefix]
        rows = self._database.connection.execute(
            f"SELECT namespace, key, value, checksum FROM record WHERE {where}"
            " ORDER BY namespace, key",
            arguments,
        ).fetchall()
        for row_namespace, key, value, checksum in rows:
            if key.startswith(prefix):
                yield Row(row_namespace, key, _verified(kind, row_namespace, key, value, checksum))

    def keys(self, kind: str, namespace: str, prefix: str = "") -> list[str]:
        """The keys of a kind in one namespace that begin with `prefix`, in order."""
        rows = self._database.connection.execute(
            "SELECT key FROM record WHERE kind = ? AND namespace = ? AND key >= ? ORDER BY key",
            (kind, namespace, prefix),
        )
        return [key for (key,) in rows if key.startswith(prefix)]

    def emit(
        self,
        namespace: str,
        topic: str,
        type_name: str,
        payload: Mapping[str, Any] | bytes,
        *,
        timestamp_ns: int | None = None,
    ) -> int:
        """Write an event and answer its sequence number.

        A map is the payload of one of our own types, by field names; bytes are opaque.
        """
        at_ns = time.time_ns() if timestamp_ns is None else timestamp_ns
        data, checksum = encode(payload, str(at_ns), namespace, topic, type_name)
        cursor = self._database.connection.execute(
            "INSERT INTO event (timestamp_ns, namespace, topic, type, payload, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (at_ns, namespace, topic, type_name, data, checksum),
        )
        assert cursor.lastrowid is not None
        event = Event(
            seq=cursor.lastrowid,
            timestamp_ns=at_ns,
            namespace=namespace,
            topic=topic,
            type_name=type_name,
            payload=cbor2.loads(data),
        )
        self.events.append(event)
        return event.seq

    def keep_journal(self, journal: Journal) -> None:
        """Note in `journal` whatever is put from now on, until it is closed."""
        journals = [one for one in self._database.journals if not one.closed]
        self._database.journals = [*journals, journal]

    def forget_damaged(self, given_up: Iterable[Damaged]) -> None:
        """Throw away these that were set aside as damaged."""
        self._database.forget_damaged(given_up)

    def exists(self, kind: str, namespace: str, key: str) -> bool:
        """True when there is such a record, sound or not."""
        row = self._database.connection.execute(
            "SELECT 1 FROM record WHERE kind = ? AND namespace = ? AND key = ?",
            (kind, namespace, key),
        )
        return row.fetchone() is not None


def _verified(kind: str, namespace: str, key: str, data: bytes, checksum: int) -> Record:
    try:
        return decode_record(data, checksum, kind, namespace, key)
    except DataLoss as error:
        raise DataLoss(f'{kind} "{key}": {error}') from error
