"""containerd.task.v2 and v3: the task service of a shim, over ttrpc, for somebody else's daemon."""

import os
from typing import Any

from google.protobuf.empty_pb2 import Empty

from ..actors.errors import NotFound, Unimplemented
from ..runtime.metrics import V1, V2
from ..runtime.records import ExitRecord
from ..runtime.solo import Solo
from ..runtime.stdio import Stdio
from .anys import pack, timestamp
from .foreignshim import COUNTED
from .grpc.call import Context
from .grpc.service import Service, implement
from .identity import VERSION
from .proto import task_types_pb2
from .proto.shim import task_v2_pb2, task_v3_pb2
from .proto.shim import task_v3_pb2 as pb
from .runcoptions import runc_options
from .types import mounts_from, process_info

STATUSES = {
    "created": task_types_pb2.CREATED,
    "starting": task_types_pb2.CREATED,
    "running": task_types_pb2.RUNNING,
    "stopped": task_types_pb2.STOPPED,
}
NAMES = {version: name for name, version in COUNTED.items()}


def services(solo: Solo) -> list[Service]:
    """Both versions: their messages differ in the package alone."""
    return [service(solo, task_v2_pb2), service(solo, task_v3_pb2)]


def service(solo: Solo, words: Any) -> Service:
    """One version; `words` is its module of messages. The annotations are those of version 3."""

    def about(request: Any) -> str:
        """The exec id, of a request that is about our task."""
        if request.id != solo.id:
            raise NotFound(f"container {request.id}: not found")
        return str(getattr(request, "exec_id", ""))

    async def state(request: pb.StateRequest, _: Context) -> Any:
        exec_id = about(request)
        found, frozen = await solo.state(exec_id)
        stdio = solo.stdio(exec_id)
        status = STATUSES.get(found.status, task_types_pb2.UNKNOWN)
        return words.StateResponse(
            id=exec_id or solo.id,
            bundle=os.getcwd(),
            pid=found.pid,
            status=task_types_pb2.PAUSED if frozen else status,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
            exit_status=found.exit_status,
            exited_at=timestamp(found.exited_at_ns),
            exec_id=exec_id,
        )

    async def create(request: pb.CreateTaskRequest, _: Context) -> Any:
        about(request)
        if request.checkpoint:
            raise Unimplemented("restore from a checkpoint: this shim has no CRIU: not implemented")
        options = runc_options(request.options)
        pid = await solo.create(mounts_from(request.rootfs), _stdio(request), options)
        return words.CreateTaskResponse(pid=pid)

    async def start(request: pb.StartRequest, _: Context) -> Any:
        return words.StartResponse(pid=await solo.start(about(request)))

    async def delete(request: pb.DeleteRequest, _: Context) -> Any:
        return delete_response(await solo.delete(about(request)), words)

    async def pids(request: pb.PidsRequest, _: Context) -> Any:
        about(request)
        found = await solo.pids()
        return words.PidsResponse(processes=[process_info(pid, exec_id) for pid, exec_id in found])

    async def pause(request: pb.PauseRequest, _: Context) -> Empty:
        about(request)
        await solo.pause()
        return Empty()

    async def resume(request: pb.ResumeRequest, _: Context) -> Empty:
        about(request)
        await solo.resume()
        return Empty()

    async def checkpoint(_request: pb.CheckpointTaskRequest, _: Context) -> Empty:
        raise Unimplemented("checkpoint: this shim has no CRIU: not implemented")

    async def kill(request: pb.KillRequest, _: Context) -> Empty:
        await solo.kill(about(request), request.signal, request.all)
        return Empty()

    async def exec_(request: pb.ExecProcessRequest, _: Context) -> Empty:
        await solo.exec(about(request), request.spec.value, _stdio(request))
        return Empty()

    async def resize_pty(request: pb.ResizePtyRequest, _: Context) -> Empty:
        await solo.resize(about(request), request.width, request.height)
        return Empty()

    async def close_io(request: pb.CloseIORequest, _: Context) -> Empty:
        if request.stdin:
            await solo.close_io(about(request))
        return Empty()

    async def update(request: pb.UpdateTaskRequest, _: Context) -> Empty:
        about(request)
        await solo.update(request.resources.value)
        return Empty()

    async def wait(request: pb.WaitRequest, _: Context) -> Any:
        exit = await solo.wait(about(request))
        return words.WaitResponse(exit_status=exit.status, exited_at=timestamp(exit.exited_at_ns))

    async def stats(request: pb.StatsRequest, _: Context) -> Any:
        about(request)
        version, fields = await solo.metrics()
        assert version in (V1, V2)
        return words.StatsResponse(stats=pack(NAMES[version], fields))

    async def connect(request: pb.ConnectRequest, _: Context) -> Any:
        about(request)
        return words.ConnectResponse(shim_pid=os.getpid(), task_pid=solo.pid(), version=VERSION)

    async def shutdown(request: pb.ShutdownRequest, _: Context) -> Empty:
        await solo.shutdown(request.now)
        return Empty()

    return implement(
        words.DESCRIPTOR.services_by_name["Task"],
        {
            "State": state,
            "Create": create,
            "Start": start,
            "Delete": delete,
            "Pids": pids,
            "Pause": pause,
            "Resume": resume,
            "Checkpoint": checkpoint,
            "Kill": kill,
            "Exec": exec_,
            "ResizePty": resize_pty,
            "CloseIO": close_io,
            "Update": update,
            "Wait": wait,
            "Stats": stats,
            "Connect": connect,
            "Shutdown": shutdown,
        },
    )


def delete_response(exit: ExitRecord, words: Any = task_v3_pb2) -> Any:
    """How a process ended, as Delete answers and `delete` prints it."""
    return words.DeleteResponse(
        pid=exit.pid, exit_status=exit.status, exited_at=timestamp(exit.exited_at_ns)
    )


def _stdio(request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> Stdio:
    return Stdio(
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr,
        terminal=request.terminal,
    )
