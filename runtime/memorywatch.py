"""The memory watch: hears when the kernel kills in a container for want of memory.

Standard library alone: the fork server preloads this file.
"""

import os
import select
from collections.abc import Callable
from typing import Final

from . import cgroup
from .poller import Poller

KILLED_WITHIN_S: Final = 0.5


class MemoryWatch:
    """Calls `on_kill` once for each wave of kills, with their number so far. Inert where there is
    no memory cgroup."""

    def __init__(
        self, poller: Poller, directories: cgroup.Directories, on_kill: Callable[[int], None]
    ) -> None:
        self._directories = directories
        self._on_kill = on_kill
        self._poller = poller
        self._kills = cgroup.out_of_memory_kills(directories)
        self._descriptor: int | None = None
        watched = cgroup.watch_out_of_memory(directories)
        if watched is not None:
            self._descriptor, is_eventfd = watched
            events = select.EPOLLIN if is_eventfd else select.EPOLLPRI
            poller.watch(self._descriptor, events, self._on_ready)

    def close(self) -> None:
        """Ends the watch: before the cgroup goes, for that wakes it too."""
        if self._descriptor is not None:
            self._poller.unwatch(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _on_ready(self, events: int) -> None:
        assert self._descriptor is not None
        if events & select.EPOLLPRI:
            os.pread(self._descriptor, 4096, 0)
        else:
            os.eventfd_read(self._descriptor)
        # The kernel wakes us before it kills, not after.
        self._poller.spawn(self._tell())

    async def _tell(self) -> None:
        def killed() -> bool:
            return cgroup.out_of_memory_kills(self._directories) > self._kills

        if await self._poller.until(killed, KILLED_WITHIN_S):
            self._kills = cgroup.out_of_memory_kills(self._directories)
            self._on_kill(self._kills)
