"""The root that a layer is applied onto: its directories, opened, made and emptied.

Every path is resolved within the root, where no symlink and no `..` leads out. A directory that
is missing is made as the layers below have it, so that the mounted view does not change.
"""

import enum
import errno
import os
import stat
from collections.abc import Container

from ..actors.errors import ResourceExhausted
from .layerfile import RESERVED_ATTRIBUTES
from .lowers import Found, Lowers, Parts, get_attribute, open_parts, set_attribute
from .trees import (
    chmod,
    copy_attributes,
    copy_file,
    copy_owner_and_mode,
    copy_special,
    lstat,
    remove_tree,
)

OPAQUE_ATTRIBUTES = {False: "trusted.overlay.opaque", True: "user.overlay.opaque"}

# What the kernel allows a path, after its symlinks are put in.
LINKS_MAX = 40
COMPONENTS_MAX = 4096
DIRECTORIES_OPEN_MAX = 64


class Form(enum.Enum):
    """How a removal is written."""

    PLAIN = "plain"
    OVERLAY = "overlay"


class Root:
    """The root directory, with the layers below it. A descriptor it gives is good until the
    next call that makes or removes something.

    At most `made_max` directories are made: one long name may ask for two thousand.
    """

    def __init__(
        self,
        root_fd: int,
        form: Form,
        lowers: Lowers,
        *,
        user_attributes: bool = False,
        made_max: int = 1 << 32,
    ) -> None:
        self.form = form
        self.lowers = lowers
        self._root_fd = root_fd
        self._opaque = OPAQUE_ATTRIBUTES[user_attributes]
        self._made_max = made_max
        self._made = 0
        # Invariant: each key's descriptor is the directory which that name leads to now;
        # emptied whenever something that may be part of a path is removed.
        self._directories: dict[Parts, int] = {}
        self._inodes: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the directories held open."""
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()
        self._inodes.clear()

    def inode(self, fd: int) -> int:
        """The inode of a directory that `parent` or `directory` gave."""
        return self._inodes.get(fd) or os.fstat(fd).st_ino

    def open(self, parts: Parts, flags: int) -> int:
        """Open a path of the root; the caller closes it."""
        return open_parts(self._root_fd, parts, flags)

    def parent(self, parts: Parts) -> int:
        """The directory that a name is in, made when it is missing."""
        fd = self.directory(parts[:-1], make=True)
        assert fd is not None
        return fd

    def directory(self, parts: Parts, *, make: bool) -> int | None:
        """A cached descriptor of that directory; None when there is none and none is made."""
        fd = self._directories.get(parts)
        if fd is not None:
            return fd
        try:
            fd = self.open(parts, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if not make:
                return None
            fd = self._make_parents(parts)
        if len(self._directories) >= DIRECTORIES_OPEN_MAX:
            oldest = self._directories.pop(next(iter(self._directories)))
            del self._inodes[oldest]
            os.close(oldest)
        self._directories[parts] = fd
        self._inodes[fd] = os.fstat(fd).st_ino
        return fd

    def real(self, parts: Parts) -> Parts:
        """Where a path leads to in the mounted view, without symlinks; what is missing on the
        way, perhaps because a symlink dangles, is taken for a directory."""
        links_left = LINKS_MAX
        components_left = COMPONENTS_MAX
        at: Parts = ()
        covered = False
        ahead = list(reversed(parts))
        fd = self.open((), os.O_PATH | os.O_DIRECTORY)
        try:
            while ahead:
                components_left -= 1
                if components_left < 0:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                name = ahead.pop()
                if name == b"..":
                    # Only of a symlink: whatever led here has been followed by now.
                    ahead += reversed(at[:-1])
                    at, covered = (), False
                    above, fd = fd, self.open((), os.O_PATH | os.O_DIRECTORY)
                    if above >= 0:
                        os.close(above)
                    continue
                there = None if fd < 0 else lstat(fd, name)
                link = self._link(fd, name, there, () if covered else (*at, name))
                if link is not None:
                    if links_left == 0:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    links_left -= 1
                    start = () if link.startswith(b"/") else at
                    ahead += [
                        part for part in reversed(link.split(b"/")) if part not in (b"", b".")
                    ]
                    ahead += reversed(start)
                    at, covered = (), False
                    above, fd = fd, self.open((), os.O_PATH | os.O_DIRECTORY)
                else:
                    at = (*at, name)
                    above, fd = fd, self._step(fd, name, there)
                    covered = covered or self._covers(fd, there)
                if above >= 0:
                    os.close(above)
            return at
        finally:
            if fd >= 0:
                os.close(fd)

    def below(self, parts: Parts) -> Found | None:
        """What the layers below show under a name without symlinks, as far as it can be seen."""
        found = self.lowers.find(parts)
        if found is None:
            return None
        fd = self.open((), os.O_PATH | os.O_DIRECTORY)
        try:
            for name in parts[:-1]:
                there = lstat(fd, name)
                if there is None:
                    break
                above, fd = fd, self._step(fd, name, there)
                os.close(above)
                if self._covers(fd, there):
                    return None
            return found
        finally:
            if fd >= 0:
                os.close(fd)

    @staticmethod
    def _step(fd: int, name: bytes, there: os.stat_result | None) -> int:
        """A descriptor of a directory in another; -1 when it is none."""
        if there is None or not stat.S_ISDIR(there.st_mode):
            return -1
        return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)

    def _covers(self, fd: int, there: os.stat_result | None) -> bool:
        """Whether nothing of what is below a name shows through what the root has there."""
        if there is None:
            return False
        return fd < 0 or get_attribute(fd, self._opaque) == b"y"

    def _make_parents(self, parts: Parts) -> int:
        """Make what is missing of a path, as the layers below have it; its descriptor."""
        parts = self.real(parts)
        covered = False
        fd = self.open((), os.O_RDONLY | os.O_DIRECTORY)
        try:
            for depth in range(1, len(parts) + 1):
                name = parts[depth - 1]
                there = lstat(fd, name)
                if there is None:
                    self.make_directory(fd, name)
                    if not covered:
                        self._copy_metadata(fd, name, parts[:depth])
                elif is_whiteout(there) and self.form is Form.OVERLAY:
                    os.unlink(name, dir_fd=fd)
                    self.make_directory(fd, name, opaque=True)
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                above, fd = fd, os.open(name, flags, dir_fd=fd)
                os.close(above)
                covered = covered or get_attribute(fd, self._opaque) == b"y"
            made, fd = fd, -1
            return made
        finally:
            if fd >= 0:
                os.close(fd)

    def _link(
        self, parent_fd: int, name: bytes, there: os.stat_result | None, parts: Parts
    ) -> bytes | None:
        """Where a name leads to, when it is a symlink in the mounted view."""
        if there is not None:
            return os.readlink(name, dir_fd=parent_fd) if stat.S_ISLNK(there.st_mode) else None
        found = self.lowers.find(parts) if parts else None
        if found is None or not stat.S_ISLNK(found.status.st_mode):
            return None
        return found.link()

    def make_directory(self, parent_fd: int, name: bytes, *, opaque: bool = False) -> None:
        """Make an empty directory; `opaque` when it must not show what is below."""
        self._made += 1
        if self._made > self._made_max:
            raise ResourceExhausted(f"layer: more than {self._made_max} directories")
        os.mkdir(name, 0o755, dir_fd=parent_fd)
        chmod(parent_fd, name, 0o755)  # whatever the umask
        if opaque and self.form is Form.OVERLAY:
            self.make_opaque(parent_fd, name)

    def mark_opaque(self, fd: int) -> None:
        """The same by a descriptor of the directory itself."""
        set_attribute(fd, self._opaque, b"y")

    def make_opaque(self, parent_fd: int, name: bytes) -> None:
        """Hide what the layers below have in the directory of this name."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            self.mark_opaque(fd)
        finally:
            os.close(fd)

    def _copy_metadata(self, parent_fd: int, name: bytes, parts: Parts) -> None:
        found = self.lowers.find(parts)
        if found is None or not stat.S_ISDIR(found.status.st_mode):
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            copy_owner_and_mode(fd, found.status)
            with found.opened(os.O_RDONLY | os.O_DIRECTORY) as source_fd:
                copy_attributes(source_fd, fd, RESERVED_ATTRIBUTES)
        finally:
            os.close(fd)

    def copy_up(self, parts: Parts) -> bool:
        """Bring a lower layer's file into this one, so that it can be linked to; whether there
        is one under this name, which is without symlinks."""
        found = self.below(parts)
        if found is None or stat.S_ISDIR(found.status.st_mode):
            return False
        parent_fd = self.parent(parts)
        with found.parent() as source_fd:
            if stat.S_ISREG(found.status.st_mode):
                copy_file(found.status, source_fd, parent_fd, parts[-1])
            else:
                copy_special(found.status, source_fd, parent_fd, parts[-1])
        return True

    def remove(self, parent_fd: int, name: bytes, kept: Container[object] = ()) -> bool:
        """Remove a name but for what is in `kept`; whether it is gone.

        Whoever holds a cached descriptor asks for it anew.
        """
        there = lstat(parent_fd, name)
        if there is None:
            return True
        if not stat.S_ISDIR(there.st_mode):
            if (self.inode(parent_fd), name) in kept:
                return False
            os.unlink(name, dir_fd=parent_fd)
            if stat.S_ISLNK(there.st_mode):
                self.close()
            return True
        parent_fd = os.dup(parent_fd)
        try:
            self.close()
            return remove_tree(parent_fd, name, kept)
        finally:
            os.close(parent_fd)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
