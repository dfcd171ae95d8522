"""The ground: what every task and exec actor of one host stands on.

It is handed to each of them; it holds no state of theirs but the links to their shims, which the
task actors put there and their execs share.
"""

from dataclasses import dataclass, field
from pathlib import Path

import trio

from ..actors.errors import Unavailable, Unimplemented
from ..storage.store import Store
from .foreign import NO_SOCKET, Foreign, ForeignShims, find_binary, is_foreign, left_shims
from .records import TaskRecord
from .shimlink import ShimLink
from .shimverbs import OwnShims, Shim, ShimSource, SpawnShim
from .taskfaults import TaskFaults

ASK_AGAIN_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each wait on a shim or on the OCI runtime may take."""

    attach_within_s: float = 5.0
    link_within_s: float = 2.0
    runtime_within_s: float = 60.0
    shim_within_s: float = 10.0
    execs_end_within_s: float = 1.0
    """How long a task's own exit waits for the exits of its execs, which are told first."""


class CaughtUp:
    """Whether recovery has been through all tasks since their supervisors were started last."""

    def __init__(self) -> None:
        self._ended = trio.Event()

    def begin(self) -> None:
        """A recovery is about to begin."""
        self._ended = trio.Event()

    def end(self) -> None:
        """It has ended."""
        self._ended.set()

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The store, the ways to a new shim, what is in doubt, the links, the limits."""

    store: Store
    state: Path
    spawn_shim: SpawnShim
    faults: TaskFaults
    foreign: Foreign | None = None
    """How shims are run that are not ours; None where no socket hears them."""
    oci_runtime: str = ""
    """The OCI runtime of tasks that name none; empty: the preferred one that is installed."""
    limits: Limits = Limits()
    log_binaries: Path = Path("/usr/local/lib/holdfast/loggers")
    """The folder whose programs `binary://` may name."""
    links: dict[str, ShimLink] = field(default_factory=dict[str, ShimLink])
    """By the name of the task actor that owns the link."""
    caught_up: CaughtUp = field(default_factory=CaughtUp)

    def shims(self, record: TaskRecord) -> ShimSource:
        """Where a task's shims come from."""
        if not is_foreign(record.runtime):
            return OwnShims(self.spawn_shim)
        if self.foreign is None:
            raise Unimplemented(f"runtime {record.runtime}: {NO_SOCKET}")
        return ForeignShims(
            self.foreign, record.runtime, record.namespace, record.id, record.options
        )

    async def left_shims(self, bundle: Path, namespace: str, id: str) -> ShimSource:
        """Where the shim of a bundle comes from that no record tells of."""
        return await trio.to_thread.run_sync(
            left_shims, self.foreign, self.spawn_shim, bundle, namespace, id
        )

    async def check_runtime(self, name: str) -> None:
        """Refuses a runtime's name that this host cannot serve."""
        if is_foreign(name):
            if self.foreign is None:
                raise Unimplemented(f"runtime {name}: {NO_SOCKET}")
            await trio.to_thread.run_sync(find_binary, name)

    async def client(self, task_name: str) -> Shim:
        """The connection of a task; waits for a link that is down or an actor that restarts."""
        why = "its actor is not running"
        with trio.move_on_after(self.limits.link_within_s):
            while True:
                link = self.links.get(task_name)
                if link is None or link.ended:
                    await trio.sleep(ASK_AGAIN_S)
                    continue
                why = link.why_down
                if link.bundle_lost:
                    break
                client = await link.client_or_end()
                if client is not None:
                    return client
        raise Unavailable(f"shim of {task_name}: {why}")
