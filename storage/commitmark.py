"""The commit mark: how many commits were told to be on the disk, beside the database.

SQLite takes a damaged or shortened log for one that a power loss cut short, and opens the database
as it was before the damage, without a word. The database counts its commits, and after each one
the count is written here, without a sync: the mark is never ahead of what a power loss leaves, and
a kill does not hold it back. A mark that is ahead tells that commits are lost. Without a mark, or
where it cannot be read or written, nothing is told, and nothing else is the worse for it.
"""

import os
import struct
import zlib
from pathlib import Path

FORMAT = struct.Struct(">QI")


class CommitMark:
    """The mark of one database. Belongs to the thread that has it open."""

    def __init__(self, database: Path) -> None:
        self._path = mark_path(database)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1  # a full disk, for one; every use of it fails, as below

    def read(self) -> int:
        """The count that was written last; 0 when there is none that makes sense."""
        try:
            count, checksum = FORMAT.unpack(os.pread(self._fd, FORMAT.size, 0))
        except (struct.error, OSError):
            return 0
        return int(count) if checksum == _checksum(count) else 0

    def write(self, count: int) -> None:
        """Note that so many commits are on the disk."""
        try:
            os.pwrite(self._fd, FORMAT.pack(count, _checksum(count)), 0)
        except OSError:
            pass  # an older mark is no harm; the commit stands

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)


def mark_path(database: Path) -> Path:
    """Where the mark of a database lies."""
    return database.with_name(database.name + ".mark")


def _checksum(count: int) -> int:
    return zlib.crc32(count.to_bytes(8, "big"))
