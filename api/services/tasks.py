"""containerd.services.tasks.v1: what runs."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from ...actors.errors import Unimplemented
from ...runtime.foreign import is_foreign
from ...runtime.metrics import V1, V2
from ...runtime.processview import Process
from ...runtime.stdio import Stdio
from ...runtime.tasks import Exited, TaskMetrics, Tasks
from ...storage.containers import Container, Containers
from ..anys import pack, timestamp
from ..grpc.call import Context
from ..grpc.service import Service, implement
from ..proto import cgroups_v1_pb2, cgroups_v2_pb2, task_types_pb2
from ..proto.services import tasks_pb2 as pb
from ..proto.types_pb2 import Metric
from ..runcoptions import runc_options
from ..types import mounts_from, process_info

METRICS_NAMES = {
    V1: cgroups_v1_pb2.Metrics.DESCRIPTOR.full_name,
    V2: cgroups_v2_pb2.Metrics.DESCRIPTOR.full_name,
}


def service(tasks: Tasks, containers: Containers) -> Service:
    """The service over these verbs."""

    async def create(request: pb.CreateTaskRequest, context: Context) -> pb.CreateTaskResponse:
        if request.HasField("checkpoint") and request.checkpoint.digest:
            raise Unimplemented("restore from a checkpoint: this host has no CRIU: not implemented")
        namespace, name = context.namespace(), request.container_id
        container = containers.get(namespace, name)
        runtime = request.runtime_path or container.runtime.name
        pid = await tasks.create(
            namespace,
            name,
            mounts_from(request.rootfs),
            _stdio(request),
            _options_for(runtime, request.options) or container_options(container, runtime),
            runtime,
        )
        return pb.CreateTaskResponse(container_id=name, pid=pid)

    async def start(request: pb.StartRequest, context: Context) -> pb.StartResponse:
        pid = await tasks.start(context.namespace(), request.container_id, request.exec_id)
        return pb.StartResponse(pid=pid)

    async def delete(request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteResponse:
        return _deleted(await tasks.delete(context.namespace(), request.container_id))

    async def delete_process(
        request: pb.DeleteProcessRequest, context: Context
    ) -> pb.DeleteResponse:
        namespace, name = context.namespace(), request.container_id
        return _deleted(await tasks.delete_process(namespace, name, request.exec_id))

    async def get(request: pb.GetRequest, context: Context) -> pb.GetResponse:
        found = tasks.get(context.namespace(), request.container_id, request.exec_id)
        return pb.GetResponse(process=process_to(found))

    async def list_(request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        found = tasks.list(context.namespace(), request.filter)
        return pb.ListTasksResponse(tasks=[process_to(process) for process in found])

    async def kill(request: pb.KillRequest, context: Context) -> Empty:
        await tasks.kill(
            context.namespace(),
            request.container_id,
            request.exec_id,
            request.signal,
            request.all,
        )
        return Empty()

    async def exec_(request: pb.ExecProcessRequest, context: Context) -> Empty:
        await tasks.exec(
            context.namespace(),
            request.container_id,
            request.exec_id,
            request.spec.value,
            _stdio(request),
        )
        return Empty()

    async def resize_pty(request: pb.ResizePtyRequest, context: Context) -> Empty:
        await tasks.resize_pty(
            context.namespace(),
            request.container_id,
            request.exec_id,
            request.width,
            request.height,
        )
        return Empty()

    async def close_io(request: pb.CloseIORequest, context: Context) -> Empty:
        if request.stdin:
            await tasks.close_io(context.namespace(), request.container_id, request.exec_id)
        return Empty()

    async def pause(request: pb.PauseTaskRequest, context: Context) -> Empty:
        await tasks.pause(context.namespace(), request.container_id)
        return Empty()

    async def resume(request: pb.ResumeTaskRequest, context: Context) -> Empty:
        await tasks.resume(context.namespace(), request.container_id)
        return Empty()

    async def list_pids(request: pb.ListPidsRequest, context: Context) -> pb.ListPidsResponse:
        pids = await tasks.list_pids(context.namespace(), request.container_id)
        return pb.ListPidsResponse(processes=[process_info(pid, exec_id) for pid, exec_id in pids])

    async def checkpoint(_request: pb.CheckpointTaskRequest, _: Context) -> Any:
        raise Unimplemented("checkpoint: this host has no CRIU: not implemented")

    async def update(request: pb.UpdateTaskRequest, context: Context) -> Empty:
        await tasks.update(
            context.namespace(),
            request.container_id,
            request.resources.value,
            dict(request.annotations),
        )
        return Empty()

    async def metrics(request: pb.MetricsRequest, context: Context) -> pb.MetricsResponse:
        found = await tasks.metrics(context.namespace(), list(request.filters))
        return pb.MetricsResponse(metrics=[metric_to(each) for each in found])

    async def wait(request: pb.WaitRequest, context: Context) -> pb.WaitResponse:
        status, exited_at_ns = await tasks.wait(
            context.namespace(), request.container_id, request.exec_id
        )
        return pb.WaitResponse(exit_status=status, exited_at=timestamp(exited_at_ns))

    return implement(
        pb.DESCRIPTOR.services_by_name["Tasks"],
        {
            "Create": create,
            "Start": start,
            "Delete": delete,
            "DeleteProcess": delete_process,
            "Get": get,
            "List": list_,
            "Kill": kill,
            "Exec": exec_,
            "ResizePty": resize_pty,
            "CloseIO": close_io,
            "Pause": pause,
            "Resume": resume,
            "ListPids": list_pids,
            "Checkpoint": checkpoint,
            "Update": update,
            "Metrics": metrics,
            "Wait": wait,
        },
    )


def process_to(process: Process) -> task_types_pb2.Process:
    stdio = process.stdio
    return task_types_pb2.Process(
        container_id=process.container_id,
        id=process.id,
        pid=process.pid,
        status=process.status,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        terminal=stdio.terminal,
        exit_status=process.exit_status,
        exited_at=timestamp(process.exited_at_ns),
    )


def metric_to(metrics: TaskMetrics) -> Metric:
    version = metrics.version
    name = METRICS_NAMES[version] if isinstance(version, int) else version
    return Metric(
        timestamp=timestamp(metrics.collected_at_ns),
        id=metrics.id,
        data=pack(name, metrics.fields),
    )


def _deleted(exited: Exited) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=exited.id,
        pid=exited.pid,
        exit_status=exited.status,
        exited_at=timestamp(exited.exited_at_ns),
    )


def _stdio(request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> Stdio:
    return Stdio(
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        terminal=request.terminal,
    )


def container_options(container: Container, runtime: str = "") -> Mapping[str, Any]:
    """The options of a container's runtime, for it or for another that takes its place."""
    options = container.runtime.options
    if options is None:
        return {}
    given = AnyMessage(type_url=options.type_url, value=options.value)
    return _options_for(runtime or container.runtime.name, given)


def _options_for(runtime: str, given: AnyMessage) -> Mapping[str, Any]:
    """By their names for our own shim; another gets them as they are."""
    if not is_foreign(runtime):
        return runc_options(given)
    return {"type_url": given.type_url, "value": given.value} if given.type_url else {}
