"""A grave: what answers for a foreign shim that is dead, once its binary has removed the container.

It has what a task asks of a shim, so that the task's actor learns of the end as of any other, and
goes its usual way to its delete.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import trio

from ..actors.errors import NotFound, Unavailable
from .metrics import Counted
from .records import STATUS_LOST
from .shimclient import Exited, MountLike, ProcessState, ShimEvent, ShimState
from .stdio import Stdio

GONE = "the shim died, and the container with it"
FINISHED = "process already finished: not found"


class Grave:
    """A `shimverbs.Shim`. `exit` is the first process's; those of its execs nobody knows."""

    def __init__(self, namespace: str, id: str, exit: Exited, execs: Sequence[str]) -> None:
        self.closed = trio.Event()
        self._namespace = namespace
        self._id = id
        self._exits = {"": exit}
        for exec_id in execs:
            self._exits[exec_id] = Exited(
                exec_id=exec_id, pid=0, status=STATUS_LOST, exited_at_ns=exit.exited_at_ns
            )

    async def serve(self, on_event: Callable[[ShimEvent], None]) -> None:
        """Nothing happens here any more."""
        _ = on_event
        await self.closed.wait()

    async def aclose(self) -> None:
        self.closed.set()

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
        _ = id, namespace, rootfs, stdio, options, timeout_s
        self._refuse()

    async def start(self, exec_id: str = "", *, timeout_s: float) -> int:
        _ = exec_id, timeout_s
        self._refuse()

    async def settle(self, exec_id: str = "", *, timeout_s: float) -> tuple[int, str]:
        _ = exec_id, timeout_s
        self._refuse()

    async def exec(self, exec_id: str, spec: bytes, stdio: Stdio, *, timeout_s: float) -> None:
        _ = exec_id, spec, stdio, timeout_s
        self._refuse()

    async def kill(
        self, signal: int, exec_id: str = "", *, all: bool = False, timeout_s: float
    ) -> None:
        _ = signal, exec_id, all, timeout_s
        raise NotFound(FINISHED)

    async def pause(self, *, timeout_s: float) -> None:
        _ = timeout_s
        self._refuse()

    async def resume(self, *, timeout_s: float) -> None:
        _ = timeout_s
        self._refuse()

    async def update(
        self, resources: bytes, *, annotations: Mapping[str, str], timeout_s: float
    ) -> None:
        _ = resources, annotations, timeout_s
        self._refuse()

    async def pids(self, *, timeout_s: float) -> list[tuple[int, str | None]]:
        _ = timeout_s
        return []

    async def resize(self, width: int, height: int, exec_id: str = "", *, timeout_s: float) -> None:
        _ = width, height, exec_id, timeout_s

    async def close_io(self, exec_id: str = "", *, timeout_s: float) -> None:
        _ = exec_id, timeout_s

    async def delete(self, exec_id: str = "", *, timeout_s: float) -> Exited:
        _ = timeout_s
        if exec_id not in self._exits:
            raise NotFound(f'process "{exec_id}": not found')
        return self._exits[exec_id]

    async def state(self, *, timeout_s: float) -> ShimState:
        _ = timeout_s
        return ShimState(
            id=self._id,
            namespace=self._namespace,
            paused=False,
            cgroups={},
            processes={
                exec_id: ProcessState(
                    exec_id=exec_id,
                    status="stopped",
                    pid=exit.pid,
                    stdio=Stdio(),
                    exit_status=exit.status,
                    exited_at_ns=exit.exited_at_ns,
                    lost=exit.status == STATUS_LOST,
                )
                for exec_id, exit in self._exits.items()
            },
            runtime_spawns=0,
            operations=[],
        )

    async def process_state(self, exec_id: str = "") -> ProcessState:
        processes = (await self.state(timeout_s=0)).processes
        if exec_id not in processes:
            raise NotFound(f'process "{exec_id}": not found')
        return processes[exec_id]

    async def metrics(self, *, timeout_s: float) -> Counted:
        _ = timeout_s
        self._refuse()

    async def shutdown(self, *, timeout_s: float) -> None:
        _ = timeout_s

    def _refuse(self) -> NoReturn:
        raise Unavailable(GONE)
