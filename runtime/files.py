"""Small files, read and written whole: without the layers of Python's `open`, which make six system
calls more, and take longer than the kernel does.

Standard library alone: the fork server preloads this file.
"""

import os
from typing import Final

READ_BYTES: Final = 65536


def read(path: str) -> bytes:
    """All of a file. OSError as of open(2) and read(2)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        while part := os.read(descriptor, READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def text(path: str) -> str:
    """The same, as text; bytes that are none come through as os.fsdecode has them."""
    return os.fsdecode(read(path))


def write(path: str, data: bytes, mode: int = 0o644) -> None:
    """Makes a file of these bytes, or overwrites the one that is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all to an open file."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def unlink(path: str) -> None:
    """Removes a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
