"""What the operations ask of sandboxes, activated mounts, the differ and foreign shims."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.api.anys import SPEC_URL
from holdfast.api.cli.session import Session
from holdfast.api.proto import types_pb2 as types
from holdfast.api.proto.services import (
    containers_pb2,
    content_pb2,
    diff_pb2,
    mounts_pb2,
    sandbox_pb2,
    snapshots_pb2,
)
from holdfast.runtime.spec import Wishes, make_spec, spec_bytes

from .sweep_asks import ROOT
from .sweep_view import POD, SNAPSHOTTER

A = TypeVar("A", bound=Message)

WITHIN_S = 60.0
SHIM = shutil.which("containerd-shim-runc-v2") or ""
DISK = "disk"
LONG_AGO_NS = 10**18
LAYERS = 'labels."containerd.io/gc.root"==sweep'


async def _sandboxes(session: Session, path: str, request: Message, answer: type[A]) -> A:
    whole = f"/containerd.services.sandbox.v1.{path}"
    return await session.channel.unary(
        whole, request, answer, metadata=session.metadata, timeout_s=WITHIN_S
    )


async def record_sandbox(session: Session) -> None:
    request = sandbox_pb2.StoreCreateRequest(sandbox=types.Sandbox(sandbox_id=POD))
    await _sandboxes(session, "Store/Create", request, sandbox_pb2.StoreCreateResponse)


async def forget_sandbox(session: Session) -> None:
    request = sandbox_pb2.StoreDeleteRequest(sandbox_id=POD)
    await _sandboxes(session, "Store/Delete", request, sandbox_pb2.StoreDeleteResponse)


async def create_sandbox(session: Session) -> None:
    request = sandbox_pb2.ControllerCreateRequest(sandbox_id=POD, sandboxer="shim")
    await _sandboxes(session, "Controller/Create", request, sandbox_pb2.ControllerCreateResponse)


async def start_sandbox(session: Session) -> None:
    request = sandbox_pb2.ControllerStartRequest(sandbox_id=POD, sandboxer="shim")
    await _sandboxes(session, "Controller/Start", request, sandbox_pb2.ControllerStartResponse)


async def stop_sandbox(session: Session) -> None:
    request = sandbox_pb2.ControllerStopRequest(sandbox_id=POD, sandboxer="shim")
    await _sandboxes(session, "Controller/Stop", request, sandbox_pb2.ControllerStopResponse)


async def shut_sandbox_down(session: Session) -> None:
    request = sandbox_pb2.ControllerShutdownRequest(sandbox_id=POD, sandboxer="shim")
    answer = sandbox_pb2.ControllerShutdownResponse
    await _sandboxes(session, "Controller/Shutdown", request, answer)


async def activate(session: Session, disk: Path) -> None:
    """A filesystem in a file, mounted from a loop device."""
    mounts = [
        types.Mount(type="mkfs/loop", source=str(disk), options=["X-containerd.mkfs.size=4M"]),
        types.Mount(type="format/ext4", source="{{ mount 0 }}"),
    ]
    request = mounts_pb2.ActivateRequest(name=DISK, mounts=mounts, labels=ROOT, temporary=True)
    await session.call("Mounts/Activate", request, mounts_pb2.ActivateResponse)


async def deactivate(session: Session) -> None:
    await session.call("Mounts/Deactivate", mounts_pb2.DeactivateRequest(name=DISK), Empty)


async def fill(session: Session, key: str) -> None:
    """Put a file into a snapshot, with times that make its layer the same each time."""
    [mount] = await _mounts(session, key)
    folder = Path(mount.source)
    (folder / "file").write_bytes(b"layer" * 100_000)
    for path in (folder / "file", folder):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


async def diff(session: Session, key: str) -> None:
    request = diff_pb2.DiffRequest(right=await _mounts(session, key), labels=ROOT)
    await session.call("Diff/Diff", request, diff_pb2.DiffResponse)


async def delete_layers(session: Session) -> None:
    """Delete what the differ has made."""
    async with session.stream("Content/List", content_pb2.ListContentResponse) as call:
        await call.send(content_pb2.ListContentRequest(filters=[LAYERS]))
        await call.end()
        found = [info.digest async for answer in call for info in answer.info]
    for digest in found:
        await session.call("Content/Delete", content_pb2.DeleteContentRequest(digest=digest), Empty)


async def _mounts(session: Session, key: str) -> list[types.Mount]:
    request = snapshots_pb2.MountsRequest(snapshotter=SNAPSHOTTER, key=key)
    answer = await session.call("Snapshots/Mounts", request, snapshots_pb2.MountsResponse)
    return list(answer.mounts)


async def create_under(session: Session, name: str, image: str, runtime: str, *words: str) -> None:
    """The record of a container of a runtime's name; its snapshot is there."""
    spec = spec_bytes(make_spec(session.namespace, name, Wishes(args=words, env=["PATH=/bin"])))
    container = containers_pb2.Container(
        id=name,
        image=image,
        runtime=containers_pb2.Container.Runtime(name=runtime),
        spec=AnyMessage(type_url=SPEC_URL, value=spec),
        snapshotter=SNAPSHOTTER,
        snapshot_key=name,
    )
    request = containers_pb2.CreateContainerRequest(container=container)
    await session.call("Containers/Create", request, containers_pb2.CreateContainerResponse)


async def prepare_root(session: Session, name: str) -> None:
    """A snapshot of the one image's layers."""
    async with session.stream("Snapshots/List", snapshots_pb2.ListSnapshotsResponse) as call:
        await call.send(snapshots_pb2.ListSnapshotsRequest(snapshotter=SNAPSHOTTER))
        await call.end()
        kinds = {info.name: info.kind async for answer in call for info in answer.info}
    [parent] = [name for name, kind in kinds.items() if kind == snapshots_pb2.COMMITTED]
    request = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=SNAPSHOTTER, key=name, parent=parent, labels=ROOT
    )
    await session.call("Snapshots/Prepare", request, snapshots_pb2.PrepareSnapshotResponse)


def foreign_socket(address: Path, namespace: str, id: str) -> Path:
    """Where Debian's shim of a task listens."""
    name = hashlib.sha256(f"{address}/{namespace}/{id}".encode()).hexdigest()
    return Path("/run/containerd/s", name)
