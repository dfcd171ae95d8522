"""grpc.health.v1: a server that answers is serving."""

import trio

from ...actors.errors import NotFound
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..proto import health_pb2 as pb


def service(services: frozenset[str]) -> Service:
    """Health of the services of these full names; the empty name is the whole server."""

    async def check(request: pb.HealthCheckRequest, _: Context) -> pb.HealthCheckResponse:
        if request.service and request.service not in services:
            raise NotFound(f"unknown service {request.service}")
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)

    async def watch(
        request: pb.HealthCheckRequest, call: Call[pb.HealthCheckRequest, pb.HealthCheckResponse]
    ) -> None:
        known = not request.service or request.service in services
        status = pb.HealthCheckResponse.SERVING if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
        await call.send(pb.HealthCheckResponse(status=status))
        await trio.sleep_forever()

    return implement(pb.DESCRIPTOR.services_by_name["Health"], {"Check": check, "Watch": watch})
