"""Foreign shims: the binaries of containerd's shim contract that a runtime's name means.

    io.containerd.runc.v2, io.holdfast.v1, none       our own shim
    io.containerd.runsc.v1                            containerd-shim-runsc-v1, in PATH or beside us
    /opt/bin/containerd-shim-x-v2                     that file

    spawn --start--> listening --it dies--> adopt --delete--> buried: a grave answers for it

`start`, run in the bundle, forks the shim and prints where it listens, which is noted there, so
that any later life of the daemon finds it. What such a shim keeps when it dies is its own affair:
its `delete` ends and removes the container, and tells how it ended.

    <bundle>/foreign.json     the binary, and where its shim listens, once that is known
    <bundle>/foreign.pid      the shim, by pid and start time, once it has told
    <bundle>/foreign-exec-*   a process that was added: nobody can ask such a shim for a list
    <bundle>/foreign-exit     how the container ended, when `delete` was asked for it
    <bundle>/log              what the shim logs

Invariants: (1) Nothing is created in a shim before its address is noted; one that is started again
until then is the same, or has nothing. (2) `delete` is run only when nobody listens and the process
that is noted is gone.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import time_ns
from typing import Any, Final, Protocol

import structlog
import trio

from ..actors import failpoints
from ..actors.errors import (
    InvalidArgument,
    NotFound,
    Refusal,
    Unavailable,
    Unimplemented,
    Unknown,
)
from ..storage.programs import run_program
from . import procfs
from .grave import Grave
from .records import STATUS_LOST
from .shimclient import Exited
from .shimverbs import OwnShims, Shim, ShimSource, SpawnShim

OURS: Final = frozenset({"", "io.containerd.runc.v2", "io.holdfast.v1"})
FOREIGN_TOPICS: Final = frozenset(
    f"/tasks/{name}"
    for name in ("create", "start", "oom", "exit", "delete", "exec-added", "exec-started")
) | {"/tasks/paused", "/tasks/resumed", "/tasks/checkpointed"}
"""What a shim publishes of a task, which the task's actor tells."""

NO_SOCKET: Final = "only a daemon with a socket runs shims that are not ours: not implemented"
NOTE: Final = "foreign.json"
PID: Final = "foreign.pid"
EXIT: Final = "foreign-exit"
EXEC: Final = "foreign-exec-"
LOG: Final = "log"
INFO_WITHIN_S: Final = 10.0
DEAD: Final = "ZX"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a shim listens, by which protocol, in which version of the task service."""

    address: str
    protocol: str = "ttrpc"
    version: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a shim is told when it is started. Options are an Any's type and value."""

    id: str
    namespace: str
    address: str
    ttrpc_address: str
    publish_binary: str
    options: Mapping[str, Any]


class Wire(Protocol):
    """The messages of the shim contract, which a room above reads and writes."""

    def options(self, birth: Birth) -> bytes:
        """What `start` reads up to containerd 2.2: the options."""
        ...

    def params(self, birth: Birth) -> bytes:
        """What `start` reads since containerd 2.3: all of it."""
        ...

    def listening(self, said: bytes) -> Listening:
        """What `start` printed; Unavailable when that is none of its three forms."""
        ...

    def deleted(self, said: bytes) -> Exited:
        """What `delete` printed; Unavailable when that is no answer."""
        ...

    async def connect(self, listening: Listening, namespace: str, id: str, bundle: Path) -> Shim:
        """A connection; Unavailable, from the cause, when nobody listens there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """How this host runs them: its messages, made for who asks, and where it hears of events."""

    wire: Callable[[], Wire]
    address: str
    publish_binary: str

    @property
    def ttrpc_address(self) -> str:
        """Where shims forward their events to."""
        return f"{self.address}.ttrpc"


def is_foreign(runtime: str) -> bool:
    """Whether a runtime's name means another shim than ours."""
    return runtime not in OURS


def find_binary(runtime: str) -> str:
    """The shim that a runtime's name means; refused in containerd's words."""
    if runtime.startswith("/"):
        if not os.path.isfile(runtime):
            raise NotFound(f'runtime "{runtime}" binary not installed: file does not exist')
        return runtime
    parts = runtime.split(".")
    if len(parts) < 2 or not all(parts) or "/" in runtime:
        raise InvalidArgument(
            f"invalid runtime name {runtime}, correct runtime name should be either format like"
            " `io.containerd.runc.v2` or a full path to the binary"
        )
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    beside = os.path.dirname(os.path.abspath(sys.argv[0]))
    path = shutil.which(name) or shutil.which(name, path=beside)
    if path is None:
        raise NotFound(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    return path


async def shim_info(binary: str, options: bytes) -> bytes:
    """What a shim says of itself, asked with these options; refused in containerd's words when it
    does not answer, as one from before containerd 2."""
    ran = await run_program([binary, "-info"], stdin=options, within_s=INFO_WITHIN_S)
    if ran.status != 0:
        complaint = json.dumps(ran.complaint)
        raise Unknown(f"failed to run [{binary} -info]: {ran.end} (stderr: {complaint})")
    return ran.stdout


class ForeignShims:
    """Where the shims of one task come from."""

    def __init__(
        self, house: Foreign, runtime: str, namespace: str, id: str, options: Mapping[str, Any]
    ) -> None:
        self._house = house
        self._runtime = runtime
        self._birth = Birth(
            id=id,
            namespace=namespace,
            address=house.address,
            ttrpc_address=house.ttrpc_address,
            publish_binary=house.publish_binary,
            options=options,
        )

    async def spawn(self, bundle: Path, /, *, adopt: bool = False) -> object:
        """Starts a shim; with `adopt` buries the one that had the bundle, if it had begun."""
        binary, listening = await trio.to_thread.run_sync(_read_note, bundle)
        if adopt and listening is not None:
            await self._bury(bundle, binary)
            # Its other tasks are dead with it, and find nobody here or nothing: it is the same.
            await trio.to_thread.run_sync(_remove_socket, listening.address)
        else:
            await self._start(bundle)
        return None

    async def connect(self, bundle: Path, /) -> Shim:
        """Connects to the shim, or to the grave of one that is dead."""
        exit = await trio.to_thread.run_sync(_read_exit, bundle)
        if exit is not None:
            added = await trio.to_thread.run_sync(execs, bundle)
            return Grave(self._birth.namespace, self._birth.id, exit, added)
        _, listening = await trio.to_thread.run_sync(_read_note, bundle)
        if listening is None:
            error = FileNotFoundError(f"{bundle / NOTE}: no address")
            raise Unavailable(f"shim of {bundle}: {error}") from error
        return await self._house.wire().connect(
            listening, self._birth.namespace, self._birth.id, bundle
        )

    async def _start(self, bundle: Path) -> None:
        binary = await trio.to_thread.run_sync(find_binary, self._runtime)
        await trio.to_thread.run_sync(_prepare, bundle)
        wire = self._house.wire()
        failpoints.passed("foreign.start")
        try:
            said = await self._run(bundle, binary, wire.options(self._birth), "start")
        except Unavailable as first:
            # One of containerd 2.3 and later reads its parameters, and nothing else.
            try:
                said = await self._run(bundle, binary, wire.params(self._birth), "start")
            except Unavailable:
                raise first from None
        listening = wire.listening(said)
        failpoints.passed("foreign.started")
        note = {"binary": binary, **asdict(listening)}
        await trio.to_thread.run_sync(_write, bundle / NOTE, note)
        failpoints.passed("foreign.noted")
        log.info("shim.started", id=self._birth.id, binary=binary, address=listening.address)

    async def _bury(self, bundle: Path, binary: str) -> None:
        shim = procfs.read_identity(str(bundle / PID))
        found = None if shim is None else procfs.stat(shim.pid)
        if (
            shim is not None
            and found is not None
            and found.start_time_ticks == shim.start_time_ticks
            and found.state not in DEAD
        ):
            raise Unavailable(f"shim {shim.pid} lives, and does not listen")
        try:
            said = await self._run(bundle, binary, b"", "-bundle", str(bundle), "delete")
            exit = self._house.wire().deleted(said)
        except Refusal as error:
            log.error("shim.not_deleted", id=self._birth.id, binary=binary, reason=str(error))
            exit = Exited(exec_id="", pid=0, status=STATUS_LOST, exited_at_ns=0)
        log.warning("shim.buried", id=self._birth.id, binary=binary, status=exit.status)
        told = {"pid": exit.pid, "status": exit.status}
        told["exited_at_ns"] = exit.exited_at_ns or time_ns()
        await trio.to_thread.run_sync(_write, bundle / EXIT, told)
        failpoints.passed("foreign.buried")

    async def _run(self, bundle: Path, binary: str, stdin: bytes, *words: str) -> bytes:
        birth = self._birth
        flags = ["-namespace", birth.namespace, "-address", birth.address]
        flags += ["-publish-binary", birth.publish_binary, "-id", birth.id]
        told = {
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "3",
            "TTRPC_ADDRESS": birth.ttrpc_address,
            "GRPC_ADDRESS": birth.address,
            "NAMESPACE": birth.namespace,
        }
        try:
            ran = await run_program(
                [binary, *flags, *words], stdin=stdin, cwd=bundle, env={**os.environ, **told}
            )
        except Refusal as error:
            raise Unavailable(f"{words[-1]}: {error}") from error
        if ran.status != 0:
            raise Unavailable(f"{binary} {words[-1]}: {ran.complaint or ran.end}")
        return ran.stdout


def left_shims(
    house: Foreign | None, spawn: SpawnShim, bundle: Path, namespace: str, id: str
) -> ShimSource:
    """Where the shim of a bundle comes from that no record tells of."""
    binary, _ = _read_note(bundle)
    if not binary:
        return OwnShims(spawn)
    if house is None:
        raise Unimplemented(f"runtime {binary}: {NO_SOCKET}")
    return ForeignShims(house, binary, namespace, id, {})


def note_pid(bundle: Path, pid: int) -> None:
    """The shim has told its pid."""
    identity = procfs.identity(pid) if pid else None
    if identity is not None and procfs.read_identity(str(bundle / PID)) != identity:
        procfs.write_identity(str(bundle / PID), identity)


def note_exec(bundle: Path, exec_id: str) -> None:
    """A process is about to be added."""
    (bundle / f"{EXEC}{exec_id}").touch()


def forget_exec(bundle: Path, exec_id: str) -> None:
    """A process was deleted."""
    (bundle / f"{EXEC}{exec_id}").unlink(missing_ok=True)


def execs(bundle: Path) -> Sequence[str]:
    """The processes that were added."""
    return sorted(path.name.removeprefix(EXEC) for path in bundle.glob(f"{EXEC}*"))


def _prepare(bundle: Path) -> None:
    # A shim insists on a log, usually a FIFO that its daemon reads; a file needs no reader.
    (bundle / LOG).touch(mode=0o600)


def _remove_socket(address: str) -> None:
    path = Path(address.removeprefix("unix://"))
    if path.is_socket():
        path.unlink(missing_ok=True)


def _read_note(bundle: Path) -> tuple[str, Listening | None]:
    note = _read(bundle / NOTE)
    if not note:
        return "", None
    where = Listening(
        address=str(note["address"]),
        protocol=str(note["protocol"]),
        version=int(note["version"]),
    )
    return str(note["binary"]), where


def _read_exit(bundle: Path) -> Exited | None:
    told = _read(bundle / EXIT)
    return Exited(exec_id="", **told) if told else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all; for as long as this boot lasts, like what it tells of."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.rename(path)
