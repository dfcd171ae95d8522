"""The poller: one epoll loop that runs the shim, with coroutines for what takes several steps.

A coroutine waits on an `Event` (set once), on `child` (a process's wait status), or on `sleep`.
Descriptors have callbacks. Nothing here starts a thread; a shim has one, and forks stay safe.

Children are reaped here and nowhere else, through SIGCHLD: those that someone waits for, those
that `on_orphan` is told of. Standard library alone: the fork server preloads this file.
"""

import fcntl
import heapq
import itertools
import os
import select
import signal
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Final

LOOK_FIRST_S: Final = 0.001
LOOK_MAX_S: Final = 0.05
CHANGES: Final = fcntl.DN_MODIFY | fcntl.DN_RENAME | fcntl.DN_MULTISHOT

Callback = Callable[[int], None]


class Event:
    """Becomes set once; every coroutine that waits for it then goes on."""

    __slots__ = ("_poller", "_waiters", "is_set")

    def __init__(self, poller: "Poller") -> None:
        self.is_set = False
        self._poller = poller
        self._waiters: list[Coroutine[Any, Any, None]] = []

    def set(self) -> None:
        """Wakes all who wait, in the loop's next round."""
        if not self.is_set:
            self.is_set = True
            for waiter in self._waiters:
                self._poller.spawn(waiter)
            self._waiters.clear()

    def __await__(self) -> Generator["Event", None, None]:
        if not self.is_set:
            yield self

    def add(self, waiter: Coroutine[Any, Any, None]) -> None:
        """Called by the poller for a coroutine that yielded this event."""
        self._waiters.append(waiter)


class Poller:
    """Owns SIGCHLD and the loop of the process in which it is made."""

    def __init__(
        self,
        on_orphan: Callable[[int, int], None],
        before_reap: Callable[[int], None] | None = None,
    ) -> None:
        """`on_orphan(pid, wait_status)` hears of each reaped child that no one waits for.

        `before_reap(pid)` hears of every child while it is a zombie.
        """
        self._on_orphan = on_orphan
        self._before_reap = before_reap
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._soon: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._children: dict[int, Event] = {}
        self._statuses: dict[int, int] = {}
        self._stopped = False
        self._looks: list[Callable[[], None]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGCHLD, signal.SIGIO):
            signal.signal(number, _heard)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self.watch(self._wake_read, select.EPOLLIN, self._woken)
        # A child may have died before the handler was there.
        self.soon(self._reap)

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Calls back with the ready events of a descriptor, level-triggered; replaces a watch."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Ends a watch, if there is one. Call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def soon(self, action: Callable[[], None]) -> None:
        """Runs an action in the next round, after those that were given before."""
        self._soon.append(action)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Runs an action after a delay."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._numbers), action))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts a coroutine. An exception that leaves it ends the loop: handle it inside."""
        self.soon(lambda: self.step(work))

    def step(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine to its next wait, now."""
        try:
            event: Event = work.send(None)
        except StopIteration:
            return
        event.add(work)

    async def sleep(self, delay_s: float) -> None:
        """Lets the others run for a while."""
        event = Event(self)
        self.later(delay_s, event.set)
        await event

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Looks until a condition holds, ever less often; False when it does not in time.

        For what no descriptor tells. Prefer an event.
        """
        deadline_s = time.monotonic() + within_s
        pause_s = LOOK_FIRST_S
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            await self.sleep(pause_s)
            pause_s = min(pause_s * 2, LOOK_MAX_S)
        return True

    @contextmanager
    def told_of(self, directory: str, look: Callable[[], None]) -> Generator[None]:
        """Meanwhile, `look` is called when a file in a directory was written or renamed, and now
        and then for nothing. Where the kernel does not tell (fcntl(2), F_NOTIFY) it never is.

        Not by inotify: a user has 128 instances of it, and to close one waits for the kernel.
        """
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.fcntl(descriptor, fcntl.F_NOTIFY, CHANGES)
            except OSError:
                pass  # there is none, or the host forbids it
            self._looks.append(look)
            try:
                yield
            finally:
                self._looks.remove(look)
        finally:
            os.close(descriptor)

    async def child(self, pid: int) -> int:
        """Waits for a child and gives its wait status. Call it right after the child was made."""
        event = self._children[pid] = Event(self)
        await event
        return self._statuses.pop(pid)

    def run(self) -> None:
        """Runs until `stop`."""
        while not self._stopped:
            ready, self._soon = self._soon, []
            for action in ready:
                action()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            timeout_s = -1.0
            if self._soon:
                timeout_s = 0.0
            elif self._timers:
                timeout_s = max(0.0, self._timers[0][0] - time.monotonic())
            for fd, events in self._epoll.poll(0.0 if self._stopped else timeout_s):
                callback = self._callbacks.get(fd)
                if callback is not None:  # an earlier callback of this round may have ended it
                    callback(events)

    def stop(self) -> None:
        """Makes `run` return after the present round."""
        self._stopped = True

    def close(self) -> None:
        """Gives the descriptors back: a forked child makes a poller of its own."""
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _woken(self, events: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        self._reap()
        for look in list(self._looks):
            look()

    def _reap(self) -> None:
        while True:
            try:
                if self._before_reap is not None:
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                    if found is None:
                        return
                    self._before_reap(found.si_pid)
                    pid, status = os.waitpid(found.si_pid, 0)
                else:
                    pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            event = self._children.pop(pid, None)
            if event is None:
                self._on_orphan(pid, status)
            else:
                self._statuses[pid] = status
                event.set()


def _heard(number: int, frame: types.FrameType | None) -> None:
    """The signals' handler does nothing: the wakeup descriptor does the work."""
