"""containerd.services.containers.v1: container records."""

from collections.abc import Mapping
from dataclasses import replace

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ...actors.errors import InvalidArgument
from ...storage.containers import Container, Containers, Extensions, Opaque, Runtime
from ...storage.image_keeper import ImageKeeper
from ..anys import timestamp
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..proto.services import containers_pb2 as pb


def service(containers: Containers, images: ImageKeeper) -> Service:
    """The service over these verbs."""

    async def get(request: pb.GetContainerRequest, context: Context) -> pb.GetContainerResponse:
        found = containers.get(context.namespace(), request.id)
        return pb.GetContainerResponse(container=to_message(found))

    async def list_(
        request: pb.ListContainersRequest, context: Context
    ) -> pb.ListContainersResponse:
        found = containers.list(context.namespace(), list(request.filters))
        return pb.ListContainersResponse(containers=[to_message(each) for each in found])

    async def list_stream(
        request: pb.ListContainersRequest,
        call: Call[pb.ListContainersRequest, pb.ListContainerMessage],
    ) -> None:
        for each in containers.list(call.namespace(), list(request.filters)):
            await call.send(pb.ListContainerMessage(container=to_message(each)))

    async def create(
        request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        namespace, given = context.namespace(), from_message(request.container)
        labels = await images.own_labels(namespace, given.image, given.labels)
        made = await containers.create(namespace, replace(given, labels=labels))
        return pb.CreateContainerResponse(container=to_message(made))

    async def update(
        request: pb.UpdateContainerRequest, context: Context
    ) -> pb.UpdateContainerResponse:
        given = from_message(request.container)
        if not given.id:
            raise InvalidArgument("Container.ID required")
        paths = tuple(request.update_mask.paths)
        updated = await containers.update(context.namespace(), given, paths)
        return pb.UpdateContainerResponse(container=to_message(updated))

    async def delete(request: pb.DeleteContainerRequest, context: Context) -> Empty:
        await containers.delete(context.namespace(), request.id)
        return Empty()

    return implement(
        pb.DESCRIPTOR.services_by_name["Containers"],
        {
            "Get": get,
            "List": list_,
            "ListStream": list_stream,
            "Create": create,
            "Update": update,
            "Delete": delete,
        },
    )


def to_message(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=pb.Container.Runtime(
            name=container.runtime.name, options=any_to(container.runtime.options)
        ),
        spec=any_to(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=timestamp(container.created_at),
        updated_at=timestamp(container.updated_at),
        extensions=anys_to(container.extensions),
        sandbox=container.sandbox,
    )


def from_message(message: pb.Container) -> Container:
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=Runtime(name=message.runtime.name, options=opaque_in(message.runtime, "options")),
        spec=opaque_in(message, "spec"),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions=opaques_in(message.extensions),
        sandbox=message.sandbox,
    )


def any_to(opaque: Opaque | None) -> AnyMessage | None:
    return None if opaque is None else AnyMessage(type_url=opaque.type_url, value=opaque.value)


def opaque_in(message: Message, field: str) -> Opaque | None:
    if not message.HasField(field):
        return None
    value: AnyMessage = getattr(message, field)
    return Opaque(type_url=value.type_url, value=value.value)


def anys_to(extensions: Extensions) -> dict[str, AnyMessage]:
    return {
        name: AnyMessage(type_url=one.type_url, value=one.value) for name, one in extensions.items()
    }


def opaques_in(messages: Mapping[str, AnyMessage]) -> Extensions:
    return {name: Opaque(type_url=one.type_url, value=one.value) for name, one in messages.items()}
