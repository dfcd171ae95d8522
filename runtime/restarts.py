"""The restart monitor: an actor that keeps tasks in the state that their containers' labels name.

It hears of every commit: an exit, a changed label, a deleted task. Each labelled container has a
watch of its own here, which looks at the records, does the one step that `next_step` tells, and
looks again. So it does the same after a restart of the daemon as at any other moment:

    STOPPED --intent, count--> --delete--> GONE --create--> CREATED --start--> RUNNING --forget-->

The intent is one transaction with the count. Whoever is killed after it, at any step, finds it, and
goes on from the step that the task's record shows: one exit leads to one restart and counts once.

The decision falls at once. The deed waits where a task does not stay: from the second restart in a
row, longer each time, up to containerd's own interval. A container that has no task, or none any
more, is left to its client for that interval, for it may be about to create one; but a changed
label is an order, and is obeyed at once.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import time_ns
from typing import Any, assert_never

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import AlreadyExists, DataLoss, NotFound, Refusal
from ..actors.reference import Ref
from ..storage.containers import Container, container_from_record, relabel
from ..storage.store import Change, Store, Transaction
from ..supervision.spec import Backoff
from .bundle import has_terminal
from .ground import CaughtUp
from .records import TASK, State, TaskRecord
from .restartpolicy import (
    COUNT,
    INTENT,
    LOG_URI,
    STATUS,
    Desired,
    Intent,
    Step,
    View,
    allows,
    count_of,
    next_step,
    wishes,
)
from .stdio import Stdio
from .tasks import Tasks

CONTAINER = "container"
INTERVAL_S = 10.0
"""containerd looks this often: as long may a client take to create a container's task."""
BACKOFF = Backoff(first_s=0.1, cap_s=INTERVAL_S, reset_after_s=INTERVAL_S)
AT_ONCE_MAX = 32
KILL_WITHIN_S = 10.0
SIGKILL = 9
NEVER = float("inf")
DECISIONS = (Step.RESTART, Step.STOP, Step.FORGET)

Key = tuple[str, str]
"""Namespace and id of a container."""

CreateTask = Callable[[str, str, Stdio], Awaitable[int]]
"""Creates the task of a container as a client would, with the container's root and options."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Watch:
    """What is known of one container beside its records; all of it may be forgotten."""

    namespace: str
    id: str
    changed: trio.Event = field(default_factory=trio.Event)
    wishes: Any = None
    client_until: float = 0.0
    """A container without a task is its client's until then."""
    not_before: float = 0.0
    """When the next deed may be done."""
    retry_at: float = 0.0
    """When anything may be tried again, after a failure."""
    tries: int = 0
    """How many restarts in a row did not last."""
    started_at: float | None = None

    def wake(self) -> None:
        """Something about it changed."""
        self.changed.set()


class Restarts(Actor):
    """One for all the containers of a host."""

    def __init__(self, store: Store, tasks: Tasks, create: CreateTask, caught_up: CaughtUp) -> None:
        super().__init__()
        self._store = store
        self._tasks = tasks
        self._create = create
        self._caught_up = caught_up
        self._may_act = False
        self._watches: dict[Key, Watch] = {}
        self._room = trio.CapacityLimiter(AT_ONCE_MAX)

    def on_start(self) -> None:
        """Looks at every labelled container, and at every intent that was left."""
        self.spawn_task(self._wait_caught_up)
        self.spawn_task(self._until_end, self._store.listen(self._on_changes))
        for row in self._store.scan(CONTAINER, mentioning=STATUS):
            if STATUS in row.value["labels"]:
                self._watch((row.namespace, row.key))
        for row in self._store.scan(INTENT):
            self._watch((row.namespace, row.key))

    def on_receive(self, message: Ref[Any]) -> None:
        """Nobody sends it anything."""

    def describe_state(self) -> str:
        """How many containers are looked after."""
        return f"{len(self._watches)} watched"

    async def _wait_caught_up(self) -> None:
        # Recovery takes what it finds halfway for an earlier life's, and undoes it.
        await self._caught_up.wait()
        self._may_act = True
        for watch in self._watches.values():
            watch.wake()

    async def _until_end(self, unlisten: Callable[[], None]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            unlisten()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        now = trio.current_time()
        for change in changes:
            key = (change.namespace, change.key)
            watch = self._watches.get(key)
            if watch is None:
                labelled = change.kind == CONTAINER and change.value is not None
                if labelled and STATUS in change.value["labels"]:  # type: ignore[index]
                    self._watch(key)
            elif change.kind == TASK and change.value is None:
                watch.client_until = now + INTERVAL_S
                watch.wake()
            elif change.kind in (TASK, CONTAINER):
                watch.wake()

    def _watch(self, key: Key) -> None:
        if key not in self._watches:
            watch = self._watches[key] = Watch(*key)
            self.spawn_task(self._keep, watch)

    async def _keep(self, watch: Watch) -> None:
        while True:
            watch.changed = trio.Event()
            try:
                view = self._look(watch)
            except DataLoss as error:  # recovery reports it
                log.error("restart.damaged", **_fields(watch), reason=str(error))
                await watch.changed.wait()
                continue
            if STATUS not in view.labels and view.intent is None:
                del self._watches[watch.namespace, watch.id]
                return
            step = next_step(view)
            until = _due(watch, view, step) if self._may(step) else NEVER
            if until > trio.current_time():
                with trio.move_on_at(until):
                    await watch.changed.wait()
                continue
            await self._try(watch, view, step)

    def _may(self, step: Step) -> bool:
        return self._may_act or step in DECISIONS

    def _look(self, watch: Watch) -> View:
        """The records as they are now."""
        namespace, id = watch.namespace, watch.id
        found = self._store.get(CONTAINER, namespace, id)
        container = None if found is None else container_from_record(id, found)
        intent = self._store.get(INTENT, namespace, id)
        task = self._store.get(TASK, namespace, id)
        record = None if task is None else TaskRecord.from_record(namespace, id, task)
        if container is not None:
            self._heed(watch, container)
        return View(
            labels={} if container is None else container.labels,
            state=State.GONE if record is None else record.state,
            exit=None if record is None else record.exit,
            intent=None if intent is None else Intent.from_record(intent),
        )

    def _heed(self, watch: Watch, container: Container) -> None:
        """A wish that changed is an order; a container just made is its client's for a while."""
        wished = wishes(container.labels)
        if watch.wishes == wished:
            return
        new = watch.wishes is None and container.created_at == container.updated_at
        age_s = (time_ns() - container.created_at) / 1e9
        watch.client_until = trio.current_time() + INTERVAL_S - age_s if new else 0.0
        watch.not_before = watch.retry_at = 0.0
        watch.tries = 0
        watch.wishes = wished

    async def _try(self, watch: Watch, view: View, step: Step) -> None:
        try:
            await self._do(watch, view, step)
        except AlreadyExists:
            pass  # somebody creates it, perhaps the monitor that fell before us: the record tells
        except (Refusal, OSError) as error:
            watch.tries += 1
            watch.retry_at = trio.current_time() + _pause_s(watch)
            log.warning("restart.failed", **_fields(watch), step=step.value, reason=str(error))
            if step is Step.CREATE:
                await self._count_again(watch)

    async def _do(self, watch: Watch, view: View, step: Step) -> None:
        namespace, id = watch.namespace, watch.id
        match step:
            case Step.REST:
                raise AssertionError("nothing to do is not done")
            case Step.RESTART:
                intent = Intent(desired=Desired.RUNNING, exit=view.exit)
                await self._store.write(_decide(watch, intent))
                self._note_life(watch)
                failpoints.passed("restart.decided")
                log.info("restart.decided", **_fields(watch), tries=watch.tries)
            case Step.STOP:
                await self._store.write(_decide(watch, Intent(desired=Desired.STOPPED)))
                failpoints.passed("restart.stop.decided")
                log.info("restart.stop", **_fields(watch))
            case Step.KILL:
                async with self._room:
                    await self._kill(namespace, id)
                failpoints.passed("restart.killed")
            case Step.DELETE:
                async with self._room:
                    await self._tasks.delete(namespace, id)
                failpoints.passed("restart.deleted")
            case Step.CREATE:
                async with self._room:
                    await self._create(namespace, id, self._stdio(watch))
                failpoints.passed("restart.created")
            case Step.START:
                async with self._room:
                    await self._tasks.start(namespace, id)
                watch.started_at = trio.current_time()
                failpoints.passed("restart.started")
            case Step.FORGET:
                await self._store.write(_forget(watch))
                failpoints.passed("restart.forgotten")
            case _:
                assert_never(step)

    async def _kill(self, namespace: str, id: str) -> None:
        try:
            status = self._tasks.get(namespace, id).status
            if status == "CREATED":
                await self._tasks.delete(namespace, id)
                return
            await self._tasks.kill(namespace, id, "", SIGKILL, all=True)
            if status == "PAUSED":
                await self._tasks.resume(namespace, id)  # what is frozen does not die
            with trio.move_on_after(KILL_WITHIN_S):
                await self._tasks.wait(namespace, id)
        except NotFound:
            pass  # it ended, or was deleted, meanwhile: the next look tells

    def _stdio(self, watch: Watch) -> Stdio:
        """Where `restart.loguri` says, or nowhere; with a terminal, where the spec has one."""
        found = self._store.get(CONTAINER, watch.namespace, watch.id)
        if found is None:
            raise NotFound(f"container {watch.id}: not found")
        container = container_from_record(watch.id, found)
        uri = container.labels.get(LOG_URI, "")
        terminal = container.spec is not None and has_terminal(container.spec.value)
        return Stdio(stdout=uri, stderr="" if terminal else uri, terminal=terminal)

    def _note_life(self, watch: Watch) -> None:
        """How long the task lasted tells when the next may begin."""
        started_at, watch.started_at = watch.started_at, None
        if started_at is None:  # a client started it, or nobody could
            watch.tries += 1 if watch.tries else 0
        elif trio.current_time() - started_at >= BACKOFF.reset_after_s:
            watch.tries = 0
        else:
            watch.tries += 1
        watch.not_before = trio.current_time() + _pause_s(watch)

    async def _count_again(self, watch: Watch) -> None:
        """A failed try counts too, and may have been the last that the policy gives."""
        try:
            await self._store.write(_retry(watch))
        except Refusal as error:
            log.warning("restart.uncounted", **_fields(watch), reason=str(error))


def _due(watch: Watch, view: View, step: Step) -> float:
    """When a step may be done: never, where there is none; a decision at once."""
    match step:
        case Step.REST:
            return NEVER
        case Step.RESTART if view.state is State.GONE:
            return max(watch.retry_at, watch.client_until, watch.not_before)
        case Step.RESTART | Step.STOP | Step.FORGET | Step.KILL:
            return watch.retry_at
        case _:
            return max(watch.retry_at, watch.not_before)


def _pause_s(watch: Watch) -> float:
    return BACKOFF.delay_s(watch.tries, random.random()) if watch.tries else 0.0


def _labels(watch: Watch, tx: Transaction) -> dict[str, str]:
    """A container's labels, in a transaction; NotFound when it was deleted meanwhile."""
    record = tx.get(CONTAINER, watch.namespace, watch.id)
    if record is None:
        raise NotFound(f"container {watch.id}: not found")
    labels: dict[str, str] = record["labels"]
    return labels


def _count(watch: Watch, labels: dict[str, str], tx: Transaction) -> None:
    count = (count_of(labels) or 0) + 1
    relabel(tx, watch.namespace, watch.id, {COUNT: str(count)})


def _decide(watch: Watch, intent: Intent) -> Callable[[Transaction], None]:
    """Write an intent, with the count of a restart, unless the labels changed meanwhile, or a
    monitor that fell since had decided too."""

    def job(tx: Transaction) -> None:
        labels = _labels(watch, tx)
        if labels.get(STATUS) != intent.desired.value:
            return
        if tx.get(INTENT, watch.namespace, watch.id) is not None:
            return
        if intent.desired is Desired.RUNNING:
            if not allows(labels, intent.exit):
                return
            _count(watch, labels, tx)
        tx.put(INTENT, watch.namespace, watch.id, intent.to_record())

    return job


def _retry(watch: Watch) -> Callable[[Transaction], None]:
    """Count a further try of an intent, or give it up."""

    def job(tx: Transaction) -> None:
        record = tx.get(INTENT, watch.namespace, watch.id)
        if record is None:
            return
        labels = _labels(watch, tx)
        if allows(labels, Intent.from_record(record).exit):
            _count(watch, labels, tx)
        else:
            tx.delete(INTENT, watch.namespace, watch.id)

    return job


def _forget(watch: Watch) -> Callable[[Transaction], None]:
    def job(tx: Transaction) -> None:
        tx.delete(INTENT, watch.namespace, watch.id)

    return job


def _fields(watch: Watch) -> dict[str, str]:
    return {"namespace": watch.namespace, "id": watch.id}
