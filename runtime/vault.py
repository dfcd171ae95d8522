"""The vault: a mount namespace in which the kernel keeps what must outlive each process of ours.

    <state>/vault/ns      the namespace itself, bound: it lives although no process is in it
    <state>/vault/lock    held by the fork server that uses it
    (inside) /<bundle>/<name>    one pin: a mount that holds a kernel object

A pin of a process is its pidfd, mounted: whoever opens it later is told how the process ended,
also after it was reaped and its pid given to another. A pin of a FIFO is an autofs mount whose
`fd=` is an open end: readers and writers do not fall to zero, so that unread bytes stay, and
nobody is told of an EOF or sent a SIGPIPE for our death. Both end when they are unpinned.

Nothing else is mounted inside, and no container is ever made from there. A process that pins goes
in by itself and comes back: it must have one thread. Standard library alone: the fork server
preloads this file.
"""

import fcntl
import glob
import os
import signal
import stat
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from ..storage import syscalls as kernel
from . import syscalls

NS_GET_NSTYPE: Final = 0xB703
LOCK_WITHIN_S: Final = 2.0
LOOK_S: Final = 0.005


class Vault:
    """The way into one vault, for as long as the descriptor of its namespace is open."""

    def __init__(self, namespace: int, lock: int = -1) -> None:
        self._namespace = namespace
        self._lock = lock
        self.keeps_processes = False
        """Whether a pin of a process tells how it ended; `open_vault` finds out."""

    def pin_process(self, bundle: str, name: str, pidfd: int) -> None:
        """Keeps what the kernel knows of a process; a pin of that name is replaced."""
        tree = kernel.open_tree(
            pidfd, "", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLONE | os.O_CLOEXEC
        )
        try:
            with self._inside():
                path = _room(bundle, name)
                _unpin(path)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                kernel.move_mount(tree, path)
        finally:
            os.close(tree)

    def pin_fifo(self, bundle: str, name: str, end: int) -> None:
        """Keeps an open end of a FIFO; a pin of that name is replaced.

        It must be writable and an open file of its own, which nobody else writes through: the
        kernel turns it into a packet pipe.
        """
        with self._inside():
            path = _room(bundle, name)
            _unpin(path)
            os.mkdir(path, 0o700)
            # Indirect: then find, du and ls pass over it. Who looks up a name in it would wait,
            # and his question be written to the client: nobody does, for nobody is in here.
            data = f"fd={end},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect"
            kernel.mount("holdfast", path, "autofs", 0, data)

    def open_process(self, bundle: str, name: str) -> int | None:
        """A pidfd from a pin; None when there is none."""
        with self._inside():
            path = f"/{bundle}/{name}"
            try:
                pidfd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            # The file on which it was to be mounted, when its maker died in between.
            if os.fstat(pidfd).st_dev == os.stat("/").st_dev:
                os.close(pidfd)
                return None
            return pidfd

    def unpin(self, bundle: str, *names: str) -> None:
        """Lets go of pins; those that are not there are no error."""
        with self._inside():
            for name in names:
                _unpin(f"/{bundle}/{name}")

    def clear(self, bundle: str) -> None:
        """Lets go of all that a bundle has pinned."""
        with self._inside():
            try:
                # The bundle's own mount goes with all that is mounted in it, in one step.
                kernel.umount2(f"/{bundle}", kernel.MNT_DETACH)
            except OSError:  # its maker died before it was one, or it is not there
                pass
            try:
                names = os.listdir(f"/{bundle}")
            except FileNotFoundError:
                return
            for name in names:
                _unpin(f"/{bundle}/{name}")
            os.rmdir(f"/{bundle}")

    def pins(self) -> Sequence[str]:
        """Every pin, as `<bundle>/<name>`."""
        with self._inside():
            return [f"{one}/{name}" for one in os.listdir("/") for name in os.listdir(f"/{one}")]

    def unlock(self) -> None:
        """In a child that was forked: the lock is its parent's alone."""
        os.close(self._lock)

    def close(self) -> None:
        """Gives the descriptor back; what is pinned stays."""
        os.close(self._namespace)

    @contextmanager
    def _inside(self) -> Generator[None]:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(self._namespace, kernel.CLONE_NEWNS)
            try:
                yield
            finally:
                # Root and working directory become those of the namespace, "/" in both cases.
                kernel.setns(home, kernel.CLONE_NEWNS)
        finally:
            os.close(home)


def bundle_key(bundle: str) -> str:
    """The name of a bundle's pins: namespace and id. Identifiers have no comma."""
    parent, id = os.path.split(bundle.rstrip("/"))
    return f"{os.path.basename(parent)},{id}"


def open_vault(state: str) -> Vault:
    """The vault of a state directory, made if there is none; OSError when the kernel cannot.

    A bound namespace of an earlier boot is only a file by now, and is made anew. Before Linux 6.15
    a vault keeps FIFOs alone.
    """
    directory = f"{state}/vault"
    lock = _lock(directory)
    namespace = _open_namespace(directory)
    try:
        if namespace is None:
            _make_namespace(directory)
            namespace = _open_namespace(directory)
            if namespace is None:
                raise OSError(f"{directory}/ns does not hold a mount namespace")
        vault = Vault(namespace, lock)
        _prove(vault)
    except BaseException:
        if namespace is not None:
            os.close(namespace)
        os.close(lock)
        raise
    return vault


def leave(state: str) -> None:
    """Removes a vault in which nothing can be pinned, for there is no bundle. For a host that ends
    in order, its fork server ended: the vault's mount would keep the directory from being removed.
    """
    if not any(glob.iglob(f"{glob.escape(state)}/tasks/*/*")):
        teardown(state)


def teardown(state: str) -> bool:
    """Removes a vault with all its pins; tells whether there was one.

    What is pinned is lost then, unless a process holds it too: for a host that is given up.
    """
    directory = f"{state}/vault"
    found = False
    while True:
        try:
            kernel.umount2(f"{directory}/ns", kernel.MNT_DETACH)
            found = True
        except OSError:  # nothing is mounted there (any more)
            break
    for name in ("ns", "lock"):
        try:
            os.unlink(f"{directory}/{name}")
        except FileNotFoundError:
            pass
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    return found


def pins(state: str) -> Sequence[str]:
    """The pins of a state directory, for whoever looks; none when it has no vault.

    Goes in by itself: the caller must have one thread.
    """
    namespace = _open_namespace(f"{state}/vault")
    if namespace is None:
        return []
    vault = Vault(namespace)
    try:
        return vault.pins()
    finally:
        vault.close()


def _lock(directory: str) -> int:
    """Waits until an earlier fork server is done with the vault, which it may remove.

    Not for ever: one that is stopped keeps its lock, and pins are safe without.
    """
    deadline_s = time.monotonic() + LOCK_WITHIN_S
    while True:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(f"{directory}/lock")):
                return lock
        except (BlockingIOError, FileNotFoundError):
            if time.monotonic() > deadline_s:
                return lock
        os.close(lock)
        time.sleep(LOOK_S)


def _open_namespace(directory: str) -> int | None:
    try:
        namespace = os.open(f"{directory}/ns", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if fcntl.ioctl(namespace, NS_GET_NSTYPE) == kernel.CLONE_NEWNS:
            return namespace
    except OSError:  # a plain file
        pass
    os.close(namespace)
    return None


def _make_namespace(directory: str) -> None:
    """Binds a new namespace that holds one empty tmpfs and nothing of the host's."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    maker = os.fork()
    if maker == 0:
        try:
            os.close(alive_write)
            _become_vault(directory)
            os.write(ready_write, b"1")
            os.read(alive_read, 1)  # until we are killed, or our parent is
        finally:
            os._exit(1)
    try:
        os.close(ready_write)
        if not os.read(ready_read, 1):
            raise OSError("the vault's namespace could not be made")
        path = f"{directory}/ns"
        os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
        kernel.mount(f"/proc/{maker}/ns/mnt", path, None, kernel.MS_BIND)
    finally:
        for end in (ready_read, alive_read, alive_write):
            os.close(end)
        os.kill(maker, signal.SIGKILL)
        os.waitpid(maker, 0)


def _become_vault(directory: str) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_PRIVATE | kernel.MS_REC)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("holdfast-vault", directory, "tmpfs", flags, "mode=0700,size=16m,nr_inodes=0")
    os.chdir(directory)
    # The old root ends up on top of the new one, and is let go with all that is mounted in it.
    syscalls.pivot_root(".", ".")
    kernel.umount2(".", kernel.MNT_DETACH)
    os.chdir("/")


def _prove(vault: Vault) -> None:
    """Pins one of each kind: better to know now than when something is to be kept."""
    pidfd = os.pidfd_open(os.getpid())
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        vault.pin_fifo("proof", "fifo", writer)
        if syscalls.pidfds_tell_exits():
            try:
                vault.pin_process("proof", "process", pidfd)
                vault.keeps_processes = True
            except OSError:  # pidfds that tell, but cannot be mounted
                pass
    finally:
        vault.clear("proof")
        for descriptor in (pidfd, reader, writer):
            os.close(descriptor)


def _room(bundle: str, name: str) -> str:
    try:
        os.mkdir(f"/{bundle}", 0o700)
        kernel.mount(f"/{bundle}", f"/{bundle}", None, kernel.MS_BIND)
    except FileExistsError:
        pass
    return f"/{bundle}/{name}"


def _unpin(path: str) -> None:
    while True:
        try:
            kernel.umount2(path, kernel.MNT_DETACH)
        except OSError:  # it is no mount (any more), or was never there
            break
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        os.rmdir(path)
    else:
        os.unlink(path)
