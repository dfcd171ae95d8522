"""The database: one SQLite file with the records, the events and what was found damaged.

Only the writer's thread holds a `Database`; the loop reads from memory (`models.py`) and, for
events that have left memory, through `EventRows`, a read-only connection of its own.

    record   (kind, namespace, key) -> CBOR value and its checksum
    event    seq -> timestamp, namespace, topic, type, CBOR payload and its checksum
    damaged  what did not verify when the database was opened, kept for repair

Invariants: (1) a row that does not verify never stops the opening: it moves to `damaged`;
where the file itself is damaged, `salvage.py` makes a new one of what can be read.
(2) A database of a newer schema is refused and left untouched. (3) One process at a time:
the lock file beside the database is held while it is open.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cbor2

from ..actors.errors import DataLoss
from .events import Event, gap

SCHEMA_VERSION = 1
PLAUSIBLE_VERSIONS = 10_000  # beyond these the number itself is damaged
APPLICATION_ID = 0x486F6C64  # "Hold"
CBOR_MAP = 5  # the major type, in a value's first three bits: RFC 8949, section 3.1

SCHEMA = """
CREATE TABLE record (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, key)
) WITHOUT ROWID;
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, timestamp_ns INTEGER NOT NULL,
    namespace TEXT NOT NULL, topic TEXT NOT NULL, type TEXT NOT NULL,
    payload BLOB NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE damaged (
    kind TEXT, namespace TEXT, key TEXT, value BLOB,
    reason TEXT NOT NULL, found_at_ns INTEGER NOT NULL
);
"""

Record = Mapping[str, Any]
"""A stored value: text keys, CBOR-able values. Read only: copy before changing."""


class Row(NamedTuple):
    """One record as lists give it."""

    namespace: str
    key: str
    value: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A record that did not verify when the store was opened, and why. What a salvage could not
    read is one without kind, namespace and key."""

    number: int
    kind: str
    namespace: str
    key: str
    reason: str
    found_at_ns: int


class SchemaTooNew(Exception):
    """A newer Holdfast wrote this database; this one leaves it alone."""


class StoreLocked(Exception):
    """Another process, or the store's previous life, still holds the database."""


def encode(value: object, *names: str) -> tuple[bytes, int]:
    """The bytes of a value, and the checksum of them and of the names they are kept under."""
    data = cbor2.dumps(value)
    return data, checksum_of(data, names)


def checksum_of(data: bytes, names: Sequence[str]) -> int:
    """The checksum of a row: a value under a wrong name is as damaged as a wrong value."""
    return zlib.crc32(data, zlib.crc32("\0".join(names).encode()))


def decode(data: bytes, checksum: int, *names: str) -> Any:
    """The value of stored bytes; `DataLoss` when they are not what was written."""
    try:
        if checksum_of(data, names) != checksum:
            raise DataLoss("checksum differs")
        return cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError) as error:
        raise DataLoss(f"row does not decode: {error}") from error


def decode_record(data: bytes, checksum: int, *names: str) -> Record:
    """As `decode`, and the value is a map."""
    value = decode(data, checksum, *names)
    if not isinstance(value, dict):
        raise DataLoss("value is not a map")
    return value  # pyright: ignore[reportUnknownVariableType]


def sound_record(data: bytes, checksum: int, *names: str) -> bytes:
    """The bytes of a record, for `decoded` later; refuses what `decode_record` refuses."""
    try:
        sound = data[0] >> 5 == CBOR_MAP and checksum_of(data, names) == checksum
    except (IndexError, TypeError, ValueError):
        sound = False
    if not sound:
        decode_record(data, checksum, *names)  # which says what is wrong
    return data


def decoded(data: bytes) -> Record:
    """The record that sound bytes are."""
    record: Record = cbor2.loads(data)
    return record


def _lenient_text(data: bytes) -> str:
    # A damaged row may hold text that is not UTF-8; it must still be readable to be moved away.
    return data.decode("utf-8", "surrogateescape")


class Journal:
    """The keys of the records put since it was handed to `Transaction.keep_journal`, in order.

    Filled in the writer's thread; may hold more than was committed, never less. What it holds
    when a job looks at it is decided, and in the read models, when that job is answered.
    """

    def __init__(self) -> None:
        self.keys: list[tuple[str, str, str]] = []
        self.closed = False
        """Set by its owner, when it need not be filled any longer."""


class Database:
    """The open database. Belongs to the thread that opened it."""

    def __init__(self, path: Path, *, filled: bool = False) -> None:
        """Open or make it. `filled`: it is known to hold something, so an empty one is damaged."""
        self._path = path
        self._filled = filled
        self.journals: Sequence[Journal] = ()
        """Who is told of the keys that are put."""
        self._lock_fd = _lock(path)
        try:
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        except BaseException:
            os.close(self._lock_fd)
            raise
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        connection = self.connection
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        expected = (APPLICATION_ID, True) if version else (0, False)
        if (application, tables > 0) != expected or not 0 <= version < PLAUSIBLE_VERSIONS:
            raise sqlite3.DatabaseError("the header is not one that Holdfast wrote")
        if version == 0 and self._filled:
            raise sqlite3.DatabaseError("nothing is left in it")
        if version > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{self._path} has schema {version}, this Holdfast knows {SCHEMA_VERSION}"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: an acknowledged commit survives power loss, not only a crash.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")
        if version == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")

    def load(self) -> Iterator[tuple[str, str, str, bytes]]:
        """Every sound record (kind, namespace, key, bytes); the others move to `damaged`."""
        bad: list[tuple[str, str, str, bytes, str]] = []
        connection = self.connection
        connection.text_factory = _lenient_text
        for kind, namespace, key, value, checksum in connection.execute(
            "SELECT kind, namespace, key, value, checksum FROM record"
        ):
            try:
                record = sound_record(value, checksum, kind, namespace, key)
            except DataLoss as error:
                bad.append((kind, namespace, key, value, str(error)))
            else:
                yield kind, namespace, key, record
        if bad:
            self._quarantine(bad)
        connection.text_factory = str

    def _quarantine(self, bad: list[tuple[str, str, str, bytes, str]]) -> None:
        now_ns = time.time_ns()
        self.connection.execute("BEGIN IMMEDIATE")
        for kind, namespace, key, value, reason in bad:
            # A damaged name may even be of another type.
            names = [
                str(name).encode("utf-8", "surrogateescape") for name in (kind, namespace, key)
            ]
            shown = [name.decode("utf-8", "backslashreplace") for name in names]
            self.connection.execute(
                "INSERT INTO damaged VALUES (?, ?, ?, ?, ?, ?)", (*shown, value, reason, now_ns)
            )
            gone = self.connection.execute(
                "DELETE FROM record WHERE kind = CAST(? AS TEXT)"
                " AND namespace = CAST(? AS TEXT) AND key = CAST(? AS TEXT)",
                names,
            )
            if gone.rowcount == 0:
                raise sqlite3.DatabaseError("a record is not in its place")
        self.connection.execute("COMMIT")

    def damaged(self) -> list[Damaged]:
        """What was ever found damaged and has not been repaired."""
        rows = self.connection.execute(
            "SELECT rowid, kind, namespace, key, reason, found_at_ns FROM damaged ORDER BY rowid"
        )
        return [
            Damaged(
                number=number,
                kind=kind,
                namespace=namespace,
                key=key,
                reason=reason,
                found_at_ns=found_at_ns,
            )
            for number, kind, namespace, key, reason, found_at_ns in rows
        ]

    def forget_damaged(self, given_up: Iterable[Damaged]) -> None:
        """Throw away these that were set aside."""
        for one in given_up:
            self.connection.execute(
                "DELETE FROM damaged WHERE rowid = ? AND found_at_ns = ?",
                (one.number, one.found_at_ns),
            )

    def verify(self) -> None:
        """Raise `sqlite3.DatabaseError` when the file's structure is damaged anywhere."""
        (found,) = self.connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        kept = {sql for (sql,) in self.connection.execute("SELECT sql FROM sqlite_master")}
        if not kept.issuperset(statement.strip() for statement in SCHEMA.strip("\n;").split(";")):
            raise sqlite3.DatabaseError("the schema is not the one that Holdfast wrote")

    def event_bounds(self) -> tuple[int, int]:
        """The sequence numbers of the oldest event kept and of the newest ever written."""
        row = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
        last = int((row.fetchone() or (0,))[0])
        first, newest = self.connection.execute("SELECT min(seq), max(seq) FROM event").fetchone()
        return (last + 1, last) if first is None else (int(first), max(last, int(newest)))

    def commits(self) -> int:
        """How many commits this database has had; for a new one, and one of an older version,
        counting begins here."""
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'commit'"
        row = self.connection.execute(query).fetchone()
        if row is None:
            self.connection.execute("INSERT INTO sqlite_sequence VALUES ('commit', 0)")
        return int(row[0]) if row else 0

    def count_commit(self) -> None:
        """Within a transaction: count its commit. Beside the events' sequence, on the page that
        changes with nearly every commit anyway."""
        self.connection.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'commit'")

    def note_lost(self, reason: str, at_ns: int, sequences: int) -> None:
        """Note that something was lost with the file itself, and leave out the sequence numbers
        that events which are lost may have had."""
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        execute(
            "INSERT INTO damaged (kind, namespace, key, value, reason, found_at_ns)"
            " VALUES ('', '', '', NULL, ?, ?)",
            (reason, at_ns),
        )
        if sequences:
            (newest,) = execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
            _, last = self.event_bounds()
            execute("DELETE FROM sqlite_sequence WHERE name = 'event'")
            execute(
                "INSERT INTO sqlite_sequence VALUES ('event', ?)", (max(newest, last) + sequences,)
            )
        execute("COMMIT")

    def trim_events(self, before_seq: int) -> None:
        """Forget the events older than `before_seq`."""
        self.connection.execute("DELETE FROM event WHERE seq < ?", (before_seq,))

    def close(self) -> None:
        """Close the connection, which folds the log into the file, and let the next one in."""
        try:
            self.connection.close()
        finally:
            os.close(self._lock_fd)


def _lock(path: Path) -> int:
    lock = path.with_name(path.name + ".lock")
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StoreLocked(f"{path} is in use") from error
    return fd


class EventRows:
    """Reads events back from the database, from any thread, without waiting for the writer."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            path.absolute().as_uri() + "?mode=ro",
            uri=True,
            isolation_level=None,
            timeout=5.0,
            check_same_thread=False,
        )
        self._lock = threading.Lock()

    def read(self, after_seq: int, limit: int) -> list[Event]:
        """The kept events after `after_seq`, oldest first, at most `limit`.

        An event that does not verify is answered as a gap, so that the reader knows of it.
        """
        with self._lock:
            rows = self._connection.execute(
                "SELECT seq, timestamp_ns, namespace, topic, type, payload, checksum"
                " FROM event WHERE seq > ? ORDER BY seq LIMIT ?",
                (after_seq, limit),
            ).fetchall()
        return [_event(*row) for row in rows]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _event(
    seq: int,
    timestamp_ns: int,
    namespace: str,
    topic: str,
    type_name: str,
    payload: bytes,
    checksum: int,
) -> Event:
    try:
        value = decode(payload, checksum, str(timestamp_ns), namespace, topic, type_name)
    except DataLoss:
        return gap(seq, seq)
    return Event(
        seq=seq,
        timestamp_ns=timestamp_ns,
        namespace=namespace,
        topic=topic,
        type_name=type_name,
        payload=value,
    )
