"""The nemeses: what harms, and takes its harm back when the block is left.

    with nemeses.stopped(history, daemon.processes(Role.SHIM)): ...
    with nemeses.full_disk(history, folder): ...
    with nemeses.hung_mount(history, folder, subjects=["mine"]): ...

Each writes Harm and Heal into the history, for the judges: `subjects` are those that it is aimed
at, and nobody else may be slower for it. Nothing here needs a daemon of ours but `kill_actor` and
`Failpoints`, so that others can harm what is theirs.
"""

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.actors import failpoints, introspection
from holdfast.actors.reference import Ref
from holdfast.api.proto.services import admin_pb2

from .client import Client
from .history import Harm, Heal, History
from .processes import Found

BALLAST_CHUNK = 1 << 20
FUSE_OPTIONS = "rootmode=40000,user_id=0,group_id=0,allow_other"


@contextmanager
def harming(
    history: History, nemesis: str, subjects: Sequence[str] = (), *, shown: bool = True
) -> Generator[None]:
    """Note a harm for the time of a block; for nemeses of one's own, too."""
    at_s = time.monotonic()
    history.add(Harm(nemesis=nemesis, at_s=at_s, subjects=tuple(subjects), shown=shown))
    try:
        yield
    finally:
        history.add(Heal(nemesis=nemesis, at_s=time.monotonic()))


def kill(victims: Iterable[Found], number: int = signal.SIGKILL) -> int:
    """Signal these very processes, as near to at once as can be; how many were there."""
    return sum(victim.signal(number) for victim in victims)


@contextmanager
def stopped(
    history: History, victims: Sequence[Found], subjects: Sequence[str] = ()
) -> Generator[None]:
    """Hold processes by SIGSTOP."""
    with harming(history, "stopped", subjects):
        kill(victims, signal.SIGSTOP)
        try:
            yield
        finally:
            kill(victims, signal.SIGCONT)


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Generator[Path]:
    """A filesystem of its own at `folder`, so that filling it harms nobody else."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", f"size={size_bytes}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@contextmanager
def full_disk(history: History, folder: Path) -> Generator[None]:
    """Fill the filesystem of `folder` to its last byte. Use it on a `small_disk` alone."""
    ballast = folder / ".ballast"
    with harming(history, "full-disk"):
        try:
            _fill(ballast)
            yield
        finally:
            ballast.unlink(missing_ok=True)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (BALLAST_CHUNK, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


@contextmanager
def hung_mount(history: History, folder: Path, subjects: Sequence[str] = ()) -> Generator[Path]:
    """A filesystem at `folder` that answers nothing: whoever looks into it hangs.

    A FUSE mount whose server never reads a request. When it is let go, the kernel tells those who
    hang that the connection is gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount("fuse", folder, "holdfast-hung", f"fd={server},{FUSE_OPTIONS}", pass_fds=(server,))
        with harming(history, "hung-mount", subjects):
            try:
                yield folder
            finally:
                # Before the umount: the end of the server's descriptor frees all who wait.
                os.close(server)
                server = -1
    finally:
        if server >= 0:
            os.close(server)
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


@contextmanager
def silent_server(
    history: History, place: Path | None = None, subjects: Sequence[str] = ()
) -> Generator[str]:
    """Someone who accepts and says nothing, at a socket's path or a port of the loopback: its
    address. When the block is left, whoever waits for it is hung up on."""
    with socket.socket(socket.AF_INET if place is None else socket.AF_UNIX) as server:
        server.bind(("127.0.0.1", 0) if place is None else str(place))
        server.listen(128)
        address = str(place) if place is not None else f"127.0.0.1:{server.getsockname()[1]}"
        with harming(history, "silent-server", subjects, shown=False):
            yield address


def deaf_logger(path: Path) -> str:
    """Write a logging program that says it is ready, and never reads; its log URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexec 5>&-\nexec sleep 1000000\n")
    path.chmod(0o755)
    return f"binary://{path}"


class Runtime:
    """An OCI runtime that can be made to misbehave, for `Options.binary_name`.

    Until it is told otherwise, it is the real one. It is told by files, which it looks for at the
    beginning of each call: `with runtime.hanging(history): ...`.
    """

    def __init__(self, folder: Path, real: str = "/usr/bin/crun") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "runtime"
        self._deed = folder / "deed"
        self.path.write_text(
            f"#!/bin/sh\n"
            f"read deed number <{self._deed} 2>/dev/null\n"
            f'case "$deed" in\n'
            f"  hang) while [ -e {self._deed} ]; do sleep 0.05; done; exit 1;;\n"
            f"  slow) sleep $number;;\n"
            f"  fail) exit $number;;\n"
            f"  crash) kill -SEGV $$;;\n"
            f"esac\n"
            f'exec {real} "$@"\n'
        )
        self.path.chmod(0o755)

    def hanging(self, history: History, subjects: Sequence[str] = ()) -> Any:
        """Never come to an end; with an error once the block is left."""
        return self._doing(history, "hang", 0, subjects)

    def slow(self, history: History, seconds: float, subjects: Sequence[str] = ()) -> Any:
        """Take this much longer."""
        return self._doing(history, "slow", seconds, subjects)

    def failing(self, history: History, status: int = 1, subjects: Sequence[str] = ()) -> Any:
        """End at once with this status."""
        return self._doing(history, "fail", status, subjects)

    def crashing(self, history: History, subjects: Sequence[str] = ()) -> Any:
        """End by a signal."""
        return self._doing(history, "crash", 0, subjects)

    @contextmanager
    def _doing(
        self, history: History, deed: str, number: float, subjects: Sequence[str]
    ) -> Generator[None]:
        self._deed.write_text(f"{deed} {number:g}\n")
        with harming(history, f"{deed}-runtime", subjects):
            try:
                yield
            finally:
                self._deed.unlink()


class Failpoints:
    """Rules for the n-th syscall or step of a daemon that was started with `environment`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def environment(self) -> dict[str, str]:
        """What the daemon must be started with."""
        return {failpoints.VARIABLE: f"@{self._file}"}

    @contextmanager
    def armed(self, history: History, rules: str) -> Generator[None]:
        """Put rules in force, as `actors/failpoints.py` tells them: `store.*=error:ENOSPC@3`."""
        failpoints.parse(rules)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(rules)
        fresh.replace(self._file)
        with harming(history, f"failpoints {rules}"):
            try:
                yield
            finally:
                self._file.unlink()


async def kill_actor(client: Client, name: str) -> None:
    """Kill an actor of the daemon by its name in the tree; its supervisor decides what follows."""
    request = admin_pb2.KillActorRequest(name=name)
    await client.ask("Admin.KillActor", request, admin_pb2.KillActorResponse, subject=name)


@contextmanager
def delayed_mailbox(
    history: History, actor: Ref[Any], subjects: Sequence[str] = ()
) -> Generator[None]:
    """Let an actor of this process read no message; those that come wait in its mailbox."""
    with harming(history, "delayed-mailbox", subjects):
        introspection.suspend(actor)
        try:
            yield
        finally:
            introspection.resume(actor)


def _mount(
    kind: str, target: Path, source: str, options: str, pass_fds: Sequence[int] = ()
) -> None:
    # -i: FUSE has a helper program, which is not what is wanted.
    words = ["mount", "-i", "-t", kind, "-o", options, source, str(target)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, pass_fds=pass_fds)
    if done.returncode:
        raise OSError(done.returncode, done.stderr.strip(), str(target))
