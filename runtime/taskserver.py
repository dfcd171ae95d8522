"""The task server: what a shim is for one task. It answers for its container on a socket.

A request is answered when its work is done, not in the order in which requests came; a fault in one
is told to its caller and kept in the bundle's shim.log.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import itertools
import os
import select
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..actors.errors import FailedPrecondition, InvalidArgument, Refusal, Unimplemented
from ..storage.mounts import Mount
from . import frames
from .adoption import adopt
from .container import RUNTIME_WITHIN_S, Container, Sealed
from .orphans import Orphans
from .pins import Pins
from .poller import Poller
from .stdio import Stdio
from .vault import Vault

SOCKET_NAME: Final = "shim.sock"
READ_BYTES_MAX: Final = 65536
UNSENT_BYTES_MAX: Final = 2 * frames.FRAME_BYTES_MAX
LOOK_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One task for a shim. `listener` listens already; `lock` is the bundle's, held to the end.

    With `adopt` another shim had it before.
    """

    bundle: str
    listener: socket.socket
    lock: int
    adopt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What all task servers of a shim have in common.

    `host_namespace` is the mount namespace of the host, by a descriptor.
    """

    sealed: Sealed
    vault: Vault | None
    orphans: Orphans
    host_namespace: int


class Client:
    """One connection: a decoder, and what could not be sent at once."""

    def __init__(self, server: "TaskServer", connection: socket.socket) -> None:
        self.connection = connection
        self._server = server
        self._decoder = frames.Decoder()
        self._unsent = bytearray()
        self._server.poller.watch(connection.fileno(), select.EPOLLIN, self._on_ready)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends now or later; a client that reads nothing for long is dropped."""
        if self.connection.fileno() < 0:
            return
        self._unsent += frames.encode(message)
        if len(self._unsent) > UNSENT_BYTES_MAX:
            self.close()
        else:
            self._flush()

    def flush_and_close(self) -> None:
        """Sends what is left, without waiting, and ends the connection."""
        if self.connection.fileno() >= 0:
            self._flush()
            self.close()

    def close(self) -> None:
        """Ends the connection."""
        if self.connection.fileno() >= 0:
            self._server.poller.unwatch(self.connection.fileno())
            self.connection.close()
            self._server.clients.discard(self)

    def _on_ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if self.connection.fileno() >= 0 and events & ~select.EPOLLOUT:
            self._read()

    def _read(self) -> None:
        try:
            data = self.connection.recv(READ_BYTES_MAX)
            messages = list(self._decoder.feed(data))
        except BlockingIOError:
            return
        except (OSError, frames.FrameError):
            self.close()
            return
        if not data:
            self.close()
            return
        for message in messages:
            self._server.take(self, message)

    def _flush(self) -> None:
        try:
            while self._unsent:
                sent = self.connection.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        events = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._server.poller.watch(self.connection.fileno(), events, self._on_ready)


class TaskServer:
    """Connections and requests around one container."""

    def __init__(
        self, poller: Poller, house: House, job: Job, on_end: Callable[["TaskServer"], None]
    ) -> None:
        """Serves at once. `on_end` is called when it was shut down."""
        self.poller = poller
        self.clients: set[Client] = set()
        self.bundle = job.bundle
        self._job = job
        self._on_end = on_end
        pins = Pins(house.vault, job.bundle, house.orphans)
        self.container = Container(
            poller, job.bundle, house.sealed, house.host_namespace, self._emit, pins
        )
        self._operations: dict[int, tuple[str, float]] = {}
        self._numbers = itertools.count()
        poller.watch(job.listener.fileno(), select.EPOLLIN, self._accept)
        if job.adopt:
            adopt(self.container)
        self._ended = False
        poller.later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Ends when nobody can want anything of it any more: its bundle is gone, its daemon too."""
        if self._ended:
            return
        if not self.clients and not os.path.exists(self.bundle) and not self.is_live:
            self._on_end(self)
        else:
            self.poller.later(LOOK_EVERY_S, self._look)

    @property
    def is_live(self) -> bool:
        """Whether a process of its container lives."""
        return any(process.is_live for process in self.container.processes.values())

    def close(self) -> None:
        """Lets go of the socket and the bundle."""
        self._ended = True
        self.poller.unwatch(self._job.listener.fileno())
        self._job.listener.close()
        try:
            os.unlink(f"{self.bundle}/{SOCKET_NAME}")
        except FileNotFoundError:
            pass
        os.close(self._job.lock)

    def take(self, client: Client, request: Mapping[str, Any]) -> None:
        """Begins to work on a request."""
        self.poller.spawn(self._answer(client, request))

    async def _answer(self, client: Client, request: Mapping[str, Any]) -> None:
        number = next(self._numbers)
        about = f"{request.get('do')} {request.get('exec_id', '')}".rstrip()
        answer: dict[str, Any] = {"id": request.get("id", 0)}
        self._operations[number] = (about, time.monotonic())
        try:
            answer["ok"] = await self._do(request)
        except Refusal as refusal:
            answer["error"] = frames.refused(refusal)
        except Exception as error:
            self._keep_fault(about)
            answer["error"] = {"code": "Unknown", "text": f"shim: {about}: {error!r}"}
        finally:
            del self._operations[number]
        client.send(answer)
        if request.get("do") == "shutdown" and "ok" in answer:
            for connected in list(self.clients):
                connected.flush_and_close()
            self._on_end(self)

    async def _do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        container = self.container
        exec_id = str(request.get("exec_id", ""))
        within_s = float(request.get("within_s", RUNTIME_WITHIN_S))
        match request.get("do"):
            case "create":
                pid = await container.create(
                    id=_text(request, "task_id"),
                    namespace=_text(request, "namespace"),
                    rootfs=[Mount.from_record(mount) for mount in request["rootfs_mounts"]],
                    stdio=_stdio(request),
                    options=request.get("options", {}),
                    within_s=within_s,
                )
                return {"pid": pid}
            case "settle":
                settled = await container.settle(exec_id, within_s)
                return {"pid": settled.pid, "status": settled.told()["status"]}
            case "start":
                return {"pid": await container.start(exec_id, within_s)}
            case "exec":
                container.exec(_text(request, "exec_id"), request["spec"], _stdio(request))
                return {}
            case "kill":
                container.kill(exec_id, int(request["signal"]), bool(request.get("all")))
                return {}
            case "pause":
                await container.pause()
                return {}
            case "resume":
                await container.resume()
                return {}
            case "update":
                await container.update(request["resources"], within_s)
                return {}
            case "pids":
                return {"pids": container.pids()}
            case "resize":
                container.resize(exec_id, int(request["width"]), int(request["height"]))
                return {}
            case "close_io":
                container.close_io(exec_id)
                return {}
            case "delete":
                record = await container.delete(exec_id, within_s)
                return frames.told(record)
            case "state":
                return container.state() | {"operations": self._told_operations()}
            case "shutdown":
                if self.is_live:
                    raise FailedPrecondition("shutdown of a shim with a live process")
                return {}
            case other:
                raise Unimplemented(f"shim: {other}")

    def _told_operations(self) -> list[str]:
        now = time.monotonic()
        return [
            f"{about} ({now - since_s:.1f} s)"
            for about, since_s in self._operations.values()
            if about != "state"
        ]

    def _accept(self, events: int) -> None:
        try:
            connection, _ = self._job.listener.accept()
        except OSError:  # it left before we came
            return
        connection.setblocking(False)
        client = Client(self, connection)
        self.clients.add(client)
        client.send({"holdfast": frames.PROTOCOL_VERSION, "pid": os.getpid()})

    def _emit(self, event: Mapping[str, Any]) -> None:
        for client in list(self.clients):
            client.send(event)

    def _keep_fault(self, about: str) -> None:
        keep_fault(self.bundle, about)


def keep_fault(bundle: str, about: str) -> None:
    """Writes the present exception to the bundle's shim.log, where there is room for it."""
    try:
        with open(f"{bundle}/shim.log", "a") as log:
            log.write(f"{time.time():.3f} pid {os.getpid()} {about}\n{traceback.format_exc()}\n")
    except OSError:
        pass


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value or "/" in value or value.startswith("."):
        raise InvalidArgument(f"{request.get('do')}: {name} {value!r}")
    return value


def _stdio(request: Mapping[str, Any]) -> Stdio:
    return Stdio(
        stdin=request.get("stdin", ""),
        stdout=request.get("stdout", ""),
        stderr=request.get("stderr", ""),
        terminal=bool(request.get("terminal")),
    )
