"""Changes: what an upper tree has otherwise than a lower one.

    lower   a  b/  b/x            b    modified or not, by its own metadata
    upper      b/       c         a    removed (what was below it is not told)
                                  c    added

The order is that of the names: a directory, what is in it, its next sibling. Told are also the
names that are the same in both trees, for one may be a link to a file that is not.

Two files are the same when their kind, mode, owner, device and attributes are, and for others than
directories size and time. Times of whole seconds may have been cut, so there the bytes decide.

A *guide*, when there is one, is a directory that has each name that may differ, as an overlay's
upper directory has: what it does not name is not looked at. Where it hides or renames what is
below, the trees are compared in full.

A tree may be hostile and change meanwhile: no symlink is followed, and what vanishes is left out.
"""

import enum
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .lowers import Parts, open_parts
from .trees import lstat

# What is carried along of a file; all else belongs to the host or to overlayfs.
CAPABILITY, USER = "security.capability", "user."
RESERVED = "user.overlay."
_MARKS = tuple(
    f"{space}.overlay.{name}" for space in ("trusted", "user") for name in ("opaque", "redirect")
)

PIECE_BYTES = 1 << 20


class Kind(enum.Enum):
    """What became of a name."""

    ADDED = "added"
    MODIFIED = "modified"
    REMOVED = "removed"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One name. `status` is the upper tree's, None for what was removed; `dir_fd` is the upper
    directory that it is in, open until the next change is asked for."""

    kind: Kind
    parts: Parts
    status: os.stat_result | None
    dir_fd: int


@dataclass(slots=True)
class _Level:
    """A directory that is being walked: the names that are left, and which trees have it."""

    parts: Parts
    names: Iterator[bytes]
    roots: tuple[int, int, int]
    fds: tuple[int, int, int]


def attributes(dir_fd: int, name: bytes) -> Mapping[bytes, bytes]:
    """The extended attributes that a layer carries of a file."""
    path = f"/proc/self/fd/{dir_fd}/".encode() + name
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {
        os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
        for key in sorted(names)
        if key == CAPABILITY or (key.startswith(USER) and not key.startswith(RESERVED))
    }


class Walk:
    """The walk over two trees; -1 stands for a tree that is not there. Iterate once, then close."""

    def __init__(self, lower_fd: int, upper_fd: int, guide_fd: int = -1) -> None:
        self._stack: list[_Level] = []
        self._roots = (lower_fd, upper_fd, guide_fd)

    def close(self) -> None:
        """Let go of the directories held open."""
        for level in self._stack:
            _close(level)
        self._stack.clear()

    def __iter__(self) -> Iterator[Change]:
        self._enter((), self._roots)
        while self._stack:
            level = self._stack[-1]
            name = next(level.names, None)
            if name is None:
                _close(self._stack.pop())
                if self._stack:
                    _open(self._stack[-1])
                continue
            lower_fd, upper_fd, _ = level.fds
            before = lstat(lower_fd, name) if lower_fd >= 0 else None
            after = lstat(upper_fd, name) if upper_fd >= 0 else None
            if before is None and after is None:
                continue
            kind = _kind(level, name, before, after)
            if kind is None:
                continue
            parts = (*level.parts, name)
            yield Change(kind=kind, parts=parts, status=after, dir_fd=upper_fd)
            if after is not None and stat.S_ISDIR(after.st_mode):
                lower_root, upper_root, _ = level.roots
                both = before is not None and stat.S_ISDIR(before.st_mode)
                guide = _guide(level, name) if both else -1
                self._enter(parts, (lower_root if both else -1, upper_root, guide))

    def _enter(self, parts: Parts, roots: tuple[int, int, int]) -> None:
        # Only the innermost directories are held open, however deep a tree is.
        if self._stack:
            _close(self._stack[-1])
        level = _Level(parts, iter(()), roots, (-1, -1, -1))
        self._stack.append(level)
        _open(level)
        lower_fd, upper_fd, guide_fd = level.fds
        listed = (guide_fd,) if guide_fd >= 0 else (lower_fd, upper_fd)
        names = {os.fsencode(name) for fd in listed if fd >= 0 for name in os.listdir(fd)}
        level.names = iter(sorted(names))


def _open(level: _Level) -> None:
    fds = [-1, -1, -1]
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for place, root_fd in enumerate(level.roots):
        if root_fd < 0:
            continue
        try:
            fds[place] = open_parts(root_fd, level.parts, flags, follow=False)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it vanished meanwhile
    level.fds = (fds[0], fds[1], fds[2])


def _close(level: _Level) -> None:
    for fd in level.fds:
        if fd >= 0:
            os.close(fd)
    level.fds = (-1, -1, -1)


def _guide(level: _Level, name: bytes) -> int:
    """The guide's root if it leads on below this name, else -1."""
    guide_fd = level.fds[2]
    there = lstat(guide_fd, name) if guide_fd >= 0 else None
    if there is None or not stat.S_ISDIR(there.st_mode):
        return -1
    path = f"/proc/self/fd/{guide_fd}/".encode() + name
    marks = os.listxattr(path, follow_symlinks=False)
    return -1 if any(mark in _MARKS for mark in marks) else level.roots[2]


def _kind(
    level: _Level, name: bytes, before: os.stat_result | None, after: os.stat_result | None
) -> Kind | None:
    if after is None:
        return Kind.REMOVED
    if before is None:
        return Kind.ADDED
    lower_fd, upper_fd, _ = level.fds
    try:
        same = _same(lower_fd, upper_fd, name, before, after)
    except FileNotFoundError:
        return None
    return Kind.SAME if same else Kind.MODIFIED


def _same(
    lower_fd: int, upper_fd: int, name: bytes, before: os.stat_result, after: os.stat_result
) -> bool:
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
        return True
    if _facts(before) != _facts(after):
        return False
    if attributes(lower_fd, name) != attributes(upper_fd, name):
        return False
    if stat.S_ISDIR(after.st_mode):
        return True
    if before.st_size != after.st_size:
        return False
    if before.st_mtime_ns % 1_000_000_000 or after.st_mtime_ns % 1_000_000_000:
        return before.st_mtime_ns == after.st_mtime_ns
    if before.st_mtime_ns != after.st_mtime_ns:
        return False
    if stat.S_ISLNK(after.st_mode):
        return os.readlink(name, dir_fd=lower_fd) == os.readlink(name, dir_fd=upper_fd)
    return not stat.S_ISREG(after.st_mode) or _same_bytes(lower_fd, upper_fd, name)


def _facts(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_rdev


def _same_bytes(lower_fd: int, upper_fd: int, name: bytes) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=lower_fd), "rb", buffering=0) as before:
        with open(os.open(name, flags, dir_fd=upper_fd), "rb", buffering=0) as after:
            while True:
                pieces = before.read(PIECE_BYTES), after.read(PIECE_BYTES)
                if pieces[0] != pieces[1]:
                    return False
                if not pieces[0]:
                    return True
