"""What a task asks of its shim, whichever program that is.

    source = ground.shims(record)             # ours, or the binary that a runtime's name means
    await source.spawn(bundle)                # a shim for a new bundle; returns when it listens
    shim = await source.connect(bundle)       # run `shim.serve(on_event)` in a task
    pid = await shim.create(...); await shim.start()

A shim outlives its connections and the daemon. Who connects anew asks for `state()` first: it holds
each process with its exit. Every verb raises the shim's refusal, DeadlineExceeded, or Unavailable
when the connection is lost; `closed` is set then. When nobody listens any more, `connect` raises
Unavailable from ConnectionRefusedError or FileNotFoundError, and `spawn` with `adopt` sees to it
that the next `connect` can tell what became of the container.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from ..actors.errors import Unavailable
from .metrics import Counted
from .shimclient import Exited, MountLike, ProcessState, ShimClient, ShimEvent, ShimState
from .stdio import Stdio


class Shim(Protocol):
    """One connection to a shim, about one task. An empty exec id means its first process."""

    @property
    def closed(self) -> trio.Event: ...

    async def serve(self, on_event: Callable[[ShimEvent], None]) -> None:
        """Reads answers and events until the connection is lost."""

    async def aclose(self) -> None:
        """Ends the connection; the shim lives on."""

    async def create(
        self,
        *,
        id: str,
        namespace: str,
        rootfs: Sequence[MountLike],
        stdio: Stdio,
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> int:
        """Creates the container of the bundle's config.json; gives its first process's pid."""
        ...

    async def start(self, exec_id: str = "", *, timeout_s: float) -> int:
        """Runs what was created; gives the pid."""
        ...

    async def settle(self, exec_id: str = "", *, timeout_s: float) -> tuple[int, str]:
        """After the connection was lost over a create or start: the pid and status it led to."""
        ...

    async def exec(self, exec_id: str, spec: bytes, stdio: Stdio, *, timeout_s: float) -> None:
        """Adds a further process from an OCI process spec in JSON; `start` runs it."""

    async def kill(
        self, signal: int, exec_id: str = "", *, all: bool = False, timeout_s: float
    ) -> None:
        """Sends a signal to one process, or with `all` to every process of the container."""

    async def pause(self, *, timeout_s: float) -> None:
        """Freezes the container."""

    async def resume(self, *, timeout_s: float) -> None:
        """Thaws the container."""

    async def update(
        self, resources: bytes, *, annotations: Mapping[str, str], timeout_s: float
    ) -> None:
        """Changes the limits to those of an OCI resources object in JSON."""

    async def pids(self, *, timeout_s: float) -> list[tuple[int, str | None]]:
        """Every pid in the container; beside it the exec id where it is a process of ours."""
        ...

    async def resize(self, width: int, height: int, exec_id: str = "", *, timeout_s: float) -> None:
        """Sets the size of a process's terminal in characters."""

    async def close_io(self, exec_id: str = "", *, timeout_s: float) -> None:
        """Closes the shim's end of a process's stdin."""

    async def delete(self, exec_id: str = "", *, timeout_s: float) -> Exited:
        """Removes a stopped process; for the first process all that the container had."""
        ...

    async def state(self, *, timeout_s: float) -> ShimState:
        """What the shim knows now."""
        ...

    async def process_state(self, exec_id: str = "") -> ProcessState:
        """One process out of `state()`; NotFound when there is none."""
        ...

    async def metrics(self, *, timeout_s: float) -> Counted:
        """What the container used until now."""
        ...

    async def shutdown(self, *, timeout_s: float) -> None:
        """Ends the shim, unless it has something left to do."""


class ShimSource(Protocol):
    """Where the shims of one task come from."""

    async def spawn(self, bundle: Path, /, *, adopt: bool = False) -> object:
        """A shim for the bundle; with `adopt` one after a shim that is dead."""
        ...

    async def connect(self, bundle: Path, /) -> Shim:
        """Connects to the shim of a bundle; Unavailable when none listens."""
        ...


class SpawnShim(Protocol):
    """Asks the fork server for a shim; returns when its socket listens."""

    async def __call__(self, bundle: Path, /, *, adopt: bool = False) -> object: ...


class OwnShims:
    """Our own shims, of the fork server."""

    def __init__(self, spawn: SpawnShim) -> None:
        self.spawn = spawn

    async def connect(self, bundle: Path, /) -> Shim:
        return await ShimClient.connect(bundle)


@asynccontextmanager
async def opened(source: ShimSource, bundle: Path) -> AsyncGenerator[Shim]:
    """Connected and served for the length of a block; Unavailable when no shim listens."""
    shim = await source.connect(bundle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shim.serve, _unheard)
        yield shim
        nursery.cancel_scope.cancel()


def _unheard(event: ShimEvent) -> None:
    """Who only asks hears nothing."""


def is_dead(error: Unavailable) -> bool:
    """Whether a connect failed because nobody listens, not because nobody answers."""
    return isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
