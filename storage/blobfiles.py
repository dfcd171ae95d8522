"""The files of the content store: blobs that are read, and what is done to files as a whole.

The plain functions block: they are for a thread.
"""

import os
import shutil
from pathlib import Path

import trio

from ..actors import failpoints
from .digest import HEX_DIGITS

PIECE_BYTES = 1 << 20


class Blob:
    """An open blob: its bytes stay readable until it is closed, deleted or not."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path = path
        self.fd = fd
        self.size = size

    async def __aenter__(self) -> "Blob":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go; twice is no harm."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; none at the end. At most `PIECE_BYTES` at a time."""
        return await trio.to_thread.run_sync(os.pread, self.fd, min(size, PIECE_BYTES), offset)


def prepare(
    root: Path, digests: set[str], ingests: set[str], *, sweep: bool
) -> tuple[list[str], list[str]]:
    """Make the directories; remove the files that no record names, if they are to be swept.

    What was removed, and what was kept without a record.
    """
    removed: list[str] = []
    kept: list[str] = []
    (root / "ingest").mkdir(parents=True, exist_ok=True)
    for algorithm in HEX_DIGITS:
        folder = root / "blobs" / algorithm
        folder.mkdir(parents=True, exist_ok=True)
        orphans = [path for path in folder.iterdir() if f"{algorithm}:{path.name}" not in digests]
        # Blobs and not a single record: that is another database, not a crash.
        gone = sweep and (bool(digests) or len(orphans) <= 1)
        for path in orphans:
            if gone:
                remove_file(path)
            (removed if gone else kept).append(f"{algorithm}:{path.name}")
    for path in (root / "ingest").iterdir():
        if path.name not in ingests:
            if sweep:
                remove_directory(path)
            (removed if sweep else kept).append(f"ingest/{path.name}")
    return removed, kept


def place(data: Path, target: Path, size: int) -> None:
    """Give a file on the disk its blob's name, durably."""
    try:
        failpoints.reach("content.publish.link")
        os.link(data, target)
    except FileExistsError:
        if os.stat(target).st_size == size:
            return
        # Not what its name says: replaced as a whole.
        fresh = data.with_name("fresh")
        os.link(data, fresh)
        failpoints.reach("content.publish.replace")
        os.replace(fresh, target)
    failpoints.passed("content.publish.linked")
    failpoints.reach("content.publish.fsync")
    sync_directory(target.parent)
    failpoints.passed("content.publish.synced")


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    failpoints.reach("content.remove.unlink")
    path.unlink(missing_ok=True)
    failpoints.passed("content.remove.unlinked")


def remove_directory(path: Path) -> None:
    """Remove an ingest with all it has, if it is there."""
    failpoints.passed("ingest.remove.rmtree")
    shutil.rmtree(path, ignore_errors=True)
    failpoints.passed("ingest.remove.removed")


def sync_directory(path: Path) -> None:
    """Bring a directory's names to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
