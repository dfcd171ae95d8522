"""The packer: the changes from one tree to another as a layer, in a tar stream.

    packed = pack(lower, upper, write, guide=None, epoch_ns=None)

What a layer holds and in which order is containerd's: names in their order, each after the
directories it is in; a removed name as an empty file `.wh.<name>`; of files that are linked to
each other the first as a file and the others as links to it, also when only the first changed;
no sockets. Holes are written as zeros, so that the bytes do not depend on the filesystem. The
same trees give the same bytes: times are whole seconds, none is later than `epoch_ns` when
that is given, and a removal's is then that one, else 0.
"""

import errno
import os
import stat
from collections.abc import Callable

from ..actors.errors import Aborted
from .changes import PIECE_BYTES, Change, Kind, Walk, attributes
from .layer import WHITEOUT
from .lowers import Parts, join, open_parts
from .refusal import refusal_of
from .tar import Entry, EntryKind
from .tarwriter import END, header, padding

_KINDS = {
    stat.S_IFREG: EntryKind.FILE,
    stat.S_IFDIR: EntryKind.DIRECTORY,
    stat.S_IFLNK: EntryKind.SYMLINK,
    stat.S_IFCHR: EntryKind.CHARACTER_DEVICE,
    stat.S_IFBLK: EntryKind.BLOCK_DEVICE,
    stat.S_IFIFO: EntryKind.FIFO,
}
Inode = tuple[int, int]


def pack(
    lower_fd: int,
    upper_fd: int,
    write: Callable[[bytes], object],
    *,
    guide_fd: int = -1,
    epoch_ns: int | None = None,
) -> int:
    """Write the layer that makes the lower tree the upper one; how many entries it has.

    -1 stands for an empty tree; `guide_fd` is `changes.py`'s. Blocks.
    """
    packer = Packer(upper_fd, write, epoch_ns)
    walk = Walk(lower_fd, upper_fd, guide_fd)
    try:
        for change in walk:
            try:
                packer.take(change)
            except FileNotFoundError:
                continue  # it vanished before anything of it was written
            except OSError as error:
                name = os.fsdecode(join(change.parts))
                raise refusal_of(error, f"layer: {name!r}") from error
    finally:
        walk.close()
    write(END)
    return packer.entries


class Packer:
    """One layer on its way out."""

    def __init__(
        self, upper_fd: int, write: Callable[[bytes], object], epoch_ns: int | None
    ) -> None:
        self._upper_fd = upper_fd
        self._write = write
        self._epoch_ns = epoch_ns
        self.entries = 0
        self._directories: set[Parts] = set()
        # By what name a linked file was written, and which names wait for it to be.
        self._written: dict[Inode, bytes] = {}
        self._waiting: dict[Inode, list[Parts]] = {}

    def take(self, change: Change) -> None:
        """Write what a change takes, if anything."""
        status = change.status
        if status is None:
            self._remove(change.parts)
            return
        if stat.S_ISSOCK(status.st_mode):
            return
        inode = (status.st_dev, status.st_ino)
        linked = not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1
        if linked and inode not in self._written and change.kind is Kind.SAME:
            self._waiting.setdefault(inode, []).append(change.parts)
            return
        if change.kind is Kind.SAME and not linked:
            return
        entry = self._entry(change.parts, status, change.dir_fd)
        if not linked:
            self._put(change.parts, entry, change.dir_fd)
        elif inode in self._written:
            self._link(change.parts, entry, self._written[inode])
        else:
            self._put(change.parts, entry, change.dir_fd)
            self._written[inode] = entry.name
            for parts in self._waiting.pop(inode, ()):
                self._link(parts, entry, entry.name)

    def _remove(self, parts: Parts) -> None:
        self._parents(parts)
        self._head(
            Entry(
                kind=EntryKind.FILE,
                name=join((*parts[:-1], WHITEOUT + parts[-1])),
                link=b"",
                mode=0,
                uid=0,
                gid=0,
                size_bytes=0,
                mtime_ns=self._epoch_ns or 0,
                major=0,
                minor=0,
            )
        )

    def _entry(self, parts: Parts, status: os.stat_result, dir_fd: int) -> Entry:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        name = join(parts)
        device = kind in (EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE)
        mtime_ns = status.st_mtime_ns
        if self._epoch_ns is not None:
            mtime_ns = min(mtime_ns, self._epoch_ns)
        return Entry(
            kind=kind,
            name=name + b"/" if kind is EntryKind.DIRECTORY else name,
            link=os.readlink(parts[-1], dir_fd=dir_fd) if kind is EntryKind.SYMLINK else b"",
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size_bytes=status.st_size if kind is EntryKind.FILE else 0,
            mtime_ns=mtime_ns,
            major=os.major(status.st_rdev) if device else 0,
            minor=os.minor(status.st_rdev) if device else 0,
            xattrs=attributes(dir_fd, parts[-1]),
        )

    def _put(self, parts: Parts, entry: Entry, dir_fd: int) -> None:
        if entry.kind is not EntryKind.FILE:
            self._parents(parts)
            if entry.kind is EntryKind.DIRECTORY:
                self._directories.add(parts)
            self._head(entry)
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(parts[-1], flags, dir_fd=dir_fd)
        try:
            self._parents(parts)
            self._head(entry)
            self._data(fd, entry)
        finally:
            os.close(fd)
        self._write(padding(entry.size_bytes))

    def _link(self, parts: Parts, entry: Entry, target: bytes) -> None:
        self._parents(parts)
        name = join(parts)
        link = entry._replace(kind=EntryKind.HARD_LINK, name=name, link=target, size_bytes=0)
        self._head(link)

    def _parents(self, parts: Parts) -> None:
        """Write the directories that a name is in and that are not written yet."""
        for depth in range(1, len(parts)):
            above = parts[:depth]
            if above in self._directories:
                continue
            self._directories.add(above)
            flags = os.O_RDONLY | os.O_DIRECTORY
            dir_fd = open_parts(self._upper_fd, above[:-1], flags, follow=False)
            try:
                status = os.stat(above[-1], dir_fd=dir_fd, follow_symlinks=False)
                self._head(self._entry(above, status, dir_fd))
            finally:
                os.close(dir_fd)

    def _head(self, entry: Entry) -> None:
        self.entries += 1
        self._write(header(entry))

    def _data(self, fd: int, entry: Entry) -> None:
        at, size_bytes = 0, entry.size_bytes
        while at < size_bytes:
            try:
                start = min(os.lseek(fd, at, os.SEEK_DATA), size_bytes)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                start = size_bytes  # nothing but a hole is left
            self._zeros(start - at)
            if start == size_bytes:
                return
            at = start
            end = min(os.lseek(fd, at, os.SEEK_HOLE), size_bytes)
            while at < end:
                piece = os.pread(fd, min(end - at, PIECE_BYTES), at)
                if not piece:
                    name = os.fsdecode(entry.name)
                    raise Aborted(f"layer: {name!r} became shorter while it was read: aborted")
                self._write(piece)
                at += len(piece)

    def _zeros(self, count: int) -> None:
        zeros = bytes(min(count, PIECE_BYTES))
        while count:
            self._write(zeros[:count])
            count -= min(count, PIECE_BYTES)
