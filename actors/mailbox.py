"""The mailbox: two lanes, a bound, and what happens at the bound.

The system lane (exit signals, Down, Shutdown) goes before the user lane and is not bounded:
each entry stands for one monitor, link or order. The user lane holds `bound` messages; at the
bound the sender waits, or is refused, or the declared policy drops; a drop is counted and told.

Invariants: (1) only the loop's thread touches the lanes; other threads hand over through the
system's ingress, so the bound is exact and no lock is needed. (2) At most one task is parked
for a message, the actor's own. (3) While a sender waits for room there is none: whoever makes
room hands it to the one who has waited longest, so nobody who comes later overtakes.
"""

import enum
from collections import OrderedDict, deque
from threading import get_ident
from typing import TYPE_CHECKING, Any

import trio
from outcome import Error
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

from .exits import ActorExited, Exit, Kind, MailboxFull
from .future import Future
from .logger import get_logger
from .message import SystemMessage
from .pykka_compat import Envelope, is_stop

if TYPE_CHECKING:
    from .cell import Cell

log = get_logger(__name__)


class Overflow(enum.Enum):
    """What happens to a message that finds the mailbox full."""

    BLOCK = "block"
    """`call`, `send` and threads wait for room; `tell` on the loop, which cannot, is refused."""
    REJECT = "reject"
    """The sender is refused with MailboxFull; only `send` waits."""
    DROP_NEW = "drop_new"
    """The new message is dropped."""
    DROP_OLD = "drop_old"
    """The oldest message is dropped for the new one."""
    KILL = "kill"
    """The receiver is killed, as by Erlang's max_heap_size."""


class Mailbox:
    """Where an actor's messages wait."""

    __slots__ = (
        "_parked",
        "bound",
        "cell",
        "closed",
        "dropped",
        "held",
        "home",
        "overflow",
        "system",
        "user",
        "waiting",
    )

    def __init__(self, bound: int | None = 256, overflow: Overflow = Overflow.BLOCK) -> None:
        self.bound = bound
        self.overflow = overflow
        self.system: deque[SystemMessage] | None = None  # made with its first message
        self.user: deque[Envelope[Any]] = deque()
        self.held: list[Envelope[Any]] | None = None  # postponed by a state machine
        self.waiting: OrderedDict[Task, Envelope[Any]] | None = None  # senders in want of room
        self.closed: Exit | None = None
        self.dropped = 0
        self.cell: Cell  # set by the cell
        self.home = get_ident()
        self._parked: Task | None = None

    def __len__(self) -> int:
        return len(self.user) + (len(self.held) if self.held else 0)

    # -- what pykka asks of an inbox

    def put(self, envelope: Envelope[Any], /) -> None:
        """Take a message, from any thread."""
        if get_ident() == self.home:
            self.put_here(envelope)
        else:
            self._put_from_thread(envelope)

    def get(self) -> Envelope[Any]:
        """The next message, which must be there; the loop itself parks instead."""
        envelope = self.user.popleft()
        self.admit()
        return envelope

    def empty(self) -> bool:
        """Whether both lanes are empty."""
        return not self.user and not self.system

    # -- on the loop

    def full(self) -> bool:
        """Whether the user lane is at its bound."""
        return self.bound is not None and len(self.user) >= self.bound

    def put_here(self, envelope: Envelope[Any]) -> None:
        """Take a message on the loop's thread; at the bound the policy decides."""
        if self.closed is not None:
            refuse(envelope, ActorExited(self.cell.ref, self.closed))
            return
        if (
            self.bound is not None
            and len(self.user) >= self.bound
            and not self._make_room(envelope)
        ):
            return
        self.user.append(envelope)
        if self._parked is not None:
            self._wake()

    def put_unbounded(self, envelope: Envelope[Any]) -> None:
        """Take a message that has a bound of its own, such as one of an actor's own timers."""
        if self.closed is None:
            self.user.append(envelope)
            if self._parked is not None:
                self._wake()

    def put_system(self, message: SystemMessage) -> None:
        """Take a system message, from any thread; a dead actor's is dropped."""
        if get_ident() != self.home:
            self.cell.system.post(self.put_system, message)
            return
        if self.closed is None:
            if self.system is None:
                self.system = deque()
            self.system.append(message)
            if self._parked is not None:
                self._wake()

    async def put_when_room(self, envelope: Envelope[Any]) -> None:
        """Take a message once there is room, whatever the policy; senders that wait are served
        in the order in which they came. Raises ActorExited when the actor ends first."""
        if self.closed is not None or not self.full():
            self.put_here(envelope)
            return
        waiting = self.waiting
        if waiting is None:
            waiting = self.waiting = OrderedDict()
        task = current_task()
        waiting[task] = envelope

        def abort(_: RaiseCancelT) -> Abort:
            del waiting[task]
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def admit(self) -> None:
        """Take in what those who wait have brought, as far as there is room."""
        while self.waiting and not self.full():
            task, envelope = self.waiting.popitem(last=False)
            self.user.append(envelope)
            reschedule(task)
            if self._parked is not None:
                self._wake()

    def withdraw(self, envelope: Envelope[Any]) -> None:
        """Take back a message that is still queued, so that it holds no place."""
        if self.bound is None:
            return  # a search of an unbounded queue may be long; the loop skips it later
        try:
            self.user.remove(envelope)
        except ValueError:
            return
        self.admit()

    async def park(self) -> None:
        """Wait until a message comes. Only the actor's own loop waits here."""
        self._parked = current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self._parked = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _wake(self) -> None:
        task, self._parked = self._parked, None
        assert task is not None
        reschedule(task)

    def _make_room(self, envelope: Envelope[Any]) -> bool:
        """Whether the message may still be taken, now that the mailbox is full."""
        error = MailboxFull(f"{self.cell.ref}: mailbox holds {self.bound} messages")
        match self.overflow:
            case Overflow.BLOCK | Overflow.REJECT:
                raise error
            case Overflow.DROP_NEW:
                self._drop(envelope, error)
                return False
            case Overflow.DROP_OLD:
                self._drop(self.user.popleft(), error)
                return True
            case Overflow.KILL:
                self.cell.kill(Exit(Kind.KILLED, "mailbox overflow"))
                refuse(envelope, error)
                return False

    def _drop(self, envelope: Envelope[Any], error: MailboxFull) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning("mailbox.dropped", actor=str(self.cell.ref), dropped=self.dropped)
        refuse(envelope, error)

    # -- postponed messages

    def hold(self, envelope: Envelope[Any]) -> None:
        """Keep a message until `release`; refused when as many as the bound are kept."""
        if self.held is None:
            self.held = []
        if self.bound is not None and len(self.held) >= self.bound:
            raise MailboxFull(f"{self.cell.ref}: {self.bound} messages postponed")
        self.held.append(envelope)

    def release(self) -> None:
        """Put the kept messages before all others, oldest first."""
        if self.held:
            self.user.extendleft(reversed(self.held))
            self.held = None

    def close(self, reason: Exit) -> None:
        """Refuse all that is here and all that will come."""
        self.closed = reason.without_exception()
        self.release()
        while self.user:
            refuse(self.user.popleft(), ActorExited(self.cell.ref, reason))
        self.system = None
        waiting, self.waiting = self.waiting, None
        for task in waiting or ():
            reschedule(task, Error(ActorExited(self.cell.ref, self.closed)))

    # -- other threads

    def _put_from_thread(self, envelope: Envelope[Any]) -> None:
        system = self.cell.system
        if self.bound is not None and self.overflow is Overflow.BLOCK:
            # Handed over, never posted: room seen from here may be gone when the post runs,
            # and then the message would be lost.
            trio.from_thread.run(self.put_when_room, envelope, trio_token=system.token)
            return
        if self.overflow is Overflow.REJECT and self.full():
            raise MailboxFull(f"{self.cell.ref}: mailbox holds {self.bound} messages")
        system.post(self._put_late, envelope)

    def _put_late(self, envelope: Envelope[Any]) -> None:
        """A message from a thread arrives on the loop, where nobody is left to raise at."""
        try:
            self.put_here(envelope)
        except MailboxFull as error:
            self._drop(envelope, error)


def refuse(envelope: Envelope[Any], error: BaseException) -> None:
    """Tell the one who waits for this message's answer that there is none."""
    reply = envelope.reply_to
    if reply is None:
        return
    if is_stop(envelope.message) and isinstance(error, ActorExited):
        reply.set(None)  # it was to stop, and it has
    elif isinstance(reply, Future):
        if not reply.withdrawn and not reply.done():
            reply.set_error(error)
    else:
        reply.set_exception((type(error), error, error.__traceback__))
