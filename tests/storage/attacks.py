"""Layers that reach for what is outside, or for more than their share: each by name, with what
comes of it. They are applied over `LOWER`, in a directory beside `outside`."""

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from layers import END, block, directory, file, hard_link, padded, pax, symlink

from holdfast.actors.errors import InvalidArgument, Refusal

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
        *long_symlink(b"evilabs", outside),
        *long_symlink(b"evilfile", outside + b"/secret"),
        block(b"pipe", b"6"),
    ]


def long_symlink(name: bytes, target: bytes) -> list[bytes]:
    """A symlink however long its target."""
    return [pax({b"linkpath": target}), symlink(name, target)]


def named(name: bytes, entry: bytes) -> list[bytes]:
    """An entry with a name however long."""
    return [pax({b"path": name}), entry]


def _attributes(**more: bytes) -> dict[bytes, bytes]:
    return {b"SCHILY.xattr." + key.replace("_", ".").encode(): more[key] for key in more}


def read(root: Root, name: str) -> bytes:
    return (root / name).read_bytes()


def mode_of(root: Root, name: str) -> int:
    return stat.S_IMODE((root / name).lstat().st_mode)


ESCAPES: Mapping[str, Attack] = {
    "absolute path of a file outside": Attack(
        entries=lambda outside: named(outside + b"/secret", file(b"f", b"mine")),
    ),
    "absolute path with many slashes": Attack(
        entries=lambda outside: named(b"///" + outside + b"//./secret", file(b"f", b"mine")),
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
        check=lambda root: read(root, "x") == b"x",
    ),
    "through a symlink to outside below": Attack(
        entries=lambda outside: [
            file(b"evil/secret", b"mine"),
            file(b"evilabs/secret", b"mine"),
            directory(b"evilabs/new", 0o777),
        ],
        check=lambda root: read(root, "outside/secret") == b"mine",
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
        check=lambda root: read(root, "outside/secret") == b"mine",
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
        check=lambda root: read(root, "proc/self/root/secret") == b"mine",
    ),
    "a parent that becomes a symlink": Attack(
        entries=lambda outside: [
            directory(b"d"),
            file(b"d/x", b"1"),
            *long_symlink(b"d", outside),
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
            *long_symlink(b"s", outside + b"/secret"),
            hard_link(b"h", b"s"),
            file(b"h", b"mine", mode=0o666),
            hard_link(b"evil2", b"evilfile"),
            file(b"evil2", b"mine", mode=0o4777),
        ],
        check=lambda root: read(root, "h") == b"mine" and (root / "s").is_symlink(),
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
        check=lambda root: read(root, "h1999") == b"x" and (root / "h0").stat().st_nlink == 1999,
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
        check=lambda root: (read(root, "h"), read(root, "dir/a")) == (b"other", b"a"),
    ),
    "a hard link that makes a mode its own": Attack(
        entries=lambda outside: [
            file(b"s", b"x", mode=0o755, uid=5),
            block(b"t", b"1", link=b"s", mode=0o6777, uid=0),
            block(b"u", b"1", link=b"dir/a", mode=0o6777),
        ],
        check=lambda root: (mode_of(root, "t"), mode_of(root, "u")) == (0o755, 0o644),
    ),
    "a setuid file through a symlink to outside": Attack(
        entries=lambda outside: [
            *long_symlink(b"s", outside + b"/tool"),
            file(b"s", b"mine", mode=0o4777),
            *long_symlink(b"t", outside),
            block(b"t/tool", b"1", link=b"s", mode=0o4777),
        ],
        check=lambda root: mode_of(root, "s") == 0o4777,
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
        entries=lambda outside: named(b".wh." + b"n" * 252, file(b"f")),
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
