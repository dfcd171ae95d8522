"""The system: a stretch of a trio run in which actors live.

    async with System.open() as system:
        ref = await Counter.spawn(name="counter")

Leaving the block, however it is left, shuts the actors down in order, last started first, and
then nothing of them is left. Thread actors have their place in that order; a thread that does
not end in its time cannot be killed, and is left behind with a line in the log. Invariant: an
outer cancellation reaches the block first, and the actors only through that ordered shutdown.
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar

import pykka
import trio

from .errors import AlreadyExists
from .exits import KILL, NOPROC, ActorExited
from .logger import get_logger
from .mailbox import refuse
from .pykka_compat import Envelope

if TYPE_CHECKING:
    from .cell import Cell
    from .exits import Exit
    from .future import Future
    from .reference import NameRef, Ref

log = get_logger(__name__)


class System:
    """The actors of one trio run: their nursery, their names, the way in from threads."""

    _by_thread: ClassVar["dict[int, System]"] = {}
    _default: ClassVar["System | None"] = None

    def __init__(self) -> None:
        self.thread_id = get_ident()
        self.token = trio.lowlevel.current_trio_token()
        self.nursery: trio.Nursery
        self.cells: dict[Cell, int] = {}  # in start order, each with its place
        self.threads: dict[pykka.ActorRef[Any], tuple[int, Future[Exit]]] = {}  # place and end
        self._places = itertools.count()
        self.closed = False
        self.opened_at_s = trio.current_time()
        self._names: dict[str, Ref[Any]] = {}
        self._name_waiters: dict[str, trio.Event] = {}
        self._ingress: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._fatal: list[BaseException] = []
        self._body = trio.CancelScope()
        self._over = trio.Event()

    @classmethod
    def current(cls) -> "System":
        """The system of this thread's loop; from another thread, the one opened last."""
        system = cls.current_or_none()
        if system is None:
            raise RuntimeError("no actor system is open")
        return system

    @classmethod
    def current_or_none(cls) -> "System | None":
        """As `current`; None when no system is open."""
        return cls._by_thread.get(get_ident()) or cls._default

    @classmethod
    @asynccontextmanager
    async def open(cls, *, stop_within_s: float = 5.0) -> "AsyncGenerator[System]":
        """Open a system for the block. `stop_within_s` is each actor's share at the end."""
        system = cls()
        outer_by_thread = cls._by_thread.get(system.thread_id)
        outer_default = cls._default
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(shield=True):
                await nursery.start(system._host)
            cls._by_thread[system.thread_id] = cls._default = system
            try:
                with system._body:
                    yield system
            except BaseException as error:
                raised = error  # kept aside, or the nursery would wrap it in a group
            finally:
                with trio.CancelScope(shield=True):
                    await system.stop(stop_within_s)
                system._over.set()
                cls._default = outer_default
                if outer_by_thread is None:
                    del cls._by_thread[system.thread_id]
                else:
                    cls._by_thread[system.thread_id] = outer_by_thread
                system.closed = True
                system._drain()
        if system._fatal:
            raise system._fatal[0]
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    @classmethod
    def in_thread(cls) -> "System":
        """Open a system in a daemon thread of its own, for a program that has no loop."""
        opened: queue.SimpleQueue[System] = queue.SimpleQueue()

        async def main() -> None:
            async with cls.open() as system:
                opened.put(system)
                await trio.sleep_forever()

        threading.Thread(target=trio.run, args=(main,), daemon=True, name="holdfast").start()
        return opened.get()

    async def _host(self, task_status: trio.TaskStatus[None]) -> None:
        """Keep the actors' nursery, out of reach of a cancellation from outside."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as self.nursery:
                task_status.started()
                await self._over.wait()
                self.nursery.cancel_scope.cancel()

    async def stop(self, stop_within_s: float) -> None:
        """Shut down the actors that have no parent, last started first, threads among them."""
        actors = [(place, cell) for cell, place in self.cells.items() if cell.parent is None]
        threads = [(place, ref, ended) for ref, (place, ended) in self.threads.items()]
        while actors or threads:
            if not threads or (actors and actors[-1][0] > threads[-1][0]):
                _, cell = actors.pop()
                cell.ref.shutdown()
                with trio.move_on_after(stop_within_s):
                    await cell.ref.wait_exit()
                cell.signal(None, KILL)
            else:
                _, ref, ended = threads.pop()
                ref.stop(block=False)
                with trio.move_on_after(stop_within_s) as scope:
                    await ended.wait()
                if scope.cancelled_caught:
                    log.error("thread.left_behind", actor=str(ref))

    def end_with(self, error: BaseException) -> None:
        """End the block in order, then raise `error` from it."""
        self._fatal.append(error)
        self._body.cancel()

    def close(self) -> None:
        """End the block in order, from any thread."""
        self.post(lambda _: self._body.cancel(), None)

    def adopt(self, cell: "Cell") -> None:
        """Hold an actor for as long as it lives; references do not."""
        self.cells[cell] = next(self._places)

    def forget(self, cell: "Cell") -> None:
        """Let go of an actor that ended, and free its name."""
        self.cells.pop(cell, None)
        name = cell.ref.name
        if name is not None and self._names.get(name) is cell.ref:
            del self._names[name]

    def adopt_thread(self, ref: "pykka.ActorRef[Any]", ended: "Future[Exit]") -> None:
        """Stop this thread actor at the end of the block, unless it has ended by then."""
        if get_ident() == self.thread_id:
            self._adopt_thread((ref, ended))
        else:
            self.post(self._adopt_thread, (ref, ended))

    def _adopt_thread(self, thread: "tuple[pykka.ActorRef[Any], Future[Exit]]") -> None:
        ref, ended = thread
        if not ended.done():
            self.threads[ref] = (next(self._places), ended)

    def forget_thread(self, ref: "pykka.ActorRef[Any]") -> None:
        """Let go of a thread actor that ended; from its own thread, after its `ended` is set."""
        self.post(lambda gone: self.threads.pop(gone, None), ref)

    # -- names

    def register(self, name: str, ref: "Ref[Any]") -> None:
        """Give a live actor a name; AlreadyExists when another bears it."""
        if name in self._names:
            raise AlreadyExists(f"actor {name!r}: already registered")
        if ref.name is not None:
            raise AlreadyExists(f"actor {ref} already has a name")
        if not ref.is_alive():
            raise ActorExited(ref, ref.reason or NOPROC)
        self._names[name] = ref
        ref.name = name
        waiters = self._name_waiters.pop(name, None)
        if waiters is not None:
            waiters.set()

    def unregister(self, name: str) -> None:
        """Free a name, whether or not anyone bears it."""
        ref = self._names.pop(name, None)
        if ref is not None:
            ref.name = None

    def whereis(self, name: str) -> "Ref[Any] | None":
        """The actor that bears a name now."""
        return self._names.get(name)

    def names(self) -> dict[str, "Ref[Any]"]:
        """Every name and who bears it."""
        return dict(self._names)

    def at(self, name: str) -> "NameRef":
        """A reference to whoever bears the name at each use."""
        from .reference import NameRef

        return NameRef(name, self)

    async def wait_for_name(self, name: str) -> "Ref[Any]":
        """Wait until someone bears the name."""
        await trio.lowlevel.checkpoint()
        while (ref := self._names.get(name)) is None:
            await self._name_waiters.setdefault(name, trio.Event()).wait()
        return ref

    # -- from other threads

    def post(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call `function` on the loop, soon and in order; from any thread."""
        self._ingress.append((function, argument))
        try:
            self.token.run_sync_soon(self._drain, idempotent=True)
        except trio.RunFinishedError:
            self._drain()

    def _drain(self) -> None:
        ingress = self._ingress
        while True:
            try:
                function, argument = ingress.popleft()
            except IndexError:
                return
            if self.closed:
                late: Any = argument
                if isinstance(argument, Envelope):
                    refuse(late, pykka.ActorDeadError("the actor system has ended"))
                continue
            try:
                function(argument)
            except Exception:
                log.exception("system.ingress_failed")
