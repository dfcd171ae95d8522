"""Every private name of pykka that this room leans on, under a public name of its own.

pykka offers three hooks to those who write a new kind of actor (`_create_actor_inbox`,
`_create_future`, `_start_actor_loop`); the envelope and the stop message are internal but
have not moved in years. When pykka moves one of them, this file changes and no other.
"""

# Naming the private names in one place is this file's whole purpose.
# pyright: reportPrivateUsage=false, reportIncompatibleMethodOverride=false

import abc
from typing import Any, Final, TypeVar

import pykka
from pykka import messages
from pykka._actor import ActorInbox
from pykka._envelope import Envelope
from pykka._threading import ThreadingFuture

__all__ = [
    "PYKKA_MESSAGES",
    "ActorInbox",
    "Envelope",
    "HookedFuture",
    "HostedActor",
    "Stop",
    "ThreadLoop",
    "ThreadingFuture",
]

T = TypeVar("T")

Stop = messages._ActorStop
"""What `ref.stop()` sends."""

PYKKA_MESSAGES: Final[frozenset[type]] = frozenset(
    {Stop, messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr}
)


class HookedFuture(pykka.Future[T]):
    """A future that tells whether its answer comes from a get hook."""

    @property
    def hooked(self) -> bool:
        return self._get_hook is not None


class HostedActor(pykka.Actor):
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


class ThreadLoop(pykka.ThreadingActor):
    """pykka's threading actor, its inbox replaceable."""

    @classmethod
    def new_inbox(cls) -> ActorInbox:
        """The place where messages wait."""
        return pykka.ThreadingActor._create_actor_inbox()

    @classmethod
    def _create_actor_inbox(cls) -> ActorInbox:
        return cls.new_inbox()

    def start_loop(self) -> None:
        """Start the thread."""
        self._start_actor_loop()

    def announce_start(self, error: BaseException | None) -> None:
        """`on_start` is done, or has raised; called in the thread."""

    def _actor_loop_setup(self) -> None:
        try:
            self.on_start()
        except Exception as error:
            self._handle_failure(type(error), error, error.__traceback__)
            self.announce_start(error)
        else:
            self.announce_start(None)
