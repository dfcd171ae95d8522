"""containerd.services.events.v1, and its ttrpc twin for shims: publish, forward, subscribe.

Subscribe is live, as containerd's, but to a client that is older than the daemon it first tells, in
the daemon's first minute, the ends of processes that are not deleted yet: `runtime/missed.py` says
why. With the metadata `holdfast-since: SEQ` it first tells the events after that sequence number.
"""

from google.protobuf.empty_pb2 import Empty

from ...actors.errors import InvalidArgument
from ...runtime.missed import Missed
from ...runtime.tasks import Tasks
from ...storage.events import GAP_TYPE, Event, EventLog
from ...storage.labels import check_namespace
from ..anys import container_of, nanoseconds, pack, timestamp
from ..grpc.call import FROM_SHIM, Call, Context
from ..grpc.service import Service, implement
from ..proto.services import events_pb2 as pb
from ..proto.services import events_ttrpc_pb2 as ttrpc_pb
from ..proto.types_pb2 import Envelope
from .words import said_first

SINCE = "holdfast-since"
KEPT_MAX = 64
KEPT_BYTES_MAX = 4096


def service(events: EventLog, missed: Missed, tasks: Tasks) -> Service:
    """The service over this log."""
    envelopes = Envelopes()

    async def publish(request: pb.PublishRequest, context: Context) -> Empty:
        event = request.event
        with said_first("failed publishing event"):
            namespace = context.namespace()
            check_namespace(namespace)
        if context.text(FROM_SHIM) and tasks.hear(namespace, request.topic, container_of(event)):
            return Empty()
        await events.publish(namespace, request.topic, event.type_url, event.value)
        return Empty()

    async def forward(request: pb.ForwardRequest, _: Context) -> Empty:
        await forward_envelope(events, request.envelope)
        return Empty()

    async def subscribe(
        request: pb.SubscribeRequest, call: Call[pb.SubscribeRequest, Envelope]
    ) -> None:
        since = _since(call)
        peer = call.peer if since is None else None
        first = missed.ends(peer.pid) if peer is not None else ()

        def take(event: Event) -> bool:
            return call.send_at_once(envelopes.pack(event))

        with events.subscribe(
            list(request.filters), since=since, first=first, take=take
        ) as subscription:
            async for event in subscription:
                await call.send_packed(envelopes.pack(event))

    return implement(
        pb.DESCRIPTOR.services_by_name["Events"],
        {"Publish": publish, "Forward": forward, "Subscribe": subscribe},
    )


async def forward_envelope(events: EventLog, envelope: Envelope) -> None:
    """Take in an event that has its time and namespace already."""
    await events.publish(
        envelope.namespace,
        envelope.topic,
        envelope.event.type_url,
        envelope.event.value,
        timestamp_ns=nanoseconds(envelope.timestamp) or None,
        is_forwarded=True,
    )


class Envelopes:
    """What was told last, as bytes: all subscribers are told the same."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Event, bytes]] = {}

    def pack(self, event: Event) -> bytes:
        """The bytes of the event's envelope."""
        kept = self._kept.get(id(event))
        if kept is not None:  # it is this very event: what is kept cannot be gone
            return kept[1]
        data = to_envelope(event).SerializeToString()
        if len(data) <= KEPT_BYTES_MAX:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[id(event)] = (event, data)
        return data


def to_envelope(event: Event) -> Envelope:
    """The event as subscribers get it."""
    envelope = Envelope(
        timestamp=timestamp(event.timestamp_ns), namespace=event.namespace, topic=event.topic
    )
    if event.type_name != GAP_TYPE:
        envelope.event.CopyFrom(pack(event.type_name, event.payload))
    return envelope


def _since(context: Context) -> int | None:
    text = context.text(SINCE)
    if not text:
        return None
    if not text.isdigit():
        raise InvalidArgument(f"{SINCE}: {text!r} is no sequence number")
    return int(text)


def ttrpc_service(events: EventLog, tasks: Tasks) -> Service:
    """The twin that shims forward their events to."""

    async def forward(request: ttrpc_pb.ForwardRequest, _: Context) -> Empty:
        envelope = request.envelope
        if tasks.hear(envelope.namespace, envelope.topic, container_of(envelope.event)):
            return Empty()
        await events.publish(
            envelope.namespace,
            envelope.topic,
            envelope.event.type_url,
            envelope.event.value,
            timestamp_ns=nanoseconds(envelope.timestamp) or None,
        )
        return Empty()

    return implement(ttrpc_pb.DESCRIPTOR.services_by_name["Events"], {"Forward": forward})
