"""A link: a task's connection to its shim, kept up for as long as the task lives.

    fresh --spawn--> up --lost--> down --connect, else adopt--> up --end--> ended
                                    |  ^
                                    +--+ with growing pauses, the reason in sight

When the connection is lost, the link connects anew; when nothing listens, the shim is dead, and
the fork server is asked for one that adopts what the dead one left. A shim that listens and does
not answer is hung, not dead: it is not replaced, only its own task waits.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import trio

from ..actors.errors import Refusal, Unavailable
from .shimclient import ShimClient, ShimEvent, ShimState

PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 2.0


class SpawnShim(Protocol):
    """Asks the fork server for a shim; returns when its socket listens."""

    def __call__(self, bundle: Path, /, *, adopt: bool = False) -> Awaitable[object]: ...


class ShimLink:
    """One task's link. Its owner runs `keep_up` in a task; anybody asks for the `client`."""

    def __init__(self, bundle: Path, spawn_shim: SpawnShim, attach_within_s: float) -> None:
        self._bundle = bundle
        self._spawn_shim = spawn_shim
        self._attach_within_s = attach_within_s
        self._client: ShimClient | None = None
        self._changed = trio.Event()
        self.ended = False
        """Its owner has left it; an actor that restarts brings a link of its own."""
        self.bundle_lost = False
        """The bundle is gone, so that no shim can be adopted, ever."""
        self.why_down = "not yet connected"
        """Why there is no connection; for refusals and whoever looks at the tree."""

    @property
    def shim_pid(self) -> int | None:
        """The connected shim's process id, for whoever looks at the processes."""
        return None if self._client is None else self._client.pid

    async def client(self, within_s: float) -> ShimClient:
        """The connected client; Unavailable with the reason when there is none in time."""
        client = self._client
        if client is None:
            with trio.move_on_after(within_s):
                client = await self.client_or_end()
        if client is None:
            raise Unavailable(f"shim of {self._bundle.name}: {self.why_down}")
        return client

    async def client_or_end(self) -> ShimClient | None:
        """The connected client, whenever that is; None when there will be none any more."""
        while self._client is None and not self.ended and not self.bundle_lost:
            await self._changed.wait()
        return self._client

    async def keep_up(
        self,
        on_event: Callable[[ShimEvent], None],
        on_seen: Callable[[ShimState], None],
        on_lost: Callable[[], None],
        *,
        fresh: bool = False,
    ) -> None:
        """Connect, read events, connect again; returns when the link was ended.

        A `fresh` bundle gets a new shim, and one attempt. After each other connection `on_seen`
        gets the shim's state; it comes before any event of that connection that it does not
        include. `on_lost` is called, once, when the bundle is gone.
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
                if not fresh and not self._bundle.is_dir():
                    self.bundle_lost = True
                    self._set(None, "its bundle is gone")
                    on_lost()
                if fresh or self.bundle_lost:
                    return
            else:
                told = await self._serve(client, on_event, None if fresh else on_seen)
                if told:
                    pause_s = PAUSE_FIRST_S
                    self._set(None, "connection lost")
            fresh = False
            if not self.ended:
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def end(self) -> None:
        """Close the connection for good; the shim is not asked to end."""
        self.ended = True
        client = self._client
        self._set(None, "the task is gone")
        if client is not None:
            await client.aclose()

    async def _connect(self, fresh: bool) -> ShimClient:
        with trio.move_on_after(self._attach_within_s):
            if fresh:
                await self._spawn_shim(self._bundle)
                return await ShimClient.connect(self._bundle)
            try:
                return await ShimClient.connect(self._bundle)
            except Unavailable as error:
                if not isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError):
                    raise
            if not self._bundle.is_dir():
                raise Unavailable(f"no bundle {self._bundle}")
            await self._spawn_shim(self._bundle, adopt=True)
            return await ShimClient.connect(self._bundle)
        raise Unavailable(f"no shim within {self._attach_within_s} s")

    async def _serve(
        self,
        client: ShimClient,
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

    def _set(self, client: ShimClient | None, why_down: str) -> None:
        self._client = client
        self.why_down = why_down
        self._changed.set()
        self._changed = trio.Event()
