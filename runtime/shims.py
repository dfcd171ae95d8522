"""The source of shims: an actor that keeps one fork server alive.

    STARTING --the server said hello--> READY --the server is gone--> crash, started anew

Shims outlive it: the task actors find theirs by their sockets. A fork that fails is the caller's
refusal; only the server's death is this actor's.
"""

from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import Unavailable
from ..actors.exits import ActorExited
from ..actors.message import Request
from ..actors.system import System
from . import vault
from .guarantee import Level
from .latereaper import LATE_S, LateReaper
from .orphans import Orphans
from .shimclient import ForkServer
from .syscalls import become_subreaper

NAME = "fork-server"
SPAWN_WITHIN_S = 15.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GetServer(Request[ForkServer]):
    """Asked by `spawn_shim`; answered with the living fork server."""


class ForkServerGone(Exception):
    """The fork server ended, which it never does by itself."""


async def fork_server() -> ForkServer:
    """The running system's fork server; Unavailable while it is being started anew."""
    shims = System.current().whereis(NAME)
    if shims is None:
        raise Unavailable("the fork server is being started")
    try:
        return await shims.call(GetServer(), timeout_s=SPAWN_WITHIN_S)
    except (ActorExited, ForkServerGone) as error:
        raise Unavailable(f"the fork server is gone: {error}") from error


async def spawn_shim(bundle: Path, /, *, adopt: bool = False) -> int:
    """Fork a shim for the bundle through the running system's fork server; its pid.

    Unavailable while the server is being started anew, or when it does not answer.
    """
    server = await fork_server()
    # Asked over its own connection, not through the mailbox: forks run beside each other.
    failpoints.passed("shim.spawn")
    pid = await server.spawn_shim(bundle, adopt=adopt)
    failpoints.passed("shim.spawned")
    return pid


class Shims(Actor):
    """Owns the fork server's process and connection."""

    def __init__(self, state: Path | None = None, tasks_per_shim: int = 1) -> None:
        super().__init__()
        self._state = state
        self._tasks_per_shim = tasks_per_shim
        self._server: ForkServer | None = None
        self._started = trio.Event()

    def on_start(self) -> None:
        """Ready at once, so that the daemon serves while the server starts: who asks for it
        waits, and learns of a start that failed by this actor's end."""
        self.spawn_task(self._run)

    async def on_receive(self, message: GetServer) -> ForkServer:
        if self._server is None:
            await self._started.wait()
        assert self._server is not None
        return self._server

    async def _run(self) -> None:
        try:
            server = self._server = await ForkServer.start(
                self._state, tasks_per_shim=self._tasks_per_shim
            )
            self._started.set()
            if server.guarantee.level is not Level.PINS:
                self.spawn_task(_inherit, self._state)
            try:
                await server.run()
            finally:
                with trio.CancelScope(shield=True):
                    await server.aclose()
        finally:
            if self._state is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(vault.leave, str(self._state))
        raise ForkServerGone(f"fork server {server.pid} ended")

    def describe_state(self) -> str:
        return f"fork server {self._server.pid}" if self._server is not None else "starting"


async def _inherit(state: Path | None) -> None:
    """Takes over what shims and a fork server leave when they die, and reaps it late."""
    become_subreaper()
    reaper = LateReaper()
    orphans = Orphans(f"{state}/orphans" if state is not None else "")
    while True:
        for identity, wait_status in reaper.look():
            orphans.tell(identity, wait_status)
            log.debug("orphan.ended", pid=identity.pid)
        await trio.sleep(LATE_S / 2)
