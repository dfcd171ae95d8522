"""holdfast.admin.v1, its methods on images: tag, inspect, usage, check, prune, mount, convert,
commit."""

import json
from collections.abc import Sequence

from ...storage.imagemounts import ImageMount, ImageMounts
from ...storage.images import Image
from ...storage.platform import host as this_host
from ..grpc.call import Call, Context
from ..grpc.service import Handler
from ..host import Host
from ..proto.services import admin_pb2 as pb
from ..types import platform_from

CheckCall = Call[pb.CheckImagesRequest, pb.CheckImagesResponse]


def image_methods(host: Host) -> dict[str, Handler]:
    """The methods by their names. What they need is imported when the first asks: the daemon
    should be up at once."""

    async def tag(request: pb.TagImageRequest, context: Context) -> pb.TagImageResponse:
        tagged = await host.images.tag(context.namespace(), request.source, request.name)
        return pb.TagImageResponse(digest=tagged.target.digest)

    async def inspect(request: pb.InspectImageRequest, context: Context) -> pb.InspectImageResponse:
        from ...storage.imagereport import ImageReports

        image = host.images.get(context.namespace(), request.name)
        report = await ImageReports(host.content, host.snapshotters).inspect(
            context.namespace(), image
        )
        return pb.InspectImageResponse(document=json.dumps(report))

    async def usage(request: pb.ImageUsageRequest, context: Context) -> pb.ImageUsageResponse:
        from ...storage.footprint import Footprints

        namespace = context.namespace()
        chosen = _chosen(host, namespace, request.names)
        names = {image.name for image in chosen}
        others = [image for image in host.images.list(namespace) if image.name not in names]
        prints = Footprints(host.content, host.snapshotters)
        used = await prints.usages(namespace, chosen, others)
        return pb.ImageUsageResponse(
            images=[
                pb.ImageUse(
                    name=one.name,
                    content=one.content_bytes,
                    snapshots=one.snapshot_bytes,
                    shared=one.shared_bytes,
                )
                for one in used.images
            ],
            content=used.content_bytes,
            snapshots=used.snapshot_bytes,
        )

    async def check(request: pb.CheckImagesRequest, call: CheckCall) -> None:
        from ...storage.imagecheck import ImageChecks

        checks = ImageChecks(host.content, host.snapshotters)
        for image in _chosen(host, call.namespace(), request.names):
            found = await checks.check(call.namespace(), image, verify=request.verify)
            answer = pb.CheckImagesResponse(
                name=found.name,
                digest=found.digest,
                missing=found.missing,
                damaged={str(key): why for key, why in found.damaged.items()},
                good=found.is_good,
            )
            for one in found.platforms:
                answer.platforms.add(
                    platform=one.platform,
                    digest=one.digest,
                    state=one.state,
                    here=one.here,
                    blobs=one.blobs,
                    here_bytes=one.here_bytes,
                    size_bytes=one.size_bytes,
                    unpacked=one.unpacked,
                    missing=one.missing,
                    damaged=one.damaged,
                )
            await call.send(answer)

    async def prune(request: pb.PruneImagesRequest, context: Context) -> pb.PruneImagesResponse:
        from ...storage.prune import Prune, Wish

        verb = Prune(host.store, host.content, host.images, host.containers, host.snapshotters)
        wish = Wish(
            all=request.all,
            filters=list(request.filters),
            older_than_s=request.older_than_s,
        )
        pruned = await verb.prune(context.namespace(), wish, dry_run=request.dry_run)
        if pruned.images and not request.dry_run:
            await host.collector.collect()
        return pb.PruneImagesResponse(
            images=[image.name for image in pruned.images], freed=pruned.freed_bytes
        )

    return {
        "TagImage": tag,
        "InspectImage": inspect,
        "ImageUsage": usage,
        "CheckImages": check,
        "PruneImages": prune,
        **_mounting(host),
        **_making(host),
    }


def _mounting(host: Host) -> dict[str, Handler]:
    mounts = ImageMounts(
        host.content, host.images, host.leases, host.differs, host.workers, host.snapshotter
    )

    def to_message(mount: ImageMount) -> pb.ImageMount:
        return pb.ImageMount(
            directory=mount.directory,
            image=mount.image,
            snapshotter=mount.snapshotter,
            writable=mount.writable,
            stands=mount.stands,
        )

    async def mount(request: pb.MountImageRequest, context: Context) -> pb.MountImageResponse:
        await mounts.mount(
            context.namespace(),
            request.name,
            request.directory,
            platform_from(request.platform) if request.HasField("platform") else this_host(),
            snapshotter=request.snapshotter,
            writable=request.writable,
        )
        return pb.MountImageResponse()

    async def unmount(request: pb.UnmountImageRequest, context: Context) -> pb.UnmountImageResponse:
        gone = await mounts.unmount(context.namespace(), request.directory)
        return pb.UnmountImageResponse(mount=to_message(gone))

    async def list_(
        _request: pb.ListImageMountsRequest, context: Context
    ) -> pb.ListImageMountsResponse:
        found = await mounts.list(context.namespace())
        return pb.ListImageMountsResponse(mounts=[to_message(one) for one in found])

    return {"MountImage": mount, "UnmountImage": unmount, "ListImageMounts": list_}


def _making(host: Host) -> dict[str, Handler]:
    async def convert(request: pb.ConvertImageRequest, context: Context) -> pb.ConvertImageResponse:
        from ...storage.conversions import Conversions
        from ...storage.convert import KEEP, Conversion

        wish = Conversion(
            compression=request.compression or KEEP,
            oci=request.oci,
            platforms=[platform_from(one) for one in request.platforms],
        )
        made = await Conversions(host.content, host.images, host.leases).convert(
            context.namespace(), request.source, request.name, wish, dict(request.labels)
        )
        return pb.ConvertImageResponse(digest=made.image.target.digest, changed=made.changed)

    async def commit(
        request: pb.CommitContainerRequest, context: Context
    ) -> pb.CommitContainerResponse:
        from ...runtime.commit import Commit, Committer

        committer = Committer(
            host.content,
            host.images,
            host.containers,
            host.leases,
            host.differs,
            host.snapshotter,
            host.tasks,
        )
        epoch = request.source_date_epoch if request.HasField("source_date_epoch") else None
        wish = Commit(
            name=request.name,
            author=request.author,
            message=request.message,
            changes=list(request.changes),
            pause=request.pause,
            epoch_ns=None if epoch is None else epoch * 1_000_000_000,
        )
        image = await committer.commit(context.namespace(), request.container, wish)
        return pb.CommitContainerResponse(digest=image.target.digest)

    return {"ConvertImage": convert, "CommitContainer": commit}


def _chosen(host: Host, namespace: str, names: Sequence[str]) -> Sequence[Image]:
    """The images of these names, or all."""
    if not names:
        return host.images.list(namespace)
    return [host.images.get(namespace, name) for name in names]
