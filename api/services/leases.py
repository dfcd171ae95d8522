"""containerd.services.leases.v1: leases and what they hold."""

from google.protobuf.empty_pb2 import Empty

from ...storage.collector import Collector
from ...storage.leases import Lease, Leases, Resource
from ..anys import timestamp
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto.services import leases_pb2 as pb


def service(leases: Leases, collector: Collector) -> Service:
    """The service over these verbs. A delete with `sync` answers after a collection."""

    async def create(request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        made = await leases.create(context.namespace(), request.id, dict(request.labels))
        return pb.CreateResponse(lease=to_message(made))

    async def delete(request: pb.DeleteRequest, context: Context) -> Empty:
        await leases.delete(context.namespace(), request.id)
        if request.sync:
            await collector.collect()
        return Empty()

    async def list_(request: pb.ListRequest, context: Context) -> pb.ListResponse:
        found = leases.list(context.namespace(), list(request.filters))
        return pb.ListResponse(leases=[to_message(lease) for lease in found])

    async def add_resource(request: pb.AddResourceRequest, context: Context) -> Empty:
        held = Resource(type=request.resource.type, id=request.resource.id)
        await leases.add_resource(context.namespace(), request.id, held)
        return Empty()

    async def delete_resource(request: pb.DeleteResourceRequest, context: Context) -> Empty:
        held = Resource(type=request.resource.type, id=request.resource.id)
        await leases.delete_resource(context.namespace(), request.id, held)
        return Empty()

    async def list_resources(
        request: pb.ListResourcesRequest, context: Context
    ) -> pb.ListResourcesResponse:
        held = leases.list_resources(context.namespace(), request.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=r.id, type=r.type) for r in held])

    return implement(
        pb.DESCRIPTOR.services_by_name["Leases"],
        {
            "Create": create,
            "Delete": delete,
            "List": list_,
            "AddResource": add_resource,
            "DeleteResource": delete_resource,
            "ListResources": list_resources,
        },
    )


def to_message(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=timestamp(lease.created_at), labels=dict(lease.labels))
