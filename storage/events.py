"""Events: what happened, in one sequence without a hole, kept for a while and told live.

An event is written in the transaction of the change it tells of; its row id is its sequence
number. A subscriber gets the events after a point, live, and never too many at once: when it is
slower than the world, it falls back to reading rows of the log, and comes back to live ones once
it has caught up. Where the log no longer reaches, it gets an explicit gap event.

    subscribed ---> live: a bounded queue fed by commits
                     | full                ^ caught up
                     v                     |
                    lagging: reads rows of the log

Invariant: the sequence numbers that a subscriber is shown rise, and a number it is never shown
was filtered out or lies inside a gap event that it was shown.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import trio

from ..actors.errors import InvalidArgument, OutOfRange, Refusal
from .filters import Filter, compile_filters
from .labels import check_identifier, quoted

if TYPE_CHECKING:
    from .transaction import Transaction

R = TypeVar("R")

Take = Callable[["Event"], bool]
"""Takes an event in without waiting, in the loop; False when it cannot just now."""

GAP_TOPIC = "/holdfast/gap"
GAP_TYPE = "holdfast.events.Gap"

QUEUE_BYTES_MAX = 1 << 20
"""What one subscription may hold, whatever the number of its events."""
ROWS_AT_ONCE = 64
MAPPING_BYTES = 1024  # an event's own payload is a small map; counted as this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened.

    `payload` is a map of the field names of the message `type_name`; or bytes, when somebody
    outside published it, and then `type_name` is the type URL that they gave.
    """

    seq: int
    timestamp_ns: int
    namespace: str
    topic: str
    type_name: str
    payload: Mapping[str, Any] | bytes


def gap(from_seq: int, to_seq: int) -> Event:
    """The event that stands for events which are lost: those from `from_seq` to `to_seq`."""
    return Event(
        seq=to_seq,
        timestamp_ns=time.time_ns(),
        namespace="",
        topic=GAP_TOPIC,
        type_name=GAP_TYPE,
        payload={"from_seq": from_seq, "to_seq": to_seq},
    )


def event_field(event: Event, path: Sequence[str]) -> tuple[str, bool]:
    """The field of an event that a filter names: `namespace`, `topic` or `event.<field>...`."""
    match path:
        case ["namespace"]:
            return event.namespace, bool(event.namespace)
        case ["topic"]:
            return event.topic, bool(event.topic)
        case ["event", *rest] if rest and not isinstance(event.payload, bytes):
            return _payload_field(event.payload, rest)
        case _:
            return "", False


def _payload_field(payload: Mapping[str, Any], path: Sequence[str]) -> tuple[str, bool]:
    value = payload.get(path[0])
    if isinstance(value, dict):
        nested = cast("dict[str, Any]", value)
        # A label's key may hold dots: the whole rest is tried as one key first.
        whole = ".".join(path[1:])
        return _text(nested[whole]) if whole in nested else _nested(nested, path[1:])
    return _text(value) if len(path) == 1 else ("", False)


def _nested(payload: Mapping[str, Any], path: Sequence[str]) -> tuple[str, bool]:
    return _payload_field(payload, path) if path else ("", False)


def _text(value: object) -> tuple[str, bool]:
    match value:
        case str():
            return value, bool(value)
        case bool():
            return str(value).lower(), True
        case int():
            return str(value), True
        case _:
            return "", False


def check_topic(topic: str) -> None:
    """Refuse a topic that is not `/` and identifiers with `/` between them."""
    if not topic:
        reason = "must not be empty: invalid argument"
    elif topic[0] != "/":
        reason = "must start with '/': invalid argument"
    elif len(topic) == 1:
        reason = "must have at least one component: invalid argument"
    else:
        for component in topic[1:].split("/"):
            try:
                check_identifier(component)
            except Refusal as error:
                raise InvalidArgument(
                    f"envelope topic {quoted(topic)}: failed validation on component"
                    f" {quoted(component)}: {error}"
                ) from error
        return
    raise InvalidArgument(f"envelope topic {quoted(topic)}: {reason}")


class Rows(Protocol):
    """Where events are read back from; `database.EventRows` in the store."""

    def read(self, after_seq: int, limit: int) -> list[Event]:
        """The kept events after `after_seq`, oldest first, at most `limit`."""
        ...


class Writes(Protocol):
    """Where events are written; the store."""

    async def write(self, work: Callable[[Transaction], R]) -> R:
        """Run a job and return its result once it is on disk."""
        ...


class EventLog:
    """The event log of a store. Its methods belong to the loop."""

    def __init__(self, store: Writes, rows: Rows, first_seq: int, last_seq: int) -> None:
        self._store = store
        self._rows = rows
        self._subscriptions: list[Subscription] = []
        self.first_seq = first_seq
        """The oldest event that is kept; one past `last_seq` when none is."""
        self.last_seq = last_seq
        """The newest event."""

    async def publish(
        self,
        namespace: str,
        topic: str,
        type_name: str,
        payload: Mapping[str, Any] | bytes,
        *,
        timestamp_ns: int | None = None,
        is_forwarded: bool = False,
    ) -> int:
        """Write one event that belongs to no change; return its sequence number.

        Refused when the namespace or the topic is malformed, or a forwarded one has no time.
        """
        try:
            check_identifier(namespace)
        except Refusal as error:
            raise InvalidArgument(f"event envelope has invalid namespace: {error}") from error
        check_topic(topic)
        if is_forwarded and timestamp_ns is None:
            raise InvalidArgument("timestamp must be set on forwarded event: invalid argument")
        return await self._store.write(
            lambda tx: tx.emit(namespace, topic, type_name, payload, timestamp_ns=timestamp_ns)
        )

    def subscribe(
        self,
        filters: Sequence[str] = (),
        *,
        since: int | None = None,
        first: Sequence[Event] = (),
        queue_max: int = 1024,
        take: Take | None = None,
    ) -> Subscription:
        """The events that match any of `filters` (all, when there are none), as a context
        manager and an async iterator.

        Live ones from now on; with `since`, first those after that sequence number. A gap event
        comes where the log no longer reaches back, and passes every filter. Before all, those
        of `first` that match. While the iterator has nothing to give, `take` is offered each
        event first, at the moment of its commit.
        """
        accepts = compile_filters(filters)
        if since is not None and not 0 <= since <= self.last_seq:
            raise OutOfRange(f"since {since}: the log ends at {self.last_seq}: out of range")
        start = self.last_seq if since is None else since
        subscription = Subscription(self, accepts, start, queue_max, first, take)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription. A second time is the same as once."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def read(self, after_seq: int, limit: int = 512) -> list[Event]:
        """The kept events after `after_seq`, oldest first, at most `limit`, from the disk."""
        return await trio.to_thread.run_sync(self._rows.read, after_seq, limit)

    def deliver(self, events: Sequence[Event], first_seq: int) -> None:
        """Called by the store with the events of each commit."""
        self.first_seq = first_seq
        if not events:
            return
        self.last_seq = events[-1].seq
        for subscription in self._subscriptions:
            subscription.offer(events)


class Subscription:
    """One subscriber's place in the log."""

    def __init__(
        self,
        log: EventLog,
        accepts: Filter,
        after_seq: int,
        queue_max: int,
        first: Sequence[Event] = (),
        take: Take | None = None,
    ) -> None:
        self._log = log
        self._accepts = accepts
        self._take = take
        self._queue_max = queue_max
        self._queue: deque[Event] = deque()
        self._queued_bytes = 0
        self._wake = trio.Event()
        # While `receive` waits for `_wake`: all before has been received, and is done with.
        self._waits = False
        self._closed = False
        # Invariant: events up to here have been shown, queued, or filtered out.
        self._reached = after_seq
        self._lagging = after_seq < log.last_seq
        self._first = deque(event for event in first if self._matches(event))

    @property
    def lagging(self) -> bool:
        """True while the subscriber reads rows because it was too slow for the queue."""
        return self._lagging

    def offer(self, events: Sequence[Event]) -> None:
        """Queue new events, or leave them to be read from the log."""
        for event in events:
            if self._lagging:
                break
            # Rows read from the log may have run ahead of what the loop was told.
            if event.seq <= self._reached:
                continue
            if self._matches(event) and not self._taken(event):
                if len(self._queue) >= self._queue_max or self._queued_bytes >= QUEUE_BYTES_MAX:
                    self._lagging = True
                    break
                self._append(event)
            self._reached = event.seq
        if self._queue or self._lagging:
            self._wake.set()

    def _taken(self, event: Event) -> bool:
        if self._take is None or not self._waits or self._queue:
            return False
        return self._take(event)

    async def receive(self) -> Event:
        """The next event; waits for it. `trio.ClosedResourceError` after `close`."""
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._first:
                await trio.lowlevel.checkpoint()
                return self._first.popleft()
            if self._queue:
                await trio.lowlevel.checkpoint()
                event = self._queue.popleft()
                self._queued_bytes -= _size(event)
                return event
            if self._lagging:
                await self._read_rows()
                continue
            self._wake = trio.Event()
            self._waits = True
            try:
                await self._wake.wait()
            finally:
                self._waits = False

    async def _read_rows(self) -> None:
        last_seq = self._log.last_seq
        events = await self._log.read(self._reached, min(self._queue_max, ROWS_AT_ONCE))
        for event in events:
            if event.seq > self._reached + 1:
                self._append(gap(self._reached + 1, event.seq - 1))
            if self._matches(event):
                self._append(event)
            self._reached = event.seq
        if not events:
            # The log is known to reach further, and no row of that is left.
            self._append(gap(self._reached + 1, last_seq))
            self._reached = last_seq
        # No await since the rows came back, so nothing can have been offered in between.
        self._lagging = self._reached < self._log.last_seq

    def _append(self, event: Event) -> None:
        self._queue.append(event)
        self._queued_bytes += _size(event)

    def _matches(self, event: Event) -> bool:
        return event.topic == GAP_TOPIC or self._accepts(lambda path: event_field(event, path))

    def close(self) -> None:
        """End the subscription; a waiting `receive` ends with `trio.ClosedResourceError`."""
        self._closed = True
        self._log.unsubscribe(self)
        self._wake.set()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None


def _size(event: Event) -> int:
    return len(event.payload) if isinstance(event.payload, bytes) else MAPPING_BYTES
