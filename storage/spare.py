"""The spare: a little space kept from the disk, so that deletes work when it is full.

    HELD --the disk is full--> GIVEN --space came back--> HELD

While it is given the store is frugal: what makes new records is refused, except of how processes
end; deletes and changes go on, in the space that the spare left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

AGAIN_AFTER_S = 1.0


class Spare:
    """A file that only takes up space. Belongs to the writer's thread."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._tried_at_s = 0.0
        self.held = False
        """False while the store must be frugal."""

    def hold(self, *, at_once: bool = False) -> None:
        """Take the space, if it is there; asked too often it does not look, but `at_once`."""
        now_s = time.monotonic()
        if self.held or not (at_once or now_s >= self._tried_at_s + AGAIN_AFTER_S):
            return
        self._tried_at_s = now_s
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size_bytes)
            self.held = True
        except OSError:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def give(self) -> None:
        """Give the space up, if it is held."""
        self.held = False
        self._tried_at_s = time.monotonic()
        self._path.unlink(missing_ok=True)
