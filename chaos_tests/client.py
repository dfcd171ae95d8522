"""A client that lives through the death of the daemon: it connects again and asks again.

Every attempt goes into the history. An ask that may have taken effect before its answer was lost is
asked again; the verbs of `workloads` know what a refusal means then.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.actors.errors import Cancelled, DeadlineExceeded, Refusal, Unavailable
from holdfast.api.grpc.client import Channel, ClientCall
from holdfast.api.proto.services import admin_pb2
from holdfast.api.status import CallFailed

from .history import Call, Event, History
from .patience import PATIENCE

A = TypeVar("A", bound=Message)

NAMESPACE = "chaos"
SERVICES = "/containerd.services.{low}.v1.{service}/{name}"
ADMIN = "/holdfast.admin.v1.Admin/"
SANDBOXES = "/containerd.services.sandbox.v1.Controller/"
PAUSE_S = 0.02
ATTEMPT_WITHIN_S = 60.0 * PATIENCE
STREAM_WITHIN_S = 120.0 * PATIENCE
SINCE_THE_BEGINNING = 0
REPEATED: tuple[type[Exception], ...] = (Unavailable, DeadlineExceeded, Cancelled, CallFailed)
"""What may mean that the answer was lost: the ask is repeated."""


def path_of(verb: str) -> str:
    """The method's path for a verb like `Tasks.Create`."""
    service, name = verb.split(".")
    if service == "Admin":
        return ADMIN + name
    if service == "Sandboxes":
        return SANDBOXES + name
    return SERVICES.format(low=service.lower(), service=service, name=name)


class Client:
    """One connection to the daemon, made anew whenever it breaks."""

    def __init__(self, address: str, history: History, namespace: str = NAMESPACE) -> None:
        self.history = history
        self.namespace = namespace
        self._address = address
        self._channel: Channel | None = None

    async def keep(self) -> None:
        """Keep a connection up, for ever."""
        while True:
            try:
                async with Channel.connect(self._address) as channel:
                    self._channel = channel
                    while channel.is_open:  # noqa: ASYNC110 - a channel tells nobody
                        await trio.sleep(PAUSE_S / 2)
            except (Refusal, OSError):
                pass
            self._channel = None
            await trio.sleep(PAUSE_S / 2)

    async def ask(
        self,
        verb: str,
        request: Message,
        answer_type: type[A],
        *,
        subject: str = "",
        exec_id: str = "",
        within_s: float | None = ATTEMPT_WITHIN_S,
    ) -> A:
        """Ask once; the refusal when there is one, Unavailable when the connection broke."""
        begun_at_s = time.monotonic()
        answer: A | None = None
        outcome, text = "ok", ""
        try:
            channel = self._channel
            if channel is None:
                outcome, text = "Unavailable", "no connection"
                raise Unavailable(text)
            metadata = {"containerd-namespace": self.namespace}
            answer = await channel.unary(
                path_of(verb), request, answer_type, metadata, timeout_s=within_s
            )
            return answer
        except (Refusal, CallFailed) as error:
            outcome, text = type(error).__name__, str(error)
            raise
        except trio.Cancelled:
            outcome, text = "Abandoned", "the workload ended first"
            raise
        finally:
            if text != "no connection":
                self.history.add(
                    Call(
                        verb=verb,
                        subject=subject,
                        exec_id=exec_id,
                        begun_at_s=begun_at_s,
                        ended_at_s=time.monotonic(),
                        outcome=outcome,
                        text=text,
                        pid=getattr(answer, "pid", 0),
                        **_end_of(answer),
                    )
                )

    async def insist(
        self,
        verb: str,
        request: Message,
        answer_type: type[A],
        *,
        subject: str = "",
        exec_id: str = "",
        within_s: float | None = ATTEMPT_WITHIN_S,
    ) -> A:
        """Ask until there is an answer, or a refusal that is one."""
        while True:
            try:
                return await self.ask(
                    verb,
                    request,
                    answer_type,
                    subject=subject,
                    exec_id=exec_id,
                    within_s=within_s,
                )
            except REPEATED:
                await trio.sleep(PAUSE_S)

    def stream(self, verb: str, answer_type: type[A]) -> AbstractAsyncContextManager[ClientCall[A]]:
        """A call of many answers, which is not repeated; the connection must stand."""
        if self._channel is None:
            raise Unavailable("no connection")
        metadata = {"containerd-namespace": self.namespace}
        return self._channel.stream(path_of(verb), answer_type, metadata, timeout_s=STREAM_WITHIN_S)

    async def events(self) -> list[Event]:
        """The whole event log of our namespace up to now, from its first row on."""
        while True:
            try:
                return await self._read_events()
            except REPEATED:
                await trio.sleep(PAUSE_S)

    async def _read_events(self) -> list[Event]:
        info = await self.insist("Admin.Info", admin_pb2.InfoRequest(), admin_pb2.InfoResponse)
        found: list[Event] = []
        if not info.sequence:
            return found
        async with self.stream("Admin.Events", admin_pb2.EventsResponse) as call:
            await call.send(admin_pb2.EventsRequest(since=SINCE_THE_BEGINNING))
            await call.end()
            while not found or found[-1].sequence < info.sequence:
                answer = await call.receive()
                if answer is None:
                    break
                found.append(event_from(answer))
        return found

    async def follow(self) -> AsyncGenerator[Event]:
        """Every event from the first on, each once, through all deaths of the daemon."""
        last = SINCE_THE_BEGINNING
        while True:
            try:
                async with self.stream("Admin.Events", admin_pb2.EventsResponse) as call:
                    await call.send(admin_pb2.EventsRequest(since=last))
                    await call.end()
                    while (answer := await call.receive()) is not None:
                        last = answer.sequence
                        yield event_from(answer)
            except REPEATED:
                await trio.sleep(PAUSE_S)


@asynccontextmanager
async def connected(
    address: str, history: History, namespace: str = NAMESPACE
) -> AsyncGenerator[Client]:
    """A client for the time of a block."""
    client = Client(address, history, namespace)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.keep)
        yield client
        nursery.cancel_scope.cancel()


def event_from(answer: admin_pb2.EventsResponse) -> Event:
    """A row of the log, as checkers read it."""
    from holdfast.api.proto import events_pb2

    envelope = answer.envelope
    name = envelope.event.type_url.rpartition("/")[2].rpartition(".")[2]
    payload: Any = getattr(events_pb2, name)() if hasattr(events_pb2, name) else None
    fields: dict[str, Any] = {}
    if payload is not None and envelope.topic.startswith("/tasks/"):
        payload.ParseFromString(envelope.event.value)
        fields["subject"] = payload.container_id
        fields["exec_id"] = getattr(payload, "exec_id", "")
        if envelope.topic == "/tasks/exit":
            first = payload.id == payload.container_id
            fields |= {"exec_id": "" if first else payload.id, "status": payload.exit_status}
            fields["exited_at_ns"] = payload.exited_at.ToNanoseconds()
    if payload is not None and envelope.topic.startswith("/sandboxes/"):
        payload.ParseFromString(envelope.event.value)
        fields["subject"] = payload.sandbox_id
    lost_from = answer.lost_from or None
    return Event(sequence=answer.sequence, topic=envelope.topic, lost_from=lost_from, **fields)


def _end_of(answer: Message | None) -> Mapping[str, Any]:
    """How a process ended, where an answer tells it."""
    holder: Any = getattr(answer, "process", answer)
    if holder is None or not hasattr(holder, "exit_status") or not holder.HasField("exited_at"):
        return {}
    at_ns = holder.exited_at.ToNanoseconds()
    return {"status": holder.exit_status, "exited_at_ns": at_ns} if at_ns > 0 else {}


NOTHING = Empty
