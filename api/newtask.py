"""A new task for a container's record: what a client of containerd puts together for it."""

from collections.abc import Callable, Sequence

from ..runtime.stdio import Stdio
from ..runtime.tasks import Tasks
from ..storage.containers import Containers
from ..storage.mounts import Mount
from ..storage.snapshotter import Snapshotter
from .services.tasks import container_options


class NewTasks:
    """Creates tasks from records alone."""

    def __init__(
        self, containers: Containers, tasks: Tasks, find_snapshots: Callable[[str], Snapshotter]
    ) -> None:
        self._containers = containers
        self._tasks = tasks
        self._find_snapshots = find_snapshots

    async def create(self, namespace: str, id: str, stdio: Stdio) -> int:
        """Create a container's task over its own snapshot, with its runtime's options; its pid."""
        container = self._containers.get(namespace, id)
        rootfs: Sequence[Mount] = ()
        if container.snapshot_key:
            snapshots = self._find_snapshots(container.snapshotter)
            rootfs = await snapshots.mounts(namespace, container.snapshot_key)
        return await self._tasks.create(namespace, id, rootfs, stdio, container_options(container))
