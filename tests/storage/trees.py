"""A tree as data, for tests: what two trees must agree on to be the same."""

import hashlib
import os
import stat
from pathlib import Path


def look(root: Path) -> dict[str, tuple[object, ...]]:
    """Each name below `root`: kind, mode, owner, whole seconds, content, attributes, links."""
    seen: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = Path(folder, name)
            status = path.lstat()
            mode = status.st_mode
            what: object = os.readlink(path) if stat.S_ISLNK(mode) else status.st_rdev
            if stat.S_ISREG(mode):
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            key = str(path.relative_to(root))
            twin = first.setdefault(status.st_ino, key) if status.st_nlink > 1 else key
            xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
                if not name.startswith(("trusted.", "user.overlay."))
            }
            seen[key] = (
                mode,
                status.st_uid,
                status.st_gid,
                # A layer tells of a directory for its metadata, not for its time.
                0 if stat.S_ISDIR(mode) else int(status.st_mtime),
                what,
                xattrs,
                key if stat.S_ISDIR(mode) else twin,
            )
    return seen
