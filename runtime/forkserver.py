"""The fork server: a small interpreter that holds the shim's code ready and forks it.

    daemon --socketpair--> fork server --fork--> shim, shim, ...
                                       --socketpair: tasks, with their descriptors-->

A forked shim is ready in about a millisecond and shares our memory, where a new interpreter takes
twenty. One is always forked ahead and waits for a task; those that have served their last task wait
for the next, a few of them, for a while. We end when the daemon's end of the socket closes; the
shims live on. As a subreaper we get the containers of shims that were killed, reap them, and
remember how they ended, so that the shim which adopts them can tell.

Run as `python -I -m holdfast.runtime.forkserver FD STATE TASKS_PER_SHIM [no-pins]`. Standard
library and cbor2 alone.
"""

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..actors import failpoints
from ..actors.errors import NotFound, Refusal, Unavailable, Unimplemented
from . import frames, oci, procfs, shim, syscalls
from .guarantee import Guarantee, Level
from .latereaper import LATE_S, LateReaper
from .orphans import Orphans
from .taskserver import House, Job
from .vault import Vault, open_vault, teardown

READ_BYTES_MAX: Final = 65536
LOCK_WITHIN_S: Final = 0.05
LOCK_LOOK_S: Final = 0.001
# Where tasks come and go, a shim that waits is used again: to fork and to end one costs more than
# what it does for a short task.
IDLE_MAX: Final = 8
IDLE_S: Final = 2.0


@dataclass(slots=True)
class Place:
    """A shim of ours: the way to it, how many tasks it has, and since when it has none."""

    pid: int
    control: socket.socket
    tasks: int = 0
    idle_since_s: float = field(default_factory=time.monotonic)


class ForkServer:
    """Serves one connection. `run` returns None at its end; in a child, the child's socket."""

    def __init__(
        self,
        connection: socket.socket,
        state: str = "",
        tasks_per_shim: str = "1",
        pins: str = "pins",
    ) -> None:
        self._connection = connection
        self._state = state
        self._tasks_per_shim = int(tasks_per_shim)
        self._pins = pins == "pins"
        self._vault: Vault | None = None
        self._guarantee = Guarantee(Level.PROCESSES, "there is no state directory")
        self._decoder = frames.Decoder()
        self._sealed: dict[str, int] = {}
        self._late_reaper: LateReaper | None = None
        self._look_every_s: float | None = None
        self._orphans = Orphans()
        self._shims: set[int] = set()
        self._places: dict[int, Place] = {}
        self._poll = select.poll()
        self._by_descriptor: dict[int, Place] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._host_namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)

    @property
    def house(self) -> House:
        """What every shim is given."""
        return House(
            sealed=self._sealed,
            vault=self._vault,
            orphans=self._orphans,
            host_namespace=self._host_namespace,
        )

    def run(self) -> socket.socket | None:
        """Serves until the daemon is gone."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        # A descriptor for each shim.
        _, most = self._descriptors_max
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._seal()
        self._open_vault()
        if self._guarantee.level is not Level.PINS:
            self._late_reaper, self._look_every_s = LateReaper(), LATE_S / 2
            if self._state:
                self._orphans = Orphans(f"{self._state}/orphans")
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
        for descriptor in (self._connection.fileno(), self._wake_read):
            self._poll.register(descriptor, select.POLLIN)
        while True:
            if not any(place.tasks == 0 for place in self._places.values()):
                control = self._fork()  # ahead, so that nobody waits for it
                if control is not None:
                    return control
            is_surplus = self._end_surplus()
            waits = (self._look_every_s, IDLE_S if is_surplus else None)
            timeout_ms = min((1000 * each for each in waits if each is not None), default=None)
            ready = [descriptor for descriptor, _ in self._poll.poll(timeout_ms)]
            for descriptor in ready:
                if descriptor in self._by_descriptor:
                    self._hear(self._by_descriptor[descriptor])
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._wake_read in ready or not ready:
                self._reap()
            if self._connection.fileno() in ready:
                try:
                    data = self._connection.recv(READ_BYTES_MAX)
                except ConnectionResetError:  # the daemon died with an answer unread
                    data = b""
                if not data:
                    self._leave_vault()
                    self._stay()
                    return None
                for request in self._decoder.feed(data):
                    control = self._take(request)
                    if control is not None:
                        return control

    def _take(self, request: Mapping[str, Any]) -> socket.socket | None:
        answer: dict[str, Any] = {"id": request.get("id", 0)}
        try:
            match request.get("do"):
                case "shim":
                    pid, control = self._give(str(request["bundle"]), bool(request.get("adopt")))
                    if control is not None:
                        return control
                    answer["ok"] = {"pid": pid}
                case other:
                    raise Unimplemented(f"fork server: {other}")
        except Refusal as refusal:
            answer["error"] = frames.refused(refusal)
        except OSError as error:
            answer["error"] = {"code": "Unknown", "text": f"fork server: {error}"}
        self._send(answer)
        return None

    def _give(self, bundle: str, adopt: bool) -> tuple[int, socket.socket | None]:
        """Gives a task to a shim that has room; its pid. In a child that was forked, its socket."""
        try:
            lock = self._lock(bundle)
            listener = shim.listen(bundle)
        except FileNotFoundError as error:
            raise NotFound(f"bundle {bundle}: not found") from error
        job = Job(bundle=bundle, listener=listener, lock=lock, adopt=adopt)
        try:
            while True:
                # The fullest that has room: the others may end the sooner.
                open_places = (p for p in self._places.values() if p.tasks < self._tasks_per_shim)
                place = max(open_places, key=lambda place: place.tasks, default=None)
                if place is None:
                    control = self._fork()
                    if control is not None:
                        return 0, control
                    continue
                failpoints.passed("fork_server.fork")
                _write_holder(lock, place.pid)
                try:
                    shim.send_job(place.control, job)
                except OSError:  # it was killed, or is stopped
                    self._forget(place)
                    continue
                place.tasks += 1
                failpoints.passed("fork_server.forked")
                return place.pid, None
        finally:
            listener.close()
            os.close(lock)

    def _fork(self) -> socket.socket | None:
        """Makes a shim without a task; in the child, its end of the socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid:
            theirs.close()
            self._shims.add(pid)
            place = self._places[pid] = self._by_descriptor[ours.fileno()] = Place(pid, ours)
            self._poll.register(place.control.fileno(), select.POLLIN)
            return None
        ours.close()
        for place in self._places.values():
            place.control.close()
        if self._vault is not None:
            self._vault.unlock()
        signal.set_wakeup_fd(-1)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, self._descriptors_max)
        return theirs

    def _hear(self, place: Place) -> None:
        """A shim has ended tasks, or itself."""
        try:
            said = place.control.recv(len(shim.ENDED), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._forget(place)
            return
        place.tasks -= 1
        place.idle_since_s = time.monotonic()

    def _end_surplus(self) -> bool:
        """Ends shims that wait in vain, but for one; whether there are more that do."""
        idle = [one for one in self._places.values() if one.tasks == 0]
        since_s = time.monotonic() - IDLE_S
        for at, place in enumerate(idle[1:], start=1):
            if at >= IDLE_MAX or place.idle_since_s < since_s:
                self._forget(place)
        return sum(one.tasks == 0 for one in self._places.values()) > 1

    def _forget(self, place: Place) -> None:
        """Gives a shim no more tasks: it ends with its last."""
        if self._places.pop(place.pid, None) is not None:
            self._by_descriptor.pop(place.control.fileno())
            self._poll.unregister(place.control.fileno())
            place.control.close()
            if place.tasks == 0:  # nothing of it is in use, though it takes a moment to end
                self._shims.discard(place.pid)

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

    def _stay(self) -> None:
        """Without pins, shims that the daemon left need us for as long as they live: the next fork
        server is none of their ancestors, and would not inherit what they leave."""
        if self._late_reaper is None:
            return
        self._connection.close()
        if self._vault is not None:
            self._vault.unlock()
        for place in list(self._places.values()):
            self._forget(place)
        reaper = LateReaper()  # what is noted may be reaped at once
        while True:
            for identity, wait_status in reaper.look():
                self._orphans.tell(identity, wait_status)
                os.waitpid(identity.pid, 0)
            if not procfs.children():
                return
            if select.select([self._wake_read], [], [], self._look_every_s)[0]:
                os.read(self._wake_read, 4096)

    def _leave_vault(self) -> None:
        """A vault that keeps nothing goes with us."""
        for place in list(self._places.values()):
            self._hear(place)  # what it said last
        idle = {place.pid for place in self._places.values() if place.tasks == 0}
        in_use = any(map(_lives, self._shims - idle))
        if self._vault is not None and not in_use and not self._vault.pins():
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
                self._orphans.tell(identity, wait_status)

    def _reap_late(self, reaper: LateReaper) -> None:
        for identity, wait_status in reaper.look():
            if identity.pid in self._shims:
                os.waitpid(identity.pid, 0)
                self._shims.discard(identity.pid)
            else:
                self._orphans.tell(identity, wait_status)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._connection.sendall(frames.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone, as reading is about to tell


def _write_holder(lock: int, pid: int) -> None:
    """Whose a bundle is, for whoever finds its shim stopped."""
    holder = procfs.identity(pid)
    if holder is not None:
        os.pwrite(lock, procfs.identity_text(holder).ljust(40).encode(), 0)


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
    server = ForkServer(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])
    control = server.run()
    if control is not None:
        shim.main(control, server.house)
        # Not by way of the interpreter's end, which would touch all that we share, to free it.
        os._exit(0)


if __name__ == "__main__":
    main()
