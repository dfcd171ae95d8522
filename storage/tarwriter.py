"""A tar stream, written: the header of each entry, in POSIX's form with pax records where needed.

The same entry gives the same bytes, those that containerd's own writer gives: records in the
order of their keys, no owner's name, whole seconds.
"""

import posixpath
from collections.abc import Mapping

from .tar import BLOCK, XATTR_PREFIX, Entry, EntryKind

END = b"\0" * (2 * BLOCK)

FLAGS: Mapping[EntryKind, bytes] = {
    EntryKind.FILE: b"0",
    EntryKind.HARD_LINK: b"1",
    EntryKind.SYMLINK: b"2",
    EntryKind.CHARACTER_DEVICE: b"3",
    EntryKind.BLOCK_DEVICE: b"4",
    EntryKind.DIRECTORY: b"5",
    EntryKind.FIFO: b"6",
}


def padding(size_bytes: int) -> bytes:
    """What follows data of this size up to the next block."""
    return b"\0" * (-size_bytes % BLOCK)


def header(entry: Entry) -> bytes:
    """The header blocks of an entry; its data and their padding are to follow."""
    seconds = entry.mtime_ns // 1_000_000_000
    records = {XATTR_PREFIX + key: value for key, value in entry.xattrs.items()}
    for key, text in ((b"path", entry.name), (b"linkpath", entry.link)):
        if len(text) > 100 or not text.isascii():
            records[key] = text
    numbers = ((b"uid", entry.uid, 8), (b"gid", entry.gid, 8), (b"size", entry.size_bytes, 12))
    for key, number, width in (*numbers, (b"mtime", seconds, 12)):
        if not _fits(number, width):
            records[key] = b"%d" % number
    head = b""
    if records:
        raw = b"".join(_record(key, records[key]) for key in sorted(records))
        folder, name = posixpath.split(entry.name)
        head = _extension(posixpath.join(folder, b"PaxHeaders.0", name).rstrip(b"/"), raw)
    block = _block(
        _ascii(entry.name),
        FLAGS[entry.kind],
        (entry.mode, entry.uid, entry.gid, entry.size_bytes, seconds),
        link=_ascii(entry.link),
        device=_octal(entry.major, 8) + _octal(entry.minor, 8),
    )
    return head + block


def _extension(name: bytes, raw: bytes) -> bytes:
    block = _block(_ascii(name), b"x", (0, 0, 0, len(raw), 0), link=b"", device=b"\0" * 16)
    return block + raw + padding(len(raw))


def _block(
    name: bytes, flag: bytes, numbers: tuple[int, int, int, int, int], *, link: bytes, device: bytes
) -> bytes:
    mode, uid, gid, size_bytes, seconds = numbers
    block = bytearray(BLOCK)
    block[0:100] = _text(name)
    block[100:124] = _octal(mode, 8) + _octal(uid, 8) + _octal(gid, 8)
    block[124:148] = _octal(size_bytes, 12) + _octal(seconds, 12)
    block[148:156] = b" " * 8
    block[156:157] = flag
    block[157:257] = _text(link)
    block[257:265] = b"ustar\x0000"
    block[329:345] = device
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _text(text: bytes) -> bytes:
    cut = text[:100]
    # A file whose name is cut off after a slash would look like a directory.
    return (cut if cut == text else cut.rstrip(b"/")).ljust(100, b"\0")


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)


def _fits(number: int, width: int) -> bool:
    return 0 <= number < 1 << 3 * (width - 1)


def _octal(number: int, width: int) -> bytes:
    # A number that does not fit stands in a record.
    return b"%0*o\0" % (width - 1, number if _fits(number, width) else 0)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d" % length + body
