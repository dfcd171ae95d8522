"""What a layer has brought so far, kept in little memory however much that is.

A layer may have millions of entries with names of thousands of bytes. Their names are not kept,
but for those of directories, which the end of the layer needs; these have a bound.
"""

import struct
from array import array
from collections.abc import Iterator

from ..actors.errors import ResourceExhausted
from .lowers import Parts, join

_SEEN_BITS = (1 << 64) - 1


class Names:
    """A set of names, each with the inode of the directory it is in: whatever path of symlinks
    led there, it is one name.

    Kept are 64 bits of a hash whose key is the process's own. Of two million names, as many as
    a layer may have, one is mistaken for another once in ten million such layers.
    """

    def __init__(self) -> None:
        # Invariant: a power of two of slots, at most half of them taken; 0 is a free one.
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, directory: int, name: bytes) -> None:
        """Take a name in."""
        slots = self._slots
        if self._put(slots, hash((directory, name)) & _SEEN_BITS or 1):
            self._count += 1
            if 2 * self._count > len(slots):
                self._slots = array("Q", bytes(8 * 4 * len(slots)))
                for key in slots:
                    if key:
                        self._put(self._slots, key)

    def __contains__(self, named: object) -> bool:
        slots = self._slots
        mask = len(slots) - 1
        key = hash(named) & _SEEN_BITS or 1
        at = key & mask
        while slots[at]:
            if slots[at] == key:
                return True
            at = (at + 1) & mask
        return False

    @staticmethod
    def _put(slots: "array[int]", key: int) -> bool:
        mask = len(slots) - 1
        at = key & mask
        while slots[at]:
            if slots[at] == key:
                return False
            at = (at + 1) & mask
        slots[at] = key
        return True


class DirectoryTimes:
    """The times of directories, to be set at the end: what is put into one changes its own."""

    BYTES_MAX = 64 << 20
    _FIXED = struct.Struct("<qIQHH")

    def __init__(self) -> None:
        # Each record: the time, the inode, how many bytes of the path before it are this one's
        # too, how many follow, and these.
        self._log = bytearray()
        self._before = b""

    def note(self, parts: Parts, inode: int, mtime_ns: int) -> None:
        """A directory's time; the last one told of a directory counts."""
        path = join(parts)
        shared = _shared(path, self._before)
        self._before = path
        rest = path[shared:]
        seconds, ns = divmod(mtime_ns, 1_000_000_000)
        if len(self._log) + len(rest) > self.BYTES_MAX:
            raise ResourceExhausted("layer: the names of its directories are too many and too long")
        self._log += self._FIXED.pack(seconds, ns, inode, shared, len(rest)) + rest

    def __iter__(self) -> Iterator[tuple[Parts, int, int]]:
        path = b""
        at = 0
        while at < len(self._log):
            seconds, ns, inode, shared, length = self._FIXED.unpack_from(self._log, at)
            at += self._FIXED.size
            path = path[:shared] + self._log[at : at + length]
            at += length
            yield tuple(path.split(b"/")), inode, seconds * 1_000_000_000 + ns


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    at = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        at += 1
    return at
