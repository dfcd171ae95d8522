"""Directory trees: removed, measured, copied, without ever leaving them.

A tree may be hostile: deeper than any stack, wider than memory is comfortable with, full of
symlinks, and changed while it is walked. Walks hold one descriptor and a stack of names, never
follow a symlink, stay on one filesystem, and check on their way up that the parent is still
the directory they came from.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Container
from dataclasses import dataclass

from . import syscalls
from .lowers import Parts, get_attributes, set_attribute

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A directory on the way down: the names in it that are left."""

    parts: Parts
    names: list[str]
    identity: tuple[int, int]
    emptied: bool = True


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _up(fd: int, above: _Level) -> int:
    """The descriptor of the directory above, which must be the one that was walked."""
    parent_fd = os.open("..", _DIRECTORY, dir_fd=fd)
    if _identity(parent_fd) != above.identity:
        os.close(parent_fd)
        # Someone moved the directory: what is above it now may lie outside the tree.
        raise OSError(errno.EAGAIN, "the tree changed while it was walked")
    return parent_fd


def lstat(dir_fd: int, name: bytes) -> os.stat_result | None:
    """The status of a name, not of what it points to; None when there is none."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlink(dir_fd: int, name: bytes) -> bool:
    """Remove a name that is no directory; whether it is one, and still there."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        return True
    return False


def remove_tree(parent_fd: int, name: bytes, kept: Container[object] = ()) -> bool:
    """Remove a name in `parent_fd`, and all below; whether it is gone.

    Names in `kept`, each with the inode of its directory, stay, and so do the directories they
    are in.
    """
    stays = (os.fstat(parent_fd).st_ino, name) in kept
    if not stays and not _unlink(parent_fd, name):
        return True
    fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    stack = [_Level((name,), os.listdir(fd), _identity(fd), not stays)]
    try:
        while True:
            level = stack[-1]
            if level.names:
                child = os.fsencode(level.names.pop())
                stays = (level.identity[1], child) in kept
                if stays:
                    level.emptied = False
                    status = lstat(fd, child)
                    if status is None or not stat.S_ISDIR(status.st_mode):
                        continue
                elif not _unlink(fd, child):
                    continue
                below = os.open(child, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
                stack.append(_Level((child,), os.listdir(fd), _identity(fd), not stays))
                continue
            stack.pop()
            if not stack:
                if level.emptied:
                    os.rmdir(name, dir_fd=parent_fd)
                return level.emptied
            above = _up(fd, stack[-1])
            os.close(fd)
            fd = above
            if level.emptied:
                os.rmdir(level.parts[-1], dir_fd=fd)
            else:
                stack[-1].emptied = False
    finally:
        os.close(fd)


def measure_tree(path: str) -> tuple[int, int]:
    """The inodes of a tree, its root among them, and the bytes they take on the disk.

    A file with several links counts once, a hole not at all. What vanishes meanwhile is left
    out.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        root = os.fstat(fd)
        size_bytes = root.st_blocks * 512
        inodes = 1
        linked: set[int] = set()
        stack = [_Level((), os.listdir(fd), (root.st_dev, root.st_ino))]
        while True:
            level = stack[-1]
            if not level.names:
                stack.pop()
                if not stack:
                    return inodes, size_bytes
                above = _up(fd, stack[-1])
                os.close(fd)
                fd = above
                continue
            child = os.fsencode(level.names.pop())
            status = lstat(fd, child)
            if status is None or status.st_dev != root.st_dev:
                continue
            directory = stat.S_ISDIR(status.st_mode)
            if not directory and status.st_nlink > 1:
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            inodes += 1
            size_bytes += status.st_blocks * 512
            if directory:
                try:
                    below = os.open(child, _DIRECTORY, dir_fd=fd)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                os.close(fd)
                fd = below
                stack.append(_Level((child,), os.listdir(fd), _identity(fd)))
    finally:
        os.close(fd)


def copy_data(source_fd: int, target_fd: int, size_bytes: int) -> None:
    """Copy a file's bytes within the kernel: by sharing blocks where the filesystem can,
    leaving holes where there are holes."""
    try:
        fcntl.ioctl(target_fd, syscalls.FICLONE, source_fd)
        return
    except OSError:
        pass  # another filesystem, or one that shares no blocks
    os.ftruncate(target_fd, size_bytes)
    at = 0
    while at < size_bytes:
        try:
            at = os.lseek(source_fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = os.lseek(source_fd, at, os.SEEK_HOLE)
        os.lseek(target_fd, at, os.SEEK_SET)
        while at < end:
            copied = os.sendfile(target_fd, source_fd, at, min(end - at, 1 << 30))
            if not copied:
                return
            at += copied


def chmod(dir_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of what bears this name, never of what a symlink points to."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def copy_owner_and_mode(fd: int, status: os.stat_result) -> None:
    """Give the open file this owner and mode."""
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))


def copy_attributes(source_fd: int, target_fd: int, without: tuple[bytes, ...] = ()) -> None:
    """Copy the extended attributes, but for those with one of these prefixes."""
    for key, value in get_attributes(source_fd).items():
        if not without or not key.encode().startswith(without):
            set_attribute(target_fd, key, value)


def copy_special(status: os.stat_result, source_fd: int, target_fd: int, name: bytes) -> None:
    """Copy what is neither a file nor a directory, by name from one directory to the other."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target_fd)
        chmod(target_fd, name, stat.S_IMODE(status.st_mode))
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target_fd, follow_symlinks=False)
    times_ns = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times_ns, dir_fd=target_fd, follow_symlinks=False)


def copy_file(status: os.stat_result, source_fd: int, target_fd: int, name: bytes) -> None:
    """Copy a plain file by name from one directory to the other."""
    in_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_fd)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        out_fd = os.open(name, flags, 0o600, dir_fd=target_fd)
        try:
            copy_data(in_fd, out_fd, status.st_size)
            copy_owner_and_mode(out_fd, status)
            copy_attributes(in_fd, out_fd)
            os.utime(out_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(out_fd)
    finally:
        os.close(in_fd)


def copy_tree(source: str, target: str) -> None:
    """Copy all that is in one directory into another, empty one, and its metadata.

    Owners, modes, times, attributes, links, holes and devices are kept. The source must not
    change meanwhile.
    """
    source_root = os.open(source, _DIRECTORY)
    target_root = os.open(target, _DIRECTORY)
    pairs = [source_root, target_root]
    try:
        _copy_below(pairs, target_root)
    finally:
        for fd in {*pairs, target_root}:
            os.close(fd)


def _copy_below(pair: list[int], target_root: int) -> None:
    # Invariant: `pair` holds the open (source, target) directories of the topmost level; they
    # are replaced in place so that the caller always closes the right ones.
    linked: dict[int, Parts] = {}
    stack = [_Level((), os.listdir(pair[0]), _identity(pair[0]))]
    targets = [_identity(pair[1])]
    pair[1] = os.dup(pair[1])
    while True:
        level = stack[-1]
        source_fd, target_fd = pair
        if not level.names:
            status = os.fstat(source_fd)
            copy_owner_and_mode(target_fd, status)
            copy_attributes(source_fd, target_fd)
            os.utime(target_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            stack.pop()
            targets.pop()
            if not stack:
                return
            pair[0] = _up(source_fd, stack[-1])
            os.close(source_fd)
            pair[1] = _up(target_fd, _Level((), [], targets[-1]))
            os.close(target_fd)
            continue
        name = os.fsencode(level.names.pop())
        parts = (*level.parts, name)
        status = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=target_fd)
            pair[0] = os.open(name, _DIRECTORY, dir_fd=source_fd)
            os.close(source_fd)
            pair[1] = os.open(name, _DIRECTORY, dir_fd=target_fd)
            os.close(target_fd)
            stack.append(_Level(parts, os.listdir(pair[0]), _identity(pair[0])))
            targets.append(_identity(pair[1]))
            continue
        if status.st_nlink > 1:
            first = linked.setdefault(status.st_ino, parts)
            if first is not parts:
                os.link(
                    b"/".join(first),
                    name,
                    src_dir_fd=target_root,
                    dst_dir_fd=target_fd,
                    follow_symlinks=False,
                )
                continue
        if stat.S_ISREG(status.st_mode):
            copy_file(status, source_fd, target_fd, name)
        else:
            copy_special(status, source_fd, target_fd, name)
