"""The front: the process that answers a daemon of containerd's for one task, and tells it events.

It lives from `start` until Shutdown, behind the socket that `start` has opened for it.
"""

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from time import time_ns
from typing import Any, TextIO, cast

import structlog
import trio
from google.protobuf.empty_pb2 import Empty

from ..actors.errors import Refusal, Unavailable
from ..runtime import procfs
from ..runtime.solo import Solo
from ..runtime.soloend import PID
from ..storage.programs import run_program
from .anys import pack
from .log import set_up_logging
from .proto.services import events_ttrpc_pb2
from .proto.types_pb2 import Envelope
from .shimservice import services
from .status import CallFailed
from .ttrpc import TtrpcClient, TtrpcServer

EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"
TOPICS: Mapping[str, str] = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskOOM": "/tasks/oom",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
}
TELL_WITHIN_S = 5.0
TELL_AGAIN_S = 0.5
TELL_TRIES = 20
TOLD_MAX = 10_000
LAST_WITHIN_S = 5.0
ANSWERED_WITHIN_S = 0.2

log: structlog.stdlib.BoundLogger = structlog.get_logger("shim")


class Publisher:
    """Tells a daemon of events, in their order; each until it has arrived, or for ten seconds."""

    def __init__(self, namespace: str, ttrpc_address: str, address: str, binary: str) -> None:
        self._namespace = namespace
        self._ttrpc_address = ttrpc_address.removeprefix("unix://")
        self._command = [binary, "--address", address, "publish", "--namespace", namespace]
        self._send, self._queue = trio.open_memory_channel[Envelope](TOLD_MAX)
        self._untold = 0
        self._all_told = trio.Event()

    def tell(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take an event in; it is sent by `run`."""
        now_s, now_ns = divmod(time_ns(), 1_000_000_000)
        envelope = Envelope(namespace=self._namespace, topic=TOPICS[name])
        envelope.timestamp.seconds, envelope.timestamp.nanos = now_s, now_ns
        envelope.event.CopyFrom(pack(f"containerd.events.{name}", fields))
        try:
            self._send.send_nowait(envelope)
            self._untold += 1
        except trio.WouldBlock:
            log.error("event.dropped", topic=envelope.topic)

    async def told(self) -> None:
        """Wait until all is told."""
        while self._untold:
            self._all_told = trio.Event()
            await self._all_told.wait()

    async def run(self) -> None:
        """Send what comes, for ever."""
        async for envelope in self._queue:
            for _ in range(TELL_TRIES):
                try:
                    with trio.fail_after(TELL_WITHIN_S):
                        await self._publish(envelope)
                    break
                except (Refusal, CallFailed, OSError, trio.TooSlowError) as error:
                    log.warning("event.untold", topic=envelope.topic, reason=str(error))
                    await trio.sleep(TELL_AGAIN_S)
            self._untold -= 1
            if not self._untold:
                self._all_told.set()

    async def _publish(self, envelope: Envelope) -> None:
        if not self._ttrpc_address:
            words = [*self._command, "--topic", envelope.topic]
            ran = await run_program(words, stdin=envelope.event.SerializeToString())
            if ran.status:
                raise Unavailable(f"{words[0]}: {ran.complaint or ran.end}")
            return
        request = events_ttrpc_pb2.ForwardRequest(envelope=envelope)
        async with TtrpcClient.connect(self._ttrpc_address) as client:
            await client.call(EVENTS_SERVICE, "Forward", request, Empty)


def run(
    *,
    namespace: str,
    id: str,
    address: str,
    ttrpc_address: str,
    publish_binary: str,
    listener: socket.socket,
    debug: bool,
) -> None:
    """The whole life of a front, in the bundle's directory."""
    bundle = Path.cwd()
    sys.stderr = cast("TextIO", LogPipe(bundle / "log"))
    set_up_logging("debug" if debug else "warn")
    me = procfs.identity(os.getpid())
    assert me is not None
    procfs.write_identity(str(bundle / PID), me)
    publisher = Publisher(namespace, ttrpc_address, address, publish_binary)
    path = listener.getsockname()
    try:
        trio.run(_serve, Solo(bundle, namespace, id, publisher.tell), publisher, listener)
    finally:
        Path(path).unlink(missing_ok=True)


async def _serve(solo: Solo, publisher: Publisher, sock: socket.socket) -> None:
    sock.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    server = TtrpcServer(services(solo))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        nursery.start_soon(server.serve, listener)
        await solo.run()
        with trio.move_on_after(LAST_WITHIN_S):
            await publisher.told()
        await trio.sleep(ANSWERED_WITHIN_S)  # the answer to Shutdown is on its way
        nursery.cancel_scope.cancel()


class LogPipe:
    """Stderr as the FIFO that a daemon reads our log from; without a reader it is lost."""

    def __init__(self, path: Path) -> None:
        # Read and write: an open end of our own, so that a daemon which leaves breaks no pipe.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CREAT | os.O_CLOEXEC)

    def write(self, text: str) -> int:
        """All or nothing of it."""
        try:
            os.write(self._descriptor, text.encode())
        except OSError:
            pass  # it is full: nobody reads
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""

    def isatty(self) -> bool:
        """A FIFO is none."""
        return False
