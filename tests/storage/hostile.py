"""Layers that are refused for what they ask: what is asked by name, and how it is refused."""

from collections.abc import Sequence

from layers import block, directory, file, hard_link, padded, pax, symlink

from holdfast.actors.errors import InvalidArgument, Refusal, ResourceExhausted

LINK_OUT = symlink(b"out", b"../../outside")
LINK_ABSOLUTE = symlink(b"out", b"/outside")

REFUSED: dict[str, tuple[type[Refusal], Sequence[bytes]]] = {
    "dot dot": (InvalidArgument, [file(b"../x", b"x")]),
    "dot dot inside": (InvalidArgument, [file(b"a/../../x", b"x")]),
    "dot dot at the end": (InvalidArgument, [directory(b"a/..")]),
    "hard link to dot dot": (InvalidArgument, [hard_link(b"h", b"../../outside/secret")]),
    "hard link to nothing": (InvalidArgument, [hard_link(b"h", b"/outside/secret")]),
    "hard link through a symlink out": (
        InvalidArgument,
        [LINK_OUT, hard_link(b"h", b"out/secret")],
    ),
    "hard link to a directory": (InvalidArgument, [directory(b"d"), hard_link(b"h", b"d")]),
    "hard link to the root": (InvalidArgument, [hard_link(b"h", b"/")]),
    "whiteout of dot": (InvalidArgument, [file(b".wh..")]),
    "whiteout of dot dot": (InvalidArgument, [file(b"a/.wh...")]),
    "whiteout of nothing": (InvalidArgument, [file(b".wh.")]),
    "below a whiteout": (InvalidArgument, [file(b".wh.a/b", b"x")]),
    "file below a file": (InvalidArgument, [file(b"a", b"x"), file(b"a/b", b"x")]),
    "ring of symlinks": (
        InvalidArgument,
        [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"x")],
    ),
    "device number too large": (InvalidArgument, [block(b"d", b"3", major=5000, minor=1)]),
    "minor number too large": (InvalidArgument, [block(b"d", b"4", major=1, minor=1 << 20)]),
    "owner too large": (InvalidArgument, [file(b"f", b"", uid=1 << 32)]),
    "negative owner": (InvalidArgument, [block(b"f").replace(b"0000000\0", b"\xff" * 8, 1)]),
    "unknown type": (InvalidArgument, [block(b"f", b"Z")]),
    "multi-volume": (InvalidArgument, [block(b"f", b"M")]),
    "wrong checksum": (InvalidArgument, [block(b"f", bad_checksum=True)]),
    "no name": (InvalidArgument, [block(b"")]),
    "the root as a file": (InvalidArgument, [file(b"./", b"").replace(b"./", b".\0", 1)]),
    "size no number": (InvalidArgument, [block(b"f", size=b"12x45678901\0")]),
    "negative size": (InvalidArgument, [block(b"f", size=b"\xff" * 12)]),
    "nul in a pax path": (InvalidArgument, [pax({b"path": b"a\0b"}), file(b"f")]),
    "empty symlink": (InvalidArgument, [symlink(b"s", b"")]),
    "very long path": (InvalidArgument, [pax({b"path": b"a/" * 3000 + b"x"}), file(b"f")]),
    "link to a very long component": (
        InvalidArgument,
        [pax({b"linkpath": b"x/" + b"a" * 300}), symlink(b"l", b""), file(b"l/f")],
    ),
    "very long component": (InvalidArgument, [pax({b"path": b"a" * 300}), file(b"f")]),
    "huge pax header": (ResourceExhausted, [block(b"x", b"x", size=1 << 40)]),
    "huge long name": (ResourceExhausted, [block(b"x", b"L", size=1 << 33)]),
    "endless headers": (
        ResourceExhausted,
        [pax({b"comment": b"x" * 200_000}) for _ in range(8)],
    ),
    "global headers": (
        ResourceExhausted,
        [pax({str(n).encode(): b"x" * 300_000}, b"g") + file(b"f") for n in range(8)],
    ),
    "pax record lies": (InvalidArgument, [block(b"x", b"x", size=9) + padded(b"999 a=b\n\n")]),
    "pax record without length": (InvalidArgument, [block(b"x", b"x", size=4) + padded(b"a=b\n")]),
    "pax record without key": (InvalidArgument, [block(b"x", b"x", size=5) + padded(b"5 =b\n")]),
    "pax size no number": (InvalidArgument, [pax({b"size": b"-1"}), file(b"f")]),
    "pax time no number": (InvalidArgument, [pax({b"mtime": b"soon"}), file(b"f")]),
    "time out of range": (InvalidArgument, [pax({b"mtime": b"99999999999"}), file(b"f")]),
    "file cut short": (InvalidArgument, [block(b"f", size=5000) + b"x" * 600]),
    "header cut short": (InvalidArgument, [file(b"f", b"x") + block(b"g")[:100]]),
    "headers without entry": (InvalidArgument, [pax({b"path": b"a"})]),
    "attribute too large": (
        InvalidArgument,
        [pax({b"SCHILY.xattr.user.x": b"x" * 70_000}), file(b"f")],
    ),
    "attribute without a name": (InvalidArgument, [pax({b"SCHILY.xattr.": b"x"}), file(b"f")]),
    "sparse map beyond the file": (
        InvalidArgument,
        [
            pax({b"GNU.sparse.size": b"4", b"GNU.sparse.map": b"0,512"}),
            file(b"f", b"x" * 512),
        ],
    ),
    "sparse map overlaps": (
        InvalidArgument,
        [
            pax({b"GNU.sparse.size": b"9000", b"GNU.sparse.map": b"100,10,50,10"}),
            file(b"f", b"x" * 20),
        ],
    ),
    "sparse map too long": (
        ResourceExhausted,
        [
            pax(
                {
                    b"GNU.sparse.major": b"1",
                    b"GNU.sparse.minor": b"0",
                    b"GNU.sparse.realsize": b"9000",
                }
            ),
            file(b"f", b"99999999\n".ljust(512, b"\0")),
        ],
    ),
    "old sparse map odd": (
        InvalidArgument,
        [block(b"f", b"S", size=0, magic=b"ustar  \0", prefix=b"\0" * 41 + b"7" * 24)],
    ),
}
