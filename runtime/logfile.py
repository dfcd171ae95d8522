"""A log file with a cap: what a logger of ours writes, and turns over when it is full.

    p      is written          p.1, p.2, ...    were written before, the newest first

Bytes go from the FIFO into the file by splice, and are never in between: a logger that is killed at
any moment has lost and doubled none. A cap is exact; so a line may begin in one file and end in the
next, and all files in their order are all bytes of the time that they reach back.

Standard library alone: the fork server preloads this file.
"""

import os
import select
import time
from collections.abc import Sequence
from typing import Final

from ..actors import failpoints
from .loguri import FileLog

MOVED_BYTES_MAX: Final = 65536
AGAIN_S: Final = 0.2
SPLICE_F_NONBLOCK: Final = 2


class CappedFile:
    """The file that is written now."""

    def __init__(self, log: FileLog) -> None:
        """Opens it, and makes it with its directory when it is not there."""
        self._log = log
        os.makedirs(os.path.dirname(log.path), exist_ok=True)
        self._file = self._open()

    def take(self, fifo: int) -> int:
        """Moves what is in a FIFO, as far as it fits; 0 when the FIFO has come to its end."""
        # Asked anew each time: others may shorten the file.
        room = self._log.size_bytes_max - os.lseek(self._file, 0, os.SEEK_END)
        if room <= 0:
            self._turn_over()
            room = self._log.size_bytes_max
        return os.splice(fifo, self._file, min(room, MOVED_BYTES_MAX), flags=SPLICE_F_NONBLOCK)

    def _turn_over(self) -> None:
        path, most = self._log.path, self._log.files_max
        # As far as the first gap: one that a turn left which was cut short must not push out more.
        free = next((n for n in range(1, most) if not os.path.exists(f"{path}.{n}")), most - 1)
        for number in range(free, 1, -1):
            os.rename(f"{path}.{number - 1}", f"{path}.{number}")
            failpoints.passed("logger.turn.moved")
        if free:
            os.rename(path, f"{path}.1")
        else:
            os.unlink(path)
        failpoints.passed("logger.turn.renamed")
        os.close(self._file)
        self._file = self._open()
        failpoints.passed("logger.turn.opened")

    def _open(self) -> int:
        # Not for appending, which splice refuses: we are the only one who writes it.
        return os.open(self._log.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)


def write_logs(routes: Sequence[tuple[int, CappedFile]]) -> None:
    """The work of a logger: returns when all FIFOs have come to their end."""
    files = dict(routes)
    poll = select.poll()
    for fifo in files:
        poll.register(fifo, select.POLLIN)
    while True:
        # Before a wait, not after it: of writers that were gone before us no poll tells.
        for fifo in list(files):
            if not _empty(fifo, files[fifo]):
                poll.unregister(fifo)
                del files[fifo]
        if not files:
            return
        poll.poll()


def _empty(fifo: int, file: CappedFile) -> bool:
    """Moves all that is there; False when no more will come."""
    while True:
        try:
            if not file.take(fifo):
                return False
        except BlockingIOError:
            return True
        except OSError:  # a full disk: whoever writes waits until there is room
            time.sleep(AGAIN_S)
