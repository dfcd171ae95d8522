"""The store: records and events, durable on disk and readable in memory.

A write is a job, a function of a `Transaction`, run in the writer's thread:

    def work(tx: Transaction) -> None:
        if tx.get("container", "default", "web") is not None:
            raise AlreadyExists('container "web": already exists')
        tx.put("container", "default", "web", {"labels": {}})
        tx.emit("default", "/containers/create", "containerd.events.ContainerCreate", {"id": "web"})

    async with Store.open(path) as store:
        await store.write(work)                 # returns once it is on disk
        store.get("container", "default", "web")  # from memory, at once

What a caller may rely on: a write that returned survives a crash and power loss; its record is
visible to `get` and `scan`, and its event to subscribers, before it returns. A write that
raised changed nothing. Writes that run at the same time share a commit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import pykka
import trio

from ..actors.eager import Holding
from ..actors.threads import call_thread
from .database import Damaged, EventRows, Journal, Record, Row, SchemaTooNew, StoreLocked
from .events import EventLog
from .models import Models
from .transaction import Change, Transaction
from .writer import Close, Committed, Drain, Job, Loaded, Open, Pending, StoreFault, Writer

__all__ = [
    "Change",
    "Damaged",
    "Journal",
    "Record",
    "Row",
    "SchemaTooNew",
    "Store",
    "StoreFault",
    "StoreLocked",
    "Transaction",
]

R = TypeVar("R")

CLOSE_WITHIN_S = 5.0


class Store:
    """The open store. Its methods belong to the loop it was opened in."""

    def __init__(self, path: Path, writes_max: int) -> None:
        self._pending = Pending()
        self._writer: pykka.ActorRef[Writer] | None = None
        self._models = Models()
        self._room = trio.Semaphore(writes_max)
        self._listeners: list[Callable[[Sequence[Change]], None]] = []
        self._faulted = trio.Event()
        self._fault: StoreFault | None = None
        self.path = path
        self.damaged: Sequence[Damaged] = ()
        """Records that did not verify, now or in an earlier life, and wait for repair."""
        self.commits = 0
        """How many groups have been committed in this life."""
        self.writes = 0
        """How many jobs they held."""

    events: EventLog
    """The event log of this store."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        *,
        writes_max: int = 4096,
        group_max: int = 512,
        events_kept_max: int = 65_536,
        spare_bytes: int = 4 << 20,
    ) -> AsyncGenerator[Store, None]:
        """Open or make the database at `path`; leaving the block finishes and closes it.

        At most `writes_max` writes wait at a time; the others wait to be let in. The event log
        keeps the newest `events_kept_max` events. With less than `spare_bytes` left on the disk
        new records are refused, but deletes and changes go on.
        """
        store = cls(path, writes_max)
        token = trio.lowlevel.current_trio_token()

        def deliver(group: Committed) -> None:
            try:
                token.run_sync_soon(store._deliver, group)
            except trio.RunFinishedError:
                pass  # nobody is left to be told; the commit stands

        store._writer = await Writer.spawn(
            path, store._pending, deliver, group_max, events_kept_max, spare_bytes
        )
        try:
            # No deadline: a large database takes as long as it takes to load.
            loaded = await call_thread(store._writer, Open(), None)
            rows = await trio.to_thread.run_sync(EventRows, path)
            try:
                store._load(loaded, rows)
                yield store
            finally:
                rows.close()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
                await call_thread(store._writer, Close(), None)
            store._writer.stop(block=False)

    def _load(self, loaded: Loaded, rows: EventRows) -> None:
        for record in loaded.records:
            self._models.change(*record)
        self.damaged = loaded.damaged
        self.events = EventLog(self, rows, loaded.first_seq, loaded.last_seq)

    async def write(self, work: Callable[[Transaction], R]) -> R:
        """Run a job in the writer's thread; return its result once its commit is on disk.

        What the job raises is raised here, and nothing of the job stays. It must be a function
        of the transaction alone: it runs again when its group had to be undone. A caller that
        is cancelled withdraws a job that has not begun; one that has begun still commits.
        """
        if self._fault is not None:
            raise self._fault
        assert self._writer is not None
        async with Holding(self._room):
            done = trio.Event()
            job = Job(work, done.set)
            if self._pending.add(job):
                self._writer.tell(Drain())
            try:
                await done.wait()
            except trio.Cancelled:
                job.withdrawn = True
                raise
        if job.error is None:
            return cast("R", job.result)
        raise job.error

    def get(self, kind: str, namespace: str, key: str) -> Record | None:
        """The committed record, or None."""
        return self._models.get(kind, namespace, key)

    def scan(
        self, kind: str, namespace: str | None = None, prefix: str = "", mentioning: str = ""
    ) -> Iterator[Row]:
        """The committed records of a kind, in the order of (namespace, key).

        All namespaces for None; only keys that begin with `prefix`; with `mentioning` at least
        those that hold this text anywhere. Commits may come while the iterator is walked:
        records deleted meanwhile are left out, new ones may be.
        """
        return self._models.scan(kind, namespace, prefix, mentioning)

    def count(self, kind: str, namespace: str | None = None) -> int:
        """How many committed records of a kind there are."""
        return self._models.count(kind, namespace)

    async def forget_damaged(self, given_up: Sequence[Damaged]) -> None:
        """Throw away these that were set aside as damaged, once repaired or given up."""
        await self.write(lambda tx: tx.forget_damaged(given_up))
        self.damaged = [one for one in self.damaged if one not in given_up]

    def listen(self, listener: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call `listener` on the loop with the changes of each commit, until the returned
        function is called. It must not raise nor wait."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_fault(self) -> StoreFault:
        """Return the failure that ended this store's writing, when there is one."""
        await self._faulted.wait()
        assert self._fault is not None
        return self._fault

    def _deliver(self, group: Committed) -> None:
        self.commits += 1
        self.writes += len(group.jobs)
        for change in group.changes:
            self._models.change(*change)
        self.events.deliver(group.events, group.first_seq)
        if group.changes:
            for listener in tuple(self._listeners):
                listener(group.changes)
        if group.fault is not None and self._fault is None:
            self._fault = group.fault
            self._faulted.set()
        for job in group.jobs:
            job.finished()
