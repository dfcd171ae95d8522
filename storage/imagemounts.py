"""Mounted images: an image's filesystem at a directory of the host, to be looked into or changed.

    lease --> snapshot, view or active --> mount at the directory
    unmount: the mount, then the lease with the snapshot

One directory has one mount of ours, and its lease's id is made of the directory: so whatever is
half made, or was left by a crash or a reboot, is found and taken off by `unmount`. What was
written goes with it.

Invariant: nothing is taken off a directory but a mount that shows the snapshot. Whatever else is
mounted there is somebody else's.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import trio

from ..actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from . import syscalls
from .content import ContentStore
from .differs import Differs
from .images import Images
from .leases import Lease, Leases
from .mountinfo import Standing, standing_mounts
from .mounts import Mount, overlay_layers, split_paths
from .platform import Platform
from .snapshotter import Snapshotter
from .unpack import unpack
from .workers import Workers

DIRECTORY_LABEL = "io.holdfast/mount.directory"
IMAGE_LABEL = "io.holdfast/mount.image"
SNAPSHOTTER_LABEL = "io.holdfast/mount.snapshotter"
WRITABLE_LABEL = "io.holdfast/mount.writable"
TAIL_PARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMount:
    """An image at a directory."""

    directory: str
    image: str
    snapshotter: str
    writable: bool
    stands: bool
    """False: a crash or a reboot has left this alone, to be unmounted."""


class ImageMounts:
    """The verbs. `snapshotter` finds one by its name."""

    def __init__(
        self,
        content: ContentStore,
        images: Images,
        leases: Leases,
        differs: Differs,
        workers: Workers,
        snapshotter: Callable[[str], Snapshotter],
    ) -> None:
        self._content = content
        self._images = images
        self._leases = leases
        self._differs = differs
        self._workers = workers
        self._snapshotter = snapshotter
        self._busy: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def mount(
        self,
        namespace: str,
        name: str,
        directory: str,
        platform: Platform,
        *,
        snapshotter: str = "",
        writable: bool = False,
    ) -> ImageMount:
        """Unpack an image, if it is not, and mount it at a directory that is there. A client's
        crash leaves the mount; a refusal leaves nothing."""
        image = self._images.get(namespace, name)
        snapshots = self._snapshotter(snapshotter)
        await trio.to_thread.run_sync(_check_directory, directory)
        labels = {
            DIRECTORY_LABEL: directory,
            IMAGE_LABEL: name,
            SNAPSHOTTER_LABEL: snapshots.name,
            WRITABLE_LABEL: str(writable).lower(),
        }
        key = key_of(directory)
        async with self._alone(key):
            for lease in self._list(namespace):
                if lease.id == key:
                    if await self._stands(namespace, lease):
                        raise AlreadyExists(f"an image is mounted at {directory}: already exists")
                    await self._take_off(namespace, lease)  # what a crash or a reboot has left
            lease = await self._leases.create(namespace, key, labels)
            try:
                ready = await unpack(
                    self._content,
                    snapshots,
                    self._differs.apply,
                    namespace,
                    image.target,
                    platform,
                    lease=lease.id,
                )
                make = snapshots.prepare if writable else snapshots.view
                mounts = await make(namespace, key, ready.chain_id, lease=lease.id)
                await self._workers.mount(mounts, Path(directory))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._take_off(namespace, lease)
                raise
        return _from_lease(lease, stands=True)

    async def unmount(self, namespace: str, directory: str) -> ImageMount:
        """Take the mount off and forget its snapshot."""
        async with self._alone(key_of(directory)):
            found = [one for one in self._list(namespace) if one.id == key_of(directory)]
            if not found:
                raise NotFound(f"no image is mounted at {directory}: not found")
            with trio.CancelScope(shield=True):
                await self._take_off(namespace, found[0])
        return _from_lease(found[0], stands=False)

    async def list(self, namespace: str) -> Sequence[ImageMount]:
        """The images that are mounted, and what is left of such mounts, by directory."""
        found = [
            _from_lease(one, stands=await self._stands(namespace, one))
            for one in self._list(namespace)
        ]
        return sorted(found, key=lambda one: one.directory)

    def _alone(self, key: str) -> trio.Lock:
        """One at a time works on a directory."""
        return self._busy.setdefault(key, trio.Lock())

    async def _stands(self, namespace: str, lease: Lease) -> bool:
        try:
            snapshots = self._snapshotter(lease.labels[SNAPSHOTTER_LABEL])
            mounts = await snapshots.mounts(namespace, lease.id)
        except NotFound:
            return False
        return await trio.to_thread.run_sync(_standing, lease.labels[DIRECTORY_LABEL], mounts)

    def _list(self, namespace: str) -> Sequence[Lease]:
        return [one for one in self._leases.list(namespace) if DIRECTORY_LABEL in one.labels]

    async def _take_off(self, namespace: str, lease: Lease) -> None:
        snapshots = self._snapshotter(lease.labels[SNAPSHOTTER_LABEL])
        try:
            mounts = await snapshots.mounts(namespace, lease.id)
            await trio.to_thread.run_sync(_take_off, lease.labels[DIRECTORY_LABEL], mounts)
            await snapshots.remove(namespace, lease.id)
        except NotFound:
            pass  # it did not come so far
        try:
            await self._leases.delete(namespace, lease.id)
        except NotFound:
            pass  # somebody deleted it meanwhile


def key_of(directory: str) -> str:
    """The id of a directory's lease, and its snapshot's key."""
    return f"image-mount-{hashlib.sha256(directory.encode()).hexdigest()[:16]}"


def _from_lease(lease: Lease, *, stands: bool) -> ImageMount:
    return ImageMount(
        stands=stands,
        directory=lease.labels[DIRECTORY_LABEL],
        image=lease.labels[IMAGE_LABEL],
        snapshotter=lease.labels[SNAPSHOTTER_LABEL],
        writable=lease.labels[WRITABLE_LABEL] == "true",
    )


def _check_directory(directory: str) -> None:
    # A path over links could lead elsewhere when the mount is to be taken off.
    if not directory.startswith("/") or os.path.realpath(directory) != directory:
        raise InvalidArgument(f"not an absolute path without links: {directory[:200]!r}")
    if not os.path.isdir(directory):
        raise FailedPrecondition(f"{directory} is no directory: failed precondition")


def _standing(directory: str, mounts: Sequence[Mount]) -> bool:
    """Whether each of the mounts stands at a directory. Blocks."""
    there = [line for line in standing_mounts() if line.point == directory]
    return all(any(is_ours(line, mount) for line in there) for mount in mounts)


def _take_off(directory: str, mounts: Sequence[Mount]) -> None:
    """Take off what the mounts have made of a directory, if it stands there. Blocks."""
    for mount in reversed(mounts):
        standing = [is_ours(line, mount) for line in standing_mounts() if line.point == directory]
        if not any(standing):
            continue
        if not standing[-1]:
            raise FailedPrecondition(
                f"something else is mounted over the image at {directory}: unmount that first:"
                " failed precondition"
            )
        syscalls.umount2(directory, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)


def is_ours(standing: Standing, mount: Mount) -> bool:
    """Whether this is the mount that was made by that one."""
    if mount.type == standing.kind == "overlay":
        shown = [option.partition("=") for option in standing.words]
        uppers = [value for key, _, value in shown if key == "upperdir"]
        lowers = [value for key, _, value in shown if key == "lowerdir+"]
        for key, _, value in shown:
            lowers += split_paths(value) if key == "lowerdir" else []
        upper, below = overlay_layers(mount)
        return lowers == below and uppers == ([] if upper is None else [upper])
    try:
        status = os.stat(mount.source)
    except OSError:
        return False
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    # A bind shows a part of a filesystem, whose own path there may begin otherwise than ours.
    tail = Path(mount.source).parts[-TAIL_PARTS:]
    return standing.device == device and Path(standing.root).parts[-TAIL_PARTS:] == tail
