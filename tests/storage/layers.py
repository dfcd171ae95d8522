"""Crafted tar streams for tests: each entry byte by byte, as no library would write it."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def block(
    name: bytes,
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_500_000_000,
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
    bad_checksum: bool = False,
) -> bytes:
    """One header block, its checksum right unless asked otherwise."""

    def number(value: int, width: int) -> bytes:
        if 0 <= value < 8 ** (width - 1):
            return b"%0*o\0" % (width - 1, value)
        if value < 0:
            return value.to_bytes(width, "big", signed=True)
        return b"\x80" + value.to_bytes(width - 1, "big")

    raw = bytearray(512)
    raw[0:100] = name[:100].ljust(100, b"\0")
    raw[100:108] = number(mode, 8)
    raw[108:116] = number(uid, 8)
    raw[116:124] = number(gid, 8)
    raw[124:136] = size if isinstance(size, bytes) else number(size, 12)
    raw[136:148] = number(mtime, 12)
    raw[148:156] = b" " * 8
    raw[156:157] = flag
    raw[157:257] = link[:100].ljust(100, b"\0")
    raw[257:265] = magic
    raw[329:337] = number(major, 8)
    raw[337:345] = number(minor, 8)
    raw[345:500] = prefix.ljust(155, b"\0")
    raw[148:156] = b"%06o\0 " % (sum(raw) + (1 if bad_checksum else 0))
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + b"\0" * (-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: int | bytes | bool) -> bytes:
    """A plain file with its data."""
    return block(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: int) -> bytes:
    """A directory."""
    return block(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    """A symlink."""
    return block(name, b"2", link=target, mode=0o777)


def hard_link(name: bytes, target: bytes) -> bytes:
    """A hard link."""
    return block(name, b"1", link=target)


def pax(records: Mapping[bytes, bytes], flag: bytes = b"x") -> bytes:
    """A pax header with these records."""
    lines: list[bytes] = []
    for key, value in records.items():
        body = b" " + key + b"=" + value + b"\n"
        length = len(body)
        while length != len(body) + len(str(length)):
            length = len(body) + len(str(length))
        lines.append(str(length).encode() + body)
    raw = b"".join(lines)
    return block(b"PaxHeaders/x", flag, size=len(raw)) + padded(raw)


END = b"\0" * 1024


def write(path: Path, *entries: bytes, end: bytes = END) -> Path:
    """The stream in a file."""
    path.write_bytes(b"".join(entries) + end)
    return path


def pack(root: Path) -> bytes:
    """A directory as Python's own tar would pack it, sorted."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for child in sorted(root.iterdir()):
            archive.add(child, child.name)
    return out.getvalue()
