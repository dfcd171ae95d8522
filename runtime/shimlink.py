"""A link: a task's connection to its shim, kept up for as long as the task lives.

    fresh --spawn--> up --lost--> down --connect, else adopt--> up --end--> ended
                                    |  ^
                                    +--+ with growing pauses, the reason in sight

When the connection is lost, the link connects anew; when nothing listens, the shim is dead, and
its source is asked for one that adopts what the dead one left. A shim of ours holds nothing that
the kernel and the bundle do not hold too, so that one which is stopped is ended and replaced like a
dead one: `look` does that, which the minder calls for every link.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from ..actors.errors import NotFound, Refusal, Unavailable
from . import procfs
from .shim import LOCK_NAME
from .shimclient import ShimEvent, ShimState
from .shimverbs import Shim, ShimSource, is_dead

R = TypeVar("R")

PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 2.0
STOPPED = "Tt"
"""The states of a process that a signal or a debugger has stopped: proc_pid_stat(5)."""
LASTED_S = 0.05
"""A connection that lasted so long is made anew at once."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def ride_out(
    connect: Callable[[], Awaitable[Shim]],
    begin: Callable[[Shim], Awaitable[int]],
    exec_id: str = "",
    *,
    no_effect: str = "",
    settle_within_s: float,
) -> int:
    """Makes or starts a process, whatever becomes of the shim meanwhile; gives its pid.

    `begin` asks a shim for it. When that shim dies, the next one, which `connect` gives, is asked
    what has come of it, and for the thing itself only when it never began: when there is no such
    process, or one with the status `no_effect`. Refusals are a shim's, or those of `connect`.
    """
    begun = False
    while True:
        client = await connect()
        try:
            if not begun:
                return await begin(client)
            pid, status = await client.settle(exec_id, timeout_s=settle_within_s)
            if status != no_effect:
                return pid
            begun = False
        except NotFound:
            if not begun:
                raise
            begun = False
        except Unavailable:
            if not client.closed.is_set():
                raise
            begun = True


async def insist(connect: Callable[[], Awaitable[Shim]], ask: Callable[[Shim], Awaitable[R]]) -> R:
    """Asks a shim for what may be done twice, and the next one when the shim dies over it."""
    while True:
        client = await connect()
        try:
            return await ask(client)
        except Unavailable:
            if not client.closed.is_set():
                raise


class ShimLink:
    """One task's link. Its owner runs `keep_up` in a task; anybody asks for the `client`."""

    def __init__(self, bundle: Path, source: ShimSource, attach_within_s: float) -> None:
        self._bundle = bundle
        self._source = source
        self._attach_within_s = attach_within_s
        self._client: Shim | None = None
        self._changed = trio.Event()
        self.ended = False
        """Its owner has left it; an actor that restarts brings a link of its own."""
        self.bundle_lost = False
        """The bundle is gone, so that no shim can be adopted, ever."""
        self.why_down = "not yet connected"
        """Why there is no connection; for refusals and whoever looks at the tree."""
        self.replaced = 0
        """How many shims that were stopped were ended."""
        self._stopped: procfs.Identity | None = None
        # Who serves this client, once it was found to live: it stays so while the client does.
        self._served_by: tuple[Shim, procfs.Identity] | None = None

    async def client(self, within_s: float) -> Shim:
        """The connected client; Unavailable with the reason when there is none in time."""
        client = self._live()
        if client is None:
            with trio.move_on_after(within_s):
                client = await self.client_or_end()
        if client is None:
            raise Unavailable(f"shim of {self._bundle.name}: {self.why_down}")
        return client

    def describe(self) -> str:
        """What the shim is about, for whoever looks at the tree; empty when all is well."""
        told = [self.why_down] if self.why_down else []
        if self.replaced:
            told.append(f"{self.replaced} stopped shims were replaced")
        return ", ".join(told)

    def look(self, stat: Callable[[int], procfs.Stat | None]) -> None:
        """Looks whether the shim is stopped; one that was so at the last look too is ended.

        `stat` is `procfs.stat`, or what that said a moment ago.
        """
        client, shim = self._client, self._identity()
        found = None if shim is None else stat(shim.pid)
        if shim is None or found is None or found.start_time_ticks != shim.start_time_ticks:
            self._served_by = None
            return
        self._served_by = None if client is None else (client, shim)
        if found.state not in STOPPED:
            if self._stopped is not None:
                self._stopped = None
                self.why_down = "" if self._client is not None else self.why_down
            return
        self.why_down = f"shim {shim.pid} is stopped"
        if self._stopped != shim:
            self._stopped = shim
            log.warning("shim.stopped", bundle=self._bundle.name, pid=shim.pid)
            return
        pidfd = procfs.open_pidfd(shim)
        if pidfd is not None:
            log.warning("shim.replaced", bundle=self._bundle.name, pid=shim.pid)
            self.replaced += 1
            self._stopped = None
            try:
                procfs.kill(pidfd)
            finally:
                os.close(pidfd)

    def _identity(self) -> procfs.Identity | None:
        if self._served_by is not None and self._served_by[0] is self._client:
            return self._served_by[1]
        return procfs.read_identity(f"{self._bundle}/{LOCK_NAME}")

    async def client_or_end(self) -> Shim | None:
        """The connected client, whenever that is; None when there will be none any more."""
        while (client := self._live()) is None and not self.ended and not self.bundle_lost:
            await self._changed.wait()
        return client

    def _live(self) -> Shim | None:
        """The client, unless its connection was lost, which `keep_up` is about to see."""
        return None if self._client is None or self._client.closed.is_set() else self._client

    async def keep_up(
        self,
        on_event: Callable[[ShimEvent], None],
        on_seen: Callable[[ShimState], None],
        on_lost: Callable[[], None],
        *,
        fresh: bool = False,
    ) -> None:
        """Connect, read events, connect again; returns when the link was ended.

        A `fresh` bundle gets a new shim; that a fork server dies over it is no end, but a refusal
        of its is. After each other connection `on_seen` gets the shim's state; it comes before any
        event of that connection that it does not include. `on_lost` is called, once, when the
        bundle is gone.
        """
        try:
            await self._keep_up(on_event, on_seen, on_lost, fresh)
        finally:
            self.ended = True
            self._set(None, self.why_down or "its actor has ended")

    async def _keep_up(
        self,
        on_event: Callable[[ShimEvent], None],
        on_seen: Callable[[ShimState], None],
        on_lost: Callable[[], None],
        fresh: bool,
    ) -> None:
        pause_s = PAUSE_FIRST_S
        while not self.ended:
            try:
                client = await self._connect(fresh)
            except (Refusal, OSError) as error:
                self._set(None, str(error))
                if not self._bundle.is_dir():
                    self.bundle_lost = True
                    self._set(None, "its bundle is gone")
                    on_lost()
                    return
                if fresh and not isinstance(error, Unavailable):
                    return
            else:
                since_s = trio.current_time()
                told = await self._serve(client, on_event, None if fresh else on_seen)
                if told:
                    self._set(None, "connection lost")
                if told and trio.current_time() - since_s > LASTED_S:
                    pause_s = 0.0
            fresh = False
            if not self.ended:
                await trio.sleep(pause_s)
                pause_s = min(max(pause_s * 2, PAUSE_FIRST_S), PAUSE_MAX_S)

    async def end(self) -> None:
        """Close the connection for good; the shim is not asked to end."""
        self.ended = True
        client = self._client
        self._set(None, "the task is gone")
        if client is not None:
            await client.aclose()

    async def _connect(self, fresh: bool) -> Shim:
        with trio.move_on_after(self._attach_within_s):
            if fresh:
                await self._source.spawn(self._bundle)
                return await self._source.connect(self._bundle)
            try:
                return await self._source.connect(self._bundle)
            except Unavailable as error:
                if not is_dead(error):
                    raise
            if not self._bundle.is_dir():
                raise Unavailable(f"no bundle {self._bundle}")
            await self._source.spawn(self._bundle, adopt=True)
            return await self._source.connect(self._bundle)
        raise Unavailable(f"no shim within {self._attach_within_s} s")

    async def _serve(
        self,
        client: Shim,
        on_event: Callable[[ShimEvent], None],
        on_seen: Callable[[ShimState], None] | None,
    ) -> bool:
        """Reads until the connection is lost; False when the shim did not tell its state."""
        told = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.serve, on_event)
            if on_seen is not None:
                try:
                    state = await client.state(timeout_s=self._attach_within_s)
                except Refusal as error:
                    self._set(None, str(error))
                    told = False
                    await client.aclose()
                else:
                    on_seen(state)
            if self.ended:
                await client.aclose()
            elif told:
                self._set(client, "")
        return told

    def _set(self, client: Shim | None, why_down: str) -> None:
        self._client = client
        self.why_down = why_down
        self._changed.set()
        self._changed = trio.Event()
