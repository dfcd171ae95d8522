"""The workers: processes that block in the daemon's stead, one job at a time each.

    workers = Workers(processes_max=4)
    applied = await workers.apply(blob, media_type, mounts)

A worker process belongs to one `Worker` actor and dies with it. A job that takes longer than
its deadline is ended by killing its process (`DeadlineExceeded`); a process that dies takes
its job with it (`Unavailable`); a caller that is cancelled takes the process with it, so that
nothing goes on behind its back. The next job gets another process. What the job itself
refuses comes back as the same refusal.

Invariant: at most `processes_max` processes live; the callers beyond it wait in line.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cbor2
import structlog
import trio

from ..actors import errors, failpoints
from ..actors.actor import Actor
from ..actors.eager import Holding
from ..actors.exits import KILL, ActorExited
from ..actors.message import Request
from ..actors.reference import Ref
from .jobframes import LENGTH_BYTES, decode_length, encode_frame
from .layer import Applied, Limits
from .mounts import Mount
from .snapshotter import Usage

if TYPE_CHECKING:
    from .mountplan import Plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

START_WITHIN_S = 20.0
GONE_WITHIN_S = 2.0

APPLY_WITHIN_S = 3600.0
TREE_WITHIN_S = 600.0
QUICK_WITHIN_S = 60.0
ACTIVATE_WITHIN_S = 120.0

PIPE_BYTES = 1 << 20

Answer = Mapping[str, Any]


class WorkerFault(Exception):
    """A job raised what is no refusal: a fault in our code, with its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Do(Request[Answer]):
    """Sent by `Workers`, one at a time; answered with the job's result."""

    job: Mapping[str, Any]
    within_s: float


class Worker(Actor):
    """One worker process, from its start to its death."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = 0
        self._process: trio.Process | None = None
        self._stream: trio.SocketStream | None = None
        self._pid_fd = -1

    async def on_start(self) -> None:
        """Start the process; ready once it has said hello."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            path = os.pathsep.join(entry for entry in sys.path if entry)
            try:
                failpoints.reach("worker.spawn")
                self._process = await trio.lowlevel.open_process(
                    [sys.executable, "-P", "-m", "holdfast.storage.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": path},
                )
            except BaseException:
                self._stream.socket.close()
                raise
        failpoints.passed("worker.spawned")
        self._pid_fd = os.pidfd_open(self._process.pid)
        self.spawn_task(self._keep)
        # The keeper must be in its place before anything here can be cancelled.
        with trio.fail_after(START_WITHIN_S):
            hello = await self._receive()
        if hello.get("holdfast") != 1:
            raise WorkerFault(f"a worker of another version: {hello}")
        self.pid = self._process.pid

    async def on_receive(self, message: Do) -> Answer:
        """Do one job."""
        assert self._stream is not None
        answer: Answer | None = None
        with trio.move_on_after(message.within_s) as scope:
            try:
                failpoints.passed("worker.job.send")
                await self._stream.send_all(encode_frame(message.job))
                failpoints.passed("worker.job.sent")
                answer = await self._receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                self._end("died")
                raise errors.Unavailable(
                    f"worker {self.pid} died while doing {message.job['do']}"
                ) from None
        if scope.cancelled_caught or answer is None:
            self._end("took too long")
            raise errors.DeadlineExceeded(
                f"{message.job['do']} took longer than {message.within_s:g} s"
            )
        return answer

    def _end(self, why: str) -> None:
        log.warning("worker.ended", pid=self.pid, reason=why)
        self._kill()
        self.ref.shutdown()

    def _kill(self) -> None:
        failpoints.passed("worker.kill")
        if self._pid_fd < 0:
            return  # reaped
        try:
            signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has been reaped

    async def _keep(self) -> None:
        """Whatever ends the actor ends the process: in order when it is idle, else at once."""
        assert self._process is not None
        assert self._stream is not None
        try:
            await self._process.wait()
            # Found dead while idle: whoever needs a worker next gets another.
            self.ref.shutdown()
        finally:
            with trio.CancelScope(shield=True):
                # An idle worker reads the end of the stream and leaves by itself; a busy one's
                # watch ends it. One in an uninterruptible sleep is left to the kernel.
                self._stream.socket.close()
                with trio.move_on_after(GONE_WITHIN_S) as scope:
                    await self._process.wait()
                if scope.cancelled_caught:
                    self._kill()
                    with trio.move_on_after(GONE_WITHIN_S):
                        await self._process.wait()
                os.close(self._pid_fd)
                # Who still hears of the end must not signal whoever gets this number next.
                self._pid_fd = -1

    async def _receive(self) -> Answer:
        raw = await self._exactly(decode_length(await self._exactly(LENGTH_BYTES)))
        answer: Answer = cbor2.loads(raw)
        return answer

    async def _exactly(self, count: int) -> bytes:
        assert self._stream is not None
        raw = bytearray()
        while len(raw) < count:
            piece = await self._stream.receive_some(count - len(raw))
            if not piece:
                raise EOFError
            raw += piece
        return bytes(raw)


class Workers:
    """The verbs. Belongs to the loop it is used in; processes start as they are needed."""

    def __init__(
        self,
        processes_max: int = 4,
        *,
        spawn: Callable[[], Awaitable[Ref[Worker]]] = Worker.spawn,
    ) -> None:
        self._room = trio.Semaphore(processes_max)
        self._spawn = spawn
        self._idle: list[Ref[Worker]] = []

    async def close(self) -> None:
        """End the idle processes; those at work end with their callers."""
        while self._idle:
            worker = self._idle.pop()
            worker.shutdown()
            await worker.wait_exit()

    async def run(self, job: Mapping[str, Any], within_s: float) -> Answer:
        """Do a job in some worker; its result, or the refusal that it met."""
        async with Holding(self._room):
            worker = await self._borrow()
            try:
                answer = await worker.call(Do(job=job, within_s=within_s), timeout_s=None)
            except ActorExited as error:
                raise errors.Unavailable(f"the worker ended: {error}") from error
            except trio.Cancelled:
                worker.exit(KILL)
                raise
            if worker.is_alive():
                self._idle.append(worker)
        return _result(answer)

    async def _borrow(self) -> Ref[Worker]:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive():
                return worker
        return await self._spawn()

    async def apply(
        self,
        blob: Path,
        media_type: str,
        mounts: Sequence[Mount],
        *,
        limits: Limits | None = None,
        sync: bool = True,
        within_s: float = APPLY_WITHIN_S,
    ) -> Applied:
        """Apply a layer onto what the mounts show; durable on return, when `sync` says so."""
        limits = limits or Limits()
        answer = await self.run(
            {
                "do": "apply",
                "blob": str(blob),
                "media_type": media_type,
                "mounts": [mount.to_record() for mount in mounts],
                "stream_bytes_max": limits.stream_bytes_max,
                "entries_max": limits.bounds.entries_max,
                "sync": sync,
            },
            within_s,
        )
        return Applied(
            diff_id=answer["diff_id"],
            size_bytes=answer["size_bytes"],
            entries=answer["entries"],
        )

    async def pack(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        compression: str,
        write: Callable[[bytes], Awaitable[object]],
        *,
        epoch_ns: int | None = None,
        within_s: float = APPLY_WITHIN_S,
    ) -> Applied:
        """Pack what the upper mounts show otherwise than the lower ones, and hand the layer to
        `write`. With the answer, the digest and size of the uncompressed layer, it has all."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(write_fd, "wb") as ours:
            job = {
                "do": "pack",
                "lower": [mount.to_record() for mount in lower],
                "upper": [mount.to_record() for mount in upper],
                "compression": compression,
                "epoch_ns": epoch_ns,
                # Kept open here until the job is done: by then the worker has opened it.
                "target": f"/proc/{os.getpid()}/fd/{write_fd}",
            }
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pump, read_fd, write)
                    answer = await self.run(job, within_s)
                    ours.close()
            except BaseExceptionGroup as group:
                if len(group.exceptions) == 1:
                    raise group.exceptions[0] from group.exceptions[0].__cause__
                raise
        return Applied(
            diff_id=answer["diff_id"],
            size_bytes=answer["size_bytes"],
            entries=answer["entries"],
        )

    async def remove_tree(self, path: Path, within_s: float = TREE_WITHIN_S) -> None:
        """Remove a tree, if it is there."""
        await self.run({"do": "remove", "path": str(path)}, within_s)

    async def measure(self, path: Path, within_s: float = TREE_WITHIN_S) -> Usage:
        """What a tree takes on the disk."""
        answer = await self.run({"do": "measure", "path": str(path)}, within_s)
        return Usage(inodes=answer["inodes"], size_bytes=answer["size_bytes"])

    async def copy_tree(self, source: Path, target: Path, within_s: float = APPLY_WITHIN_S) -> None:
        """Copy a tree into an empty directory."""
        await self.run({"do": "copy", "source": str(source), "target": str(target)}, within_s)

    async def sync(self, path: Path, within_s: float = TREE_WITHIN_S) -> None:
        """Write the filesystem that holds a path to its disk."""
        await self.run({"do": "sync", "path": str(path)}, within_s)

    async def read_files(
        self,
        mounts: Sequence[Mount],
        names: Sequence[str],
        bytes_max: int,
        within_s: float = QUICK_WITHIN_S,
    ) -> Mapping[str, bytes]:
        """The first `bytes_max` bytes of files that the mounts show; absent ones are left out."""
        records = [mount.to_record() for mount in mounts]
        job = {"do": "read", "mounts": records, "names": list(names), "bytes_max": bytes_max}
        files: Mapping[str, bytes] = (await self.run(job, within_s))["files"]
        return files

    async def mount(
        self, mounts: Sequence[Mount], target: Path, within_s: float = QUICK_WITHIN_S
    ) -> None:
        """Make mounts on a directory, in the mount namespace of the daemon."""
        records = [mount.to_record() for mount in mounts]
        await self.run({"do": "mount", "mounts": records, "target": str(target)}, within_s)

    async def unmount(self, target: Path, within_s: float = QUICK_WITHIN_S) -> None:
        """Take every mount off a directory."""
        await self.run({"do": "unmount", "target": str(target)}, within_s)

    async def activate(
        self,
        plan: "Plan",
        directory: Path,
        roots: Sequence[Path],
        within_s: float = ACTIVATE_WITHIN_S,
    ) -> Sequence[int]:
        """Make an activation's mounts, all or none; when each was made (ns)."""
        answer = await self.run(
            {
                "do": "activate",
                "directory": str(directory),
                "roots": [str(root) for root in roots],
                "steps": [step.to_record() for step in plan.steps],
                "makings": [making.to_record() for making in plan.makings],
            },
            within_s,
        )
        mounted_at: Sequence[int] = answer["mounted_at"]
        return mounted_at

    async def deactivate(self, directory: Path, within_s: float = QUICK_WITHIN_S) -> None:
        """Take off what stands in an activation's directory, and remove it."""
        await self.run({"do": "deactivate", "directory": str(directory)}, within_s)

    async def standing(
        self, points: Sequence[Sequence[str]], within_s: float = QUICK_WITHIN_S
    ) -> Sequence[bool]:
        """For each list of mount points, whether something of ours stands at all of them."""
        job = {"do": "standing", "points": [list(each) for each in points]}
        standing: Sequence[bool] = (await self.run(job, within_s))["standing"]
        return standing


async def _pump(read_fd: int, write: Callable[[bytes], Awaitable[object]]) -> None:
    """Hand on what comes through a pipe until its end."""
    fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    async with trio.lowlevel.FdStream(read_fd) as stream:
        while piece := await stream.receive_some(PIPE_BYTES):
            await write(piece)


def _result(answer: Answer) -> Answer:
    if "ok" in answer:
        result: Answer = answer["ok"]
        return result
    if "refused" in answer:
        name, text = answer["refused"]
        kind = getattr(errors, name)
        assert issubclass(kind, errors.Refusal)
        raise kind(text)
    raise WorkerFault(answer.get("fault", "an answer of no known form"))
