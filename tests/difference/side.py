"""One of the two daemons, as a client of its socket sees it."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import grpc
from bench.daemons import Daemon
from google.protobuf import message_factory
from google.protobuf.message import Message

from holdfast.api.proto.services import events_pb2
from holdfast.api.proto.types_pb2 import Envelope

from .answer import Normal, Outcome
from .step import METHODS, Run, Step, fill

WITHIN_S = 60.0
MARKER = "/difference/marker"
CALL_ERRORS = (grpc.RpcError,)


class Writing:
    """A Write stream, one message at a time."""

    def __init__(self, begin: Any, metadata: Any) -> None:
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._call = begin(iter(self._requests.get, None), metadata=metadata, timeout=WITHIN_S)

    def send(self, request: Message) -> Message:
        self._requests.put(request)
        return next(self._call)

    def end(self) -> list[Message]:
        """What still comes after our end of the stream."""
        self._requests.put(None)
        return list(self._call)


class Side:
    """A daemon with a channel, its open streams and the events that it has told."""

    def __init__(self, daemon: Daemon, rootfs: Path) -> None:
        self.daemon = daemon
        self._rootfs = rootfs
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.default_authority", "localhost"),
        ]
        self._channel = grpc.insecure_channel(f"unix:{daemon.socket}", options=options)
        self._calls: dict[str, Any] = {}
        self._streams: dict[str, Writing] = {}
        self._events: list[Envelope] = []
        self._arrived = threading.Condition()
        self.run = Run("none")
        self.normal = Normal(daemon.base)
        self._subscription = self._method("Events.Subscribe")(events_pb2.SubscribeRequest())
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Leave the daemon."""
        self._subscription.cancel()
        self._channel.close()
        self._listener.join(5)

    def begin(self, prefix: str) -> None:
        """The next sequence begins."""
        self.run = Run(prefix, self.daemon.kind, str(self._rootfs))
        self.normal = Normal(self.daemon.base)
        with self._arrived:
            self._events.clear()

    # -- calls

    def do(self, step: Step) -> Outcome:
        """One step, to its end."""
        if METHODS[step.method].client_streaming:
            return self._write(step)
        request = self._message(step, step.request)
        call = self._method(step.method)
        metadata = self._metadata(step)
        try:
            if METHODS[step.method].server_streaming:
                answers = call(request, metadata=metadata, timeout=WITHIN_S)
                return Outcome(answer=[self.normal.plain(each) for each in answers])
            answer = call(request, metadata=metadata, timeout=WITHIN_S)
            return Outcome(answer=self.normal.plain(answer))
        except CALL_ERRORS as error:
            return self._refusal(error)

    def raw(self, method: str, request: dict[str, Any], ns: str) -> Message:
        """One unary call's own answer."""
        step = Step(method, request, ns=ns)
        return self._method(method)(
            self._message(step, request), metadata=self._metadata(step), timeout=WITHIN_S
        )

    def stream(self, method: str, request: dict[str, Any], ns: str) -> Iterator[Message]:
        """The answers of a streaming call."""
        return self.raw(method, request, ns)  # type: ignore[return-value]

    def _write(self, step: Step) -> Outcome:
        answers: list[Any] = []
        writing = self._streams.pop(step.stream, None) if step.stream else None
        try:
            if writing is None:
                writing = Writing(self._method(step.method), self._metadata(step))
            for request in step.request:
                answers.append(self.normal.plain(writing.send(self._message(step, request))))
            if step.stream is None or not step.request:
                answers += [self.normal.plain(each) for each in writing.end()]
            else:
                self._streams[step.stream] = writing
        except StopIteration:
            answers.append("the stream ended")
        except CALL_ERRORS as error:
            return self._refusal(error, answers)
        return Outcome(answer=answers)

    def _refusal(self, error: grpc.RpcError, answers: Any = None) -> Outcome:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return Outcome(code.name, self.normal.text(error.details()), answers)  # type: ignore[attr-defined]

    def _message(self, step: Step, fields: Any) -> Message:
        kind = message_factory.GetMessageClass(METHODS[step.method].input_type)
        return fill(kind(), self.run.resolved(fields))

    def _metadata(self, step: Step) -> list[tuple[str, str]]:
        metadata = []
        if step.ns is not None:
            metadata.append(("containerd-namespace", self.run.text(step.ns)))
        if step.lease is not None:
            metadata.append(("containerd-lease", self.run.text(step.lease)))
        return metadata

    def _method(self, name: str) -> Any:
        if name not in self._calls:
            method = METHODS[name]
            kinds = {(False, False): "unary_unary", (False, True): "unary_stream"}
            kind = kinds.get((method.client_streaming, method.server_streaming), "stream_stream")
            service = method.containing_service.full_name
            self._calls[name] = getattr(self._channel, kind)(
                f"/{service}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(
                    method.output_type
                ).FromString,
            )
        return self._calls[name]

    # -- events

    def _listen(self) -> None:
        with contextlib.suppress(*CALL_ERRORS):
            for envelope in self._subscription:
                with self._arrived:
                    self._events.append(envelope)
                    self._arrived.notify_all()

    def await_events(self) -> None:
        """Return when the subscription is known to be live."""
        for number in range(100):
            if self.events(f"/difference/hello{number}", within_s=0.2) is not None:
                return
        raise AssertionError(f"{self.daemon.kind} tells no events")

    def events(self, marker: str = MARKER, within_s: float = WITHIN_S) -> list[Any] | None:
        """All events of this run in their order; None when the marker did not come back."""
        namespace = f"{self.run.prefix}-a"
        event = {"type_url": "difference.Marker"}
        self.raw("Events.Publish", {"topic": marker, "event": event}, namespace)
        deadline = time.monotonic() + within_s

        def is_marker(envelope: Envelope) -> bool:
            return envelope.topic == marker and envelope.namespace == namespace

        with self._arrived:
            while not any(is_marker(each) for each in self._events):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._arrived.wait(left_s)
            told = [e for e in self._events if e.namespace.startswith(self.run.prefix)]
        return [self.normal.plain(each) for each in told if not is_marker(each)]

    # -- the end of a run

    def clean(self, steps: Sequence[Step]) -> None:
        """Leave nothing in the daemon of what these steps may have made."""
        for writing in self._streams.values():
            with contextlib.suppress(*CALL_ERRORS):
                writing.end()
        self._streams.clear()
        services = {step.method.partition(".")[0] for step in steps}
        self._clean("@ns-a", services)
        if "@ns-b" in repr(steps):
            self._clean("@ns-b", services)

    def _clean(self, ns: str, services: Set[str]) -> None:
        if "Tasks" in services:
            self._end_tasks(ns)
        if "Containers" in services:
            self._clean_containers(ns)
        if "Images" in services:
            self._clean_images(ns)
        if "Leases" in services:
            self._clean_leases(ns)
        if "Snapshots" in services:
            self._clean_snapshots(ns)
        if "Content" in services:
            self._clean_content(ns)
        self._try("Namespaces.Delete", {"name": ns}, ns)

    def _clean_containers(self, ns: str) -> None:
        for container in self.raw("Containers.List", {}, ns).containers:  # type: ignore[attr-defined]
            self._try("Containers.Delete", {"id": container.id}, ns)

    def _clean_images(self, ns: str) -> None:
        for image in self.raw("Images.List", {}, ns).images:  # type: ignore[attr-defined]
            self._try("Images.Delete", {"name": image.name}, ns)

    def _clean_leases(self, ns: str) -> None:
        for lease in self.raw("Leases.List", {}, ns).leases:  # type: ignore[attr-defined]
            self._try("Leases.Delete", {"id": lease.id}, ns)

    def _clean_snapshots(self, ns: str) -> None:
        for snapshotter in ("overlayfs", "native"):
            where = {"snapshotter": snapshotter}
            answers = list(self.stream("Snapshots.List", where, ns))
            infos = [info for answer in answers for info in answer.info]  # type: ignore[attr-defined]
            for _ in range(len(infos)):
                parents = {info.parent for info in infos}
                leaves = [info for info in infos if info.name not in parents]
                for info in leaves:
                    self._try("Snapshots.Remove", {**where, "key": info.name}, ns)
                infos = [info for info in infos if info.name in parents]

    def _clean_content(self, ns: str) -> None:
        for status in self.raw("Content.ListStatuses", {}, ns).statuses:  # type: ignore[attr-defined]
            self._try("Content.Abort", {"ref": status.ref}, ns)
        for answer in list(self.stream("Content.List", {}, ns)):
            for info in answer.info:  # type: ignore[attr-defined]
                self._try("Content.Delete", {"digest": info.digest}, ns)

    def _end_tasks(self, ns: str) -> None:
        for task in self.raw("Tasks.List", {}, ns).tasks:  # type: ignore[attr-defined]
            where = {"container_id": task.id}
            self._try("Tasks.Resume", where, ns)
            self._try("Tasks.Kill", {**where, "signal": 9, "all": True}, ns)
            deadline = time.monotonic() + 10
            while not self._try("Tasks.Delete", where, ns) and time.monotonic() < deadline:
                time.sleep(0.02)

    def _try(self, method: str, request: dict[str, Any], ns: str) -> bool:
        try:
            self.raw(method, request, ns)
        except CALL_ERRORS as error:
            return error.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        return True
