"""A layer: a tar stream of changes, applied onto a directory.

Terms. The *root* is the directory that is changed, and the only thing that can be. The *form*
says how "this name is gone" is written: PLAIN removes the name (the root shows all layers, or
is the first one); OVERLAY leaves overlayfs's own mark, a character device 0:0 or the opaque
attribute (the root is an upper directory, and `lowers` are the layers below it).

Every name of the archive is hostile until it is resolved: each parent is opened by openat2
within the root, where no symlink and no `..` leads out, and the last component is never
followed. What the archive cannot ask for: names with `..`, devices beyond the kernel's
numbers, overlayfs's own attributes, more than `Limits` allows. A refused layer leaves a half
changed root: the caller throws its snapshot away.

In both forms the result, seen through the mount, is the same tree.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..actors.errors import InvalidArgument, Unimplemented
from . import syscalls
from .brought import DirectoryTimes, Names
from .compression import PlainStream
from .layerfile import make_device, make_fifo, make_file, make_symlink, set_attributes
from .layerroot import Form, Root, is_whiteout
from .lowers import Lowers, Parts
from .refusal import refusal_of
from .tar import Bounds, Entry, EntryKind, TarReader
from .trees import lstat

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."

ID_MAX = (1 << 32) - 2
MAJOR_MAX = (1 << 12) - 1
MINOR_MAX = (1 << 20) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one layer may ask for."""

    stream_bytes_max: int = 1 << 40
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The digest and size of the uncompressed stream, and how many entries it had."""

    diff_id: str
    size_bytes: int
    entries: int


def check_media_type(media_type: str) -> None:
    """Refuse what is no tar: an encrypted layer, an artifact, another filesystem's image."""
    if not media_type:
        return
    base, *suffixes = media_type.split("+")
    compressions = {"gzip", "zstd"}
    # Docker's types end in .tar or .tar.gzip, OCI's in .tar, both with + suffixes.
    words = base.split(".")
    if words[-1] in compressions:
        words.pop()
    if words[-1] != "tar" or not set(suffixes) <= compressions:
        # containerd's words: what is no tar is for a stream processor, and there is none.
        raise Unimplemented(
            f"failed to get stream processor for {media_type}:"
            " no processor for media-type: not implemented"
        )


def split_name(name: bytes) -> Parts:
    """A name's components below the root; a leading slash means the root as well."""
    parts = tuple(name.split(b"/"))
    if b"" in parts or b"." in parts:
        parts = tuple(part for part in parts if part not in (b"", b"."))
    if b".." in parts:
        raise InvalidArgument(f"layer: {os.fsdecode(name)!r} leaves the root")
    if len(name) > 255 and max(map(len, parts), default=0) > 255:
        raise InvalidArgument("layer: a name's component is longer than 255 bytes")
    return parts


def apply(
    blob: Path,
    media_type: str,
    root_fd: int,
    *,
    form: Form = Form.PLAIN,
    lowers: Sequence[str] = (),
    user_attributes: bool = False,
    limits: Limits | None = None,
    sync: bool = True,
) -> Applied:
    """Apply the layer in `blob` onto the root; when it returns all is on the disk.

    `user_attributes` says that the overlay is mounted with `userxattr`. Blocks; a refused
    layer raises and leaves the root half changed.
    """
    limits = limits or Limits()
    check_media_type(media_type)
    with blob.open("rb") as source:
        with PlainStream(source, limits.stream_bytes_max) as stream:
            with Lowers(lowers, user_attributes=user_attributes) as below:
                root = Root(
                    root_fd,
                    form,
                    below,
                    user_attributes=user_attributes,
                    made_max=limits.bounds.entries_max,
                )
                try:
                    entries = Applier(root).run(TarReader(stream.read, limits.bounds))
                finally:
                    root.close()
            diff_id = stream.drain()
    if sync:
        try:
            syscalls.syncfs(root_fd)
        except OSError as error:
            raise refusal_of(error, "sync") from error
    return Applied(diff_id=diff_id, size_bytes=stream.size_bytes, entries=entries)


class Applier:
    """One layer on its way onto one root."""

    def __init__(self, root: Root) -> None:
        self._root = root
        # A directory's time is set last, for what is put into it changes it.
        self._times = DirectoryTimes()
        # Names that this layer itself brought: its own whiteouts do not concern them.
        self._brought = Names()

    def run(self, reader: TarReader) -> int:
        """Apply every entry; how many there were."""
        count = 0
        for entry in reader:
            count += 1
            try:
                self._apply(entry, reader)
            except OSError as error:
                raise refusal_of(error, f"layer: {os.fsdecode(entry.name)!r}") from error
        for parts, inode, mtime_ns in self._times:
            try:
                fd = self._root.open(parts, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue  # replaced by a later entry
            try:
                if os.fstat(fd).st_ino == inode:
                    os.utime(f"/proc/self/fd/{fd}", ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)
        return count

    # -- one entry

    def _apply(self, entry: Entry, reader: TarReader) -> None:
        parts = split_name(entry.name)
        if not parts:
            # The root's own mode belongs to the snapshot, not to whoever packed "./".
            if entry.kind is not EntryKind.DIRECTORY:
                raise InvalidArgument("layer: an entry other than a directory names the root")
            return
        if WHITEOUT in entry.name and self._remove(parts, entry):
            return
        if entry.kind is EntryKind.CHARACTER_DEVICE and (entry.major, entry.minor) == (0, 0):
            # What overlayfs itself writes for a removed name, copied by a naive packer.
            self._hide(parts)
        else:
            self._bring(parts, entry, reader)

    def _remove(self, parts: Parts, entry: Entry) -> bool:
        """Do what the name asks for; whether it is a removal, or nothing to be brought."""
        if any(part.startswith(AUFS) and part != OPAQUE for part in parts):
            return True  # aufs's own book-keeping
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise InvalidArgument(f"layer: {os.fsdecode(entry.name)!r} is below a whiteout")
        if parts[-1] == OPAQUE:
            self._hide_all(parts[:-1])
        elif parts[-1].startswith(WHITEOUT):
            hidden = parts[-1].removeprefix(WHITEOUT)
            if hidden in (b"", b".", b".."):
                raise InvalidArgument(f"layer: whiteout {os.fsdecode(entry.name)!r} of no name")
            self._hide((*parts[:-1], hidden))
        else:
            return False
        return True

    def _bring(self, parts: Parts, entry: Entry, reader: TarReader) -> None:
        if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
            raise InvalidArgument(f"layer: {os.fsdecode(entry.name)!r} has an owner out of range")
        name = parts[-1]
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._make_directory_entry(parts, entry)
            case EntryKind.FILE:
                try:
                    make_file(self._root.parent(parts), name, entry, reader)
                except FileExistsError:
                    make_file(self._room(parts), name, entry, reader)
            case EntryKind.HARD_LINK:
                self._make_link(parts, entry)
            case EntryKind.SYMLINK:
                if not entry.link:
                    raise InvalidArgument(f"layer: symlink {os.fsdecode(entry.name)!r} to nothing")
                make_symlink(self._room(parts), name, entry)
            case EntryKind.CHARACTER_DEVICE | EntryKind.BLOCK_DEVICE:
                if not (0 <= entry.major <= MAJOR_MAX and 0 <= entry.minor <= MINOR_MAX):
                    raise InvalidArgument(
                        f"layer: {os.fsdecode(entry.name)!r} has a device number out of range"
                    )
                make_device(self._room(parts), name, entry)
            case EntryKind.FIFO:
                make_fifo(self._room(parts), name, entry)
        self._brought.add(self._root.inode(self._root.parent(parts)), name)

    def _make_directory_entry(self, parts: Parts, entry: Entry) -> None:
        name = parts[-1]
        parent_fd = self._root.parent(parts)
        there = lstat(parent_fd, name)
        if there is None or not stat.S_ISDIR(there.st_mode):
            parent_fd = self._room(parts)
            # A refilled name starts empty, whatever lay below the file it replaces.
            self._root.make_directory(parent_fd, name, opaque=there is not None)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            set_attributes(f"/proc/self/fd/{fd}", entry, follow=True)
            self._times.note(parts, os.fstat(fd).st_ino, entry.mtime_ns)
        finally:
            os.close(fd)

    def _make_link(self, parts: Parts, entry: Entry) -> None:
        target = split_name(entry.link)
        if not target:
            raise InvalidArgument(f"layer: hard link {os.fsdecode(entry.name)!r} to the root")
        target_fd, there = self._find(target)
        if there is None and self._root.form is Form.OVERLAY:
            # Perhaps by way of a symlink, or itself, in a layer below.
            target = (*self._root.real(target[:-1]), target[-1])
            target_fd, there = self._find(target)
            if there is None and self._root.copy_up(target):
                target_fd, there = self._find(target)
        if target_fd is None or there is None or is_whiteout(there):
            raise InvalidArgument(
                f"layer: hard link {os.fsdecode(entry.name)!r} to"
                f" {os.fsdecode(entry.link)!r}, which does not exist"
            )
        if stat.S_ISDIR(there.st_mode):
            raise InvalidArgument(f"layer: hard link {os.fsdecode(entry.name)!r} to a directory")
        # Held by a descriptor of its own: making room may close the cached one.
        target_fd = os.dup(target_fd)
        try:
            old = lstat(self._root.parent(parts), parts[-1])
            if old is not None and (old.st_dev, old.st_ino) == (there.st_dev, there.st_ino):
                return
            os.link(
                target[-1],
                parts[-1],
                src_dir_fd=target_fd,
                dst_dir_fd=self._room(parts),
                follow_symlinks=False,
            )
        finally:
            os.close(target_fd)

    def _find(self, parts: Parts) -> tuple[int | None, os.stat_result | None]:
        """What the root itself has under a name, and the directory it is in."""
        fd = self._root.directory(parts[:-1], make=False)
        return fd, None if fd is None else lstat(fd, parts[-1])

    # -- removals

    def _hide(self, parts: Parts) -> None:
        name = parts[-1]
        parent_fd = self._root.directory(parts[:-1], make=False)
        if self._root.form is Form.PLAIN:
            if parent_fd is not None:
                self._root.remove(parent_fd, name, self._brought)
            return
        shown = self._root.below((*self._root.real(parts[:-1]), name))
        if shown is not None:
            parent_fd = self._root.parent(parts)
        there = None if parent_fd is None else lstat(parent_fd, name)
        if parent_fd is None or (there is not None and is_whiteout(there)):
            return
        # What is there may be a lower file, copied up to be linked to.
        if self._root.remove(parent_fd, name, self._brought):
            if shown is not None:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._root.parent(parts))
        elif there is not None and stat.S_ISDIR(there.st_mode) and shown is not None:
            # This layer's own files stay, what lay below them goes.
            self._make_opaque(parts)

    def _hide_all(self, parts: Parts) -> None:
        # A symlink on the way may be among what goes.
        parts = self._root.real(parts)
        if self._root.form is Form.PLAIN:
            for child in self._names_in(parts):
                self._hide((*parts, child))
            return
        if not parts:
            # The kernel heeds no mark on the root itself.
            for name in self._root.lowers.names():
                self._hide((name,))
            return
        shown = self._root.below(parts)
        if shown is not None and stat.S_ISDIR(shown.status.st_mode):
            self._root.parent((*parts, b""))
            for child in self._names_in(parts):
                self._hide((*parts, child))
            self._make_opaque(parts)

    def _make_opaque(self, parts: Parts) -> None:
        """Hide what lies below in a directory of the root. In one that is marked so, a mark of a
        removed name would be listed."""
        fd = self._root.directory(parts, make=False)
        assert fd is not None
        for child in self._names_in(parts):
            there = lstat(fd, child)
            if there is not None and is_whiteout(there):
                os.unlink(child, dir_fd=fd)
        self._root.mark_opaque(fd)

    def _names_in(self, parts: Parts) -> Sequence[bytes]:
        fd = self._root.directory(parts, make=False)
        return [] if fd is None else [os.fsencode(child) for child in os.listdir(fd)]

    def _room(self, parts: Parts) -> int:
        """The parent's descriptor, once nothing bears the name any more."""
        self._root.remove(self._root.parent(parts), parts[-1])
        return self._root.parent(parts)
