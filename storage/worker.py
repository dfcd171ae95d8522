"""The worker: a process that does one blocking job after another for the daemon.

    python -m holdfast.storage.worker FD

FD is a stream socket. Each job and each answer is a frame: 4 bytes of length, big-endian, and
a CBOR map. A job is `{"do": name, ...}`; its answer is `{"ok": {...}}`, `{"refused": [class,
text]}` or `{"fault": traceback}`. The worker ends at the end of the stream, in the midst of a
job too: a watching thread sees that the daemon is gone.

What a job may block on is the kernel's affair; the daemon kills a worker that takes too long
and starts another. A worker therefore holds nothing that its death would leave behind: mounts
it looks into are attached nowhere. What it makes to last, it makes where it will be found.

Whatever a stranger's layer asks for, applying it takes at most `MEMORY_BYTES_MAX`.

Only the standard library, cbor2 and isal are imported, so that a worker is up at once.
"""

import os
import resource
import select
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cbor2

from ..actors import failpoints
from ..actors.errors import FailedPrecondition, Refusal, ResourceExhausted
from . import syscalls
from .compression import PackedStream
from .jobframes import LENGTH_BYTES, decode_length, encode_frame
from .layer import Applied, Limits, apply
from .layerroot import Form
from .mountjobs import do_activate, do_deactivate, do_standing
from .mounts import (
    Mount,
    detached,
    layers_of,
    mount_all,
    overlay_layers,
    read_only,
    unmount_all,
)
from .packer import pack
from .refusal import refusal_of
from .tar import Bounds
from .trees import copy_tree, measure_tree, remove_tree

# More than the largest window of zstd and the most that the names of a layer may take.
MEMORY_BYTES_MAX = 512 << 20

Job = Mapping[str, Any]
R = TypeVar("R")


def apply_layer(
    blob: str,
    media_type: str,
    mounts: list[Mount],
    *,
    limits: Limits | None = None,
    sync: bool = True,
) -> Applied:
    """Apply a layer onto what these mounts would show.

    An overlay's upper directory is written directly, a bind's source likewise; any other
    filesystem is mounted, attached nowhere, and written through.
    """
    if len(mounts) == 1 and mounts[0].type == "overlay":
        upper, lowers = overlay_layers(mounts[0])
        if upper is None:
            raise FailedPrecondition("the mount has no upper directory: it is read-only")
        root_fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return apply(
                Path(blob),
                media_type,
                root_fd,
                form=Form.OVERLAY,
                lowers=lowers,
                user_attributes="userxattr" in mounts[0].options,
                limits=limits,
                sync=sync,
            )
        finally:
            os.close(root_fd)
    if any("ro" in mount.options for mount in mounts):
        raise FailedPrecondition("the mount is read-only")
    with detached(mounts) as root_fd:
        return apply(Path(blob), media_type, root_fd, limits=limits, sync=sync)


def _mounts(job: Job) -> list[Mount]:
    return [Mount.from_record(record) for record in job["mounts"]]


def do_apply(job: Job) -> Mapping[str, Any]:
    """Apply a layer; its digest and sizes."""
    limits = Limits(
        stream_bytes_max=job["stream_bytes_max"], bounds=Bounds(entries_max=job["entries_max"])
    )
    with _memory_bounded():
        applied = apply_layer(
            job["blob"], job["media_type"], _mounts(job), limits=limits, sync=job["sync"]
        )
    return {
        "diff_id": applied.diff_id,
        "size_bytes": applied.size_bytes,
        "entries": applied.entries,
    }


@contextmanager
def _memory_bounded() -> Generator[None, None, None]:
    """For as long as this takes: what other jobs start to stay, a filesystem's server, is free."""
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    within = MEMORY_BYTES_MAX if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (within, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def do_pack(job: Job) -> Mapping[str, Any]:
    """Pack what the upper mounts show otherwise than the lower ones into a pipe; its digest."""
    lower, upper = ([Mount.from_record(one) for one in job[key]] for key in ("lower", "upper"))
    guide = guide_of(lower, upper)
    with open(job["target"], "wb", buffering=1 << 18) as out, ExitStack() as stack:
        stream = PackedStream(out.write, job["compression"])
        entries = pack(
            stack.enter_context(shown(lower)),
            stack.enter_context(shown(upper)),
            stream.write,
            guide_fd=-1 if guide is None else stack.enter_context(_directory(guide)),
            epoch_ns=job["epoch_ns"],
        )
        diff_id = stream.finish()
    return {"diff_id": diff_id, "size_bytes": stream.size_bytes, "entries": entries}


def guide_of(lower: Sequence[Mount], upper: Sequence[Mount]) -> str | None:
    """The directory that alone makes the upper mount another one than the lower, if it is so:
    the top of an overlay over what the lower mount shows."""
    if len(lower) != 1 or len(upper) != 1 or upper[0].type != "overlay":
        return None
    if "index=on" in upper[0].options:
        return None  # a lower name may show what is linked to an upper one
    (top, *rest) = [os.path.normpath(layer) for layer in layers_of(upper[0])]
    below = [os.path.normpath(layer) for layer in layers_of(lower[0])]
    return top if below and rest == below else None


@contextmanager
def shown(mounts: Sequence[Mount]) -> Generator[int, None, None]:
    """A descriptor of what the mounts show, for reading; -1 for no mount."""
    if not mounts:
        yield -1
        return
    with detached([read_only(mount) for mount in mounts]) as root_fd:
        yield root_fd


@contextmanager
def _directory(path: str) -> Generator[int, None, None]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def do_remove(job: Job) -> Mapping[str, Any]:
    """Remove a tree; it may be gone already."""
    path = Path(job["path"])
    try:
        parent_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        _again(lambda: remove_tree(parent_fd, os.fsencode(path.name)))
    finally:
        os.close(parent_fd)
    return {}


def do_measure(job: Job) -> Mapping[str, Any]:
    """Count a tree's inodes and bytes."""
    inodes, size_bytes = _again(lambda: measure_tree(job["path"]))
    return {"inodes": inodes, "size_bytes": size_bytes}


def _again(walk: Callable[[], R]) -> R:
    """Walk a tree, anew when it changed under the walk."""
    for _ in range(3):
        try:
            return walk()
        except BlockingIOError:
            continue
    return walk()


def do_copy(job: Job) -> Mapping[str, Any]:
    """Copy one tree into an empty directory."""
    copy_tree(job["source"], job["target"])
    return {}


def do_sync(job: Job) -> Mapping[str, Any]:
    """Write the filesystem that holds a path to its disk."""
    fd = os.open(job["path"], os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
    return {}


def do_read(job: Job) -> Mapping[str, Any]:
    """Read small files of what the mounts show; those that are absent are left out.

    No name is followed outside the root, and nothing but a regular file is read.
    """
    files: dict[str, bytes] = {}
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    inside = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    with detached(_mounts(job)) as root_fd:
        for name in job["names"]:
            try:
                fd = syscalls.openat2(root_fd, name, flags, inside)
            except (FileNotFoundError, NotADirectoryError):
                continue
            with os.fdopen(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    files[name] = file.read(job["bytes_max"])
    return {"files": files}


def do_mount(job: Job) -> Mapping[str, Any]:
    """Make mounts on a directory."""
    mount_all(_mounts(job), job["target"])
    return {}


def do_unmount(job: Job) -> Mapping[str, Any]:
    """Take all mounts off a directory."""
    unmount_all(job["target"])
    return {}


JOBS: Mapping[str, Callable[[Job], Mapping[str, Any]]] = {
    "apply": do_apply,
    "pack": do_pack,
    "remove": do_remove,
    "measure": do_measure,
    "copy": do_copy,
    "sync": do_sync,
    "read": do_read,
    "mount": do_mount,
    "unmount": do_unmount,
    "activate": do_activate,
    "deactivate": do_deactivate,
    "standing": do_standing,
}


def answer(job: Job) -> Mapping[str, Any]:
    """Do one job; its answer, whatever happens."""
    name = str(job.get("do"))
    try:
        failpoints.reach(f"job.{name}")
        done = JOBS[name](job)
        failpoints.passed(f"job.{name}.done")
        return {"ok": done}
    except Refusal as refusal:
        return {"refused": [type(refusal).__name__, str(refusal)]}
    except OSError as error:
        meant = refusal_of(error, f"{name} {error.filename or ''}".strip())
        return {"refused": [type(meant).__name__, str(meant)]}
    except MemoryError:
        text = f"{name}: more than {MEMORY_BYTES_MAX} bytes of memory: resource exhausted"
        return {"refused": [ResourceExhausted.__name__, text]}
    except Exception:
        # A fault, for the daemon's log: the worker itself is as good as new.
        return {"fault": traceback.format_exc()}


class Watch:
    """Ends the process when the other end of the socket is gone in the midst of a job."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.busy = False
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        poll.poll()
        while True:
            if self.busy:
                os._exit(1)
            # Idle: the main thread reads the end of the stream and ends in order.
            time.sleep(0.05)


def _receive(connection: socket.socket, count: int) -> bytes:
    raw = bytearray()
    while len(raw) < count:
        piece = connection.recv(count - len(raw))
        if not piece:
            return b""
        raw += piece
    return bytes(raw)


def serve(connection: socket.socket) -> None:
    """Do the jobs that come, until the stream ends."""
    watch = Watch(connection)
    connection.sendall(encode_frame({"holdfast": 1, "pid": os.getpid()}))
    while head := _receive(connection, LENGTH_BYTES):
        raw = _receive(connection, decode_length(head))
        if not raw:
            return
        watch.busy = True
        result = answer(cbor2.loads(raw))
        watch.busy = False
        try:
            connection.sendall(encode_frame(result))
        except (BrokenPipeError, ConnectionResetError):
            return


def main() -> None:
    """The program."""
    failpoints.enter("worker")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
