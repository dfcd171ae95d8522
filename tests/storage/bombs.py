"""Layers that no parser should believe, and layers that ask for more than their share."""

import gzip
import os
from collections.abc import Iterable, Mapping

from attacks import MIB, Attack, mode_of, named, read
from backports import zstd
from layers import END, block, directory, file, hard_link, pax, symlink

from holdfast.actors.errors import InvalidArgument, ResourceExhausted, Unknown

PARSING: Mapping[str, Attack] = {
    "a major number below zero": Attack(
        entries=lambda outside: [block(b"d", b"3", major=-1, minor=1)], refused=(InvalidArgument,)
    ),
    "a device number of 48 bits": Attack(
        entries=lambda outside: [block(b"d", b"4", major=1 << 40, minor=1 << 40)],
        refused=(InvalidArgument,),
    ),
    "an owner that means no change": Attack(
        entries=lambda outside: [pax({b"uid": b"4294967295"}), file(b"f")],
        refused=(InvalidArgument,),
    ),
    "a mode with a kind in it": Attack(
        entries=lambda outside: [file(b"f", mode=0o127777), file(b"g", mode=1 << 40)],
        check=lambda root: mode_of(root, "f") == 0o7777,
    ),
    "a size of 95 bits": Attack(
        entries=lambda outside: [block(b"f", size=b"\x8f" + b"\xff" * 11)],
        refused=(InvalidArgument,),
    ),
    "a pax size of 64 bits": Attack(
        entries=lambda outside: [pax({b"size": b"18446744073709551615"}), file(b"f")],
        refused=(InvalidArgument,),
    ),
    "a pax size below the header's": Attack(
        entries=lambda outside: [pax({b"size": b"0"}), file(b"f", file(b"smuggled", b"x"))],
        check=lambda root: read(root, "smuggled") == b"x",
    ),
    "a size that nothing follows": Attack(
        entries=lambda outside: [block(b"f", size=0o77777777777)],
        refused=(InvalidArgument,),
        end=b"",
    ),
    "a directory with a size": Attack(
        entries=lambda outside: [block(b"d", b"5", size=1 << 40), file(b"d/x", b"x")],
        check=lambda root: read(root, "d/x") == b"x",
    ),
    "a symlink whose data is an entry": Attack(
        entries=lambda outside: [
            block(b"s", b"2", link=b"dir", size=1024) + file(b"../x", b"x"),
        ],
        refused=(InvalidArgument,),
    ),
    "a nul in an attribute's name": Attack(
        entries=lambda outside: [pax({b"SCHILY.xattr.user.a\0b": b"1"}), file(b"f")],
        refused=(InvalidArgument,),
    ),
    "an access list that is none": Attack(
        entries=lambda outside: [
            pax({b"SCHILY.xattr.system.posix_acl_access": b"x"}),
            file(b"f"),
        ],
        refused=(InvalidArgument,),
    ),
    "names of no encoding, refused": Attack(
        entries=lambda outside: [file(b"\xff\xfe\x1b[31m\n\xed\xa0\x80/../..", b"x")],
        refused=(InvalidArgument,),
    ),
    "names of no encoding": Attack(
        entries=lambda outside: [
            file(b"\xff\xfe\x1b[31m\n\xed\xa0\x80", b"x"),
            symlink(b"\xff", b"\xfe"),
            hard_link(b"\xfd", b"\xff\xfe\x1b[31m\n\xed\xa0\x80"),
        ],
        check=lambda root: read(root, os.fsdecode(b"\xfd")) == b"x",
    ),
    "a refused name that the kernel names": Attack(
        entries=lambda outside: [file(b"\xff", b"x"), file(b"\xff/\xfe", b"x")],
        refused=(InvalidArgument,),
    ),
    "an entry after a single zero block": Attack(
        entries=lambda outside: [file(b"a", b"a"), b"\0" * 512, file(b"b", b"b")],
        refused=(InvalidArgument,),
    ),
    "an archive behind the archive": Attack(
        entries=lambda outside: [file(b"a", b"a"), END, file(b"b", b"b"), b"rubbish" * 100_000],
        check=lambda root: (root / "a").exists() and not (root / "b").exists(),
    ),
    "a stream of zeros": Attack(entries=lambda outside: [b"\0" * (64 * MIB)]),
    "a name of the kernel's length": Attack(
        entries=lambda outside: named(b"/".join([b"n" * 255] * 15), file(b"f", b"x")),
        check=lambda root: sum(1 for _ in os.walk(root / ("n" * 255))) == 14,
    ),
    "a name with a component too long, deep": Attack(
        entries=lambda outside: named(b"a/" * 1000 + b"n" * 256, file(b"f")),
        refused=(InvalidArgument,),
    ),
}


def _nested_types(count: int) -> Iterable[bytes]:
    for n in range(count):
        yield directory(b"t")
        yield file(b"t/x", b"x")
        yield symlink(b"t", b"dir") if n % 2 else file(b"t", b"x")


def _sparse(pieces: int) -> list[bytes]:
    numbers = b",".join(b"%d,1" % (n << 20) for n in range(pieces))
    records = {b"GNU.sparse.size": b"%d" % (pieces << 20), b"GNU.sparse.map": numbers}
    return [pax(records), file(b"f", b"x" * pieces)]


def _long_names(entry: bytes, end: bytes) -> list[bytes]:
    """The entry under two names of thousands of bytes, which have nothing in common."""
    names = [b"/".join([letter * 250] * 15) + end for letter in (b"a", b"b")]
    return [part for name in names for part in named(name, entry)]


def _huge_gzip_header(raw: bytes) -> bytes:
    return b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n" * (64 * MIB) + b"\0" + gzip.compress(raw)[10:]


def _zstd_frame(window_log: int) -> bytes:
    """A frame that asks for a window of 2**window_log bytes and is one block of repeated zeros."""
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    length = (128 << 10) if window_log >= 17 else 1 << window_log
    return header + (1 | 1 << 1 | length << 3).to_bytes(3, "little") + b"\0"


BOMBS: Mapping[str, Attack] = {
    "a gzip bomb": Attack(
        entries=lambda outside: [],
        packed=lambda raw: gzip.compress(file(b"f", b"\0" * (128 * MIB))) * 8,
        stream_bytes_max=150 * MIB,
        refused=(ResourceExhausted,),
    ),
    "a zstd bomb": Attack(
        entries=lambda outside: [],
        packed=lambda raw: zstd.compress(file(b"f", b"\0" * (128 * MIB))) * 8,
        stream_bytes_max=150 * MIB,
        refused=(ResourceExhausted,),
    ),
    "a bomb behind the archive": Attack(
        entries=lambda outside: [file(b"f", b"x")],
        packed=lambda raw: gzip.compress(raw) + gzip.compress(b"\0" * (128 * MIB)) * 8,
        stream_bytes_max=150 * MIB,
        refused=(ResourceExhausted,),
    ),
    "a bomb that nobody keeps": Attack(
        entries=lambda outside: [],
        packed=lambda raw: gzip.compress(file(b".wh..wh.plnk", b"\0" * (128 * MIB)) + END),
    ),
    "gzip within gzip": Attack(
        entries=lambda outside: [file(b"f", b"x")],
        packed=lambda raw: gzip.compress(gzip.compress(raw)),
        refused=(InvalidArgument,),
    ),
    "fifty thousand gzip members": Attack(
        entries=lambda outside: [file(b"f", b"x")],
        packed=lambda raw: gzip.compress(raw) + gzip.compress(b"") * 50_000,
    ),
    "ten thousand zstd frames": Attack(
        entries=lambda outside: [file(b"f", b"x")],
        packed=lambda raw: (
            b"\x50\x2a\x4d\x18\0\0\0\0" * 5_000 + zstd.compress(raw) + zstd.compress(b"") * 5_000
        ),
    ),
    "a gzip header of 64 MiB": Attack(
        entries=lambda outside: [file(b"f", b"x")], packed=_huge_gzip_header
    ),
    "a zstd window of 128 MiB": Attack(
        entries=lambda outside: [],
        packed=lambda raw: _zstd_frame(27),
        memory_bytes_max=256 * MIB,
    ),
    "a zstd window of 2 GiB": Attack(
        entries=lambda outside: [],
        packed=lambda raw: _zstd_frame(31),
        refused=(InvalidArgument,),
    ),
    "a zstd window of 2 TiB": Attack(
        entries=lambda outside: [],
        packed=lambda raw: _zstd_frame(41),
        refused=(InvalidArgument,),
    ),
    "a zstd frame that wants a dictionary": Attack(
        entries=lambda outside: [],
        packed=lambda raw: b"\x28\xb5\x2f\xfd\x03\x58\x01\x02\x03\x04" + b"\x01\0\0",
        refused=(InvalidArgument,),
    ),
    "a zstd stream cut within its frames": Attack(
        entries=lambda outside: [file(b"f", b"x" * 100)],
        packed=lambda raw: zstd.compress(raw) + zstd.compress(b"x" * 1000)[:-5],
        refused=(InvalidArgument,),
    ),
    "a pax bomb of records": Attack(
        entries=lambda outside: [pax({b"k%d" % n: b"" for n in range(60_000)}), file(b"f")],
    ),
    "a pax bomb of global keys": Attack(
        entries=lambda outside: [
            pax({b"%d.%d" % (n, k): b"" for k in range(900)}, b"g") + file(b"f") for n in range(9)
        ],
        packed=gzip.compress,
        refused=(ResourceExhausted,),
    ),
    "a pax bomb of attributes": Attack(
        entries=lambda outside: [
            pax({b"SCHILY.xattr.user.%d" % n: b"x" * 8 for n in range(20_000)}),
            file(b"f"),
        ],
        # As many as the filesystem takes.
        refused=(ResourceExhausted, InvalidArgument, Unknown),
    ),
    "a sparse file of four exbibytes": Attack(
        entries=lambda outside: [
            pax({b"GNU.sparse.size": b"%d" % (1 << 62), b"GNU.sparse.map": b""}),
            file(b"f"),
        ],
        refused=(ResourceExhausted,),
    ),
    "a sparse file of a tebibyte": Attack(
        entries=lambda outside: [
            pax({b"GNU.sparse.size": b"%d" % (1 << 40), b"GNU.sparse.map": b"1099511627775,1"}),
            file(b"f", b"x"),
        ],
        check=lambda root: (root / "f").stat().st_blocks * 512 < MIB,
    ),
    "a sparse file of two thousand pieces": Attack(
        entries=lambda outside: _sparse(2048),
        check=lambda root: (root / "f").stat().st_blocks * 512 <= 16 * MIB,
    ),
    "a sparse map that overflows": Attack(
        entries=lambda outside: [
            pax(
                {
                    b"GNU.sparse.size": b"%d" % ((1 << 63) - 1),
                    b"GNU.sparse.map": b"%d,%d" % ((1 << 63) - 1, 1 << 62),
                }
            ),
            file(b"f", b"x"),
        ],
        refused=(InvalidArgument,),
    ),
    "two thousand directories by one name": Attack(
        entries=lambda outside: named(b"a/" * 2040 + b"x", file(b"f", b"x")),
    ),
    "more directories than entries are allowed": Attack(
        entries=lambda outside: named(b"a/" * 2040 + b"x", file(b"f", b"x")),
        entries_max=1000,
        refused=(ResourceExhausted,),
    ),
    "whiteouts below two thousand directories": Attack(
        entries=lambda outside: [
            *named(b"a/" * 2040 + b"x", file(b"f", b"x")),
            *(part for n in range(20) for part in named(b"a/" * 1000 + b".wh.%d" % n, file(b"f"))),
        ],
    ),
    "one name again and again": Attack(
        entries=lambda outside: [file(b"f", b"%d" % n) for n in range(1000)],
        check=lambda root: read(root, "f") == b"999",
    ),
    "a name of one kind after the other, among many": Attack(
        entries=lambda outside: [
            *(file(b"many/%d" % n) for n in range(1000)),
            *_nested_types(500),
        ],
    ),
    "directories' names of 70 MB": Attack(
        entries=lambda outside: _long_names(directory(b"d"), b"/") * 10_000,
        packed=lambda raw: gzip.compress(raw, 1),
        refused=(ResourceExhausted,),
        memory_bytes_max=160 * MIB,
    ),
    "files' names of 70 MB": Attack(
        entries=lambda outside: _long_names(hard_link(b"h", b"file"), b"/f") * 10_000,
        packed=lambda raw: gzip.compress(raw, 1),
    ),
}
