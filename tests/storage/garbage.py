"""A store with shorthands for what the data side of storage writes, and a collector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.storage.collector import Collector
from holdfast.storage.containers import Container, Containers, Opaque, Runtime
from holdfast.storage.descriptor import Descriptor
from holdfast.storage.images import Image, Images
from holdfast.storage.leases import Leases
from holdfast.storage.store import Store
from holdfast.storage.sweep import Garbage

NS = "default"
PAST = "2020-01-01T00:00:00Z"
FUTURE = "2199-01-01T00:00:00+01:00"


def digest(name: str) -> str:
    return "sha256:" + name.encode().hex().ljust(64, "0")


class World:
    """A store with shorthands for what the data side of storage writes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.images = Images(store)
        self.containers = Containers(store)
        self.leases = Leases(store)
        self.reclaimed: list[tuple[str, str, str]] = []
        reclaim = {"content": self._reclaim, "snapshot": self._reclaim, "ingest": self._reclaim}
        self.collector = Collector(store, reclaim)

    async def _reclaim(self, garbage: Garbage) -> None:
        self.reclaimed.append((garbage.kind, garbage.namespace, garbage.key))

    async def put(self, kind: str, key: str, namespace: str = NS, **value: Any) -> None:
        await self.store.write(
            lambda tx: tx.put(kind, namespace, key, {"created_at": tx.now_ns, **value})
        )

    async def blob(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        await self.put("content", digest(name), size=1, labels=dict(labels or {}))

    async def snapshot(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> None:
        await self.put("snapshot", f"overlayfs/{key}", parent=parent, labels=dict(labels or {}))

    async def image(self, name: str, target: str, labels: Mapping[str, str] | None = None) -> None:
        descriptor = Descriptor(media_type="m", digest=digest(target), size=1)
        await self.images.create(NS, Image(name=name, target=descriptor, labels=labels or {}))

    async def container(self, name: str, snapshot: str = "", **labels: str) -> None:
        container = Container(
            id=name,
            runtime=Runtime(name="r"),
            spec=Opaque(type_url="t", value=b""),
            snapshotter="overlayfs" if snapshot else "",
            snapshot_key=snapshot,
            labels=labels,
        )
        await self.containers.create(NS, container)

    async def left(self) -> set[str]:
        """Collect, and tell the short names of all that is left."""
        await self.collector.collect()
        names: set[str] = set()
        for row in self.store.scan("content"):
            names.add(bytes.fromhex(row.key.removeprefix("sha256:").rstrip("0")).decode())
        for kind in ("snapshot", "image", "container", "lease", "ingest"):
            names |= {row.key.removeprefix("overlayfs/") for row in self.store.scan(kind)}
        return names
