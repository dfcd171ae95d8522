"""References: how actors are spoken to.

A `Ref` stands for one instance, and outlives it as a small thing that says "has ended". A
`NameRef` stands for whoever bears a name when it is used, and so survives restarts.
"""

from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import pykka
import trio

from .cell import Cell, handling_cell, ring_of_waits
from .exits import NOPROC, SHUTDOWN, ActorExited, CallTimeout, DeadlockError, Exit, WouldBlockLoop
from .future import Future
from .mailbox import Mailbox, Overflow
from .message import Down, Request, Shutdown
from .obituary import Obituary
from .pykka_compat import Envelope

if TYPE_CHECKING:
    from .actor import Actor
    from .flag import Flag
    from .system import System

A_co = TypeVar("A_co", bound="Actor", covariant=True)
R = TypeVar("R")

CALL_TIMEOUT_S = 5.0


class Ref(pykka.ActorRef[Any], Generic[A_co]):
    """One actor's address."""

    actor_inbox: Mailbox  # pyright: ignore[reportIncompatibleVariableOverride]
    actor_stopped: "Flag"  # type: ignore[assignment]  # has what pykka uses of an Event

    def __init__(self, actor: A_co) -> None:
        super().__init__(actor)
        self.cell: Cell = actor.cell
        self.name: str | None = None

    def __str__(self) -> str:
        name = self.name or self.actor_urn
        return f"{self.actor_class.__name__} ({name})"

    @property
    def reason(self) -> Exit | None:
        """Why the actor ended, without the exception; None while it lives."""
        return self.cell.exit

    @property
    def obituary(self) -> Obituary | None:
        """What was known at an abnormal end; None otherwise."""
        return self.cell.obituary

    # -- messages

    def tell(self, message: Any) -> None:
        """Send, and go on. Raises ActorExited when dead, MailboxFull at the bound."""
        if self.actor_stopped.up:
            raise ActorExited(self, self.cell.exit or NOPROC, f"{self} not found")
        self.actor_inbox.put(Envelope(message))

    def cast(self, message: Any) -> None:
        """Send, and go on; what is sent to the dead is dropped."""
        if self.actor_stopped.up:
            return
        try:
            self.actor_inbox.put(Envelope(message))
        except ActorExited:
            pass  # it ended while a thread waited for room

    async def send(self, message: Any) -> None:
        """Send, once there is room in the mailbox. Raises ActorExited when it is dead, or ends
        before there is room."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.actor_stopped.up:
            raise ActorExited(self, self.cell.exit or NOPROC)
        await self.actor_inbox.put_when_room(Envelope(message))

    async def call(self, request: Request[R], timeout_s: float | None = CALL_TIMEOUT_S) -> R:
        """Ask, and wait for the answer.

        Raises what the handler raised; ActorExited when the actor is dead or ends first;
        CallTimeout; DeadlockError when both would wait for each other. A call that is cancelled
        or times out is withdrawn: if not yet begun, it never is.
        """
        return cast("R", await call_any(self, request, timeout_s))

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """pykka's ask; `block=True` is for threads, and refused on the loop."""
        if block and trio.lowlevel.in_trio_run():
            raise WouldBlockLoop("ask(block=True) on the loop: await ref.call(request) instead")
        return super().ask(message, block=block, timeout=timeout)

    # -- life

    def exit(self, reason: Exit = SHUTDOWN) -> None:
        """Send an exit signal, from any thread. KILL cannot be trapped, and interrupts."""
        if get_ident() == self.actor_inbox.home:
            self.cell.signal(None, reason)
        else:
            self.cell.system.post(self.exit, reason)

    def shutdown(self, reason: Exit = SHUTDOWN) -> None:
        """Ask for an end in order: after the current message, before those that wait."""
        self.actor_inbox.put_system(Shutdown(reason))

    async def wait_exit(self) -> Exit:
        """Wait until the actor has ended; why it did."""
        cell = self.cell
        if cell.exit is not None:
            await trio.lowlevel.checkpoint()
            return cell.exit
        ended = trio.Event()
        reason = NOPROC

        def on_down(down: Down) -> None:
            nonlocal reason
            reason = down.reason
            ended.set()

        monitor = cell.monitor(None, on_down)
        try:
            await ended.wait()
        finally:
            cell.demonitor(monitor)
        return reason


async def call_any(
    ref: pykka.ActorRef[Any], message: Any, timeout_s: float | None = CALL_TIMEOUT_S
) -> Any:
    """Ask any pykka actor, on the loop or in a thread, without blocking the loop."""
    if ref.actor_stopped.is_set():
        await trio.lowlevel.checkpoint()
        dead = _cell_of(ref)
        raise ActorExited(ref, (dead and dead.exit) or NOPROC)
    reply: Future[Any] = Future()
    envelope = Envelope(message, reply_to=reply)
    target = _cell_of(ref)
    caller = handling_cell.get()
    if caller is not None and target is not None:
        if target is caller or target.waiting_on:
            ring = ring_of_waits(caller, target)
            if ring is not None:
                raise DeadlockError(ring)
        if caller.waiting_on is None:
            caller.waiting_on = []
        caller.waiting_on.append(target)
    try:
        if timeout_s is None:
            await _put(ref, target, envelope)
            return await reply.wait()
        with trio.move_on_after(timeout_s):
            await _put(ref, target, envelope)
            return await reply.wait()
        raise CallTimeout(ref, timeout_s)
    finally:
        if not reply.done():
            reply.withdrawn = True
            if target is not None:
                target.mailbox.withdraw(envelope)
        if caller is not None and target is not None:
            assert caller.waiting_on is not None
            caller.waiting_on.remove(target)


def _cell_of(ref: pykka.ActorRef[Any]) -> Cell | None:
    ours: Any = ref
    return ours.cell if isinstance(ref, Ref) else None


async def _put(ref: pykka.ActorRef[Any], target: Cell | None, envelope: Envelope[Any]) -> None:
    if target is not None and target.mailbox.overflow is Overflow.BLOCK:
        await target.mailbox.put_when_room(envelope)
    else:
        ref.actor_inbox.put(envelope)


class NameRef:
    """Whoever bears a name, looked up at each use."""

    __slots__ = ("_system", "name")

    def __init__(self, name: str, system: "System") -> None:
        self.name = name
        self._system = system

    def __repr__(self) -> str:
        return f"<NameRef {self.name}>"

    def resolve(self) -> Ref[Any]:
        """The one who bears the name now; raises ActorExited when nobody does."""
        ref = self._system.whereis(self.name)
        if ref is None:
            raise ActorExited(self.name, NOPROC)
        return ref

    def is_alive(self) -> bool:
        """Whether someone bears the name."""
        return self._system.whereis(self.name) is not None

    def tell(self, message: Any) -> None:
        """As `Ref.tell`."""
        self.resolve().tell(message)

    def cast(self, message: Any) -> None:
        """As `Ref.cast`; dropped when nobody bears the name."""
        ref = self._system.whereis(self.name)
        if ref is not None:
            ref.cast(message)

    async def send(self, message: Any) -> None:
        """As `Ref.send`."""
        await self.resolve().send(message)

    async def call(self, request: Request[R], timeout_s: float | None = CALL_TIMEOUT_S) -> R:
        """As `Ref.call`."""
        return await self.resolve().call(request, timeout_s)
