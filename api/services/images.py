"""containerd.services.images.v1: names of images and what they point to."""

from google.protobuf.empty_pb2 import Empty

from ...actors.errors import InvalidArgument
from ...storage.collector import Collector
from ...storage.images import Image, Images
from ..anys import nanoseconds, timestamp
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import images_pb2 as pb
from ..types import descriptor_from, descriptor_to


def service(images: Images, collector: Collector) -> Service:
    """The service over these verbs. A delete with `sync` answers after a collection."""

    async def get(request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=to_message(images.get(context.namespace(), request.name)))

    async def list_(request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        found = images.list(context.namespace(), list(request.filters))
        return pb.ListImagesResponse(images=[to_message(image) for image in found])

    async def create(request: pb.CreateImageRequest, context: Context) -> pb.CreateImageResponse:
        _require_name(request.image)
        made = await images.create(
            context.namespace(),
            from_message(request.image),
            lease=context.lease() or "",
            at_ns=_epoch(request),
        )
        return pb.CreateImageResponse(image=to_message(made))

    async def update(request: pb.UpdateImageRequest, context: Context) -> pb.UpdateImageResponse:
        _require_name(request.image)
        updated = await images.update(
            context.namespace(),
            from_message(request.image),
            tuple(request.update_mask.paths),
            lease=context.lease() or "",
            at_ns=_epoch(request),
        )
        return pb.UpdateImageResponse(image=to_message(updated))

    async def delete(request: pb.DeleteImageRequest, context: Context) -> Empty:
        await images.delete(
            context.namespace(),
            request.name,
            target_digest=request.target.digest,
            lease=context.lease() or "",
        )
        if request.sync:
            await collector.collect()
        return Empty()

    return implement(
        pb.DESCRIPTOR.services_by_name["Images"],
        {"Get": get, "List": list_, "Create": create, "Update": update, "Delete": delete},
    )


def _require_name(image: pb.Image) -> None:
    # Said even to a caller that names no namespace.
    if not image.name:
        raise InvalidArgument("Image.Name required")


def _epoch(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> int | None:
    if not request.HasField("source_date_epoch"):
        return None
    return nanoseconds(request.source_date_epoch)


def to_message(image: Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=dict(image.labels),
        target=descriptor_to(image.target),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )


def from_message(message: pb.Image) -> Image:
    return Image(
        name=message.name,
        labels=dict(message.labels),
        target=descriptor_from(message.target),
    )
