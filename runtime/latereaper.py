"""The late reaper: leaves a zombie for a while, for whoever wants to know how it ended.

Where no pin tells the end of a process that was reaped, its zombie does, to everyone: field 52 of
/proc/PID/stat. A subreaper of ours that inherits the processes of a shim which died therefore reaps
them late; when it dies itself, they go on to the next one, zombies too.

Standard library alone: the fork server preloads this file.
"""

import os
import time
from collections.abc import Iterator

from . import procfs

LATE_S = 10.0
"""An adoption is over by then."""


class LateReaper:
    """For one process; `look` is called when a child has ended, and now and then."""

    def __init__(self) -> None:
        self._seen_s: dict[procfs.Identity, float] = {}

    def look(self) -> Iterator[tuple[procfs.Identity, int]]:
        """Children found dead for the first time, with their wait status; the old ones are reaped.

        None that the caller reaps itself should be dead so long.
        """
        now_s = time.monotonic()
        dead: dict[procfs.Identity, float] = {}
        for pid in procfs.children():
            found = procfs.stat(pid)
            if found is None or found.state != "Z":
                continue
            identity = procfs.Identity(pid, found.start_time_ticks)
            seen_s = self._seen_s.get(identity)
            if seen_s is None:
                yield identity, found.exit_code
            elif now_s - seen_s > LATE_S:
                _reap(pid)
                continue
            dead[identity] = now_s if seen_s is None else seen_s
        self._seen_s = dead


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
