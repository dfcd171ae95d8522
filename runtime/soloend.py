"""The end of a Solo, which its daemon asks for when the front has died; and where shims come from.

    <bundle>/solo.pid      the front, by pid and start time

Whoever is left in the bundle, shim or container, is ended; a shim that has died too is adopted for
that first, so that a container's end is the same in every case.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from time import time_ns

import trio

from ..actors.errors import FailedPrecondition, Refusal, Unavailable
from . import procfs
from .exec import exit_record
from .records import ExitRecord
from .shimclient import ForkServer
from .shimverbs import OwnShims, Shim, SpawnShim, is_dead, opened

SIGKILL = 9
STATUS_KILLED = 128 + SIGKILL
ENDED_WITHIN_S = 10.0
PID = "solo.pid"
BEGUN = ("shim.sock", "shim.json")
"""What of ours is in a bundle that a shim was ever asked to serve."""


@asynccontextmanager
async def fork_server() -> AsyncGenerator[SpawnShim]:
    """For the length of a block: asks a fork server for shims, a new one when it has died.

    Nothing is pinned: the daemon that we serve takes our own death as the container's.
    """
    servers: list[ForkServer] = []
    one_at_a_time = trio.Lock()
    async with trio.open_nursery() as nursery:

        async def spawn(bundle: Path, /, *, adopt: bool = False) -> object:
            async with one_at_a_time:
                if not servers or servers[-1].closed.is_set():
                    servers.append(await ForkServer.start(pins=False))
                    nursery.start_soon(servers[-1].run)
            return await servers[-1].spawn_shim(bundle, adopt=adopt)

        try:
            yield spawn
        finally:
            with trio.CancelScope(shield=True):
                for server in servers:
                    await server.aclose()
            nursery.cancel_scope.cancel()


async def end_bundle(bundle: Path) -> ExitRecord:
    """Removes what a dead Solo left in its bundle: the container, the shim; how it ended."""
    await trio.to_thread.run_sync(_kill_front, bundle)
    if any((bundle / name).exists() for name in BEGUN):
        try:
            try:
                async with opened(OwnShims(_no_spawn), bundle) as shim:
                    return await _end_task(shim)
            except Unavailable as error:
                if not is_dead(error):
                    raise
            async with fork_server() as spawn:
                await spawn(bundle, adopt=True)
                async with opened(OwnShims(_no_spawn), bundle) as shim:
                    return await _end_task(shim)
        except* Refusal as refused:
            reasons = ", ".join(str(error) for error in refused.exceptions)
            raise FailedPrecondition(f"bundle {bundle}: {reasons}") from refused
    return ExitRecord(pid=0, status=STATUS_KILLED, exited_at_ns=time_ns())


async def _end_task(shim: Shim) -> ExitRecord:
    within_s = ENDED_WITHIN_S
    exit = ExitRecord(pid=0, status=STATUS_KILLED, exited_at_ns=time_ns())
    if "" in (await shim.state(timeout_s=within_s)).processes:
        try:
            await shim.kill(SIGKILL, all=True, timeout_s=within_s)
        except Refusal:
            pass  # it has ended
        with trio.move_on_after(within_s):
            while (await shim.process_state()).status != "stopped":  # noqa: ASYNC110
                await trio.sleep(0.005)
        exit = exit_record(await shim.delete(timeout_s=within_s), 0)
    await shim.shutdown(timeout_s=within_s)
    return exit


async def _no_spawn(bundle: Path, /, *, adopt: bool = False) -> object:
    raise Unavailable(f"no fork server for {bundle} (adopt: {adopt})")


def _kill_front(bundle: Path) -> None:
    front = procfs.read_identity(str(bundle / PID))
    pidfd = procfs.open_pidfd(front) if front is not None else None
    if pidfd is not None:
        try:
            procfs.kill(pidfd)
        finally:
            os.close(pidfd)
