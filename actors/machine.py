"""The state machine: an actor whose life is a table (OTP's gen_statem, with the table in sight).

    TRANSITIONS = {
        (State.CREATED, Start): State.RUNNING,
        (State.RUNNING, Exited): State.STOPPED,
        (State.STOPPED, Delete): State.GONE,
    }

    class Task(StateMachine[State]):
        initial = State.CREATED
        transitions = TRANSITIONS
        finals = frozenset({State.GONE})

        async def act(self, message): ...       # the work; what it returns is the answer

Terms. A message *off the table* is refused with FailedPrecondition, and nothing changes. The
state changes when the work is done; when it raises a Refusal, it does not. A *postponed*
message comes again, before all others, after the next change. A *state timeout* is cancelled by
a change of state, an *event timeout* by any message, a *named* one by its name alone.

Invariants: (1) the state is a key or a value of the table. (2) No message is handled between a
change of state and `on_enter`. (3) A timeout that was cancelled is never handled.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import trio

from .actor import Actor
from .errors import FailedPrecondition
from .exits import NORMAL, StopActor
from .loop import Postpone
from .pykka_compat import Envelope

S = TypeVar("S")


def next_state(transitions: Mapping[tuple[S, type], S], state: S, message: object) -> S:
    """Where a message leads; raises FailedPrecondition off the table."""
    try:
        return transitions[state, type(message)]
    except KeyError:
        raise FailedPrecondition(f"{type(message).__name__} while {name_of(state)}") from None


def name_of(state: object) -> str:
    """A state as it stands in messages."""
    return str(getattr(state, "name", state))


@dataclass(frozen=True, slots=True)
class _Fired:
    """A timer's message, sent by the timer; stale when the timer was cancelled since."""

    key: str
    timer: trio.CancelScope
    message: Any


_STATE, _EVENT = "\0state", "\0event"


class StateMachine(Actor, Generic[S]):
    """The base of actors that are a table."""

    initial: ClassVar[Any]
    transitions: ClassVar[Mapping[tuple[Any, type], Any]]
    postpones: ClassVar[Collection[tuple[Any, type]]] = frozenset()
    finals: ClassVar[Collection[Any]] = frozenset()
    """In these the actor ends, once the answer is given."""

    def __init__(self) -> None:
        super().__init__()
        self.state: S = self.initial
        self._target: S | None = None
        self._timers: dict[str, trio.CancelScope] = {}

    # -- what a subclass writes

    async def act(self, message: Any) -> Any:
        """Do the work of a message on the table; what is returned is the answer."""

    async def on_enter(self, old: S | None) -> None:
        """The state has changed from `old`; at the start `old` is None."""

    # -- what its handlers use

    def become(self, state: S) -> None:
        """Go to `state` after this message, instead of where the table says."""
        self._target = state

    def state_timeout(self, seconds: float, message: Any) -> None:
        """Send `message` to oneself if the state has not changed by then."""
        self._start_timer(_STATE, seconds, message)

    def event_timeout(self, seconds: float, message: Any) -> None:
        """Send `message` to oneself if no other has come by then."""
        self._start_timer(_EVENT, seconds, message)

    def timeout(self, name: str, seconds: float, message: Any) -> None:
        """Send `message` to oneself after a while, whatever happens."""
        self._start_timer(name, seconds, message)

    def cancel_timeout(self, name: str) -> None:
        """Withdraw a named timeout; harmless when it is not running."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def cancel_state_timeout(self) -> None:
        """Withdraw the state timeout."""
        self.cancel_timeout(_STATE)

    # -- the machine

    async def on_start(self) -> None:
        """A subclass that sets up more does so, then calls this."""
        await self.on_enter(None)

    async def on_receive(self, message: Any) -> Any:
        fired: _Fired | None = None
        event = message
        if isinstance(message, _Fired):
            if self._timers.get(message.key) is not message.timer:
                return None  # cancelled while it lay in the mailbox
            fired = message
            event = fired.message
        else:
            self.cancel_timeout(_EVENT)
        if (self.state, type(event)) in self.postpones:
            raise Postpone
        if fired is not None:
            del self._timers[fired.key]
        target: S = next_state(self.transitions, self.state, event)
        try:
            answer = await self.act(event)
        except BaseException:
            self._target = None
            raise
        if self._target is not None:
            target, self._target = self._target, None
        if target != self.state:
            old, self.state = self.state, target
            self.cancel_timeout(_STATE)
            self.cell.mailbox.release()
            await self.on_enter(old)
        if self.state in self.finals:
            raise StopActor(NORMAL, answer=answer)
        return answer

    def describe_state(self) -> str:
        """The state's name leads."""
        return f"{name_of(self.state)} {super().describe_state()}"

    def _start_timer(self, key: str, seconds: float, message: Any) -> None:
        self.cancel_timeout(key)

        async def run() -> None:
            await trio.sleep(seconds)
            # At most one per key is under way, so the mailbox's bound need not hold it back.
            self.cell.mailbox.put_unbounded(Envelope(_Fired(key, timer, message)))

        timer = self.spawn_task(run)
        self._timers[key] = timer
