"""The collector: when garbage is collected, and by whom it is reclaimed.

    idle --a deletion, many writes, an expiry, a request--> due --pause over--> collecting --> idle

A collection comes soon after deletions, but not so often that collecting takes more than its
share of the time: the pause after one grows with how long collections take. A caller of
`collect` gets one that began after the call.

While the store has a damaged record that may have kept others, nothing is collected: what it
kept can still be mended.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from ..actors.errors import Refusal
from .gc import Garbage, Marks, Node, mark, sweep, unmarked
from .store import Change, Journal, Store, Transaction

log = structlog.get_logger()

Reclaim = Callable[[Garbage], Awaitable[None]]

# Deletions of these may have set something free.
FREEING = frozenset({"container", "image", "lease", "lease_resource", "content", "snapshot"})

# Records of these keep nothing. A damaged kind may be any word, and counts as one that does.
KEEPING_NOTHING = frozenset({"namespace", "task", "exec", "exit", "restart"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to collect. The defaults are containerd's."""

    share_max: float = 0.02
    """Collecting may take this share of the time, at most a half."""
    writes_max: int = 100
    """So many writes since the last collection make one due; 0: writes alone never do."""
    start_delay_s: float = 0.1
    """The first collection comes so long after the start."""
    collection_min_s: float = 0.005
    """A collection counts as at least so long, so that quick ones do not follow at once."""

    def pause_s(self, mean_s: float) -> float:
        """How long to pause after a collection, when they take `mean_s` on average."""
        share = min(self.share_max, 0.5)
        return max(mean_s, self.collection_min_s) * (1 / share - 1) if share > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What one collection did."""

    elapsed_s: float
    kept: int
    removed: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many records of each kind."""
    unreclaimed: int = 0
    """How many of them left something on disk because reclaiming was refused."""


class Collector:
    """Collects the garbage of one store.

    `reclaim` says per kind (`content`, `snapshot`, `ingest`) what to call for each record that
    was deleted. It is called after the deletion is on disk, so it must look whether somebody has
    made the same thing anew; what it leaves behind must be found at the next start.
    """

    def __init__(
        self, store: Store, reclaim: Mapping[str, Reclaim], pace: Pace | None = None
    ) -> None:
        self._store = store
        self._reclaim = reclaim
        self._pace = pace or Pace()
        self._one_at_a_time = trio.Lock()
        # Collections are numbered from 1: the newest that began, the newest that succeeded.
        self._begun = 0
        self._done = 0
        self._spent_s = 0.0
        self._last = Collection(elapsed_s=0.0, kept=0)
        self._writes = 0
        self._deletions = 0
        self._next_expiry_ns: int | None = None
        self._due = trio.Event()
        # Invariant: while a sweep is on its way, the deletions that are its own.
        self._own: set[tuple[str, str, str]] = set()

    @property
    def last(self) -> Collection:
        """The newest collection."""
        return self._last

    async def collect(self) -> Collection:
        """Collect, and return when what was garbage at the call is gone and reclaimed."""
        asked_at = self._begun
        async with self._one_at_a_time:
            # Whoever waited together shares one collection.
            if self._done <= asked_at:
                self._begun += 1
                self._last = await self._collect()
                self._done = self._begun
            return self._last

    async def run(self) -> None:
        """Collect whenever it is due, for ever."""
        stop = self._store.listen(self._heard)
        try:
            await trio.sleep(self._pace.start_delay_s)
            while True:
                await self.collect()
                await trio.sleep(self._pace.pause_s(self._spent_s / self._begun))
                await self._wait_due()
        finally:
            stop()

    def _heard(self, changes: Sequence[Change]) -> None:
        self._writes += 1
        for change in changes:
            deleted = change.value is None and change.kind in FREEING
            if deleted and (change.kind, change.namespace, change.key) not in self._own:
                self._deletions += 1
        if self._is_due():
            self._due.set()

    def _is_due(self) -> bool:
        return self._deletions > 0 or 0 < self._pace.writes_max <= self._writes

    async def _wait_due(self) -> None:
        if self._is_due():
            return
        self._due = trio.Event()
        if self._next_expiry_ns is None:
            await self._due.wait()
            return
        with trio.move_on_after(max(0.0, (self._next_expiry_ns - time.time_ns()) / 1e9)):
            await self._due.wait()

    async def _collect(self) -> Collection:
        began_s = trio.current_time()
        self._writes = self._deletions = 0
        damaged = [one for one in self._store.damaged if one.kind not in KEEPING_NOTHING]
        if damaged:
            log.warning("garbage.kept", reason="the store has damaged records", count=len(damaged))
            return Collection(elapsed_s=0.0, kept=0)
        journal = Journal()
        try:
            await self._store.write(lambda tx: tx.keep_journal(journal))
            marks = await mark(self._store, time.time_ns())
            candidates = unmarked(self._store, marks)
            garbage = await self._sweep(candidates, marks, journal) if candidates else []
        finally:
            journal.closed = True
        self._next_expiry_ns = marks.next_expiry_ns
        elapsed_s = trio.current_time() - began_s
        self._spent_s += elapsed_s
        # Children before their parents.
        garbage.sort(key=lambda one: -int(one.record.get("created_at") or 0))
        unreclaimed = [one for one in garbage if not await self._reclaimed(one)]
        removed = Counter(one.kind for one in garbage)
        if garbage:
            log.info("garbage.collected", elapsed_s=elapsed_s, kept=len(marks.kept), **removed)
        return Collection(
            elapsed_s=elapsed_s,
            kept=len(marks.kept),
            removed=removed,
            unreclaimed=len(unreclaimed),
        )

    async def _sweep(
        self, candidates: Sequence[Node], marks: Marks, journal: Journal
    ) -> list[Garbage]:
        def work(tx: Transaction) -> list[Garbage]:
            return sweep(tx, candidates, marks, journal)

        self._own = {(node.kind, node.namespace, node.key) for node in candidates}
        try:
            return await self._store.write(work)
        finally:
            self._own = set()

    async def _reclaimed(self, garbage: Garbage) -> bool:
        reclaim = self._reclaim.get(garbage.kind)
        if reclaim is None:
            return True
        try:
            await reclaim(garbage)
        except (Refusal, OSError) as error:
            # The record is gone already; what is left is an orphan for the next start.
            log.warning(
                "garbage.unreclaimed",
                kind=garbage.kind,
                namespace=garbage.namespace,
                key=garbage.key,
                reason=str(error),
            )
            return False
        return True
