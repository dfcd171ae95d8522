"""What the catalogue's operations ask of a daemon: one call each, or one client's usual few."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.api.anys import PROCESS_URL
from holdfast.api.cli.session import Session
from holdfast.api.proto.services import (
    admin_pb2,
    containers_pb2,
    content_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
)

from .sweep_view import SNAPSHOTTER

ROOT = {"containerd.io/gc.root": "sweep"}
CHUNK = 1 << 20


async def create_namespace(session: Session, name: str) -> None:
    request = namespaces_pb2.CreateNamespaceRequest(
        namespace=namespaces_pb2.Namespace(name=name, labels={"a": "b"})
    )
    await session.call("Namespaces/Create", request, namespaces_pb2.CreateNamespaceResponse)


async def delete_namespace(session: Session, name: str) -> None:
    request = namespaces_pb2.DeleteNamespaceRequest(name=name)
    await session.call("Namespaces/Delete", request, Empty)


async def import_image(session: Session, archive: Path, *, unpack: bool = True) -> None:
    async with session.stream("admin/Import", admin_pb2.ImportResponse) as call:
        await call.send(admin_pb2.ImportRequest(skip_unpack=not unpack))
        with archive.open("rb") as file:
            while data := file.read(CHUNK):
                await call.send(admin_pb2.ImportRequest(data=data))
        await call.end()
        async for _ in call:
            pass


async def remove_image(session: Session, name: str) -> None:
    request = images_pb2.DeleteImageRequest(name=name, sync=True)
    await session.call("Images/Delete", request, Empty)


async def write(session: Session, ref: str, data: bytes, *, commit: bool) -> None:
    action = content_pb2.WriteAction.COMMIT if commit else content_pb2.WriteAction.WRITE
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with session.stream("Content/Write", content_pb2.WriteContentResponse) as call:
        request = content_pb2.WriteContentRequest(
            action=action, ref=ref, total=len(data), expected=digest, data=data, labels=ROOT
        )
        await call.send(request)
        await call.receive()
        await call.end()
        async for _ in call:
            pass


async def delete_content(session: Session, data: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    await session.call("Content/Delete", content_pb2.DeleteContentRequest(digest=digest), Empty)


async def abort(session: Session, ref: str) -> None:
    await session.call("Content/Abort", content_pb2.AbortRequest(ref=ref), Empty)


async def create_lease(session: Session, name: str) -> None:
    request = leases_pb2.CreateRequest(id=name)
    await session.call("Leases/Create", request, leases_pb2.CreateResponse)


async def delete_lease(session: Session, name: str) -> None:
    await session.call("Leases/Delete", leases_pb2.DeleteRequest(id=name, sync=True), Empty)


async def prepare(session: Session, key: str, parent: str, snapshotter: str = SNAPSHOTTER) -> None:
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent, labels=ROOT
    )
    await session.call("Snapshots/Prepare", request, snapshots_pb2.PrepareSnapshotResponse)


async def commit(session: Session, name: str, key: str, snapshotter: str = SNAPSHOTTER) -> None:
    request = snapshots_pb2.CommitSnapshotRequest(
        snapshotter=snapshotter, name=name, key=key, labels=ROOT
    )
    await session.call("Snapshots/Commit", request, Empty)


async def remove_snapshot(session: Session, key: str, snapshotter: str = SNAPSHOTTER) -> None:
    request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
    await session.call("Snapshots/Remove", request, Empty)


async def create_container(
    session: Session, name: str, image: str, *words: str, labels: Mapping[str, str] | None = None
) -> None:
    request = admin_pb2.CreateContainerRequest(name=name, image=image, args=words, labels=labels)
    await session.call("admin/CreateContainer", request, admin_pb2.CreateContainerResponse)


async def label_container(session: Session, name: str, labels: Mapping[str, str]) -> None:
    request = containers_pb2.UpdateContainerRequest(
        container=containers_pb2.Container(id=name, labels=labels),
        update_mask=FieldMask(paths=["labels"]),
    )
    await session.call("Containers/Update", request, containers_pb2.UpdateContainerResponse)


async def delete_record(session: Session, name: str) -> None:
    await session.call("Containers/Delete", containers_pb2.DeleteContainerRequest(id=name), Empty)


async def delete_container(session: Session, name: str) -> None:
    await session.delete_container(await session.container(name))


async def create_task(session: Session, name: str, log: str = "") -> None:
    container = await session.container(name)
    request = tasks_pb2.CreateTaskRequest(
        container_id=name,
        rootfs=(await session.mounts(container)).mounts,
        stdout=log,
        stderr=log,
    )
    await session.call("Tasks/Create", request, tasks_pb2.CreateTaskResponse)


async def kill(session: Session, name: str, exec_id: str = "") -> None:
    request = tasks_pb2.KillRequest(container_id=name, exec_id=exec_id, signal=9)
    await session.call("Tasks/Kill", request, Empty)


async def add_exec(session: Session, name: str, exec_id: str, *words: str) -> None:
    process = {"args": words, "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    request = tasks_pb2.ExecProcessRequest(
        container_id=name,
        exec_id=exec_id,
        spec=AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode()),
    )
    await session.call("Tasks/Exec", request, Empty)


async def delete_exec(session: Session, name: str, exec_id: str) -> int:
    request = tasks_pb2.DeleteProcessRequest(container_id=name, exec_id=exec_id)
    answer = await session.call("Tasks/DeleteProcess", request, tasks_pb2.DeleteResponse)
    return answer.exit_status
