"""Committing: an image made of a container, which runs on.

    snapshot --its changes--> layer
    the image it stands on + layer + changes of the config --> image under a new name

The image below is found by the snapshot's parent, not by its name alone: a name may have moved
on since the container was made. With `pause` the container is frozen while its files are read. A
daemon that falls meanwhile leaves it frozen, to be thawed by a client.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import trio

from ..actors.errors import FailedPrecondition, InvalidArgument, NotFound, Refusal
from ..storage.containers import Container, Containers
from ..storage.content import ContentStore
from ..storage.derive import Authorship, derive
from ..storage.descriptor import Descriptor
from ..storage.differs import Differs, Wanted
from ..storage.images import Image, Images
from ..storage.leases import Leases
from ..storage.platform import host
from ..storage.snapshotter import Snapshotter
from ..storage.unpack import Resolved, resolve
from .tasks import Tasks

RESUME_WITHIN_S = 30.0
CREATED_BY_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a container is to become, and what its history says."""

    name: str
    author: str = ""
    message: str = ""
    changes: Sequence[str] = ()
    pause: bool = True
    epoch_ns: int | None = None
    """Instead of the time of day; no file in the layer is younger."""


class Committer:
    """The verb. `snapshotter` finds one by its name."""

    def __init__(
        self,
        content: ContentStore,
        images: Images,
        containers: Containers,
        leases: Leases,
        differs: Differs,
        snapshotter: Callable[[str], Snapshotter],
        tasks: Tasks,
    ) -> None:
        self._content = content
        self._images = images
        self._containers = containers
        self._leases = leases
        self._differs = differs
        self._snapshotter = snapshotter
        self._tasks = tasks

    async def commit(self, namespace: str, id: str, wish: Commit) -> Image:
        """Make the image; a name that exists points to it afterwards."""
        container = self._containers.get(namespace, id)
        if not container.snapshot_key:
            raise FailedPrecondition(f"container {id} has no snapshot of ours: failed precondition")
        snapshots = self._snapshotter(container.snapshotter)
        parent = snapshots.stat(namespace, container.snapshot_key).parent
        async with self._leases.held(namespace) as lease:
            base = await self._base(namespace, container, parent)
            async with self._still(namespace, id, wish.pause):
                layer = await self._layer(namespace, snapshots, container, parent, wish, lease)
            authorship = Authorship(
                author=wish.author,
                message=wish.message,
                created_by=command_of(container),
                changes=wish.changes,
                at_ns=time.time_ns() if wish.epoch_ns is None else wish.epoch_ns,
            )
            target = await derive(self._content, namespace, base, layer, authorship, lease=lease)
            return await self._images.put(namespace, Image(name=wish.name, target=target))

    async def _layer(
        self,
        namespace: str,
        snapshots: Snapshotter,
        container: Container,
        parent: str,
        wish: Commit,
        lease: str,
    ) -> Descriptor:
        upper = await snapshots.mounts(namespace, container.snapshot_key)
        key = f"commit-{uuid.uuid4().hex}"
        lower = await snapshots.view(namespace, key, parent, lease=lease)
        try:
            wanted = Wanted(epoch_ns=wish.epoch_ns)
            return await self._differs.diff(namespace, lower, upper, wanted, lease=lease)
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await snapshots.remove(namespace, key)
                except NotFound:
                    pass  # a collection was faster

    async def _base(self, namespace: str, container: Container, parent: str) -> Resolved:
        """The image whose layers are the parent, the container's own name first."""
        every = self._images.list(namespace)
        for image in sorted(every, key=lambda one: one.name != container.image):
            try:
                found = await resolve(self._content, namespace, image.target, host())
            except (NotFound, InvalidArgument):
                continue  # none for this host, or not here as a whole
            if found.chain_id == parent:
                return found
        raise FailedPrecondition(
            f"the image that container {container.id} was made from is not here any more:"
            " failed precondition"
        )

    @asynccontextmanager
    async def _still(self, namespace: str, id: str, pause: bool) -> AsyncGenerator[None]:
        """The container frozen, if it is to be and runs."""
        paused = False
        if pause:
            try:
                if self._tasks.get(namespace, id).status == "RUNNING":
                    await self._tasks.pause(namespace, id)
                    paused = True
            except NotFound:
                pass  # it has no task: nothing writes
        try:
            yield
        finally:
            if paused:
                with trio.CancelScope(shield=True), trio.move_on_after(RESUME_WITHIN_S):
                    try:
                        await self._tasks.resume(namespace, id)
                    except Refusal:
                        pass  # it was killed, or thawed by somebody else


def command_of(container: Container) -> str:
    """The command line of its first process, for the history."""
    if container.spec is None:
        return ""
    try:
        spec = cast("dict[str, Any]", json.loads(container.spec.value))
        words = cast("list[str]", spec["process"]["args"])
        return " ".join(words)[:CREATED_BY_MAX]
    except (ValueError, KeyError, TypeError):
        return ""  # a spec of another kind than ours
