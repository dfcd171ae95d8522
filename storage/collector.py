"""The collector: when garbage is collected, and by whom it is reclaimed.

    idle --a deletion, many writes, an expiry, a request--> due --pause over--> collecting --> idle

A collection comes soon after deletions, but not so often that collecting takes more than its
share of the time: the pause after one grows with how long collections take. A caller of
`collect` gets one that began after the call. Whoever writes meanwhile is held up by no more than
a slice of it: `turns.py` shares the loop, `sweep.py` the writer's thread.

What expires makes a collection due by itself, on the boot's clock (`expiry.py`).

While the store has a damaged record that may have kept others, nothing is collected: what it
kept can still be mended.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from ..actors.actor import Actor
from ..actors.errors import Refusal
from .expiry import Clock, left_ns, read_clock
from .gc import Marks, Node, forget, mark, mark_written, reach, unmarked
from .leases import split_key
from .store import Change, Damaged, Store
from .sweep import Garbage, Sweep, Swept, put_in_order
from .turns import Turns

log = structlog.get_logger()

Reclaim = Callable[[Garbage], Awaitable[None]]

# Deletions of these may have set something free. Not of ingests: each blob ends one.
FREEING = frozenset(
    {"container", "image", "lease", "lease_resource", "content", "snapshot", "sandbox", "mount"}
)

# Records of these keep nothing. A damaged kind may be any word, and counts as one that does.
KEEPING_NOTHING = frozenset({"namespace", "task", "exec", "exit", "restart"})

# The loop's own clock stands still while the machine sleeps: an expiry is looked at this often.
LOOK_WITHIN_S = 30.0
# What has lost its record is reclaimed even when nobody waits for it any more.
RECLAIM_WITHIN_S = 60.0
# With more than this written meanwhile, the loop marks it before the writer's thread does.
WRITTEN_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to collect. Names in containerd's scheduler are given; so are the defaults."""

    share_max: float = 0.02
    """Collecting may take this share of the time, at most a half: pause_threshold."""
    deletions_max: int = 0
    """So many deletions since the last collection end the pause after it; 0: none do:
    deletion_threshold."""
    writes_max: int = 100
    """So many writes since the last collection make one due; 0: writes alone never do:
    mutation_threshold."""
    delay_s: float = 0.0
    """What is due waits this much longer, so that more is collected at once: schedule_delay."""
    start_delay_s: float = 0.1
    """The first collection comes so long after the start: startup_delay."""
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
    longest_s: float = 0.0
    """The longest that it held up the loop, or the writer's thread, in processor time."""


class Collector:
    """Collects the garbage of one store.

    `reclaim` says per kind (`content`, `snapshot`, `ingest`) what to call for each record that
    was deleted. It is called after the deletion is on disk, so it must look whether somebody has
    made the same thing anew; what it leaves behind must be found at the next start.
    """

    def __init__(
        self,
        store: Store,
        reclaim: Mapping[str, Reclaim],
        pace: Pace | None = None,
        *,
        clock: Callable[[], Clock] = read_clock,
        turns: Callable[[], Turns] = Turns,
    ) -> None:
        self._store = store
        self._reclaim = reclaim
        self._pace = pace or Pace()
        self._clock = clock
        self._turns = turns
        self._one_at_a_time = trio.Lock()
        # Collections are numbered from 1: the newest that began, the newest that succeeded.
        self._begun = 0
        self._done = 0
        self._busy_s = 0.0
        self._last = Collection(elapsed_s=0.0, kept=0)
        self._writes = 0
        self._deletions = 0
        # On the boot's clock.
        self._next_expiry_ns: int | None = None
        # On the loop's clock: until when a collection that is due waits.
        self._paused_until_s = -1.0
        # What `run` waits for, and the event that it may be so.
        self._wanted = self._is_due
        self._due = trio.Event()
        # Invariant: while a transaction of a sweep is on its way, what it may delete.
        self._own: set[tuple[str, str, str]] = set()

    @property
    def last(self) -> Collection:
        """The newest collection."""
        return self._last

    @property
    def held_up_by(self) -> Sequence[Damaged]:
        """The damaged records for whose sake nothing is collected."""
        return [one for one in self._store.damaged if one.kind not in KEEPING_NOTHING]

    def outlook(self) -> str:
        """When the next collection comes, in words."""
        if self.held_up_by:
            return "once no damaged record is left: see holdfast faults"
        if self._one_at_a_time.locked():
            return "with the collection that is under way, or the one after it"
        if not self._is_due():
            count = self._pace.writes_max - self._writes
            many = f", or {count} more writes" if self._pace.writes_max else ""
            return f"after the next deletion{many}, or as soon as it is asked for"
        wait_s = max(0.0, self._paused_until_s - trio.current_time()) + self._pace.delay_s
        return f"within {wait_s:.1f} s"

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
                pause_s = self._pace.pause_s(self._busy_s / self._begun)
                self._paused_until_s = trio.current_time() + pause_s
                await self._wait(self._is_urgent, self._paused_until_s)
                await self._wait(self._is_due)
                await trio.sleep(self._pace.delay_s)
        finally:
            stop()

    # -- when

    def _heard(self, changes: Sequence[Change]) -> None:
        others = [change for change in changes if not self._is_own(change)]
        if not others:
            return
        self._writes += 1
        now = None
        for change in others:
            if change.value is None:
                self._deletions += change.kind in FREEING
                continue
            now = now or self._clock()
            left = left_ns(change.kind, change.value, now)
            if left is not None:
                at_ns = now.boot_ns + max(left, 0)
                if self._next_expiry_ns is None or at_ns < self._next_expiry_ns:
                    self._next_expiry_ns = at_ns
                    self._due.set()
        if self._wanted():
            self._due.set()

    def _is_own(self, change: Change) -> bool:
        kind, namespace, key, value = change
        if value is not None or not self._own:
            return False
        if kind == "lease_resource":
            return ("lease", namespace, split_key(key)[0]) in self._own or change[:3] in self._own
        return change[:3] in self._own

    def _is_urgent(self) -> bool:
        return 0 < self._pace.deletions_max <= self._deletions

    def _is_due(self) -> bool:
        if self._deletions > 0 or 0 < self._pace.writes_max <= self._writes:
            return True
        return self._next_expiry_ns is not None and self._next_expiry_ns < self._clock().boot_ns

    async def _wait(self, ready: Callable[[], bool], until_s: float | None = None) -> None:
        """Wait until it is ready, or it is that late on the loop's clock."""
        self._wanted = ready
        while not ready():
            self._due = trio.Event()
            wait_s = math.inf
            if self._next_expiry_ns is not None:
                left = self._next_expiry_ns - self._clock().boot_ns
                # A little later, so that it is certainly past.
                wait_s = min(LOOK_WITHIN_S, max(0.0, left / 1e9) + 0.001)
            if until_s is not None:
                wait_s = until_s - trio.current_time()
                if wait_s <= 0:
                    return
            with trio.move_on_after(wait_s):
                await self._due.wait()

    # -- collecting

    async def _collect(self) -> Collection:
        began_s = trio.current_time()
        self._writes = self._deletions = 0
        self._next_expiry_ns = None
        damaged = self.held_up_by
        if damaged:
            log.warning("garbage.kept", reason="the store has damaged records", count=len(damaged))
            return Collection(elapsed_s=0.0, kept=0)
        turns = self._turns()
        marks = Marks(self._clock())
        removed: Counter[str] = Counter()
        unreclaimed = 0
        sweep = Sweep(marks)
        try:
            await self._store.write(lambda tx: tx.keep_journal(sweep.journal))
            await turns.walk(mark(self._store, marks))
            found: set[Node] = set()
            await turns.walk(unmarked(self._store, marks, found))
            await turns.walk(put_in_order(found, self._store.get, marks, sweep.groups))
            await turns.walk(forget(found))
            while sweep.groups:
                garbage, refused = await self._sweep(sweep, turns)
                removed.update(one.kind for one in garbage)
                unreclaimed += refused
        finally:
            sweep.journal.closed = True
        self._note_expiry(marks.next_expiry_ns)
        self._busy_s += turns.busy_s
        collection = Collection(
            elapsed_s=trio.current_time() - began_s,
            kept=len(marks.kept),
            removed=removed,
            unreclaimed=unreclaimed,
            longest_s=max(turns.longest_s, sweep.longest_s),
        )
        await turns.walk(forget(marks.kept))
        if removed:
            log.info(
                "garbage.collected",
                elapsed_s=collection.elapsed_s,
                longest_s=collection.longest_s,
                kept=collection.kept,
                **removed,
            )
        return collection

    def _note_expiry(self, at_ns: int | None) -> None:
        if at_ns is not None:
            self._next_expiry_ns = min(at_ns, self._next_expiry_ns or at_ns)

    async def _sweep(self, sweep: Sweep, turns: Turns) -> tuple[Sequence[Garbage], int]:
        """One transaction of a sweep, and the reclaiming of what it removed; how many refused."""
        if len(sweep.journal.keys) - sweep.read > WRITTEN_MAX:
            await self._catch_up(sweep, turns)
        self._own = {node[:3] for node in sweep.next()}
        swept, refused = Swept(), 0
        # A caller that leaves must not leave files without records: this much comes to its end.
        with trio.CancelScope(shield=True), trio.fail_after(RECLAIM_WITHIN_S):
            try:
                swept = await self._store.write(sweep.run)
            finally:
                self._own = set()
            sweep.done(swept)
            for one in swept.garbage:
                refused += not await self._reclaimed(one)
        if swept.behind:
            await self._catch_up(sweep, turns)
        if sweep.groups:
            await turns.rest(swept.elapsed_s)
        else:
            turns.busy_s += swept.elapsed_s
        return swept.garbage, refused

    async def _catch_up(self, sweep: Sweep, turns: Turns) -> None:
        """Mark what was written meanwhile, over the read models."""
        written = await self._store.write(lambda _: len(sweep.journal.keys))
        mark_written(sweep.journal.keys[sweep.read : written], sweep.marks)
        sweep.read = written
        await turns.walk(reach(sweep.marks, self._store.get))

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


class CollectorKeeper(Actor):
    """The collector's place in the tree: runs it."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector

    def on_start(self) -> None:
        self.spawn_task(self._collector.run)
