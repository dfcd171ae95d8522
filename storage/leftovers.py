"""Directories whose snapshots are gone, on their way off the disk."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog
import trio

from ..actors import failpoints
from ..actors.errors import Refusal, Unavailable
from .store import Store
from .workers import Workers

WORKERS_MAX = 3
"""So many are tried with one directory, when they die."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Leftovers:
    """The directories to be removed, one by one, the oldest first.

    What is not removed, because it is busy or the disk fails, stays for the next start.
    """

    def __init__(self, snapshotter: str, home: Path, store: Store, workers: Workers) -> None:
        self._snapshotter = snapshotter
        self._home = home
        self._store = store
        self._workers = workers
        # Invariant: each id stays here until its removal has ended; True once it is certain that
        # no record of it can come any more.
        self._certain: dict[int, bool] = {}
        self._changed = trio.Event()

    def add(self, ids: Iterable[int], *, certain: bool = True) -> None:
        """Let go of these. Not `certain`: a record may yet come of a write that is under way."""
        for snapshot_id in ids:
            self._certain.setdefault(snapshot_id, certain)
        self._tell()

    def __bool__(self) -> bool:
        return bool(self._certain)

    async def wait_change(self) -> None:
        """Return when one more has come or gone."""
        await self._changed.wait()

    async def remove(self, has_record: Callable[[int], bool]) -> None:
        """Remove what there is and what comes, for ever; what has a record after all is kept."""
        while True:
            while self._certain:
                snapshot_id, certain = next(iter(self._certain.items()))
                if not certain:
                    # Writes are done in order: after this one, those before it are decided.
                    await self._store.write(lambda tx: None)
                if not has_record(snapshot_id):
                    await self._remove(snapshot_id)
                del self._certain[snapshot_id]
                self._tell()
            await self.wait_change()

    async def _remove(self, snapshot_id: int) -> None:
        try:
            failpoints.passed("snapshot.reclaim.remove")
            for _ in range(WORKERS_MAX - 1):
                with suppress(Unavailable):
                    await self._workers.remove_tree(self._home / str(snapshot_id))
                    break
            else:
                await self._workers.remove_tree(self._home / str(snapshot_id))
            failpoints.passed("snapshot.reclaim.removed")
        except Refusal as error:
            log.warning(
                "snapshot.not_reclaimed",
                snapshotter=self._snapshotter,
                id=snapshot_id,
                reason=str(error),
            )

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
