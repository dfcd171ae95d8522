"""The cell: one actor seen from outside its handlers.

The actor object holds what its author wrote; the cell holds what the room needs to know: the
mailbox, links, monitors, whom it waits for, why it ended. References point at the cell, and the
cell lets go of the actor at its end, so a reference to the dead is small and holds no state.

Invariants: (1) all but `post` run on the loop's thread. (2) `exit` is set exactly once, by
`finish`. (3) A link stands in both cells or in neither.
"""

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pykka
import trio

from .exits import KILL, KILLED, NOPROC, ActorExited, Exit, Kind, StartFailed
from .future import Future
from .mailbox import Mailbox, refuse
from .message import Down, ExitSignal, Monitor
from .obituary import Obituary, write_obituary
from .pykka_compat import Envelope

if TYPE_CHECKING:
    from .actor import Actor
    from .reference import Ref
    from .system import System

current_cell: "contextvars.ContextVar[Cell | None]" = contextvars.ContextVar(
    "holdfast_current_cell", default=None
)
"""The actor that this task belongs to; who holds the loop is read from here."""

handling_cell: "contextvars.ContextVar[Cell | None]" = contextvars.ContextVar(
    "holdfast_handling_cell", default=None
)
"""The actor whose handler waits for this task. Unset in its background tasks, which may wait
for others without keeping the actor from answering."""


class Cell:
    """The room's side of one actor."""

    __slots__ = (
        "__weakref__",
        "actor",
        "current",
        "current_since_s",
        "exit",
        "handled",
        "host",
        "kill_reason",
        "links",
        "mailbox",
        "monitors",
        "nursery",
        "obituary",
        "parent",
        "ref",
        "scope",
        "started",
        "started_at_s",
        "stopping",
        "suspended",
        "system",
        "tasks",
        "tasks_gone",
        "trace",
        "waiting_on",
        "watching",
    )

    def __init__(self, actor: "Actor", mailbox: Mailbox) -> None:
        self.actor: Actor | None = actor
        self.mailbox = mailbox
        mailbox.cell = self
        self.ref: Ref[Any]
        self.system: System
        self.host: trio.Nursery  # where its loop runs
        self.nursery: trio.Nursery | None = None  # where its children run, if it has any
        self.parent: Cell | None = None
        self.scope: trio.CancelScope | None = None
        self.started: Future[None] | None = None
        self.started_at_s = 0.0
        self.kill_reason: Exit | None = None
        self.exit: Exit | None = None
        self.obituary: Obituary | None = None
        self.monitors: dict[Monitor, None] | None = None
        self.watching: set[Monitor] | None = None
        self.links: dict[Cell, None] | None = None
        self.waiting_on: list[Cell] | None = None
        self.current: Envelope[Any] | None = None
        self.current_since_s = 0.0
        self.handled = 0
        self.suspended = False
        self.trace: Callable[[Any], None] | None = None
        self.stopping: list[Envelope[Any]] | None = None  # pykka's stops, answered at the end
        self.tasks: set[trio.CancelScope] | None = None
        self.tasks_gone: trio.Event | None = None

    def __str__(self) -> str:
        return str(self.ref)

    # -- signals

    def signal(self, sender: "Ref[Any] | None", reason: Exit) -> None:
        """An exit signal arrives. KILL cannot be trapped, `normal` kills nobody."""
        if self.exit is not None:
            return
        actor = self.actor
        assert actor is not None
        if reason is KILL:
            self.kill(KILLED)
        elif actor.trap_exit:
            self.mailbox.put_system(ExitSignal(sender, reason))
        elif reason.kind is not Kind.NORMAL:
            self.kill(reason)

    def kill(self, reason: Exit) -> None:
        """End the actor at its next checkpoint, with this reason unless an earlier one won."""
        if self.exit is None and self.kill_reason is None:
            self.kill_reason = reason
            if self.scope is not None:
                self.scope.cancel()

    # -- links and monitors

    def link(self, other: "Cell") -> None:
        """Tie both ends together; a link to the dead is answered with a signal."""
        if other.exit is not None:
            self.signal(other.ref, NOPROC)
            return
        if self.links is None:
            self.links = {}
        if other.links is None:
            other.links = {}
        self.links[other] = None
        other.links[self] = None

    def unlink(self, other: "Cell") -> None:
        """Untie both ends, and drop a signal of the other's end that still waits."""
        if self.links:
            self.links.pop(other, None)
        if other.links:
            other.links.pop(self, None)
        lane = self.mailbox.system
        if lane:
            for message in [m for m in lane if isinstance(m, ExitSignal) and m.sender is other.ref]:
                lane.remove(message)

    def monitor(
        self, watcher: "Cell | None", callback: Callable[[Down], None] | None = None
    ) -> Monitor:
        """Have the watcher told once of this actor's end; at once when it is dead."""
        monitor = Monitor(self.ref, watcher, callback)
        if self.exit is not None:
            _tell_down(monitor, NOPROC)
            return monitor
        if self.monitors is None:
            self.monitors = {}
        self.monitors[monitor] = None
        if watcher is not None:
            if watcher.watching is None:
                watcher.watching = set()
            watcher.watching.add(monitor)
        return monitor

    def demonitor(self, monitor: Monitor) -> None:
        """End the watch; a Down that still waits is dropped, so none comes after this."""
        if self.monitors:
            self.monitors.pop(monitor, None)
        watcher = monitor.watcher
        if watcher is None:
            return
        if watcher.watching:
            watcher.watching.discard(monitor)
        lane = watcher.mailbox.system
        if lane:
            for message in [m for m in lane if isinstance(m, Down) and m.monitor is monitor]:
                lane.remove(message)

    # -- background tasks

    async def run_task(
        self, scope: trio.CancelScope, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        """Run one task of the actor's own; its fault is the actor's."""
        current_cell.set(self)
        handling_cell.set(None)
        assert self.tasks is not None
        try:
            with scope:
                await function(*args)
        except trio.Cancelled:
            raise
        except BaseExceptionGroup as error:
            if error.split(trio.Cancelled)[1] is None:
                raise
            self.fault(error)
        except BaseException as error:
            self.fault(error)
        finally:
            self.tasks.discard(scope)
            if not self.tasks and self.tasks_gone is not None:
                self.tasks_gone.set()

    def fault(self, error: BaseException) -> None:
        """A background task raised: the actor ends with that."""
        assert self.actor is not None
        self.kill(self.actor.classify(error))

    async def end_tasks(self) -> None:
        """Cancel the background tasks, and wait until the last has gone."""
        if self.tasks:
            self.tasks_gone = trio.Event()
            for scope in list(self.tasks):
                scope.cancel()
            with trio.CancelScope(shield=True):
                await self.tasks_gone.wait()

    # -- the end

    def finish(self, reason: Exit) -> None:
        """Tell everyone who must learn of this end. Synchronous, so nobody sees half of it."""
        actor = self.actor
        assert actor is not None
        if reason.abnormal:
            try:
                state = actor.describe_state()
            except Exception as fault:  # the author's code must not keep the end from being told
                state = f"<describe_state raised {type(fault).__name__}>"
            self.obituary = write_obituary(self, reason, state, trio.current_time())
        self.exit = reason.without_exception()
        self.ref.actor_stopped.set()
        self.system.forget(self)
        if actor.pykka_rules:
            pykka.ActorRegistry.unregister(self.ref)
        if reason.kind is Kind.CRASH and (self.started is None or self.started.done()):
            actor.report_crash(reason)
        if self.started is not None and not self.started.done():
            self.started.set_error(StartFailed(type(actor).__name__, reason))
        if self.current is not None:
            error = reason.exception or ActorExited(self.ref, reason)
            refuse(self.current, error)
            self.current = None
        for envelope in self.stopping or ():
            refuse(envelope, ActorExited(self.ref, reason))
        self.mailbox.close(reason)
        for monitor in self.watching or ():
            monitor.target.cell.forget_monitor(monitor)
        monitors, self.monitors, self.watching = self.monitors, None, None
        for monitor in monitors or ():
            _tell_down(monitor, reason)
        links, self.links = self.links, None
        for other in links or ():
            if other.links:
                other.links.pop(self, None)
            other.signal(self.ref, reason)
        self.actor = self.scope = self.parent = self.nursery = self.trace = None

    def forget_monitor(self, monitor: Monitor) -> None:
        """The watcher is gone."""
        if self.monitors:
            self.monitors.pop(monitor, None)


def _tell_down(monitor: Monitor, reason: Exit) -> None:
    down = Down(monitor, monitor.target, reason)
    if monitor.callback is not None:
        monitor.callback(down)
    elif monitor.watcher is not None:
        monitor.watcher.mailbox.put_system(down)


def ring_of_waits(caller: Cell, target: Cell) -> list[Cell] | None:
    """The ring that a call from `caller` to `target` would close, or None."""
    path: list[Cell] = [caller]

    def reaches(cell: Cell) -> bool:
        path.append(cell)
        if cell is caller or any(reaches(next_cell) for next_cell in cell.waiting_on or ()):
            return True
        path.pop()
        return False

    return path if reaches(target) else None
