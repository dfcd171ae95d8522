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

import enum
import errno
import os
import stat
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from ..actors.errors import (
    DataLoss,
    InvalidArgument,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unimplemented,
    Unknown,
)
from . import syscalls
from .compression import PlainStream
from .lowers import Lowers, Parts, join, open_parts, set_attribute
from .tar import Bounds, Entry, EntryKind, TarReader
from .trees import (
    copy_attributes,
    copy_file,
    copy_owner_and_mode,
    copy_special,
    lstat,
    remove_tree,
)

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."

OPAQUE_ATTRIBUTES = {False: "trusted.overlay.opaque", True: "user.overlay.opaque"}
# The kernel's own book-keeping: redirects and the like would let a layer point anywhere.
RESERVED_ATTRIBUTES = (b"trusted.overlay.", b"user.overlay.")

ID_MAX = (1 << 32) - 2
MAJOR_MAX = (1 << 12) - 1
MINOR_MAX = (1 << 20) - 1
LINKS_MAX = 40
DIRECTORIES_OPEN_MAX = 64


class Form(enum.Enum):
    """How a removal is written."""

    PLAIN = "plain"
    OVERLAY = "overlay"


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
        raise Unimplemented(f"media type {media_type!r}: not a layer that can be applied")


def refusal_of(error: OSError, what: str) -> Refusal:
    """The answer that a failed system call means for the one who asked."""
    text = f"{what}: {os.strerror(error.errno or 0)}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EMFILE | errno.ENFILE | errno.EFBIG:
            return ResourceExhausted(text)
        case errno.EPERM | errno.EACCES | errno.EROFS:
            return PermissionDenied(text)
        case errno.EIO | errno.EUCLEAN:
            return DataLoss(text)
        case (
            errno.ENOTDIR
            | errno.ELOOP
            | errno.ENAMETOOLONG
            | errno.EEXIST
            | errno.ENOENT
            | errno.EINVAL
            | errno.E2BIG
            | errno.ERANGE
            | errno.EISDIR
            | errno.EMLINK
        ):
            return InvalidArgument(text)
        case _:
            return Unknown(text)


def split_name(name: bytes) -> Parts:
    """A name's components below the root; a leading slash means the root as well."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise InvalidArgument(f"layer: {os.fsdecode(name)!r} leaves the root")
    for part in parts:
        if len(part) > 255:
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
                applier = Applier(root_fd, form, below, user_attributes=user_attributes)
                try:
                    entries = applier.run(TarReader(stream.read, limits.bounds))
                finally:
                    applier.close()
            diff_id = stream.drain()
    if sync:
        try:
            syscalls.syncfs(root_fd)
        except OSError as error:
            raise refusal_of(error, "sync") from error
    return Applied(diff_id=diff_id, size_bytes=stream.size_bytes, entries=entries)


class Applier:
    """One layer on its way onto one root."""

    def __init__(
        self, root_fd: int, form: Form, lowers: Lowers, *, user_attributes: bool = False
    ) -> None:
        self._root_fd = root_fd
        self._form = form
        self._lowers = lowers
        self._opaque = OPAQUE_ATTRIBUTES[user_attributes]
        # Invariant: each key's descriptor is the directory which that name leads to now;
        # emptied whenever something that may be part of a path is removed.
        self._directories: dict[Parts, int] = {}
        # A directory's time is set last, for what is put into it changes it.
        self._times_ns: dict[Parts, int] = {}
        # Names that this layer itself brought: its own whiteouts do not concern them.
        self._brought: set[Parts] = set()

    def close(self) -> None:
        """Let go of the directories held open."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()

    def run(self, reader: TarReader) -> int:
        """Apply every entry; how many there were."""
        count = 0
        for entry in reader:
            count += 1
            try:
                self._apply(entry, reader)
            except OSError as error:
                raise refusal_of(error, f"layer: {os.fsdecode(entry.name)!r}") from error
        for parts, mtime_ns in reversed(self._times_ns.items()):
            try:
                fd = self._open(parts, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue  # replaced by a later entry
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
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
        if any(part.startswith(AUFS) and part != OPAQUE for part in parts):
            return  # aufs's own book-keeping
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise InvalidArgument(f"layer: {os.fsdecode(entry.name)!r} is below a whiteout")
        if parts[-1] == OPAQUE:
            self._hide_all(parts[:-1])
        elif parts[-1].startswith(WHITEOUT):
            hidden = parts[-1].removeprefix(WHITEOUT)
            if hidden in (b"", b".", b".."):
                raise InvalidArgument(f"layer: whiteout {os.fsdecode(entry.name)!r} of no name")
            self._hide((*parts[:-1], hidden))
        elif entry.kind is EntryKind.CHARACTER_DEVICE and (entry.major, entry.minor) == (0, 0):
            # What overlayfs itself writes for a removed name, copied by a naive packer.
            self._hide(parts)
        else:
            self._bring(parts, entry, reader)

    def _bring(self, parts: Parts, entry: Entry, reader: TarReader) -> None:
        if not (0 <= entry.uid <= ID_MAX and 0 <= entry.gid <= ID_MAX):
            raise InvalidArgument(f"layer: {os.fsdecode(entry.name)!r} has an owner out of range")
        name = parts[-1]
        match entry.kind:
            case EntryKind.DIRECTORY:
                self._make_directory_entry(parts, entry)
            case EntryKind.FILE:
                self._make_file(self._room(parts), name, entry, reader)
            case EntryKind.HARD_LINK:
                self._make_link(parts, entry)
            case EntryKind.SYMLINK:
                if not entry.link:
                    raise InvalidArgument(f"layer: symlink {os.fsdecode(entry.name)!r} to nothing")
                parent_fd = self._room(parts)
                os.symlink(entry.link, name, dir_fd=parent_fd)
                self._set_metadata_by_name(parent_fd, name, entry)
            case EntryKind.CHARACTER_DEVICE | EntryKind.BLOCK_DEVICE:
                if not (0 <= entry.major <= MAJOR_MAX and 0 <= entry.minor <= MINOR_MAX):
                    raise InvalidArgument(
                        f"layer: {os.fsdecode(entry.name)!r} has a device number out of range"
                    )
                character = entry.kind is EntryKind.CHARACTER_DEVICE
                kind = stat.S_IFCHR if character else stat.S_IFBLK
                parent_fd = self._room(parts)
                device = os.makedev(entry.major, entry.minor)
                os.mknod(name, kind | 0o600, device, dir_fd=parent_fd)
                self._set_metadata_by_name(parent_fd, name, entry)
            case EntryKind.FIFO:
                parent_fd = self._room(parts)
                os.mkfifo(name, 0o600, dir_fd=parent_fd)
                self._set_metadata_by_name(parent_fd, name, entry)
        self._brought.add(parts)

    def _make_directory_entry(self, parts: Parts, entry: Entry) -> None:
        name = parts[-1]
        parent_fd = self._parent(parts)
        there = lstat(parent_fd, name)
        if there is None or not stat.S_ISDIR(there.st_mode):
            parent_fd = self._room(parts)
            # A refilled name starts empty, whatever lay below the file it replaces.
            self._make_directory(parent_fd, name, opaque=there is not None)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            self._set_attributes(f"/proc/self/fd/{fd}", entry, follow=True)
        finally:
            os.close(fd)
        # Anew, so that the order stays that of the stream.
        self._times_ns.pop(parts, None)
        self._times_ns[parts] = entry.mtime_ns

    def _make_file(self, parent_fd: int, name: bytes, entry: Entry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
        try:
            if entry.pieces is None:
                for data in reader.data():
                    _write_all(fd, data)
            else:
                os.ftruncate(fd, entry.size_bytes)
                _write_pieces(fd, entry.pieces, reader)
            os.fchown(fd, entry.uid, entry.gid)
            # After the owner: a change of owner clears setuid, setgid and capabilities.
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._set_attributes(f"/proc/self/fd/{fd}", entry, follow=True)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _make_link(self, parts: Parts, entry: Entry) -> None:
        target = split_name(entry.link)
        if not target:
            raise InvalidArgument(f"layer: hard link {os.fsdecode(entry.name)!r} to the root")
        target_fd = self._directory(target[:-1], make=False)
        there = None if target_fd is None else lstat(target_fd, target[-1])
        if there is None and self._form is Form.OVERLAY and self._copy_up(target):
            target_fd = self._directory(target[:-1], make=False)
            there = None if target_fd is None else lstat(target_fd, target[-1])
        if target_fd is None or there is None or _is_whiteout(there):
            raise InvalidArgument(
                f"layer: hard link {os.fsdecode(entry.name)!r} to"
                f" {os.fsdecode(entry.link)!r}, which does not exist"
            )
        if stat.S_ISDIR(there.st_mode):
            raise InvalidArgument(f"layer: hard link {os.fsdecode(entry.name)!r} to a directory")
        # Held by a descriptor of its own: making room may close the cached one.
        target_fd = os.dup(target_fd)
        try:
            old = lstat(self._parent(parts), parts[-1])
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

    # -- removals

    def _hide(self, parts: Parts) -> None:
        if self._form is Form.PLAIN:
            parent_fd = self._directory(parts[:-1], make=False)
            if parent_fd is not None:
                self._remove(parent_fd, parts, self._brought)
            return
        if self._lowers.find(parts) is None:
            return  # nothing below to hide
        parent_fd = self._parent(parts)
        there = lstat(parent_fd, parts[-1])
        if there is not None and not stat.S_ISDIR(there.st_mode):
            return  # it hides what is below by being there
        if there is None or self._remove(parent_fd, parts, self._brought):
            os.mknod(parts[-1], stat.S_IFCHR, 0, dir_fd=self._parent(parts))
        else:
            # This layer's own files stay, what lay below them goes.
            self._make_opaque(self._parent(parts), parts[-1])

    def _hide_all(self, parts: Parts) -> None:
        if self._form is Form.PLAIN:
            fd = self._directory(parts, make=False)
            for child in os.listdir(fd) if fd is not None else ():
                self._hide((*parts, os.fsencode(child)))
        elif not parts:
            # The kernel heeds no mark on the root itself.
            for name in self._lowers.names():
                self._hide((name,))
        else:
            found = self._lowers.find(parts)
            if found is not None and stat.S_ISDIR(found.status.st_mode):
                fd = self._directory(parts, make=True)
                assert fd is not None
                set_attribute(fd, self._opaque, b"y")

    def _remove(self, parent_fd: int, parts: Parts, kept: AbstractSet[Parts]) -> bool:
        """Remove a name but for what is in `kept`; whether it is gone.

        Whoever holds a cached descriptor asks for it anew.
        """
        there = lstat(parent_fd, parts[-1])
        if there is None:
            return True
        if not stat.S_ISDIR(there.st_mode):
            if parts in kept:
                return False
            os.unlink(parts[-1], dir_fd=parent_fd)
            if stat.S_ISLNK(there.st_mode):
                self.close()
            return True
        parent_fd = os.dup(parent_fd)
        try:
            self.close()
            return remove_tree(parent_fd, parts, kept)
        finally:
            os.close(parent_fd)

    def _room(self, parts: Parts) -> int:
        """The parent's descriptor, once nothing bears the name any more."""
        parent_fd = self._parent(parts)
        there = lstat(parent_fd, parts[-1])
        if there is None:
            return parent_fd
        self._remove(parent_fd, parts, frozenset())
        if stat.S_ISDIR(there.st_mode):
            depth = len(parts)
            self._brought = {name for name in self._brought if name[:depth] != parts}
            for name in [name for name in self._times_ns if name[:depth] == parts]:
                del self._times_ns[name]
        return self._parent(parts)

    # -- directories

    def _open(self, parts: Parts, flags: int) -> int:
        return open_parts(self._root_fd, parts, flags)

    def _parent(self, parts: Parts) -> int:
        fd = self._directory(parts[:-1], make=True)
        assert fd is not None
        return fd

    def _directory(self, parts: Parts, *, make: bool) -> int | None:
        """A cached descriptor of that directory; None when there is none and none is made."""
        fd = self._directories.get(parts)
        if fd is not None:
            return fd
        try:
            fd = self._open(parts, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if not make:
                return None
            fd = self._make_parents(parts, LINKS_MAX)
        if len(self._directories) >= DIRECTORIES_OPEN_MAX:
            oldest = next(iter(self._directories))
            os.close(self._directories.pop(oldest))
        self._directories[parts] = fd
        return fd

    def _make_parents(self, parts: Parts, links_left: int) -> int:
        """Make what is missing of a path, as the layers below have it; its descriptor."""
        if links_left == 0:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        fd = self._open((), os.O_RDONLY | os.O_DIRECTORY)
        for depth in range(1, len(parts) + 1):
            name = parts[depth - 1]
            there = lstat(fd, name)
            link = None
            if there is None:
                # A symlink of a lower layer leads on here too, as in the mounted view.
                found = self._lowers.find(parts[:depth])
                if found is not None and stat.S_ISLNK(found.status.st_mode):
                    link = found.link()
            elif stat.S_ISLNK(there.st_mode):
                link = os.readlink(name, dir_fd=fd)
            if link is not None:
                # Perhaps it dangles: what it names is made, seen from the root.
                os.close(fd)
                start = () if link.startswith(b"/") else parts[: depth - 1]
                resolved = _resolve(start, link)
                return self._make_parents((*resolved, *parts[depth:]), links_left - 1)
            try:
                if there is None:
                    self._make_directory(fd, name)
                    self._copy_metadata(fd, name, parts[:depth])
                elif _is_whiteout(there) and self._form is Form.OVERLAY:
                    os.unlink(name, dir_fd=fd)
                    self._make_directory(fd, name, opaque=True)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(name, flags, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make_directory(self, parent_fd: int, name: bytes, *, opaque: bool = False) -> None:
        os.mkdir(name, 0o755, dir_fd=parent_fd)
        os.chmod(name, 0o755, dir_fd=parent_fd)  # whatever the umask
        if opaque and self._form is Form.OVERLAY:
            self._make_opaque(parent_fd, name)

    def _make_opaque(self, parent_fd: int, name: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            set_attribute(fd, self._opaque, b"y")
        finally:
            os.close(fd)

    def _copy_metadata(self, parent_fd: int, name: bytes, parts: Parts) -> None:
        found = self._lowers.find(parts)
        if found is None or not stat.S_ISDIR(found.status.st_mode):
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            copy_owner_and_mode(fd, found.status)
            with found.opened(os.O_RDONLY | os.O_DIRECTORY) as source_fd:
                copy_attributes(source_fd, fd, RESERVED_ATTRIBUTES)
        finally:
            os.close(fd)

    def _copy_up(self, parts: Parts) -> bool:
        """Bring a lower layer's file into this one, so that it can be linked to."""
        found = self._lowers.find(parts)
        if found is None or stat.S_ISDIR(found.status.st_mode):
            return False
        parent_fd = self._parent(parts)
        with found.parent() as source_fd:
            if stat.S_ISREG(found.status.st_mode):
                copy_file(found.status, source_fd, parent_fd, parts[-1])
            else:
                copy_special(found.status, source_fd, parent_fd, parts[-1])
        return True

    # -- metadata

    def _set_metadata_by_name(self, parent_fd: int, name: bytes, entry: Entry) -> None:
        os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if entry.kind is not EntryKind.SYMLINK:
            # Just made by us in a directory that nobody else sees: it is no symlink.
            os.chmod(name, entry.mode, dir_fd=parent_fd)
        if entry.xattrs:
            path = join((f"/proc/self/fd/{parent_fd}".encode(), name))
            self._set_attributes(os.fsdecode(path), entry, follow=False)
        times_ns = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times_ns, dir_fd=parent_fd, follow_symlinks=False)

    def _set_attributes(self, path: str, entry: Entry, *, follow: bool) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(RESERVED_ATTRIBUTES):
                continue
            if not key or len(key) > 255 or len(value) > 1 << 16:
                raise InvalidArgument("layer: an extended attribute is out of bounds")
            try:
                os.setxattr(path, key, value, follow_symlinks=follow)
            except OSError as error:
                # The filesystem has none, or not on this kind of file: as containerd, go on.
                user_on_special = error.errno == errno.EPERM and key.startswith(b"user.")
                if error.errno != errno.ENOTSUP and not user_on_special:
                    raise


def _resolve(start: Parts, link: bytes) -> Parts:
    """A symlink's target seen from the directory `start`, which `..` cannot leave upwards."""
    resolved = list(start)
    for part in link.split(b"/"):
        if part == b"..":
            if resolved:
                resolved.pop()
        elif part not in (b"", b"."):
            resolved.append(part)
    return tuple(resolved)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        data = data[written:]
        written = os.write(fd, data)


def _write_pieces(fd: int, pieces: tuple[tuple[int, int], ...], reader: TarReader) -> None:
    stream = reader.data()
    data = b""
    for offset, length in pieces:
        os.lseek(fd, offset, os.SEEK_SET)
        while length:
            data = data or next(stream, b"")
            if not data:
                raise InvalidArgument("layer: a sparse file's data is cut short")
            _write_all(fd, data[:length])
            taken = min(length, len(data))
            data = data[taken:]
            length -= taken
