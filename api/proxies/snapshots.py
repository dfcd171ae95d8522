"""A snapshotter that another process serves by containerd.services.snapshots.v1."""

from collections.abc import Mapping, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from ...actors.errors import Unimplemented
from ...storage.mounts import Mount
from ...storage.snapshotter import Info, Kind, Usage
from ..anys import nanoseconds
from ..proto.services import snapshots_pb2 as pb
from ..types import mounts_from
from .proxy import Answer, Proxy

SERVICE = "/containerd.services.snapshots.v1.Snapshots"
KINDS = {pb.VIEW: Kind.VIEW, pb.ACTIVE: Kind.ACTIVE, pb.COMMITTED: Kind.COMMITTED}


class ProxiedSnapshots:
    """The `Remote` of storage, over the wire."""

    def __init__(self, proxy: Proxy, name: str) -> None:
        self._proxy = proxy
        self._name = name

    async def prepare(
        self, namespace: str, kind: Kind, name: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[Mount]:
        if kind is Kind.VIEW:
            view = pb.ViewSnapshotRequest(
                snapshotter=self._name, key=name, parent=parent, labels=labels
            )
            seen = await self._ask("View", view, pb.ViewSnapshotResponse, namespace)
            return mounts_from(seen.mounts)
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._name, key=name, parent=parent, labels=labels
        )
        made = await self._ask("Prepare", request, pb.PrepareSnapshotResponse, namespace)
        return mounts_from(made.mounts)

    async def mounts(self, namespace: str, name: str) -> Sequence[Mount]:
        request = pb.MountsRequest(snapshotter=self._name, key=name)
        found = await self._ask("Mounts", request, pb.MountsResponse, namespace)
        return mounts_from(found.mounts)

    async def commit(
        self, namespace: str, name: str, active: str, labels: Mapping[str, str]
    ) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name, name=name, key=active, labels=labels
        )
        await self._ask("Commit", request, Empty, namespace)

    async def remove(self, namespace: str, name: str) -> None:
        request = pb.RemoveSnapshotRequest(snapshotter=self._name, key=name)
        await self._ask("Remove", request, Empty, namespace)

    async def update(self, namespace: str, name: str, labels: Mapping[str, str]) -> None:
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=pb.Info(name=name, labels=labels),
            update_mask=FieldMask(paths=["labels"]),
        )
        await self._ask("Update", request, pb.UpdateSnapshotResponse, namespace)

    async def usage(self, namespace: str, name: str) -> Usage:
        request = pb.UsageRequest(snapshotter=self._name, key=name)
        used = await self._ask("Usage", request, pb.UsageResponse, namespace)
        return Usage(inodes=used.inodes, size_bytes=used.size)

    async def walk(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Info]:
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=filters)
        method = f"{SERVICE}/List"
        found: list[Info] = []
        async with self._proxy.stream(method, pb.ListSnapshotsResponse, namespace) as call:
            await call.send(request)
            await call.end()
            async for answer in call:
                found.extend(_info_from(info) for info in answer.info)
        return found

    async def cleanup(self, namespace: str) -> None:
        try:
            request = pb.CleanupRequest(snapshotter=self._name)
            await self._ask("Cleanup", request, Empty, namespace)
        except Unimplemented:
            pass  # it cleans up by itself

    async def _ask(
        self, method: str, request: Message, answer: type[Answer], namespace: str
    ) -> Answer:
        return await self._proxy.unary(f"{SERVICE}/{method}", request, answer, namespace)


def _info_from(message: pb.Info) -> Info:
    return Info(
        kind=KINDS[message.kind],
        name=message.name,
        parent=message.parent,
        labels=dict(message.labels),
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )
