"""Scavenging: the rows in a damaged database's pages, whether or not a tree still leads to them.

SQLite reaches a row from its table's root. Where a page between is lost, all below it is out of
reach, though sound. Here each page is read for itself, in SQLite's documented "Database File
Format"; rows say by their checksums that they are what was written. The log's pages take the place
of the file's own. Pages on the free list hold rows that were deleted, and are left out; where that
list is lost too, they cannot be told from the others (`free_known`).

    page      type, cells, and where each cell begins
    cell      length, for an event its number, the row; what does not fit lies in a chain of pages
    row       the types of its columns, then the columns
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..actors.errors import DataLoss
from .database import decode, decode_record

PAGE_BYTES = 4096
HEADER_BYTES = 100
MAGIC = b"SQLite format 3\0"
LOG_MAGIC = b"\x37\x7f\x06"
INDEX_INNER, INDEX_LEAF, TABLE_LEAF = 0x02, 0x0A, 0x0D
LOG_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
VARINT_BYTES_MAX = 9
# The longest part of a row in its own page, by page type, and the shortest where it goes on.
LOCAL_MAX = {
    INDEX_INNER: (PAGE_BYTES - 12) * 64 // 255 - 23,
    INDEX_LEAF: (PAGE_BYTES - 12) * 64 // 255 - 23,
    TABLE_LEAF: PAGE_BYTES - 35,
}
LOCAL_MIN = (PAGE_BYTES - 12) * 32 // 255 - 23
INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Value = int | bytes | None
Row = tuple[Value, ...]
Page = Callable[[int], bytes]

# What cannot be read as a cell, a row, a value.
NONSENSE = (IndexError, ValueError, TypeError, struct.error, DataLoss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scavenged:
    """What was found; text columns are bytes."""

    records: Mapping[Row, Row]
    """By (kind, namespace, key), with value and checksum."""
    events: Mapping[int, Row]
    """By sequence number, with it."""
    free_known: bool
    """False: among them may be what had been deleted or changed since."""


def scavenge(path: Path) -> Scavenged:
    """Read every page of a database file and of the log beside it."""
    content = path.read_bytes()
    count = -(-len(content) // PAGE_BYTES)
    newer = _log_pages(path)

    def page(number: int) -> bytes:
        found = newer.get(number)
        if found is None:
            found = content[(number - 1) * PAGE_BYTES : number * PAGE_BYTES]
        return found.ljust(PAGE_BYTES, b"\0")

    # A log whose header is lost may seem to hold pages of any number.
    numbers = sorted({*range(1, count + 1), *newer})
    free = _free_pages(page, numbers[-1]) if numbers else None
    records: dict[Row, Row] = {}
    updated_at: dict[Row, int] = {}
    events: dict[int, Row] = {}
    for number in numbers:
        if free is not None and number in free:
            continue
        for sequence, row in _rows(page, number):
            if sequence is not None:
                if _is_event(row):
                    events[sequence] = (sequence, *row[1:])
                continue
            at = record_time(row)
            name = row[:3]
            if at is not None and at >= updated_at.get(name, 0):
                records[name], updated_at[name] = row, at
    return Scavenged(records=records, events=events, free_known=free is not None)


def log_is_headless(path: Path) -> bool:
    """Whether a database's log holds something, and its header is not what SQLite wrote: SQLite
    would remove such a log."""
    try:
        with path.with_name(path.name + "-wal").open("rb") as file:
            header = file.read(LOG_HEADER_BYTES)
    except FileNotFoundError:
        return False
    if len(header) < LOG_HEADER_BYTES:
        return bool(header)
    order = ">" if header[3] & 1 else "<"
    first = second = 0
    for one, other in struct.iter_unpack(f"{order}II", header[:24]):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return header[:3] != LOG_MAGIC or struct.unpack_from(">II", header, 24) != (first, second)


def _log_pages(database: Path) -> dict[int, bytes]:
    """The newest copy of each page in the log. Frames that an earlier use of the log left behind
    bear another mark than its header."""
    try:
        log = database.with_name(database.name + "-wal").read_bytes()
    except FileNotFoundError:
        return {}
    pages: dict[int, bytes] = {}
    pending: dict[int, bytes] = {}
    step = FRAME_HEADER_BYTES + PAGE_BYTES
    starts = range(LOG_HEADER_BYTES, len(log) - step + 1, step)
    # The mark stands in the header and in each frame. Where the header is damaged, the newest
    # that several frames bear serves: it grows with each use.
    mark = log[16:24]
    if log_is_headless(database):
        marks = Counter(log[at + 8 : at + 16] for at in starts)
        mark = max((mark for mark, count in marks.items() if count > 1), default=mark)
    for at in starts:
        number, committed = struct.unpack_from(">II", log, at)
        if log[at + 8 : at + 16] == mark and number:
            pending[number] = log[at + FRAME_HEADER_BYTES : at + step]
            if committed:
                pages |= pending
                pending = {}
    return pages


def _free_pages(page: Page, highest: int) -> set[int] | None:
    """The pages on the free list; None when it cannot be followed to its end."""
    first = page(1)
    if not first.startswith(MAGIC):
        return None
    trunk, count = struct.unpack_from(">II", first, 32)
    free: set[int] = set()
    while trunk:
        if trunk in free or trunk > highest:
            return None
        free.add(trunk)
        following, leaves = struct.unpack_from(">II", page(trunk))
        if leaves > PAGE_BYTES // 4 - 2:
            return None
        free.update(struct.unpack_from(f">{leaves}I", page(trunk), 8))
        trunk = following
    return free if len(free) == count else None


def _rows(page: Page, number: int) -> Iterator[tuple[int | None, Row]]:
    """The rows whose cells begin in a page, with the numbers of those that have one."""
    data = page(number)
    start = HEADER_BYTES if number == 1 else 0
    kind = data[start]
    if kind not in LOCAL_MAX:
        return
    (cells,) = struct.unpack_from(">H", data, start + 3)
    pointers = start + (12 if kind == INDEX_INNER else 8)
    for place in range(min(cells, (PAGE_BYTES - pointers) // 2)):
        try:
            (at,) = struct.unpack_from(">H", data, pointers + 2 * place)
            yield _cell(page, data, kind, at)
        except NONSENSE:
            continue


def _cell(page: Page, data: bytes, kind: int, at: int) -> tuple[int | None, Row]:
    if kind == INDEX_INNER:
        at += 4  # the page below
    length, at = _varint(data, at)
    sequence = None
    if kind == TABLE_LEAF:
        sequence, at = _varint(data, at)
    local = length
    if length > LOCAL_MAX[kind]:
        local = LOCAL_MIN + (length - LOCAL_MIN) % (PAGE_BYTES - 4)
        if local > LOCAL_MAX[kind]:
            local = LOCAL_MIN
    payload = bytearray(data[at : at + local])
    if length > local:
        (further,) = struct.unpack_from(">I", data, at + local)
        for _ in range(-(-(length - local) // (PAGE_BYTES - 4))):
            more = page(further) if further else b""
            (further,) = struct.unpack_from(">I", more)
            payload += more[4:]
    return sequence, _columns(bytes(payload[:length]))


def _columns(payload: bytes) -> Row:
    end, at = _varint(payload, 0)
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    row: list[Value] = []
    at = end
    for kind in kinds:
        size = (kind - 12) // 2 if kind >= 12 else INTEGER_BYTES.get(kind, 0)
        raw = payload[at : at + size]
        if len(raw) != size:
            raise ValueError("the row ends too early")
        at += size
        if kind >= 12:
            row.append(raw)
        elif kind in (8, 9):
            row.append(kind - 8)
        else:
            row.append(int.from_bytes(raw, "big", signed=True) if size else None)
    return tuple(row)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(VARINT_BYTES_MAX):
        byte = data[at + place]
        if place == VARINT_BYTES_MAX - 1:
            return value << 8 | byte, at + VARINT_BYTES_MAX
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("no number")  # not reached: the ninth byte is the last


def record_time(row: Row) -> int | None:
    """When a sound record was changed, 0 where it does not say; None for what is none."""
    try:
        kind, namespace, key, value, checksum = row
        names = [_text(name) for name in (kind, namespace, key)]
        if not isinstance(value, bytes) or not isinstance(checksum, int):
            return None
        at = decode_record(value, checksum, *names).get("updated_at")
    except NONSENSE:
        return None
    return at if isinstance(at, int) else 0


def _is_event(row: Row) -> bool:
    try:
        _, timestamp_ns, namespace, topic, kind, payload, checksum = row
        if not isinstance(payload, bytes) or not isinstance(checksum, int):
            return False
        decode(payload, checksum, str(timestamp_ns), *map(_text, (namespace, topic, kind)))
    except NONSENSE:
        return False
    return True


def _text(value: Value) -> str:
    if not isinstance(value, bytes):
        raise TypeError("no text")
    return value.decode()
