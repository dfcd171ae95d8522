"""Recovery: what a start does with the tasks that an earlier life left.

Every recorded task and exec gets its actor again, in parallel; each catches up with its own
shim and has its own deadline, so that neither a damaged record nor a hung shim holds up the others.
An interrupted create is undone, a leftover bundle removed. What is in doubt is left alone, and
reported.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from ..actors.actor import Actor
from ..actors.errors import FailedPrecondition, Refusal
from ..actors.exits import StartFailed
from ..actors.reference import Ref
from ..storage.faults import Fault
from . import ledger, tasklife
from .asking import StartChild
from .bundle import BundleName, bundle_path, leftovers, remove_bundle
from .ground import Ground
from .records import EXEC, TASK, ExecRecord, TaskRecord
from .shimverbs import opened
from .taskfaults import BUNDLE
from .tasks import exec_child, task_child

AT_ONCE_MAX = 32
EACH_WITHIN_S = 30.0
FIRST_WITHIN_S = 1.0
# Whoever waits for the socket comes at once, and would find the loop busy with hundreds of tasks.
HEAD_START_S = 0.05

What = tuple[str, str, str]
"""Kind, namespace and key of a fault."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Recovered:
    """What a start found."""

    tasks: int = 0
    execs: int = 0
    cleaned: list[str] = field(default_factory=list[str])
    damaged: list[Fault] = field(default_factory=list[Fault])


class Recovery:
    """One recovery. Make it anew after each start of the supervisors below it."""

    def __init__(self, ground: Ground, start_task: StartChild, start_exec: StartChild) -> None:
        self._ground = ground
        self._start_task = start_task
        self._start_exec = start_exec
        self._room = trio.CapacityLimiter(AT_ONCE_MAX)
        self._found = Recovered()

    async def run(self) -> Recovered:
        """Bring back all that can be; never raises for what cannot."""
        self._ground.faults.clear()
        tasks, execs = self._records()
        known = [BundleName(namespace=record.namespace, id=record.id) for record in tasks]
        known += [
            BundleName(namespace=row.namespace, id=row.key)
            for row in self._ground.store.scan(TASK)  # a damaged record's bundle is no leftover
        ]
        left = await trio.to_thread.run_sync(leftovers, self._ground.state, known)
        async with trio.open_nursery() as nursery:
            for record in tasks:
                what = (TASK, record.namespace, record.id)
                nursery.start_soon(self._each, what, self._task, record)
            for added in execs:
                what = (EXEC, added.namespace, added.key)
                nursery.start_soon(self._each, what, self._exec, added)
            for bundle in left:
                what = (BUNDLE, bundle.namespace, bundle.id)
                nursery.start_soon(self._each, what, self._leftover, bundle)
        found = self._found
        log.info(
            "tasks.recovered", tasks=found.tasks, execs=found.execs, damaged=len(found.damaged)
        )
        return found

    def _records(self) -> tuple[Sequence[TaskRecord], Sequence[ExecRecord]]:
        tasks: list[TaskRecord] = []
        execs: list[ExecRecord] = []
        for row in self._ground.store.scan(TASK):
            try:
                tasks.append(TaskRecord.from_record(row.namespace, row.key, row.value))
            except Refusal as error:
                self._damaged((TASK, row.namespace, row.key), error)
        for row in self._ground.store.scan(EXEC):
            try:
                execs.append(ExecRecord.from_record(row.namespace, row.key, row.value))
            except Refusal as error:
                self._damaged((EXEC, row.namespace, row.key), error)
        return tasks, execs

    async def _each(self, what: What, work: Callable[[Any], Awaitable[None]], subject: Any) -> None:
        async with self._room:
            with trio.move_on_after(EACH_WITHIN_S) as scope:
                try:
                    await work(subject)
                except (Refusal, StartFailed, OSError) as error:
                    self._damaged(what, error)
            if scope.cancelled_caught:
                self._damaged(what, TimeoutError(f"not recovered within {EACH_WITHIN_S} s"))

    async def _task(self, record: TaskRecord) -> None:
        ref = await self._start_task(task_child(self._ground, record))
        self._found.tasks += 1
        if record.state in tasklife.HALFWAY:
            await ref.call(tasklife.Delete(), timeout_s=EACH_WITHIN_S)
            self._found.cleaned.append(record.name)

    async def _exec(self, record: ExecRecord) -> None:
        if self._ground.store.get(TASK, record.namespace, record.task_id) is None:
            await self._ground.store.write(ledger.exec_deleted(record))
            self._found.cleaned.append(record.name)
            return
        await self._start_exec(exec_child(self._ground, record))
        self._found.execs += 1

    async def _leftover(self, name: BundleName) -> None:
        """A task that was deleted down to its shim and bundle. A live process is not ours to
        end: its record may have been lost, and then somebody misses it."""
        bundle = bundle_path(self._ground.state, name.namespace, name.id)
        source = await self._ground.left_shims(bundle, name.namespace, name.id)
        within_s = self._ground.limits.shim_within_s
        lives = False
        try:
            async with opened(source, bundle) as shim:
                state = await shim.state(timeout_s=within_s)
                lives = any(process.status != "stopped" for process in state.processes.values())
                if not lives:
                    await shim.shutdown(timeout_s=within_s)
        except* Refusal:
            pass  # no shim listens
        if lives:
            raise FailedPrecondition("a process lives in it, and no record tells whose")
        await trio.to_thread.run_sync(remove_bundle, bundle)
        self._found.cleaned.append(f"bundle {name.namespace}/{name.id}")

    def _damaged(self, what: What, error: BaseException) -> None:
        kind, namespace, key = what
        log.error("tasks.damaged", kind=kind, namespace=namespace, key=key, reason=str(error))
        self._found.damaged.append(self._ground.faults.add(kind, namespace, key, str(error)))


class Recoverer(Actor):
    """Runs a recovery beside the tree that starts: last of the runtime's children, so that it
    runs again whenever the supervisors of tasks and execs were restarted. `first` is waited for,
    though not long: what matters more than catching up, such as answering clients."""

    def __init__(
        self,
        ground: Ground,
        start_task: StartChild,
        start_exec: StartChild,
        first: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        super().__init__()
        self._first = first
        self._caught_up = ground.caught_up
        self._recovery = Recovery(ground, start_task, start_exec)
        self.found: Recovered | None = None

    def on_start(self) -> None:
        """Ready at once: the daemon serves while its tasks come back."""
        self._caught_up.begin()
        self.spawn_task(self._run)

    def on_receive(self, message: Ref[Any]) -> None:
        """Nobody sends it anything."""

    async def _run(self) -> None:
        with trio.move_on_after(FIRST_WITHIN_S):
            await self._first()
        await trio.sleep(HEAD_START_S)
        self.found = await self._recovery.run()
        self._caught_up.end()
