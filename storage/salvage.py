"""Salvage: a new database of what can still be read of a damaged one.

The damaged file is kept beside the new one, for repair by hand, until its fault is removed. Each
table is read from its beginning until the damage, then from its end back to it; what sound pages
hold in between is found by `scavenge.py`. That the rest is lost is noted in `damaged`, and a reader
of events is told of the gap. Where the file's first page is lost, that of an empty database stands
in for it: our tables begin at the same pages in each.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from ..actors import failpoints
from .commitmark import mark_path
from .database import Database
from .scavenge import MAGIC, PAGE_BYTES, Row, Scavenged, record_time, scavenge

log: structlog.stdlib.BoundLogger = structlog.get_logger()

# SQLITE_ERROR comes of a schema or a format that does not make sense.
DAMAGE = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# SQLite quotes what it found in its messages, and that need not be text.
FAILURES = (sqlite3.DatabaseError, UnicodeDecodeError)
# A database, its log, and the log's index.
SUFFIXES = ("", "-wal", "-shm")
# When the last sequence number cannot be read, so many are skipped: none is ever used twice.
SEQUENCE_SKIP = 1 << 20

Execute = Callable[..., sqlite3.Cursor]

TABLES = {
    "record": ("kind, namespace, key, value, checksum", ("kind", "namespace", "key")),
    "event": ("seq, timestamp_ns, namespace, topic, type, payload, checksum", ("seq",)),
    "damaged": ("rowid, kind, namespace, key, value, reason, found_at_ns", ("rowid",)),
}


def is_damage(error: Exception, path: Path) -> bool:
    """True when the file is not what SQLite wrote; False when it could only not be used now."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if code & 0xFF in DAMAGE:
        return True
    # A damaged format version makes SQLite refuse to write or to open.
    with path.open("rb") as file:
        header = file.read(20)
    sound = header.startswith(MAGIC) and {header[18], header[19]} <= {1, 2}
    return bool(header) and not sound


def salvage(path: Path, reason: str) -> Path:
    """Put a new database in the place of a damaged one; the path of the old one is returned."""
    now_ns = time.time_ns()
    aside = _aside(path, now_ns)
    # The log belongs to its file under its file's name. The main file goes first: whatever comes
    # between, an old log never meets a new file.
    for suffix in SUFFIXES:
        part = path.with_name(path.name + suffix)
        if part.exists():
            failpoints.reach("salvage.rename")
            part.rename(aside.with_name(aside.name + suffix))
            failpoints.passed("salvage.renamed")
    # The new one's commits are counted anew.
    mark_path(path).unlink(missing_ok=True)
    database = Database(path)
    try:
        database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        first_page = path.read_bytes()[:PAGE_BYTES]
        found = scavenge(aside)
        with grafted(aside, first_page) as graft:
            counts = _copy([aside, graft], found, database)
        if not found.free_known:
            reason += "; what had been deleted may be back"
        database.note_lost(f"database: {reason}; the damaged file is {aside.name}", now_ns, 0)
    finally:
        database.close()
    log.error("database.salvaged", path=str(path), aside=str(aside), reason=reason, rows=counts)
    return aside


def keep_log(path: Path, reason: str, database: Database) -> None:
    """Note that commits are lost with a database's log, and keep what there is of it: SQLite
    will write over it."""
    now_ns = time.time_ns()
    log_path = path.with_name(path.name + "-wal")
    kept = _aside(path, now_ns).with_name(_aside(path, now_ns).name + "-wal")
    if log_path.exists():
        shutil.copyfile(log_path, kept)
        reason += f"; the damaged log is {kept.name}"
    database.note_lost(f"database: {reason}", now_ns, SEQUENCE_SKIP)
    log.error("database.commits_lost", path=str(path), reason=reason)


def remove_aside(path: Path, found_at_ns: int) -> None:
    """Remove the damaged file that was put aside at that time, if it is there."""
    aside = _aside(path, found_at_ns)
    for suffix in SUFFIXES:
        aside.with_name(aside.name + suffix).unlink(missing_ok=True)


def _aside(path: Path, now_ns: int) -> Path:
    return path.with_name(f"{path.name}.damaged-{now_ns}")


@contextmanager
def grafted(damaged: Path, first_page: bytes) -> Generator[Path, None, None]:
    """A copy of a database file with another first page, gone after the block."""
    graft = damaged.with_name(damaged.name + ".graft")
    try:
        shutil.copyfile(damaged, graft)
        with graft.open("r+b") as file:
            pages = max(1, graft.stat().st_size // PAGE_BYTES)
            # Bytes 28 to 40: pages in the file, first page and number of the free ones.
            file.write(first_page[:28] + struct.pack(">III", pages, 0, 0) + first_page[40:])
        yield graft
    finally:
        for suffix in SUFFIXES:
            graft.with_name(graft.name + suffix).unlink(missing_ok=True)


def _copy(sources: Sequence[Path], found: Scavenged, database: Database) -> dict[str, int]:
    execute = database.connection.execute
    counts: Counter[str] = Counter()
    last_seqs: list[int | None] = []
    execute("BEGIN IMMEDIATE")
    for source in sources:
        old = sqlite3.connect(source, isolation_level=None)
        old.text_factory = bytes
        try:
            for table, (columns, order) in TABLES.items():
                insert = _insert(table, columns)
                for row in _rows(old, columns, table, order):
                    counts[table] += execute(insert, row).rowcount
            last_seqs.append(_last_sequence(old))
        finally:
            old.close()
    counts["event out of reach"] += _add(execute, "event", found.events.values())
    counts["record out of reach"] += _add(execute, "record", found.records.values())
    counts["record newer"] += _renew(execute, found.records.values())
    (newest,) = execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
    known = [seq for seq in last_seqs if seq is not None]
    last = max(newest, *known) if known else newest + SEQUENCE_SKIP
    execute("DELETE FROM sqlite_sequence WHERE name = 'event'")
    execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?)", (last,))
    failpoints.reach("salvage.commit")
    execute("COMMIT")
    failpoints.passed("salvage.committed")
    return dict(counts)


def _add(execute: Execute, table: str, rows: Iterable[Row]) -> int:
    insert = _insert(table, TABLES[table][0])
    return sum(execute(insert, row).rowcount for row in rows)


def _renew(execute: Execute, rows: Iterable[Row]) -> int:
    """Put newer versions, from a log that SQLite does not read, in the place of older ones."""
    where = "kind = CAST(? AS TEXT) AND namespace = CAST(? AS TEXT) AND key = CAST(? AS TEXT)"
    count = 0
    for row in rows:
        *name, value, checksum = row
        old = execute(f"SELECT value, checksum FROM record WHERE {where}", name).fetchone()
        if (record_time((*name, *old)) or 0) < (record_time(row) or 0):
            change = f"UPDATE record SET value = ?, checksum = ? WHERE {where}"
            count += execute(change, (value, checksum, *name)).rowcount
    return count


def _insert(table: str, columns: str) -> str:
    # Text comes as its bytes, sound or not; loading sorts out what is not.
    names = columns.split(", ")
    marks = ", ".join("CAST(? AS TEXT)" if _is_text(name) else "?" for name in names)
    return f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"


def _is_text(column: str) -> bool:
    return column in ("kind", "namespace", "key", "topic", "type", "reason")


def _rows(
    old: sqlite3.Connection, columns: str, table: str, order: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    for direction in ("ASC", "DESC"):
        by = ", ".join(f"{column} {direction}" for column in order)
        try:
            yield from old.execute(f"SELECT {columns} FROM {table} ORDER BY {by}")
        except FAILURES:
            continue
        return


def _last_sequence(old: sqlite3.Connection) -> int | None:
    try:
        row = old.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
        return int(row[0]) if row else None
    except (*FAILURES, TypeError, ValueError):
        return None
