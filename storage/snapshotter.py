"""The snapshotter: root filesystems as layers of changes.

Terms. A *snapshot* is a directory tree, described by its change against its *parent*. It is
*active* while it is written, *committed* once it is fixed and may be a parent, or a *view*: a
read-only look at a committed one. Active snapshots and views are known by a *key*, committed
ones by a *name*; both share one space per namespace. *Mounts* are what a caller mounts to see
or write the tree; the snapshotter itself mounts nothing.

Life.

    prepare --> active --commit--> committed --remove--> gone
                   +----remove---------------------------^
    view ---> view -------remove-------------------------^

Walk-through: two layers are unpacked, and a container gets its root.

    mounts = await s.prepare("ns", "unpack-1", "")        # an empty active snapshot
    await workers.apply(blob_1, media_type, mounts)
    await s.commit("ns", "sha256:1", "unpack-1")          # unpack-1 is no more
    mounts = await s.prepare("ns", "unpack-2", "sha256:1")
    await workers.apply(blob_2, media_type, mounts)
    await s.commit("ns", "sha256:2", "unpack-2")
    root = await s.prepare("ns", "web", "sha256:2")       # to be mounted by the task
    ...
    await s.remove("ns", "web")

Refusals are containerd's: `NotFound` for an unknown key or parent, `AlreadyExists` for one in
use, `FailedPrecondition` for a snapshot of the wrong kind or with children.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..actors.errors import InvalidArgument
from .mounts import Mount

__all__ = ["Info", "Kind", "Mount", "Snapshotter", "Usage"]


class Kind(enum.StrEnum):
    """What a snapshot is; the words are those that filters use."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A snapshot's record. Times in nanoseconds since 1970."""

    kind: Kind
    name: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    created_at: int = 0
    updated_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot itself takes, without its parents."""

    inodes: int = 0
    size_bytes: int = 0


class Snapshotter(Protocol):
    """What every snapshotter does. Each call is for one namespace, the first argument."""

    name: str

    def stat(self, namespace: str, key: str) -> Info:
        """The record of a snapshot of any kind."""
        ...

    async def update(self, namespace: str, info: Info, paths: Sequence[str] = ()) -> Info:
        """Change labels: all without `paths`, else `labels` or `labels.<key>`."""
        ...

    async def usage(self, namespace: str, key: str) -> Usage:
        """What it takes: counted now for an active one, at its commit for a committed one."""
        ...

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        """The mounts that `prepare` or `view` gave; only for those two kinds."""
        ...

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        """A new active snapshot over a committed parent, or over nothing."""
        ...

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        """A new read-only snapshot of a committed parent, or of nothing."""
        ...

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> None:
        """Fix an active snapshot under `name`; its content is on the disk before its record
        is. The key is no more, its labels are not inherited."""
        ...

    async def remove(self, namespace: str, key: str) -> None:
        """Forget a snapshot that has no children; its disk space follows soon after."""
        ...

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        """The records that match any of the filters, in the order of their names."""
        ...

    async def cleanup(self) -> None:
        """Return once what removed snapshots left on the disk is gone."""
        ...


S = TypeVar("S", bound=Snapshotter)


def find_snapshotter(snapshotters: Mapping[str, S], default: str, name: str = "") -> S:
    """The snapshotter of that name, or the default one; InvalidArgument when there is none: what
    is NotFound is a snapshot, and clients would make it."""
    found = snapshotters.get(name or default)
    if found is None:
        raise InvalidArgument(f"snapshotter not loaded: {name or default}: invalid argument")
    return found
