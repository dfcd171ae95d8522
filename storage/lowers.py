"""The layers below an upper directory, looked into as overlayfs would show them.

Needed where a layer is applied straight onto an upper directory: a directory that appears
there must carry what the one below carries, a whiteout is only wanted where there is something
to hide, and a hard link may name a lower file.

Names are resolved component by component and no symlink is followed.
"""

import errno
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import syscalls

Parts = tuple[bytes, ...]
SHOWN_MAX = 256
RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV


def join(parts: Sequence[bytes]) -> bytes:
    """The path of these components, relative to their root."""
    return b"/".join(parts)


def open_parts(root_fd: int, parts: Parts, flags: int, *, follow: bool = True) -> int:
    """Open a path that stays below `root_fd` whatever its symlinks say."""
    resolve = RESOLVE if follow else RESOLVE | syscalls.RESOLVE_NO_SYMLINKS
    path = join(parts) or b"."
    if len(path) < 4096:
        return syscalls.openat2(root_fd, path, flags, resolve)
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def get_attributes(fd: int) -> dict[str, bytes]:
    """A file's extended attributes; none where the filesystem has none."""
    path = f"/proc/self/fd/{fd}"
    try:
        return {key: os.getxattr(path, key) for key in os.listxattr(path)}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def get_attribute(fd: int, key: str) -> bytes:
    """One of them, also through an O_PATH descriptor; empty when it has none of that name."""
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", key)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return b""
        raise


def set_attribute(fd: int, key: str, value: bytes) -> None:
    """Set an extended attribute, also through an O_PATH descriptor."""
    os.setxattr(f"/proc/self/fd/{fd}", key, value)


@dataclass(frozen=True, slots=True)
class Found:
    """What the lower layers show under a name."""

    root_fd: int
    parts: Parts
    status: os.stat_result

    @contextmanager
    def opened(self, flags: int) -> Generator[int, None, None]:
        """A descriptor of it, never through a symlink."""
        fd = open_parts(self.root_fd, self.parts, flags | os.O_NOFOLLOW, follow=False)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self) -> Generator[int, None, None]:
        """A descriptor of the directory it is in."""
        fd = open_parts(self.root_fd, self.parts[:-1], os.O_PATH, follow=False)
        try:
            yield fd
        finally:
            os.close(fd)

    def link(self) -> bytes:
        """Where it points to, when it is a symlink."""
        with self.parent() as fd:
            return os.readlink(self.parts[-1], dir_fd=fd)


class Lowers:
    """The lower directories, the topmost first, held open while in use."""

    def __init__(self, paths: Sequence[str], *, user_attributes: bool = False) -> None:
        self._paths = paths
        self._fds: list[int] = []
        self._opaque = ("user" if user_attributes else "trusted") + ".overlay.opaque"
        # For directories looked for of late: which layers show theirs, the topmost first.
        self._shown: dict[Parts, list[int]] = {}

    def __enter__(self) -> "Lowers":
        try:
            for path in self._paths:
                self._fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def names(self) -> list[bytes]:
        """Every name that some layer has at its root, also those that others hide."""
        return sorted({os.fsencode(name) for fd in self._fds for name in os.listdir(fd)})

    def find(self, parts: Parts) -> Found | None:
        """What the layers together show under a name; None when there is nothing."""
        shown = self._shown.get(parts[:-1])
        start = len(parts)
        if shown is None:
            shown, start = self._fds, 1
        found: Found | None = None
        for depth in range(start, len(parts) + 1):
            at = parts[:depth]
            found, shown = self._at(shown, at)
            if len(self._shown) >= SHOWN_MAX:
                self._shown.clear()
            self._shown[at] = shown
        return found

    def _at(self, candidates: list[int], parts: Parts) -> tuple[Found | None, list[int]]:
        """What those layers show under a name, and which of them show a directory there."""
        found: Found | None = None
        shown: list[int] = []
        for root_fd in candidates:
            looked = self._look(root_fd, parts)
            if looked is None:
                continue
            status, opaque = looked
            if not stat.S_ISDIR(status.st_mode):
                # A file, or the mark of a removed one: it ends what can be seen.
                gone = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
                if not shown and not gone:
                    found = Found(root_fd, parts, status)
                break
            if not shown:
                found = Found(root_fd, parts, status)
            shown.append(root_fd)
            if opaque:
                break
        return found, shown

    def _look(self, root_fd: int, parts: Parts) -> tuple[os.stat_result, bool] | None:
        try:
            fd = open_parts(root_fd, parts, os.O_PATH | os.O_NOFOLLOW, follow=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise
        try:
            status = os.fstat(fd)
            directory = stat.S_ISDIR(status.st_mode)
            return status, directory and get_attribute(fd, self._opaque) == b"y"
        finally:
            os.close(fd)
