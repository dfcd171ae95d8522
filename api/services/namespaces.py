"""containerd.services.namespaces.v1: namespaces and their labels."""

from google.protobuf.empty_pb2 import Empty

from ...storage.namespaces import Namespace, Namespaces
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import namespaces_pb2 as pb


def service(namespaces: Namespaces) -> Service:
    """The service over these verbs."""

    async def get(request: pb.GetNamespaceRequest, _: Context) -> pb.GetNamespaceResponse:
        return pb.GetNamespaceResponse(namespace=to_message(namespaces.get(request.name)))

    async def list_(_request: pb.ListNamespacesRequest, _: Context) -> pb.ListNamespacesResponse:
        return pb.ListNamespacesResponse(namespaces=[to_message(n) for n in namespaces.list()])

    async def create(request: pb.CreateNamespaceRequest, _: Context) -> pb.CreateNamespaceResponse:
        given = request.namespace
        made = await namespaces.create(given.name, dict(given.labels))
        return pb.CreateNamespaceResponse(namespace=to_message(made))

    async def update(request: pb.UpdateNamespaceRequest, _: Context) -> pb.UpdateNamespaceResponse:
        given = request.namespace
        paths = tuple(request.update_mask.paths)
        updated = await namespaces.update(given.name, dict(given.labels), paths)
        return pb.UpdateNamespaceResponse(namespace=to_message(updated))

    async def delete(request: pb.DeleteNamespaceRequest, _: Context) -> Empty:
        await namespaces.delete(request.name)
        return Empty()

    return implement(
        pb.DESCRIPTOR.services_by_name["Namespaces"],
        {"Get": get, "List": list_, "Create": create, "Update": update, "Delete": delete},
    )


def to_message(namespace: Namespace) -> pb.Namespace:
    return pb.Namespace(name=namespace.name, labels=dict(namespace.labels))
