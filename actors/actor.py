"""The actor: a pykka actor whose loop is a trio task, and whose handlers may be `async def`.

    class Counter(Actor):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def on_receive(self, message: Increment) -> int:
            self.count += message.by
            return self.count

    counter = await Counter.spawn(name="counter")     # returns when on_start is done
    assert await counter.call(Increment(by=2)) == 2

A `Refusal` raised in a handler is only an answer. Any other exception ends the actor and
reaches the caller; the supervisor decides what comes next. A restart is a new instance.
"""

import logging
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import pykka
import trio

from .cell import Cell
from .exits import KILL, Exit, Kind, StartFailed, StopActor
from .flag import Flag
from .future import Future
from .loop import run
from .mailbox import Mailbox, Overflow
from .message import Down, ExitSignal, Monitor
from .obituary import short_repr
from .pykka_compat import HostedActor
from .reference import Ref
from .system import System

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

_OWN_ATTRIBUTES = frozenset({"cell", "actor_inbox", "actor_stopped", "actor_urn", "_actor_ref"})


class Actor(HostedActor):
    """The base of every actor on the loop."""

    mailbox_bound: ClassVar[int | None] = 256
    overflow: ClassVar[Overflow] = Overflow.BLOCK
    trap_exit: bool = False
    """Exit signals become `on_exit` instead of an end."""
    hosts_children: ClassVar[bool] = False
    """Children spawned with `parent=self` run in a nursery of this actor's own."""
    pykka_rules: ClassVar[bool] = False
    """As pykka has it: an ask never crashes the actor, and it is in `pykka.ActorRegistry`."""

    cell: Cell

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cell = Cell(self, cast("Mailbox", self.actor_inbox))
        self.actor_stopped = cast("Any", Flag())  # the part of threading.Event that is used
        ref: Ref[Any] = Ref(self)
        self.cell.ref = ref
        self.adopt_ref(ref)

    # -- what a subclass may write: all may be plain or async

    def on_start(self) -> Any:
        """Set up, before the first message; raising means the start failed."""

    def on_stop(self) -> Any:
        """Clean up at an end in order. Not run after a crash or a kill."""

    def on_receive(self, message: Any) -> Any:
        """Handle one message; what is returned is the answer of a call."""
        return super().on_receive(message)

    def on_down(self, down: Down) -> Any:
        """A monitored actor ended."""

    def on_exit(self, signal: ExitSignal) -> Any:
        """A linked actor ended, or a signal came, and this one traps exits."""

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        """pykka's hook: called, plain, after a crash."""

    def describe_state(self) -> str:
        """The state in a line for crash reports and the observer."""
        return short_repr({k: v for k, v in vars(self).items() if k not in _OWN_ATTRIBUTES})

    # -- what a handler may use

    @property
    def ref(self) -> Ref[Self]:
        """The reference of this very instance."""
        return self.cell.ref

    @property
    def system(self) -> System:
        """The system that this actor runs in."""
        return self.cell.system

    def monitor(self, ref: Ref[Any]) -> Monitor:
        """Have `on_down` called once when that actor has ended; at once if it is dead."""
        return ref.cell.monitor(self.cell)

    def demonitor(self, monitor: Monitor) -> None:
        """End the watch; no `on_down` comes for it after this."""
        monitor.target.cell.demonitor(monitor)

    def link(self, ref: Ref[Any]) -> None:
        """Share an abnormal end with that actor, both ways."""
        self.cell.link(ref.cell)

    def unlink(self, ref: Ref[Any]) -> None:
        """End the sharing, both ways."""
        self.cell.unlink(ref.cell)

    def spawn_task(self, function: Callable[..., Awaitable[Any]], *args: Any) -> trio.CancelScope:
        """Run a task beside the loop: its fault is this actor's, and it ends with it.

        The scope that is returned cancels this one task.
        """
        cell = self.cell
        scope = trio.CancelScope()
        if cell.tasks is None:
            cell.tasks = set()
        cell.tasks.add(scope)
        cell.host.start_soon(cell.run_task, scope, function, args, name=f"{self}: {function}")
        return scope

    # -- starting

    @classmethod
    async def spawn(
        cls,
        *args: Any,
        name: str | None = None,
        parent: "Actor | None" = None,
        link: bool = False,
        nursery: trio.Nursery | None = None,
        start_timeout_s: float | None = 30.0,
        **kwargs: Any,
    ) -> Ref[Self]:
        """Start an actor, and return once its `on_start` is done.

        Raises StartFailed when it raised, took too long, or the name is taken; nothing of it is
        left then. `link` ties it to `parent`. It runs in `nursery`, else in its parent's, else
        in the system's.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        system = System.current()
        try:
            actor = cls(*args, **kwargs)
            if name is not None:
                system.register(name, actor.ref)
        except Exception as error:
            raise StartFailed(cls.__name__, Exit(Kind.CRASH, "init", error)) from error
        cell = actor.cell
        ref = actor.ref
        if parent is not None:
            cell.parent = parent.cell
            nursery = nursery or parent.cell.nursery
            if link:
                parent.cell.link(cell)
        started = cell.started = Future()
        actor.launch(system, nursery)
        up = False
        try:
            with trio.move_on_after(float("inf") if start_timeout_s is None else start_timeout_s):
                await started.wait()
                up = True
            if not up:
                raise StartFailed(cls.__name__, Exit(Kind.CRASH, "start timeout"))
            return ref
        finally:
            if not up:
                if parent is not None:
                    parent.cell.unlink(cell)
                cell.kill(KILL)
                with trio.CancelScope(shield=True):
                    await ref.wait_exit()

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # Ref is invariant, as pykka's
        cls, *args: Any, **kwargs: Any
    ) -> Ref[Self]:
        """pykka's start: returns before `on_start` has run; usable from any thread."""
        actor = cls(*args, **kwargs)
        if cls.pykka_rules:
            pykka.ActorRegistry.register(actor.ref)
        actor.start_loop()
        return actor.ref

    def launch(self, system: System, nursery: trio.Nursery | None) -> None:
        """Start the loop in a nursery, or in the system's."""
        cell = self.cell
        cell.system = system
        cell.mailbox.home = system.thread_id
        system.adopt(cell)

        def go(_: None) -> None:
            cell.host = nursery or system.nursery
            cell.started_at_s = trio.current_time()
            cell.host.start_soon(run, self, cell, name=str(self))

        if get_ident() == system.thread_id:
            go(None)
        else:
            system.post(go, None)

    # -- the room's own

    @classmethod
    def new_mailbox(cls) -> Mailbox:
        """The mailbox that this class declares."""
        return Mailbox(cls.mailbox_bound, cls.overflow)

    @classmethod
    def new_future(cls) -> Future[Any]:
        """What `ref.ask` returns."""
        return Future()

    def start_loop(self) -> None:
        """Start in the system that runs."""
        self.launch(System.current(), None)

    def classify(self, error: BaseException) -> Exit:
        """Why the actor ended, from what was raised; ^C and SystemExit end the whole system."""
        if isinstance(error, StopActor):
            return error.reason
        whole: Any = error
        fatal: BaseException | None = None
        if not isinstance(error, BaseExceptionGroup):
            fatal = None if isinstance(error, Exception) else error
        else:
            group = cast("BaseExceptionGroup[BaseException]", error)
            fatal = group.subgroup((KeyboardInterrupt, SystemExit))
        if fatal is not None:
            self.system.end_with(fatal)
        return Exit(Kind.CRASH, type(whole).__name__, whole)

    def report_crash(self, reason: Exit) -> None:
        """Log the crash, and call pykka's hook."""
        error = reason.exception
        if error is None:
            return
        log.error("Unhandled exception in %s:", self, exc_info=error)
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except Exception as second:
            log.error("Unhandled exception in %s:", self, exc_info=second)
