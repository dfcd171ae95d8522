"""A tar stream, read once from front to back, within bounds.

Terms. A *header block* is 512 bytes; an *entry* is one file as its header blocks, pax records
and GNU extensions describe it, all joined; its *data* follows in the stream and is there until
the next entry is asked for.

The reader understands ustar, pax (global and per file), GNU long names, GNU base-256 numbers
and all four sparse formats (old GNU; pax 0.0, 0.1, 1.0). It allocates nothing that a header
merely claims: long names and pax records are bounded by `Bounds.header_bytes_max` before they
are read, data is handed on in pieces of what the stream gives.

Names are bytes, as the kernel's are. What is malformed raises `InvalidArgument`.
"""

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..actors.errors import InvalidArgument, ResourceExhausted
from .tarfields import (
    has_checksum,
    parse_decimal,
    parse_number,
    parse_pax,
    parse_text,
    parse_time_ns,
)

BLOCK = 512
XATTR_PREFIX = b"SCHILY.xattr."
NO_ATTRIBUTES: Mapping[bytes, bytes] = {}
# From 1697 to 2514.
MTIME_MIN_NS = -(1 << 33) * 1_000_000_000
MTIME_END_NS = (1 << 34) * 1_000_000_000


class EntryKind(enum.Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARD_LINK = "hard link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "fifo"


KINDS: Mapping[bytes, EntryKind] = {
    b"0": EntryKind.FILE,
    b"\0": EntryKind.FILE,
    b"7": EntryKind.FILE,  # contiguous: a plain file everywhere but on systems of old
    b"S": EntryKind.FILE,  # old GNU sparse
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER_DEVICE,
    b"4": EntryKind.BLOCK_DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much a stream may ask for."""

    entries_max: int = 2_000_000
    name_bytes_max: int = 4095
    header_bytes_max: int = 1 << 20
    global_bytes_max: int = 1 << 16
    sparse_pieces_max: int = 1 << 16


class Entry(NamedTuple):
    """One file of the archive.

    `size_bytes` is the size of the file to be; `pieces`, when the file is sparse, are the
    (offset, length) runs whose bytes the stream holds, in order and apart.
    """

    kind: EntryKind
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    major: int
    minor: int
    xattrs: Mapping[bytes, bytes] = NO_ATTRIBUTES
    pieces: tuple[tuple[int, int], ...] | None = None


class TarReader:
    """The entries of one stream, in order; `data` yields the current one's bytes.

    `read(n)` gives between 1 and n bytes, or none at the end of the stream.
    """

    def __init__(self, read: Callable[[int], bytes], bounds: Bounds | None = None) -> None:
        self._read = read
        self._bounds = bounds or Bounds()
        # Invariant: bytes of the current entry still in the stream, and its padding.
        self._left = 0
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Each entry; asking for the next one skips what is left of this one's data."""
        count = 0
        while True:
            entry = self._next()
            if entry is None:
                return
            count += 1
            if count > self._bounds.entries_max:
                raise ResourceExhausted(f"tar: more than {self._bounds.entries_max} entries")
            yield entry

    def data(self) -> Iterator[bytes]:
        """The current entry's bytes as the stream holds them; for a sparse one its pieces."""
        while self._left:
            piece = self._read(min(self._left, 1 << 20))
            if not piece:
                raise InvalidArgument("tar: the stream ends within a file")
            self._left -= len(piece)
            yield piece

    def _exactly(self, count: int) -> bytes:
        pieces: list[bytes] = []
        while count:
            piece = self._read(count)
            if not piece:
                raise InvalidArgument("tar: the stream ends too early")
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _skip(self) -> None:
        if self._left:
            for _ in self.data():
                pass
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _begin(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._padding = -size_bytes % BLOCK

    def _header(self) -> bytes | None:
        """The next header block; None at the end of the archive."""
        block = self._block()
        if block is None or block.strip(b"\0"):
            return block
        if (self._block() or b"").strip(b"\0"):
            # Some readers would stop here, others go on.
            raise InvalidArgument("tar: a single zero block is followed by another entry")
        return None

    def _block(self) -> bytes | None:
        if self._padding:
            # With what comes before it, in one go.
            padding, self._padding = self._padding, 0
            both = self._read(padding + BLOCK)
            if len(both) == padding + BLOCK:
                return both[padding:]
            if len(both) < padding:
                self._exactly(padding - len(both))
            first = both[padding:] or self._read(BLOCK)
        else:
            first = self._read(BLOCK)
        if not first:
            # A stream without its two zero blocks; tolerated, as everyone does.
            return None
        return first if len(first) == BLOCK else first + self._exactly(BLOCK - len(first))

    def _extension(self, size_bytes: int) -> bytes:
        if not 0 <= size_bytes <= self._bounds.header_bytes_max:
            raise ResourceExhausted(
                f"tar: a header of {size_bytes} bytes, at most"
                f" {self._bounds.header_bytes_max} are allowed"
            )
        self._begin(size_bytes)
        raw = self._exactly(size_bytes)
        self._left = 0
        self._skip()
        return raw

    def _next(self) -> Entry | None:
        if self._left:
            self._skip()
        records: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        extended_bytes = 0
        while True:
            block = self._header()
            if block is None:
                if records or long_name is not None or long_link is not None:
                    raise InvalidArgument("tar: the stream ends after an extended header")
                return None
            if not has_checksum(block):
                raise InvalidArgument("tar: a header's checksum is wrong")
            flag = block[156:157]
            size_bytes = parse_number(block[124:136], "size")
            if flag in (b"x", b"g", b"L", b"K"):
                raw = self._extension(size_bytes)
                extended_bytes += BLOCK + len(raw)
                # One entry may bring several of them; together they keep the same bound.
                if extended_bytes > self._bounds.header_bytes_max + 4 * BLOCK:
                    raise ResourceExhausted("tar: one entry's headers are too large")
                if flag == b"x":
                    records.update(parse_pax(raw))
                elif flag == b"g":
                    self._globals.update(parse_pax(raw))
                    # They are joined to every entry from here on, short ones too.
                    held = sum(64 + len(key) + len(self._globals[key]) for key in self._globals)
                    if held > self._bounds.global_bytes_max:
                        raise ResourceExhausted("tar: the global headers are too large")
                elif flag == b"L":
                    long_name = parse_text(raw)
                else:
                    long_link = parse_text(raw)
                continue
            return self._entry(block, flag, size_bytes, records, long_name, long_link)

    def _entry(
        self,
        block: bytes,
        flag: bytes,
        size_bytes: int,
        records: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        kind = KINDS.get(flag)
        if kind is None:
            raise InvalidArgument(f"tar: an entry of unknown type {flag!r}")
        if self._globals:
            records = self._globals | records

        name = parse_text(block[:100])
        link = parse_text(block[157:257]) if block[157] else b""
        # Only POSIX's ustar has a prefix; GNU keeps times in its place.
        if block[345] and block[257:263] == b"ustar\0":
            name = parse_text(block[345:500]) + b"/" + name
        if long_name is not None:
            name = long_name
        if long_link is not None:
            link = long_link
        if records:
            name = records.get(b"GNU.sparse.name") or records.get(b"path") or name
            link = records.get(b"linkpath", link)
        self._check_text(name, "name")
        if link:
            self._check_text(link, "link name")
        if not name:
            raise InvalidArgument("tar: an entry has no name")
        # Before POSIX a directory was a file whose name ends in a slash.
        if kind is EntryKind.FILE and name.endswith(b"/"):
            kind = EntryKind.DIRECTORY

        if b"size" in records:
            size_bytes = parse_decimal(records[b"size"], "size")
        if not 0 <= size_bytes < 1 << 63:
            raise InvalidArgument("tar: a size is out of range")
        if kind is not EntryKind.FILE:
            # Some writers give directories and links a size that no data follows; readers at
            # large trust that none does.
            size_bytes = 0
        self._begin(size_bytes)

        if b"mtime" in records:
            mtime_ns = parse_time_ns(records[b"mtime"])
        else:
            mtime_ns = parse_number(block[136:148], "mtime") * 1_000_000_000
        if not MTIME_MIN_NS <= mtime_ns < MTIME_END_NS:
            raise InvalidArgument("tar: a time is out of range")

        pieces = None
        if kind is EntryKind.FILE and (records or flag == b"S"):
            size_bytes, pieces = self._sparse(block, flag, size_bytes, records)

        device = kind in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)
        return Entry(
            kind=kind,
            name=name,
            link=link,
            mode=parse_number(block[100:108], "mode") & 0o7777,
            uid=_number(records, b"uid", block[108:116]),
            gid=_number(records, b"gid", block[116:124]),
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            major=parse_number(block[329:337], "major") if device else 0,
            minor=parse_number(block[337:345], "minor") if device else 0,
            xattrs={
                key.removeprefix(XATTR_PREFIX): value
                for key, value in records.items()
                if key.startswith(XATTR_PREFIX)
            }
            if records
            else NO_ATTRIBUTES,
            pieces=pieces,
        )

    def _check_text(self, text: bytes, what: str) -> None:
        if b"\0" in text:
            raise InvalidArgument(f"tar: a {what} contains a NUL byte")
        if len(text) > self._bounds.name_bytes_max:
            raise InvalidArgument(f"tar: a {what} of {len(text)} bytes is too long")

    def _sparse(
        self, block: bytes, flag: bytes, size_bytes: int, records: Mapping[bytes, bytes]
    ) -> tuple[int, tuple[tuple[int, int], ...] | None]:
        numbers: list[int]
        if flag == b"S":
            numbers, real_bytes = self._old_gnu_map(block)
        elif records.get(b"GNU.sparse.major") == b"1":
            real_bytes = parse_decimal(records.get(b"GNU.sparse.realsize", b""), "realsize")
            numbers = self._map_in_data()
        elif b"GNU.sparse.map" in records:
            raw = records.get(b"GNU.sparse.size", records.get(b"GNU.sparse.realsize", b""))
            real_bytes = parse_decimal(raw, "sparse size")
            numbers = [parse_decimal(n, "map") for n in records[b"GNU.sparse.map"].split(b",") if n]
        elif b"GNU.sparse.size" in records:
            real_bytes = parse_decimal(records[b"GNU.sparse.size"], "sparse size")
            numbers = []
        else:
            return size_bytes, None
        if len(numbers) % 2 or len(numbers) > 2 * self._bounds.sparse_pieces_max:
            raise InvalidArgument("tar: a sparse map is malformed")
        pieces = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        at = 0
        for offset, length in pieces:
            if offset < at or length < 0:
                raise InvalidArgument("tar: a sparse map's pieces overlap")
            at = offset + length
        if not at <= real_bytes < 1 << 63 or sum(n for _, n in pieces) != self._left:
            raise InvalidArgument("tar: a sparse map does not fit its file")
        return real_bytes, pieces

    def _old_gnu_map(self, block: bytes) -> tuple[list[int], int]:
        """The map in the header and in the blocks that follow it, before the data."""
        real_bytes = parse_number(block[483:495], "real size")
        numbers = self._old_gnu_pieces(block[386:482])
        extended = block[482]
        while extended:
            more = self._exactly(BLOCK)
            numbers += self._old_gnu_pieces(more[:504])
            extended = more[504]
            if len(numbers) > 2 * self._bounds.sparse_pieces_max:
                raise ResourceExhausted("tar: a sparse map is too long")
        return numbers, real_bytes

    @staticmethod
    def _old_gnu_pieces(raw: bytes) -> list[int]:
        numbers: list[int] = []
        for at in range(0, len(raw), 24):
            if not raw[at]:
                break
            numbers.append(parse_number(raw[at : at + 12], "sparse offset"))
            numbers.append(parse_number(raw[at + 12 : at + 24], "sparse length"))
        return numbers

    def _map_in_data(self) -> list[int]:
        """Format 1.0: decimal lines at the front of the data, padded to a block."""
        lines: list[bytes] = []
        rest = b""
        wanted = 1
        while len(lines) < wanted:
            if self._left < BLOCK:
                raise InvalidArgument("tar: a sparse map is cut short")
            got = (rest + self._exactly(BLOCK)).split(b"\n")
            self._left -= BLOCK
            rest = got.pop()
            lines += got
            if lines and wanted == 1:
                wanted = 1 + 2 * parse_decimal(lines[0], "sparse count")
            if wanted > 2 * self._bounds.sparse_pieces_max:
                raise ResourceExhausted("tar: a sparse map is too long")
            if len(lines) < wanted and len(rest) > 20:
                raise InvalidArgument("tar: a sparse map is malformed")
        return [parse_decimal(line, "map") for line in lines[1:wanted]]


def _number(records: Mapping[bytes, bytes], key: bytes, raw: bytes) -> int:
    """A pax record's number, else that of the header."""
    if key in records:
        return parse_decimal(records[key], key.decode())
    return parse_number(raw, key.decode())
