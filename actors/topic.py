"""A topic: a value per key, and everyone who wants to hear of its changes.

A subscriber gets a snapshot and the sequence number where it stands, then each later change: no
gap and no race between the two. One whose mailbox is full is never waited for: it gets
`Lagged` with the number of changes that it missed, once it has room, and the topic forgets it
when it ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from .actor import Actor
from .exits import ActorExited, MailboxFull
from .message import Down, Monitor, Request
from .reference import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All values, as of the change with this sequence number."""

    sequence: int
    values: Mapping[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Told to each subscriber: a key has a new value."""

    sequence: int
    key: Any
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagged:
    """Told to a subscriber that was full: so many changes before the next are missing."""

    missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subscribe(Request[Snapshot]):
    subscriber: Ref[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsubscribe(Request[None]):
    subscriber: Ref[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Publish(Request[int]):
    key: Any
    value: Any


_Message = _Subscribe | _Unsubscribe | _Publish


@dataclass(slots=True)
class _Subscriber:
    monitor: Monitor
    missed: int = 0


class Topic(Actor):
    """Speak to it with the three verbs below."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = 0
        self.values: dict[Any, Any] = {}
        self.subscribers: dict[Ref[Any], _Subscriber] = {}

    def on_receive(self, message: _Message) -> Snapshot | int | None:
        match message:
            case _Subscribe(subscriber=ref):
                if ref not in self.subscribers:
                    self.subscribers[ref] = _Subscriber(self.monitor(ref))
                return Snapshot(sequence=self.sequence, values=dict(self.values))
            case _Unsubscribe(subscriber=ref):
                known = self.subscribers.pop(ref, None)
                if known is not None:
                    self.demonitor(known.monitor)
                return None
            case _Publish(key=key, value=value):
                self.sequence += 1
                self.values[key] = value
                change = Changed(sequence=self.sequence, key=key, value=value)
                for ref, subscriber in self.subscribers.items():
                    _tell(ref, subscriber, change)
                return self.sequence
            case _:
                assert_never(message)

    def on_down(self, down: Down) -> None:
        self.subscribers.pop(down.target, None)


def _tell(ref: Ref[Any], subscriber: _Subscriber, change: Changed) -> None:
    try:
        if subscriber.missed:
            ref.tell(Lagged(missed=subscriber.missed))
            subscriber.missed = 0
        ref.tell(change)
    except MailboxFull:
        subscriber.missed += 1
    except ActorExited:
        pass  # its Down is on the way


async def subscribe(topic: Ref[Topic], subscriber: Ref[Any]) -> Snapshot:
    """Have `Changed` told to the subscriber from now on; what there is now is returned."""
    return await topic.call(_Subscribe(subscriber=subscriber))


async def unsubscribe(topic: Ref[Topic], subscriber: Ref[Any]) -> None:
    """No more changes are told after this."""
    await topic.call(_Unsubscribe(subscriber=subscriber))


async def publish(topic: Ref[Topic], key: Any, value: Any) -> int:
    """Set a key, and tell of it; the sequence number of this change."""
    return await topic.call(_Publish(key=key, value=value))
