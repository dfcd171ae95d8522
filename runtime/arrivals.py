"""Tells when a file of a directory is complete: written and closed, or moved to its name.

One inotify descriptor serves for the life of the process. To end a watch costs nothing; to close
the descriptor costs a grace period of the kernel, twenty milliseconds or more, in which nobody is
served.

Standard library alone: the fork server preloads this file.
"""

import os
import select
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from . import syscalls

if TYPE_CHECKING:
    from .poller import Poller

EVENT: Final = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
READ_BYTES_MAX: Final = 65536


class Arrivals:
    """Watches directories on behalf of a poller."""

    def __init__(self, poller: "Poller") -> None:
        self._poller = poller
        self._inotify = -1
        # A directory has one watch, whoever asks for it.
        self._looks: dict[int, list[Callable[[], None]]] = {}

    @contextmanager
    def watched(self, directory: str, look: Callable[[], None]) -> Generator[None]:
        """Meanwhile, `look` is called whenever a file in there is complete. OSError without it."""
        if self._inotify < 0:
            self._inotify = syscalls.inotify()
            self._poller.watch(self._inotify, select.EPOLLIN, self._on_events)
        watch = syscalls.watch_directory(self._inotify, directory)
        looks = self._looks.setdefault(watch, [])
        looks.append(look)
        try:
            yield
        finally:
            looks.remove(look)
            if not looks:
                del self._looks[watch]
                syscalls.unwatch_directory(self._inotify, watch)

    def close(self) -> None:
        """For a forked child, which does not wait for the kernel: the parent has it open."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def _on_events(self, events: int) -> None:
        try:
            told = os.read(self._inotify, READ_BYTES_MAX)
        except BlockingIOError:
            return
        watches: set[int] = set()
        at = 0
        while at < len(told):
            watch, _, _, length = EVENT.unpack_from(told, at)
            # Where the kernel could not keep up it tells of watch -1: then of each.
            watches |= {watch} if watch >= 0 else self._looks.keys()
            at += EVENT.size + length
        for watch in watches:
            for look in list(self._looks.get(watch, ())):
                look()
