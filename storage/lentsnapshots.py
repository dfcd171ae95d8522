"""Snapshots lent to another daemon, which keeps its own records of them and removes them itself.

They live in one namespace of their own, whatever the other side calls its namespaces: its names
are unique across these. Nothing of ours refers to them, so each is a root for the collector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .mounts import Mount
from .snapshotter import Info, Snapshotter, Usage

NAMESPACE = "holdfast.lent"
ROOT_LABEL = "containerd.io/gc.root"
ROOT = {ROOT_LABEL: "lent"}


class LentSnapshots:
    """A `Snapshotter` for the other daemon; the namespace of each call is not heeded."""

    def __init__(self, snapshots: Snapshotter) -> None:
        self.name = snapshots.name
        self._snapshots = snapshots

    def stat(self, namespace: str, key: str) -> Info:
        return _shown(self._snapshots.stat(NAMESPACE, key))

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        return [_shown(info) for info in self._snapshots.walk(NAMESPACE, filters)]

    async def update(self, namespace: str, info: Info, paths: Sequence[str] = ()) -> Info:
        kept = replace(info, labels={**info.labels, **ROOT})
        return _shown(await self._snapshots.update(NAMESPACE, kept, paths))

    async def usage(self, namespace: str, key: str) -> Usage:
        return await self._snapshots.usage(NAMESPACE, key)

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        return await self._snapshots.mounts(NAMESPACE, key)

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        return await self._snapshots.prepare(NAMESPACE, key, parent, {**(labels or {}), **ROOT})

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> Sequence[Mount]:
        return await self._snapshots.view(NAMESPACE, key, parent, {**(labels or {}), **ROOT})

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        labels: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> None:
        await self._snapshots.commit(NAMESPACE, name, key, {**(labels or {}), **ROOT})

    async def remove(self, namespace: str, key: str) -> None:
        await self._snapshots.remove(NAMESPACE, key)

    async def cleanup(self) -> None:
        await self._snapshots.cleanup()


def _shown(info: Info) -> Info:
    labels = {key: value for key, value in info.labels.items() if key != ROOT_LABEL}
    return replace(info, labels=labels)
