"""holdfast.admin.v1: the tree, crash reports, archives, containers made from images."""

import os
import platform
from typing import TYPE_CHECKING, BinaryIO, cast

import trio

from ...actors.errors import InvalidArgument, NotFound
from ...runtime.launch import Wanted
from ...runtime.shims import fork_server
from ...runtime.spec import BindMount
from ...storage.events import GAP_TOPIC, Event
from ...storage.faults import Fault
from ...storage.platform import host as this_host
from ...supervision.report import CrashReport
from ..anys import timestamp
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..host import Host
from ..identity import VERSION
from ..proto.services import admin_pb2 as pb
from ..treetext import node_to
from ..types import platform_from
from .adminimages import image_methods
from .archives import ImportCall, Sent, lent
from .events import to_envelope

if TYPE_CHECKING:
    from ...storage.why import Reason

EXPORT_CHUNK = 1 << 20


def service(host: Host) -> Service:
    """The service of this host."""

    async def info(_request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        namespace = context.text("containerd-namespace")
        facts = await host.facts()
        return pb.InfoResponse(
            version=VERSION,
            root=str(host.config.root),
            state=str(host.config.state),
            pid=os.getpid(),
            started_at=timestamp(host.started_at_ns),
            runtime=facts.runtime,
            cgroups=facts.cgroups,
            kernel=platform.release(),
            snapshotter=host.config.snapshotter,
            containers=host.store.count("container", namespace or None),
            tasks=host.store.count("task", namespace or None),
            images=host.store.count("image", namespace or None),
            sequence=host.events.last_seq,
            guarantee=str((await fork_server()).guarantee),
        )

    async def tree(_request: pb.TreeRequest, _: Context) -> pb.TreeResponse:
        return pb.TreeResponse(root=node_to(host.tree()))

    async def crashes(request: pb.CrashesRequest, _: Context) -> pb.CrashesResponse:
        reports = host.crashes.reports(supervisor=request.supervisor or None)
        return pb.CrashesResponse(crashes=[crash_to(report) for report in reports])

    async def faults(_request: pb.FaultsRequest, _: Context) -> pb.FaultsResponse:
        return pb.FaultsResponse(faults=[fault_to(fault) for fault in host.faults.list()])

    async def remove_faults(request: pb.RemoveFaultsRequest, _: Context) -> pb.RemoveFaultsResponse:
        every = [fault.id for fault in host.faults.list()]
        removed = await host.faults.remove(every if request.all else request.ids)
        return pb.RemoveFaultsResponse(removed=[fault_to(fault) for fault in removed])

    async def why_(request: pb.WhyRequest, context: Context) -> pb.WhyResponse:
        # Imported when the first asks: the daemon should be up at once.
        from ...storage.why import why

        reason = await why(
            host.store,
            host.collector,
            context.namespace(),
            request.kind,
            request.name,
            snapshotter=request.snapshotter or host.config.snapshotter,
        )
        return why_to(reason)

    async def kill_actor(request: pb.KillActorRequest, _: Context) -> pb.KillActorResponse:
        await host.kill_actor(request.name)
        return pb.KillActorResponse()

    async def create_container(
        request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        made = await host.launcher.create(context.namespace(), wanted_from(request))
        return pb.CreateContainerResponse(name=made.id, image=made.image)

    async def import_(call: ImportCall) -> None:
        with lent(call) as file:
            await _import(host, call, file)

    async def events(
        request: pb.EventsRequest, call: Call[pb.EventsRequest, pb.EventsResponse]
    ) -> None:
        since = request.since if request.HasField("since") else None
        with host.events.subscribe(list(request.filters), since=since) as subscription:
            async for event in subscription:
                await call.send(event_to(event))

    async def export(
        request: pb.ExportRequest, call: Call[pb.ExportRequest, pb.ExportResponse]
    ) -> None:
        if not request.images:
            raise InvalidArgument("export: no image is named")

        def write(data: bytes) -> None:
            for start in range(0, len(data), EXPORT_CHUNK):
                piece = pb.ExportResponse(data=data[start : start + EXPORT_CHUNK])
                trio.from_thread.run(call.send, piece)

        await host.image_keeper.give_out(
            call.namespace(),
            list(request.images),
            write,
            platforms=[platform_from(one) for one in request.platforms],
            all_platforms=request.all_platforms,
        )

    return implement(
        pb.DESCRIPTOR.services_by_name["Admin"],
        {
            "Info": info,
            "Tree": tree,
            "Crashes": crashes,
            "Faults": faults,
            "RemoveFaults": remove_faults,
            "Why": why_,
            "KillActor": kill_actor,
            "CreateContainer": create_container,
            "Import": import_,
            "Export": export,
            "Events": events,
            **image_methods(host),
        },
    )


async def _import(host: Host, call: ImportCall, file: BinaryIO | None) -> None:
    first = await call.receive()
    if first is None:
        raise InvalidArgument("import: no archive was sent")
    namespace = call.namespace()
    # Whether it is to send its file is what the caller reads in the answer.
    await call.send(pb.ImportResponse(step="receive", subject="file" if file else ""))
    source = file or cast("BinaryIO", Sent(first.data, call))
    platforms = [platform_from(one) for one in first.platforms]
    images = await host.image_keeper.take_in(
        namespace,
        source,
        base_name=first.base_name,
        platforms=() if first.all_platforms else platforms or None,
    )
    for image in images:
        if not first.skip_unpack:
            await call.send(pb.ImportResponse(step="unpack", subject=image.name))
            for platform in platforms or [this_host()]:
                try:
                    await host.image_keeper.unpack(namespace, image, host.snapshotter(), platform)
                except NotFound:
                    if len(platforms) < 2 and not first.all_platforms:
                        raise
        digest = image.target.digest
        await call.send(pb.ImportResponse(step="done", subject=image.name, digest=digest))


def event_to(event: Event) -> pb.EventsResponse:
    answer = pb.EventsResponse(sequence=event.seq, envelope=to_envelope(event))
    if event.topic == GAP_TOPIC and not isinstance(event.payload, bytes):
        answer.lost_from = event.payload["from_seq"]
    return answer


def wanted_from(request: pb.CreateContainerRequest) -> Wanted:
    return Wanted(
        name=request.name,
        image=request.image,
        args=tuple(request.args),
        env=tuple(request.env),
        cwd=request.cwd,
        user=request.user,
        terminal=request.terminal,
        hostname=request.hostname,
        read_only_root=request.read_only_root,
        binds=tuple(
            BindMount(source=bind.source, target=bind.target, read_only=bind.read_only)
            for bind in request.binds
        ),
        tmpfs=tuple(request.tmpfs),
        host_network=request.host_network,
        memory_limit_bytes=request.memory_limit,
        cpus=request.cpus,
        pids_limit=request.pids_limit,
        labels=dict(request.labels),
        snapshotter=request.snapshotter,
    )


def crash_to(report: CrashReport) -> pb.Crash:
    return pb.Crash(
        at=timestamp(report.at_ns),
        supervisor=report.supervisor,
        child=report.child,
        reason=report.reason,
        next_step=report.next_step,
        last_message=report.last_message or "",
        state=report.state or "",
        mailbox=report.mailbox_depth,
        traceback=report.traceback,
    )


def fault_to(fault: Fault) -> pb.Fault:
    return pb.Fault(
        id=fault.id,
        kind=fault.kind,
        namespace=fault.namespace,
        key=fault.key,
        reason=fault.reason,
        since=timestamp(fault.since_ns),
        held=fault.held,
    )


def why_to(reason: "Reason") -> pb.WhyResponse:
    answer = pb.WhyResponse(kept=reason.kept, goes=reason.goes, also_in=reason.also_in)
    for step in reason.chain:
        answer.chain.add(how=step.how, kind=step.kind, name=step.key, flat=step.flat)
    until = timestamp(reason.until_ns or 0)
    if until is not None and reason.left_s is not None:
        answer.until.CopyFrom(until)
        answer.left_s = reason.left_s
    return answer
