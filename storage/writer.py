"""The writer: the one thread that changes the database, and its group commit.

    jobs from the loop -> pending -> one transaction, a savepoint for each job
        -> one commit -> the loop: models change, subscribers wake, callers are answered

While one group is being synced the next one gathers, so the syncs per second stay the same
while the jobs per sync grow with the number of callers.

Invariant: a job is answered only after its commit is on disk, in the order of the commit.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from ..actors import failpoints
from ..actors.errors import ResourceExhausted
from ..actors.threads import ThreadActor
from .commitmark import CommitMark
from .database import Damaged, Database
from .events import Event
from .salvage import FAILURES, is_damage, keep_log, salvage
from .scavenge import log_is_headless
from .spare import Spare
from .transaction import Change, Transaction


class StoreFault(Exception):
    """The database can no longer be written; the store must be opened anew."""


@dataclass(slots=True, eq=False)
class Job:
    """A caller's work on its way through the writer and back."""

    work: Callable[[Transaction], Any]
    finished: Callable[[], None]
    """Called on the loop when `result` or `error` is set."""
    withdrawn: bool = False
    """The caller no longer waits. Looked at just before the job would run."""
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A group that is on disk (or failed, then without changes), sent to the loop."""

    jobs: Sequence[Job]
    changes: Sequence[Change] = ()
    events: Sequence[Event] = ()
    first_seq: int
    fault: StoreFault | None = None
    """The database can no longer be written. No further group will commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the database held when it was opened."""

    records: Sequence[tuple[str, str, str, bytes]]
    """Sound, and not decoded."""
    damaged: Sequence[Damaged]
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Sent once by the store's `open`; answered with `Loaded`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Jobs are pending. Sent with the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Finish what is pending and close. Answered when the file is closed."""


@dataclass(slots=True)
class Pending:
    """Jobs handed from the loop to the writer. At most one `Drain` is on its way."""

    jobs: deque[Job] = field(default_factory=deque[Job])
    lock: threading.Lock = field(default_factory=threading.Lock)
    drain_sent: bool = False

    def add(self, job: Job) -> bool:
        """Add a job; True when a `Drain` must be sent."""
        with self.lock:
            self.jobs.append(job)
            must_send, self.drain_sent = not self.drain_sent, True
            return must_send

    def take(self, jobs_max: int) -> list[Job]:
        """The oldest jobs; when there are none the next one sends a `Drain` again."""
        with self.lock:
            taken = [self.jobs.popleft() for _ in range(min(jobs_max, len(self.jobs)))]
            if not taken:
                self.drain_sent = False
            return taken


def reach(name: str) -> None:
    """A failpoint whose error is the database's own, as SQLite would raise it."""
    try:
        failpoints.reach(name)
    except OSError as error:
        failed = sqlite3.OperationalError(str(error))
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        failed.sqlite_errorcode = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR
        raise failed from error


def is_databases_own(error: Exception) -> bool:
    """True when the database failed; False when the job asked for nonsense or refused."""
    misused = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
    return isinstance(error, sqlite3.Error) and not isinstance(error, misused)


class Writer(ThreadActor):
    """Owns the database. A job's failure is its answer; the database's own is a `StoreFault`."""

    def __init__(
        self,
        path: Path,
        pending: Pending,
        deliver: Callable[[Committed], None],
        group_max: int,
        events_kept_max: int,
        spare_bytes: int,
    ) -> None:
        super().__init__()
        self._path = path
        self._pending = pending
        self._deliver = deliver
        self._group_max = group_max
        self._events_kept_max = events_kept_max
        self._spare = Spare(path.with_name(path.name + ".spare"), spare_bytes)
        self._database: Database | None = None
        self._mark: CommitMark | None = None
        self._commits = 0
        self._fault: StoreFault | None = None
        self._first_seq = 1
        self._last_seq = 0

    def on_receive(self, message: Open | Drain | Close) -> Loaded | None:
        """Answer `Open` with `Loaded`, or raise what prevents it."""
        match message:
            case Open():
                return self._open()
            case Drain():
                self._drain()
            case Close():
                self._drain()
                if self._database is not None:
                    self._database.close()
                    self._database = None
                if self._mark is not None:
                    self._mark.close()
                    self._mark = None
            case _:
                assert_never(message)
        return None

    def _open(self) -> Loaded:
        try:
            return self._load()
        except FAILURES as error:
            if not is_damage(error, self._path):
                raise
            salvage(self._path, str(error))
            return self._load()

    def _load(self) -> Loaded:
        mark = CommitMark(self._path)
        try:
            if mark.read() and log_is_headless(self._path):
                raise sqlite3.DatabaseError("the log's header is not one that SQLite wrote")
            database = Database(self._path, filled=mark.read() > 0)
        except BaseException:
            mark.close()
            raise
        try:
            database.verify()
            self._compare(mark, database)
            records = list(database.load())
            self._first_seq, self._last_seq = database.event_bounds()
            damaged = database.damaged()
        except BaseException:
            mark.close()
            database.close()
            raise
        self._database, self._mark = database, mark
        self._spare.hold()
        return Loaded(
            records=records,
            damaged=damaged,
            first_seq=self._first_seq,
            last_seq=self._last_seq,
        )

    def _compare(self, mark: CommitMark, database: Database) -> None:
        self._commits = database.commits()
        lost = mark.read() - self._commits
        if lost > 0:
            keep_log(self._path, f"{lost} commits are lost with its log", database)
        mark.write(self._commits)

    def _drain(self) -> None:
        while jobs := self._pending.take(self._group_max):
            self._spare.hold()
            live = [job for job in jobs if not job.withdrawn]
            if live:
                self._deliver(self._commit(live))

    def _commit(self, jobs: Sequence[Job]) -> Committed:
        if self._fault is not None or self._database is None:
            return self._failed(jobs, self._fault or StoreFault("the store is closed"))
        try:
            return self._commit_group(self._database, jobs)
        except sqlite3.Error as error:
            if not self._is_full(self._database, error):
                return self._failed(jobs, self._fault_of(error))
        # One large job must not take the small ones with it: each tries alone.
        for job in jobs[:-1]:
            self._deliver(self._commit_alone(self._database, job))
        return self._commit_alone(self._database, jobs[-1])

    def _commit_alone(self, database: Database, job: Job) -> Committed:
        for make_room in (False, True):
            if self._fault is not None:
                return self._failed([job], self._fault)
            if make_room:
                self._make_room(database)
            try:
                return self._commit_group(database, [job])
            except sqlite3.Error as error:
                if not self._is_full(database, error):
                    return self._failed([job], self._fault_of(error))
            finally:
                # When it was the job that was too large, there is space for the others.
                self._spare.hold(at_once=True)
        return self._failed([job], ResourceExhausted("store: no space left on device"))

    def _is_full(self, database: Database, error: sqlite3.Error) -> bool:
        """Undo what failed. False when it was not for want of space, or cannot be undone."""
        try:
            if database.connection.in_transaction:
                database.connection.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL

    def _fault_of(self, error: sqlite3.Error) -> StoreFault:
        # What the file holds now is known only after it has been opened anew.
        self._fault = StoreFault(f"{self._path}: {error}")
        self._fault.__cause__ = error
        return self._fault

    def _make_room(self, database: Database) -> None:
        self._spare.give()
        try:
            # The log is folded into the file and begins anew where it has its space already.
            database.connection.execute("PRAGMA wal_checkpoint(RESTART)")
        except sqlite3.Error:
            pass  # the next commit shows whether there is room

    def _commit_group(self, database: Database, jobs: Sequence[Job]) -> Committed:
        changes: list[Change] = []
        events: list[Event] = []
        execute = database.connection.execute
        execute("BEGIN IMMEDIATE")
        for job in jobs:
            transaction = Transaction(database, frugal=not self._spare.held)
            execute("SAVEPOINT job")
            try:
                job.result, job.error = job.work(transaction), None
            except Exception as error:
                if is_databases_own(error):
                    raise
                job.error = error
                execute("ROLLBACK TO job")
            else:
                changes += transaction.changes
                events += transaction.events
            execute("RELEASE job")
        first_seq = self._trim(database, events)
        database.count_commit()
        reach("store.commit")
        execute("COMMIT")
        failpoints.passed("store.committed")
        self._commits += 1
        if self._mark is not None:
            self._mark.write(self._commits)
        self._first_seq = first_seq
        if events:
            self._last_seq = events[-1].seq
        return Committed(jobs=jobs, changes=changes, events=events, first_seq=first_seq)

    def _trim(self, database: Database, events: Sequence[Event]) -> int:
        # In strides, so that not every commit pays for a deletion.
        last_seq = events[-1].seq if events else self._last_seq
        stride = max(1, self._events_kept_max // 64)
        if last_seq - self._first_seq + 1 < self._events_kept_max + stride:
            return self._first_seq
        first_seq = last_seq - self._events_kept_max + 1
        database.trim_events(first_seq)
        return first_seq

    def _failed(self, jobs: Sequence[Job], error: Exception) -> Committed:
        for job in jobs:
            job.result, job.error = None, error
        return Committed(jobs=jobs, first_seq=self._first_seq, fault=self._fault)
