"""The system: a stretch of a trio run in which actors live.

    async with System.open() as system:
        ref = await Counter.spawn(name="counter")

Leaving the block, however it is left, shuts the actors down in order, last started first, and
then nothing of them is left. Invariant: an outer cancellation reaches the block first, and the
actors only through that ordered shutdown.
"""

import logging
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
from .mailbox import refuse
from .pykka_compat import Envelope

if TYPE_CHECKING:
    from .cell import Cell
    from .reference import NameRef, Ref

log = logging.getLogger(__name__)


class System:
    """The actors of one trio run: their nursery, their names, the way in from threads."""

    _by_thread: ClassVar["dict[int, System]"] = {}
    _default: ClassVar["System | None"] = None

    def __init__(self) -> None:
        self.thread_id = get_ident()
        self.token = trio.lowlevel.current_trio_token()
        self.nursery: trio.Nursery
        self.cells: dict[Cell, None] = {}  # in start order
        self.closed = False
        self.opened_at_s = trio.current_time()
        self._names: dict[str, Ref[Any]] = {}
        self._name_waiters: dict[str, trio.Event] = {}
        self._ingress: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._fatal: list[BaseException] = []
        self._body = trio.CancelScope()
        self._over = trio.Event()

    @classmethod
    def current(cls) -> "System":
        """The system of this thread's loop; from another thread, the one opened last."""
        system = cls._by_thread.get(get_ident()) or cls._default
        if system is None:
            raise RuntimeError("no actor system is open")
        return system

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
        """Shut down the actors that have no parent, last started first."""
        for cell in reversed([cell for cell in self.cells if cell.parent is None]):
            cell.ref.shutdown()
            with trio.move_on_after(stop_within_s):
                await cell.ref.wait_exit()
            cell.signal(None, KILL)

    def end_with(self, error: BaseException) -> None:
        """End the block in order, then raise `error` from it."""
        self._fatal.append(error)
        self._body.cancel()

    def close(self) -> None:
        """End the block in order, from any thread."""
        self.post(lambda _: self._body.cancel(), None)

    def adopt(self, cell: "Cell") -> None:
        """Hold an actor for as long as it lives; references do not."""
        self.cells[cell] = None

    def forget(self, cell: "Cell") -> None:
        """Let go of an actor that ended, and free its name."""
        self.cells.pop(cell, None)
        name = cell.ref.name
        if name is not None and self._names.get(name) is cell.ref:
            del self._names[name]

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

    def post(self, function: Callable[[Any], None], argument: Any) -> None:
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
