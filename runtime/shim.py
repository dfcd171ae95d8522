"""The shim: a small process that runs the containers of one task, or of a few.

It outlives the daemon and its connections, and may itself be killed: others adopt what it left. One
thread, one epoll loop, a `TaskServer` for each task. Tasks come from the fork server, over a socket
of whole messages, with their descriptors; it is told of the end of each. Without tasks, and without
a fork server that could bring one, a shim ends.

    <bundle>/shim.sock    where it listens       <bundle>/shim.json    what the next shim needs
    <bundle>/init.pid     pid and start time     <bundle>/exits/       one record per exit
    <bundle>/shim.lock    ours while we serve it; whose it is, by pid and start time

Standard library and cbor2 alone: the fork server preloads this file and forks.
"""

import array
import fcntl
import os
import select
import signal
import socket
from typing import Any, Final

import cbor2

from ..actors import failpoints
from ..storage import syscalls as kernel
from . import syscalls
from .poller import Poller
from .taskserver import SOCKET_NAME, House, Job, TaskServer, keep_fault

LOCK_NAME: Final = "shim.lock"
JOB_BYTES_MAX: Final = 1 << 20
NAME: Final = "holdfast-shim"
SPARE_NAME: Final = "holdfast-spare"
ENDED: Final = b"ended"


def listen(bundle: str) -> socket.socket:
    """A listening socket in the bundle; it replaces that of a dead shim."""
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            os.unlink(SOCKET_NAME, dir_fd=directory)
        except FileNotFoundError:
            pass
        # A path in sockaddr_un ends at 108 bytes; by way of a descriptor every path is short.
        listener.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        os.chmod(SOCKET_NAME, 0o600, dir_fd=directory)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def lock_bundle(bundle: str) -> int | None:
    """The bundle's lock, which one shim holds for its life; None while another has it.

    It goes with the descriptor and its copies. Whose it is stands in it: pid and start time.
    """
    lock = os.open(f"{bundle}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def send_job(control: socket.socket, job: Job) -> None:
    """Hands a task to a shim; OSError when it is gone, or has not taken the last ones yet."""
    message = cbor2.dumps({"bundle": job.bundle, "adopt": job.adopt})
    descriptors = array.array("i", [job.listener.fileno(), job.lock])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    control.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive_job(control: socket.socket) -> Job | None:
    """The next task; None when the fork server is gone."""
    # Not socket.recv_fds, which forgets its flags.
    message, ancillary, _, _ = control.recvmsg(
        JOB_BYTES_MAX, socket.CMSG_SPACE(8), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    if not message:
        return None
    told: dict[str, Any] = cbor2.loads(message)
    listener, lock = array.array("i", ancillary[0][2])
    return Job(
        bundle=told["bundle"],
        listener=socket.socket(fileno=listener),
        lock=lock,
        adopt=told["adopt"],
    )


class Shim:
    """The process: its loop, its tasks, the fork server's socket."""

    def __init__(self, control: socket.socket, house: House) -> None:
        # Till the exit record is written, only we would know.
        tell = house.orphans.tell_zombie if house.orphans.are_noted else None
        self.poller = Poller(self._on_orphan, tell)
        self._house = house
        self._servers: list[TaskServer] = []
        self._control: socket.socket | None = control
        self.poller.watch(control.fileno(), select.EPOLLIN, self._on_control)

    def run(self) -> None:
        """Serves until there is nothing left to serve."""
        try:
            self.poller.run()
        except Exception:
            for server in self._servers:
                keep_fault(server.bundle, "loop")
            raise

    def _on_control(self, events: int) -> None:
        assert self._control is not None
        try:
            job = receive_job(self._control)
        except BlockingIOError:
            return
        if job is not None:
            self._serve(job)
            return
        self.poller.unwatch(self._control.fileno())
        self._control.close()
        self._control = None
        self._end_if_idle()

    def _serve(self, job: Job) -> None:
        syscalls.set_name(NAME)
        try:
            self._servers.append(TaskServer(self.poller, self._house, job, self._ended))
        except Exception:
            keep_fault(job.bundle, "adopt" if job.adopt else "serve")
            job.listener.close()
            os.close(job.lock)
            self._tell_ended()

    def _ended(self, server: TaskServer) -> None:
        server.close()
        self._servers.remove(server)
        if not self._servers:
            syscalls.set_name(SPARE_NAME)
            # Lets go of the last container's mounts.
            kernel.setns(self._house.host_namespace, kernel.CLONE_NEWNS)
        self._tell_ended()
        self._end_if_idle()

    def _tell_ended(self) -> None:
        if self._control is not None:
            try:
                self._control.send(ENDED, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # it is gone, as the socket is about to tell

    def _end_if_idle(self) -> None:
        if not self._servers and self._control is None:
            self.poller.stop()

    def _on_orphan(self, pid: int, wait_status: int) -> None:
        if not any(server.container.is_end_of(pid, wait_status) for server in self._servers):
            for server in self._servers:
                server.container.runner.on_orphan(pid, wait_status)


def main(control: socket.socket, house: House) -> None:
    """The life of a forked shim."""
    failpoints.enter("shim")
    os.setsid()
    syscalls.become_subreaper()
    syscalls.set_name(SPARE_NAME)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when it is asked to, or by SIGKILL
    Shim(control, house).run()
