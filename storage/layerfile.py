"""The files that a layer brings, each made anew where nothing bears its name."""

import errno
import os
import stat

from ..actors.errors import InvalidArgument
from .lowers import join
from .tar import Entry, EntryKind, TarReader
from .trees import chmod

# The kernel's own book-keeping: redirects and the like would let a layer point anywhere.
RESERVED_ATTRIBUTES = (b"trusted.overlay.", b"user.overlay.")


def make_file(parent_fd: int, name: bytes, entry: Entry, reader: TarReader) -> None:
    """A regular file with the bytes that the stream holds for it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    try:
        if entry.pieces is None:
            for data in reader.data() if entry.size_bytes else ():
                _write_all(fd, data)
        else:
            os.ftruncate(fd, entry.size_bytes)
            _write_pieces(fd, entry.pieces, reader)
        os.fchown(fd, entry.uid, entry.gid)
        # After the owner: a change of owner clears setuid, setgid and capabilities.
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            set_attributes(f"/proc/self/fd/{fd}", entry, follow=True)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(fd)


def make_symlink(parent_fd: int, name: bytes, entry: Entry) -> None:
    """A symlink to wherever it says: whoever follows it resolves it within the root."""
    os.symlink(entry.link, name, dir_fd=parent_fd)
    set_metadata(parent_fd, name, entry)


def make_device(parent_fd: int, name: bytes, entry: Entry) -> None:
    """A device."""
    character = entry.kind is EntryKind.CHARACTER_DEVICE
    kind = stat.S_IFCHR if character else stat.S_IFBLK
    os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent_fd)
    set_metadata(parent_fd, name, entry)


def make_fifo(parent_fd: int, name: bytes, entry: Entry) -> None:
    """A named pipe."""
    os.mkfifo(name, 0o600, dir_fd=parent_fd)
    set_metadata(parent_fd, name, entry)


def set_metadata(parent_fd: int, name: bytes, entry: Entry) -> None:
    """Give a file that was just made its owner, mode, attributes and times."""
    os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
    if entry.kind is not EntryKind.SYMLINK:
        chmod(parent_fd, name, entry.mode)
    if entry.xattrs:
        path = join((f"/proc/self/fd/{parent_fd}".encode(), name))
        set_attributes(os.fsdecode(path), entry, follow=False)
    times_ns = (entry.mtime_ns, entry.mtime_ns)
    os.utime(name, ns=times_ns, dir_fd=parent_fd, follow_symlinks=False)


def set_attributes(path: str, entry: Entry, *, follow: bool) -> None:
    """Set what extended attributes a layer may set and the filesystem takes."""
    for key, value in entry.xattrs.items():
        if key.startswith(RESERVED_ATTRIBUTES):
            continue
        if not key or b"\0" in key or len(key) > 255 or len(value) > 1 << 16:
            raise InvalidArgument("layer: an extended attribute is out of bounds")
        try:
            os.setxattr(path, key, value, follow_symlinks=follow)
        except OSError as error:
            # The filesystem has none, or not on this kind of file: as containerd, go on.
            user_on_special = error.errno == errno.EPERM and key.startswith(b"user.")
            if error.errno != errno.ENOTSUP and not user_on_special:
                raise


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
