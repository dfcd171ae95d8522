"""containerd.services.snapshots.v1: root filesystems in layers, by snapshotter."""

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from ...actors.errors import InvalidArgument, NotFound
from ...storage.snapshotter import Info, Kind, Snapshotter
from ..anys import timestamp
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..proto.services import snapshots_pb2 as pb
from ..types import mounts_to

BATCH = 100

Find = Callable[[str], Snapshotter]
"""The snapshotter of a name; containerd's refusal for one that is unknown."""

KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


def lent(snapshotter: Snapshotter) -> Service:
    """The service for another daemon, which uses this snapshotter as its proxy plugin: under any
    name, and, where it cleans up, without a namespace."""
    return service(lambda _: snapshotter, lambda _: "")


def service(find: Find, namespace_of: Callable[[Context], str] = Context.namespace) -> Service:
    """The service over these snapshotters."""

    def named(name: str) -> Snapshotter:
        if not name:
            raise InvalidArgument("snapshotter argument missing: invalid argument")
        try:
            return find(name)
        except NotFound as error:
            raise InvalidArgument(f"snapshotter not loaded: {name}: invalid argument") from error

    async def prepare(
        request: pb.PrepareSnapshotRequest, context: Context
    ) -> pb.PrepareSnapshotResponse:
        mounts = await named(request.snapshotter).prepare(
            namespace_of(context),
            request.key,
            request.parent,
            dict(request.labels),
            lease=context.lease() or "",
        )
        return pb.PrepareSnapshotResponse(mounts=mounts_to(mounts))

    async def view(request: pb.ViewSnapshotRequest, context: Context) -> pb.ViewSnapshotResponse:
        mounts = await named(request.snapshotter).view(
            namespace_of(context),
            request.key,
            request.parent,
            dict(request.labels),
            lease=context.lease() or "",
        )
        return pb.ViewSnapshotResponse(mounts=mounts_to(mounts))

    async def mounts(request: pb.MountsRequest, context: Context) -> pb.MountsResponse:
        found = await named(request.snapshotter).mounts(namespace_of(context), request.key)
        return pb.MountsResponse(mounts=mounts_to(found))

    async def commit(request: pb.CommitSnapshotRequest, context: Context) -> Empty:
        await named(request.snapshotter).commit(
            namespace_of(context),
            request.name,
            request.key,
            dict(request.labels),
            lease=context.lease() or "",
        )
        return Empty()

    async def remove(request: pb.RemoveSnapshotRequest, context: Context) -> Empty:
        await named(request.snapshotter).remove(namespace_of(context), request.key)
        return Empty()

    async def stat(request: pb.StatSnapshotRequest, context: Context) -> pb.StatSnapshotResponse:
        info = named(request.snapshotter).stat(namespace_of(context), request.key)
        return pb.StatSnapshotResponse(info=info_to(info))

    async def update(
        request: pb.UpdateSnapshotRequest, context: Context
    ) -> pb.UpdateSnapshotResponse:
        changed = Info(kind=Kind.ACTIVE, name=request.info.name, labels=dict(request.info.labels))
        info = await named(request.snapshotter).update(
            namespace_of(context), changed, tuple(request.update_mask.paths)
        )
        return pb.UpdateSnapshotResponse(info=info_to(info))

    async def list_(
        request: pb.ListSnapshotsRequest,
        call: Call[pb.ListSnapshotsRequest, pb.ListSnapshotsResponse],
    ) -> None:
        found = named(request.snapshotter).walk(namespace_of(call), list(request.filters))
        for start in range(0, len(found), BATCH):
            batch = [info_to(info) for info in found[start : start + BATCH]]
            await call.send(pb.ListSnapshotsResponse(info=batch))

    async def usage(request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        used = await named(request.snapshotter).usage(namespace_of(context), request.key)
        return pb.UsageResponse(size=used.size_bytes, inodes=used.inodes)

    async def cleanup(request: pb.CleanupRequest, _: Context) -> Empty:
        await named(request.snapshotter).cleanup()
        return Empty()

    return implement(
        pb.DESCRIPTOR.services_by_name["Snapshots"],
        {
            "Prepare": prepare,
            "View": view,
            "Mounts": mounts,
            "Commit": commit,
            "Remove": remove,
            "Stat": stat,
            "Update": update,
            "List": list_,
            "Usage": usage,
            "Cleanup": cleanup,
        },
    )


def info_to(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=KINDS[info.kind],
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )
