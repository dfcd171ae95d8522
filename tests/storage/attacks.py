"""Layers that reach for what is outside, or for more than their share: each by name, with what
comes of it. They are applied over `LOWER`, in a directory beside `outside`."""

import gzip
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backports import zstd
from layers import END, block, directory, file, hard_link, padded, pax, symlink

from holdfast.actors.errors import InvalidArgument, Refusal, ResourceExhausted, Unknown

MIB = 1 << 20
Root = Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A layer. `entries` is given the directory outside; `check` the tree that came of it, for
    one that is not refused."""

    entries: Callable[[bytes], Iterable[bytes]]
    refused: tuple[type[Refusal], ...] = ()
    check: Callable[[Root], bool] = lambda root: True
    packed: Callable[[bytes], bytes] = lambda raw: raw
    end: bytes = END
    stream_bytes_max: int = 1 << 40
    entries_max: int = 2_000_000
    memory_bytes_max: int = 96 * MIB


def lower(outside: bytes) -> list[bytes]:
    """The layer below, itself a stranger's."""
    return [
        directory(b"dir", 0o750),
        file(b"dir/a", b"a"),
        file(b"dir/setuid", b"s", mode=0o4755),
        directory(b"dir/sub"),
        file(b"dir/sub/c", b"c"),
        file(b"file", b"file"),
        symlink(b"link", b"dir"),
        symlink(b"evil", b"../../../../outside"),
        *_symlink(b"evilabs", outside),
        *_symlink(b"evilfile", outside + b"/secret"),
        block(b"pipe", b"6"),
    ]


def _symlink(name: bytes, target: bytes) -> list[bytes]:
    """A symlink however long its target."""
    return [pax({b"linkpath": target}), symlink(name, target)]


def _named(name: bytes, entry: bytes) -> list[bytes]:
    """An entry with a name however long."""
    return [pax({b"path": name}), entry]


def _attributes(**more: bytes) -> dict[bytes, bytes]:
    return {b"SCHILY.xattr." + key.replace("_", ".").encode(): more[key] for key in more}


def _read(root: Root, name: str) -> bytes:
    return (root / name).read_bytes()


def _mode(root: Root, name: str) -> int:
    return stat.S_IMODE((root / name).lstat().st_mode)


ESCAPES: Mapping[str, Attack] = {
    "absolute path of a file outside": Attack(
        entries=lambda outside: _named(outside + b"/secret", file(b"f", b"mine")),
    ),
    "absolute path with many slashes": Attack(
        entries=lambda outside: _named(b"///" + outside + b"//./secret", file(b"f", b"mine")),
    ),
    "dot dot after slashes": Attack(
        entries=lambda outside: [file(b"//..//..//outside/secret", b"mine")],
        refused=(InvalidArgument,),
    ),
    "dot dot in a gnu long name": Attack(
        entries=lambda outside: [
            block(b"././@LongLink", b"L", size=200) + padded(b"a/../../" * 25),
            file(b"f", b"mine"),
        ],
        refused=(InvalidArgument,),
    ),
    "dot dot in a sparse name": Attack(
        entries=lambda outside: [pax({b"GNU.sparse.name": b"../../outside/secret"}), file(b"f")],
        refused=(InvalidArgument,),
    ),
    "dot dot in a global path": Attack(
        entries=lambda outside: [pax({b"path": b"../../outside/secret"}, b"g"), file(b"f")],
        refused=(InvalidArgument,),
    ),
    "dot dot hidden behind a nul": Attack(
        entries=lambda outside: [file(b"x\0/../../outside/secret", b"x")],
        check=lambda root: _read(root, "x") == b"x",
    ),
    "through a symlink to outside below": Attack(
        entries=lambda outside: [
            file(b"evil/secret", b"mine"),
            file(b"evilabs/secret", b"mine"),
            directory(b"evilabs/new", 0o777),
        ],
        check=lambda root: _read(root, "outside/secret") == b"mine",
    ),
    "a mode for a symlink below": Attack(
        entries=lambda outside: [
            block(b"evilfile", b"6", mode=0o7777),
            directory(b"evil", 0o7777),
            directory(b"evilabs/", 0o7777, uid=7),
        ],
        check=lambda root: (root / "evil").is_dir() and not (root / "evil").is_symlink(),
    ),
    "a chain of symlinks": Attack(
        entries=lambda outside: [
            *(symlink(b"s%d" % n, b"s%d" % (n + 1)) for n in range(30)),
            symlink(b"s30", b"/../../../../outside"),
            file(b"s0/secret", b"mine"),
            file(b"s0/.wh.a"),
        ],
        check=lambda root: _read(root, "outside/secret") == b"mine",
    ),
    "a chain longer than the kernel follows": Attack(
        entries=lambda outside: [
            *(symlink(b"s%d" % n, b"s%d" % (n + 1)) for n in range(50)),
            file(b"s0/x", b"x"),
        ],
        refused=(InvalidArgument,),
    ),
    "symlinks that double the path": Attack(
        entries=lambda outside: [
            symlink(b"s0", b"dir"),
            *(symlink(b"s%d" % n, b"/".join([b"s%d/.." % (n - 1)] * 50)) for n in range(1, 30)),
            file(b"s29/x/y", b"x"),
        ],
        refused=(InvalidArgument,),
    ),
    "by way of proc": Attack(
        entries=lambda outside: [
            symlink(b"p", b"/proc/self/root"),
            symlink(b"q", b"/proc/self/cwd"),
            symlink(b"r", b"/proc/self/fd/3"),
            *(file(link + b"/" + outside[1:] + b"/x", b"x") for link in (b"p", b"q", b"r")),
            file(b"p/secret", b"mine"),
        ],
        check=lambda root: _read(root, "proc/self/root/secret") == b"mine",
    ),
    "a parent that becomes a symlink": Attack(
        entries=lambda outside: [
            directory(b"d"),
            file(b"d/x", b"1"),
            *_symlink(b"d", outside),
            file(b"d/x", b"2"),
            directory(b"d/y", 0o777),
            hard_link(b"d/z", b"d/x"),
            file(b"d/.wh.secret"),
        ],
    ),
    "a hard link by an absolute path": Attack(
        entries=lambda outside: [
            pax({b"linkpath": outside + b"/secret"}),
            hard_link(b"h", b""),
        ],
        refused=(InvalidArgument,),
    ),
    "a hard link to a symlink, written through": Attack(
        entries=lambda outside: [
            *_symlink(b"s", outside + b"/secret"),
            hard_link(b"h", b"s"),
            file(b"h", b"mine", mode=0o666),
            hard_link(b"evil2", b"evilfile"),
            file(b"evil2", b"mine", mode=0o4777),
        ],
        check=lambda root: _read(root, "h") == b"mine" and (root / "s").is_symlink(),
    ),
    "a hard link through a symlink below": Attack(
        entries=lambda outside: [hard_link(b"h", b"evil/secret")],
        refused=(InvalidArgument,),
    ),
    "a chain of hard links": Attack(
        entries=lambda outside: [
            file(b"h0", b"x", mode=0o600),
            *(hard_link(b"h%d" % n, b"h%d" % (n - 1)) for n in range(1, 2000)),
            file(b"h1", b"other"),
        ],
        check=lambda root: _read(root, "h1999") == b"x" and (root / "h0").stat().st_nlink == 1999,
    ),
    "hard links in a ring": Attack(
        entries=lambda outside: [hard_link(b"a", b"b"), hard_link(b"b", b"a")],
        refused=(InvalidArgument,),
    ),
    "a hard link to itself": Attack(
        entries=lambda outside: [hard_link(b"a", b"a")], refused=(InvalidArgument,)
    ),
    "a hard link to a lower file, written to": Attack(
        entries=lambda outside: [hard_link(b"h", b"dir/a"), file(b"h", b"other")],
        check=lambda root: (_read(root, "h"), _read(root, "dir/a")) == (b"other", b"a"),
    ),
    "a hard link that makes a mode its own": Attack(
        entries=lambda outside: [
            file(b"s", b"x", mode=0o755, uid=5),
            block(b"t", b"1", link=b"s", mode=0o6777, uid=0),
            block(b"u", b"1", link=b"dir/a", mode=0o6777),
        ],
        check=lambda root: (_mode(root, "t"), _mode(root, "u")) == (0o755, 0o644),
    ),
    "a setuid file through a symlink to outside": Attack(
        entries=lambda outside: [
            *_symlink(b"s", outside + b"/tool"),
            file(b"s", b"mine", mode=0o4777),
            *_symlink(b"t", outside),
            block(b"t/tool", b"1", link=b"s", mode=0o4777),
        ],
        check=lambda root: _mode(root, "s") == 0o4777,
    ),
    "a device through a symlink to outside": Attack(
        entries=lambda outside: [
            block(b"evil/null", b"3", major=1, minor=3, mode=0o666),
            block(b"evilabs/sda", b"4", major=8, minor=0),
        ],
        check=lambda root: (root / "outside/null").lstat().st_rdev == os.makedev(1, 3),
    ),
}

WHITEOUTS: Mapping[str, Attack] = {
    "a whiteout through a symlink to outside": Attack(
        entries=lambda outside: [
            file(b"evil/.wh.secret"),
            file(b"evilabs/.wh.secret"),
            file(b"evilabs/.wh..wh..opq"),
        ],
    ),
    "a whiteout of a symlink to outside": Attack(
        entries=lambda outside: [file(b".wh.evil"), file(b"evil/x", b"x")],
        check=lambda root: [path.name for path in (root / "evil").iterdir()] == ["x"],
    ),
    "a device whiteout through a symlink": Attack(
        entries=lambda outside: [block(b"evil/secret", b"3"), block(b"link/a", b"3")],
        check=lambda root: not (root / "dir/a").exists(),
    ),
    "opaque at the root": Attack(
        entries=lambda outside: [file(b".wh..wh..opq"), file(b"x", b"x")],
        check=lambda root: [path.name for path in root.iterdir()] == ["x"],
    ),
    "opaque at the root through a symlink": Attack(
        entries=lambda outside: [
            symlink(b"up", b"dir/../.."),
            file(b"up/.wh..wh..opq"),
            file(b"x", b"x"),
        ],
        check=lambda root: {path.name for path in root.iterdir()} == {"x", "up"},
    ),
    "an opaque mark that is a directory": Attack(
        entries=lambda outside: [directory(b"dir/.wh..wh..opq"), file(b"dir/.wh..wh..opq/x", b"x")],
        refused=(InvalidArgument,),
    ),
    "a hard link to a whiteout": Attack(
        entries=lambda outside: [file(b".wh.file"), hard_link(b"h", b"file")],
        refused=(InvalidArgument,),
    ),
    "a hard link to a whiteout's own name": Attack(
        entries=lambda outside: [file(b".wh.file"), hard_link(b"h", b".wh.file")],
        refused=(InvalidArgument,),
    ),
    "a hard link to a device whiteout": Attack(
        entries=lambda outside: [block(b"file", b"3"), hard_link(b"h", b"file")],
        refused=(InvalidArgument,),
    ),
    "a hard link that is a whiteout": Attack(
        entries=lambda outside: [hard_link(b".wh.file", b"dir/a")],
        check=lambda root: not (root / "file").exists(),
    ),
    "a whiteout too long for a name": Attack(
        entries=lambda outside: _named(b".wh." + b"n" * 252, file(b"f")),
        refused=(InvalidArgument,),
    ),
    "whiteouts of whiteouts": Attack(
        entries=lambda outside: [file(b".wh..wh.file"), file(b".wh..wh..wh.file")],
        check=lambda root: (root / "file").exists(),
    ),
    "a whiteout of the parent it is in": Attack(
        entries=lambda outside: [file(b"dir/sub/x", b"x"), file(b".wh.dir"), file(b"dir/.wh.sub")],
        check=lambda root: [path.name for path in (root / "dir/sub").iterdir()] == ["x"],
    ),
    "overlay's own marks as attributes": Attack(
        entries=lambda outside: [
            pax(
                _attributes(
                    trusted_overlay_opaque=b"y",
                    trusted_overlay_redirect=b"/../../../outside",
                    trusted_overlay_metacopy=b"",
                    trusted_overlay_origin=b"\0\xfb\x1d\0\1" + b"\0" * 24,
                    user_overlay_redirect=outside,
                    user_kept=b"1",
                )
            ),
            directory(b"dir"),
        ],
        check=lambda root: (
            {name for name in os.listxattr(root / "dir") if "origin" not in name} == {"user.kept"}
        ),
    ),
}

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
        check=lambda root: _mode(root, "f") == 0o7777,
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
        check=lambda root: _read(root, "smuggled") == b"x",
    ),
    "a size that nothing follows": Attack(
        entries=lambda outside: [block(b"f", size=0o77777777777)],
        refused=(InvalidArgument,),
        end=b"",
    ),
    "a directory with a size": Attack(
        entries=lambda outside: [block(b"d", b"5", size=1 << 40), file(b"d/x", b"x")],
        check=lambda root: _read(root, "d/x") == b"x",
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
        check=lambda root: _read(root, os.fsdecode(b"\xfd")) == b"x",
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
        entries=lambda outside: _named(b"/".join([b"n" * 255] * 15), file(b"f", b"x")),
        check=lambda root: sum(1 for _ in os.walk(root / ("n" * 255))) == 14,
    ),
    "a name with a component too long, deep": Attack(
        entries=lambda outside: _named(b"a/" * 1000 + b"n" * 256, file(b"f")),
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
    return [part for name in names for part in _named(name, entry)]


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
        entries=lambda outside: _named(b"a/" * 2040 + b"x", file(b"f", b"x")),
    ),
    "more directories than entries are allowed": Attack(
        entries=lambda outside: _named(b"a/" * 2040 + b"x", file(b"f", b"x")),
        entries_max=1000,
        refused=(ResourceExhausted,),
    ),
    "whiteouts below two thousand directories": Attack(
        entries=lambda outside: [
            *_named(b"a/" * 2040 + b"x", file(b"f", b"x")),
            *(part for n in range(20) for part in _named(b"a/" * 1000 + b".wh.%d" % n, file(b"f"))),
        ],
    ),
    "one name again and again": Attack(
        entries=lambda outside: [file(b"f", b"%d" % n) for n in range(1000)],
        check=lambda root: _read(root, "f") == b"999",
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

ATTACKS: Mapping[str, Attack] = {**ESCAPES, **WHITEOUTS, **PARSING, **BOMBS}
