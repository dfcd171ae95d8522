"""The lock of a root directory: one host at a time."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..actors.errors import FailedPrecondition

LOCK_NAME = "lock"


@contextmanager
def root_lock(root: Path) -> Generator[None]:
    """Hold the root for this block; the kernel lets go when the process ends, however it ends.

    FailedPrecondition when another host holds it.
    """
    lock = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"{root} is in use by another host") from None
        yield
    finally:
        os.close(lock)
