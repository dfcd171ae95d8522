"""Orphans: how processes ended that died before it was recorded, told by whoever was their parent.

    a shim dies: its children are the fork server's --that dies--> the daemon's --that dies--> lost

Where the kernel pins processes, this is needed by nobody. Else only the parent of a process learns
how it ended: each of that chain, the shim too, notes it in <state>/orphans.

Invariant: a note stands before its process is reaped, so that who finds it gone finds the note.

Standard library alone: the fork server preloads this file.
"""

import os
import time
from pathlib import Path
from typing import Final

from . import procfs

REMEMBERED_MAX: Final = 4096
KEPT_S: Final = 86_400.0

Exit = tuple[int, int]
"""Wait status and time in nanoseconds."""


class Orphans:
    """What is remembered here, and what any process has noted in the directory, if there is one."""

    def __init__(self, directory: str = "") -> None:
        self._directory = directory
        self._remembered: dict[procfs.Identity, Exit] = {}
        if directory:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._forget_old()

    @property
    def are_noted(self) -> bool:
        """Whether other processes are told."""
        return bool(self._directory)

    def tell(self, process: procfs.Identity, wait_status: int) -> None:
        """Says, once, how a process ended that is not reaped yet."""
        if process in self._remembered:
            return
        exit = self._remembered[process] = (wait_status, time.time_ns())
        if len(self._remembered) > REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        if not self._directory:
            return
        path = self._path(process)
        try:
            Path(f"{path}.tmp").write_text(f"{exit[0]} {exit[1]}\n")
            os.rename(f"{path}.tmp", path)
        except OSError:
            pass  # a full disk is no reason to keep zombies; we remember it

    def tell_zombie(self, pid: int) -> None:
        """The same of a child that is a zombie."""
        found = procfs.stat(pid)
        if found is not None:
            self.tell(procfs.Identity(pid, found.start_time_ticks), found.exit_code)

    def get(self, process: procfs.Identity) -> Exit | None:
        """How a process ended; None when nobody told."""
        found = self._remembered.get(process)
        if found is not None or not self._directory:
            return found
        try:
            wait_status, at_ns = Path(self._path(process)).read_text().split()
            return int(wait_status), int(at_ns)
        except (FileNotFoundError, ValueError):
            return None

    def _path(self, process: procfs.Identity) -> str:
        return f"{self._directory}/{process.pid}-{process.start_time_ticks}"

    def _forget_old(self) -> None:
        # Those of an earlier boot too: their names may come again.
        began = time.time() - min(KEPT_S, time.clock_gettime(time.CLOCK_BOOTTIME))
        for note in os.scandir(self._directory):
            try:
                if note.stat().st_mtime < began:
                    os.unlink(note.path)
            except FileNotFoundError:
                pass
