"""The fork server: a small interpreter that holds the shim's code ready and forks it.

    daemon --socketpair--> fork server --fork--> shim, shim, ...

A forked shim is ready in about a millisecond and shares our memory, where a new interpreter takes
twenty. We end when the daemon's end of the socket closes; the shims live on. As a subreaper we get
the containers of shims that were killed, reap them, and remember how they ended, so that the shim
which adopts them can tell.

Run as `python -I -m holdfast.runtime.forkserver FD STATE [no-pins]`. Standard library and cbor2
alone.
"""

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from ..actors import failpoints
from ..actors.errors import NotFound, Refusal, Unavailable, Unimplemented
from . import frames, oci, procfs, shim, syscalls
from .guarantee import Guarantee, Level
from .latereaper import LATE_S, LateReaper
from .vault import Vault, open_vault, teardown

ORPHANS_MAX: Final = 4096
READ_BYTES_MAX: Final = 65536
LOCK_WITHIN_S: Final = 0.05
LOCK_LOOK_S: Final = 0.001


class ForkServer:
    """Serves one connection. `run` returns None at its end, or in a child the child's job."""

    def __init__(self, connection: socket.socket, state: str = "", pins: str = "pins") -> None:
        self._connection = connection
        self._state = state
        self._pins = pins == "pins"
        self._vault: Vault | None = None
        self._guarantee = Guarantee(Level.PROCESSES, "there is no state directory")
        self._decoder = frames.Decoder()
        self._sealed: dict[str, int] = {}
        self._late_reaper: LateReaper | None = None
        self._look_every_s: float | None = None
        self._orphans: dict[procfs.Identity, tuple[int, int]] = {}
        self._shims: set[int] = set()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> shim.Job | None:
        """Answers requests until the daemon is gone."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._seal()
        self._open_vault()
        if self._guarantee.level is not Level.PINS:
            self._late_reaper, self._look_every_s = LateReaper(), LATE_S / 2
        gc.collect()
        gc.freeze()
        self._send(
            {
                "holdfast": frames.PROTOCOL_VERSION,
                "pid": os.getpid(),
                "guarantee": str(self._guarantee.level),
                "why_no_stronger": self._guarantee.reason,
            }
        )
        while True:
            descriptors = [self._connection.fileno(), self._wake_read]
            ready, _, _ = select.select(descriptors, [], [], self._look_every_s)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._wake_read in ready or not ready:
                self._reap()
            if self._connection.fileno() in ready:
                data = self._connection.recv(READ_BYTES_MAX)
                if not data:
                    self._leave_vault()
                    return None
                for request in self._decoder.feed(data):
                    job = self._take(request)
                    if job is not None:
                        return job

    def _take(self, request: Mapping[str, Any]) -> shim.Job | None:
        answer: dict[str, Any] = {"id": request.get("id", 0)}
        try:
            match request.get("do"):
                case "shim":
                    pid, job = self._fork(str(request["bundle"]), bool(request.get("adopt")))
                    if job is not None:
                        return job
                    answer["ok"] = {"pid": pid}
                case other:
                    raise Unimplemented(f"fork server: {other}")
        except Refusal as refusal:
            answer["error"] = frames.refused(refusal)
        except OSError as error:
            answer["error"] = {"code": "Unknown", "text": f"fork server: {error}"}
        self._send(answer)
        return None

    def _fork(self, bundle: str, adopt: bool) -> tuple[int, shim.Job | None]:
        try:
            lock = self._lock(bundle)
            listener = shim.listen(bundle)
        except FileNotFoundError as error:
            raise NotFound(f"bundle {bundle}: not found") from error
        with listener:
            failpoints.passed("fork_server.fork")
            pid = os.fork()
            if pid:
                os.close(lock)
                failpoints.passed("fork_server.forked")
                self._shims.add(pid)
                return pid, None
            if self._vault is not None:
                self._vault.unlock()
            signal.set_wakeup_fd(-1)
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._connection.close()
            job = shim.Job(
                bundle=bundle,
                listener=listener.dup(),
                adopt=adopt,
                sealed=self._sealed,
                orphans=self._orphans,
                vault=self._vault,
                lock=lock,
            )
        return 0, job

    def _lock(self, bundle: str) -> int:
        """One that was killed a moment ago may still be about to let go."""
        deadline_s = time.monotonic() + LOCK_WITHIN_S
        while (lock := shim.lock_bundle(bundle)) is None:
            if time.monotonic() > deadline_s:
                raise Unavailable(f"bundle {bundle}: its shim lives")
            time.sleep(LOCK_LOOK_S)
        return lock

    def _open_vault(self) -> None:
        if self._state:
            try:
                self._vault = open_vault(self._state)
            except OSError as error:
                self._guarantee = Guarantee(Level.PROCESSES, str(error))
            else:
                self._guarantee = Guarantee(Level.PINS)
                self._vault.keeps_processes &= self._pins
                if not self._vault.keeps_processes:
                    reason = "before Linux 6.15 no pidfd tells how a reaped process ended"
                    self._guarantee = Guarantee(Level.SUBREAPERS, reason)

    def _leave_vault(self) -> None:
        """A vault that keeps nothing goes with us."""
        unused = self._vault is not None and not any(map(_lives, self._shims))
        if unused and self._vault is not None and not self._vault.pins():
            teardown(self._state)

    def _seal(self) -> None:
        try:
            program = oci.find_program("")
            if os.path.basename(program) == "crun":
                self._sealed[program] = syscalls.sealed_copy(program)
        except (NotFound, OSError):
            pass  # then shims run what their options name, from its file

    def _reap(self) -> None:
        if self._late_reaper is not None:
            self._reap_late(self._late_reaper)
            return
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            # Looked at while it is a zombie: afterwards its start time is gone.
            identity = procfs.identity(found.si_pid)
            _, wait_status = os.waitpid(found.si_pid, 0)
            if found.si_pid in self._shims:
                self._shims.discard(found.si_pid)
            elif identity is not None:
                self._remember(identity, wait_status)

    def _reap_late(self, reaper: LateReaper) -> None:
        for identity, wait_status in reaper.look():
            if identity.pid in self._shims:
                os.waitpid(identity.pid, 0)
                self._shims.discard(identity.pid)
            else:
                self._remember(identity, wait_status)

    def _remember(self, identity: procfs.Identity, wait_status: int) -> None:
        self._orphans[identity] = (wait_status, time.time_ns())
        if len(self._orphans) > ORPHANS_MAX:
            del self._orphans[next(iter(self._orphans))]

    def _send(self, message: Mapping[str, Any]) -> None:
        self._connection.sendall(frames.encode(message))


def _lives(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is not None and found.state != "Z"


def main() -> None:
    """The program."""
    failpoints.enter("fork-server")
    syscalls.become_subreaper()
    syscalls.set_name("holdfast-fork")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its life is the daemon's connection
    job = ForkServer(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:]).run()
    if job is not None:
        shim.main(job)


if __name__ == "__main__":
    main()
