"""Every private name of pykka that this room leans on, under a public name of its own.

pykka offers three hooks to those who write a new kind of actor (`_create_actor_inbox`,
`_create_future`, `_start_actor_loop`); the envelope and the stop message are internal but
have not moved in years. When pykka moves one of them, this file changes and no other.
"""

# Naming the private names in one place is this file's whole purpose.
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false

import abc
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pykka
from pykka import messages
from pykka._actor import ActorInbox
from pykka._envelope import Envelope

__all__ = [
    "PYKKA_MESSAGES",
    "ActorInbox",
    "Envelope",
    "HookedFuture",
    "HostedActor",
    "Stop",
    "ThreadLoop",
    "is_stop",
]

T = TypeVar("T")

Stop = messages._ActorStop
"""What `ref.stop()` sends."""

PYKKA_MESSAGES: Final[frozenset[type]] = frozenset(
    {Stop, messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr}
)


def is_stop(message: object) -> bool:
    """Whether this is what `ref.stop()` sends."""
    return type(message) is Stop


class HookedFuture(pykka.Future[T]):
    """A future that tells whether its answer comes from a get hook."""

    @property
    def hooked(self) -> bool:
        return self._get_hook is not None


if TYPE_CHECKING:

    class _PykkaActor:
        """pykka's actor as type checkers are to see it: its hooks may be async here, which
        an override of pykka's own `-> None` could not be."""

        actor_urn: str
        actor_inbox: Any
        actor_stopped: Any
        _actor_ref: pykka.ActorRef[Any]

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        @property
        def actor_ref(self) -> pykka.ActorRef[Any]: ...
        def stop(self) -> None: ...
        def on_receive(self, message: Any) -> Any: ...
        def _handle_receive(self, message: Any) -> Any: ...

else:
    _PykkaActor = pykka.Actor


class HostedActor(_PykkaActor, abc.ABC):
    """pykka's actor, its runtime hooks renamed. A subclass says where its messages wait,
    how it is answered, and how its loop starts."""

    @classmethod
    @abc.abstractmethod
    def new_mailbox(cls) -> ActorInbox:
        """The place where messages wait."""

    @classmethod
    @abc.abstractmethod
    def new_future(cls) -> pykka.Future[Any]:
        """The answer to one request."""

    @abc.abstractmethod
    def start_loop(self) -> None:
        """Begin to receive."""

    # pykka declares these two static, and calls them through the instance or its class.
    @classmethod
    def _create_actor_inbox(cls) -> ActorInbox:
        return cls.new_mailbox()

    @classmethod
    def _create_future(cls) -> pykka.Future[Any]:
        return cls.new_future()

    def _start_actor_loop(self) -> None:
        self.start_loop()

    def adopt_ref(self, ref: pykka.ActorRef[Any]) -> None:
        """Give out `ref` as this actor's reference from now on."""
        self._actor_ref = ref

    def handle_pykka_message(self, message: Any) -> Any:
        """Handle one of `PYKKA_MESSAGES` but Stop: a proxy's call, read or write."""
        return self._handle_receive(message)


class ThreadLoop(pykka.ThreadingActor, abc.ABC):
    """pykka's threading actor, its hooks renamed. A subclass says where its messages wait, how
    it is answered, and what its thread does."""

    @classmethod
    @abc.abstractmethod
    def new_inbox(cls) -> ActorInbox:
        """The place where messages wait."""

    @classmethod
    @abc.abstractmethod
    def new_future(cls) -> pykka.Future[Any]:
        """The answer to one request."""

    @abc.abstractmethod
    def run_loop(self) -> None:
        """What the thread does, from its first moment to its last."""

    @classmethod
    def _create_actor_inbox(cls) -> ActorInbox:
        return cls.new_inbox()

    @classmethod
    def _create_future(cls) -> pykka.Future[Any]:
        return cls.new_future()

    def start_loop(self) -> None:
        """Start the thread."""
        self._start_actor_loop()

    def _actor_loop(self) -> None:
        self.run_loop()

    def handle(self, message: Any) -> Any:
        """Handle any message, pykka's own too; Stop runs `on_stop`."""
        return self._handle_receive(message)

    def report_failure(self, error: BaseException) -> None:
        """Log what ends the actor."""
        self._handle_failure(type(error), error, error.__traceback__)
