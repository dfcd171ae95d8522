"""Sandboxes over the socket, through the deaths of their daemon."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf import any_pb2
from google.protobuf.message import Message

from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
)
from holdfast.api.anys import SPEC_URL
from holdfast.api.grpc.client import Channel
from holdfast.api.proto import events_pb2, runc_pb2, types_pb2
from holdfast.api.proto.services import containers_pb2, tasks_pb2
from holdfast.api.proto.services import events_pb2 as events_service
from holdfast.api.proto.services import sandbox_pb2 as pb
from holdfast.api.status import CallFailed
from holdfast.runtime.pause import pause_root

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import Daemon, running

pytestmark = pytest.mark.root

POD = "pod"
NS = f"pods-{os.getpid()}"
NAMESPACES = ("network", "ipc", "uts", "pid")


def spec_of(*kinds: str, **more: Any) -> any_pb2.Any:
    """A spec that says little more than its namespaces."""
    namespaces = [{"type": kind} for kind in kinds]
    text = json.dumps({"linux": {"namespaces": namespaces}, **more})
    return any_pb2.Any(type_url=SPEC_URL, value=text.encode())


class Client:
    """The sandbox service, and what else is needed, for one namespace."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.metadata = {"containerd-namespace": NS}

    async def ask(self, module: Any, service: str, method: str, **fields: Any) -> Any:
        found = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        request: type[Message] = getattr(module, found.input_type.name)
        answer = getattr(module, found.output_type.name, None)
        if answer is None:
            from google.protobuf.empty_pb2 import Empty as answer
        path = f"/{module.DESCRIPTOR.package}.{service}/{method}"
        return await self.channel.unary(path, request(**fields), answer, self.metadata, 30.0)

    async def control(self, method: str, id: str = POD, **fields: Any) -> Any:
        return await self.ask(pb, "Controller", method, sandbox_id=id, sandboxer="shim", **fields)

    async def store(self, method: str, **fields: Any) -> Any:
        return await self.ask(pb, "Store", method, **fields)

    async def told(self, prefix: str) -> list[tuple[str, any_pb2.Any]]:
        """The events since the beginning whose topic begins so."""
        path = "/containerd.services.events.v1.Events/Subscribe"
        seen: list[tuple[str, any_pb2.Any]] = []
        metadata = {**self.metadata, "holdfast-since": "0"}
        with trio.move_on_after(1.0):
            async with self.channel.stream(path, types_pb2.Envelope, metadata) as call:
                await call.send(events_service.SubscribeRequest())
                await call.end()
                async for envelope in call:
                    if envelope.topic.startswith(prefix):
                        seen.append((envelope.topic, envelope.event))
        return seen


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Client]:
    async with Channel.connect(daemon.socket) as channel:
        yield Client(channel)


def namespaces_of(pid: int | str) -> dict[str, str]:
    names = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    return {kind: os.readlink(f"/proc/{pid}/ns/{name}") for kind, name in names.items()}


def cgroups() -> list[Path]:
    """Those of this test's namespace. A walk, for others come and go beside it."""
    return [
        Path(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if f"/{NS}/" in f"{folder}/{name}"
    ]


def nothing_left(base: Path) -> None:
    """Of a sandbox: no bundle, no process, no cgroup."""
    assert list((base / "state/tasks").glob("*/*")) == []
    assert cgroups() == []


async def test_a_sandbox_lives_from_its_record_to_its_end(tmp_path: Path) -> None:
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            record = types_pb2.Sandbox(
                sandbox_id=POD, spec=spec_of("network", "uts", hostname="podhost"), sandboxer="shim"
            )
            made = (await client.store("Create", sandbox=record)).sandbox
            assert made.created_at.seconds > 0
            assert (await client.control("Create")).sandbox_id == POD
            with pytest.raises(AlreadyExists, match='sandbox "pod": already exists'):
                await client.control("Create")
            before = await client.control("Status")
            assert (before.state, before.pid > 0) == ("SANDBOX_NOTREADY", True)
            # Created and not started: its namespaces are there, for whoever brings a network.
            ours, its = namespaces_of("self"), namespaces_of(before.pid)
            differ = {kind for kind in ours if ours[kind] != its[kind]}
            assert differ == {"network", "uts"}
            started = await client.control("Start")
            assert (started.pid, started.created_at) == (before.pid, before.created_at)
            status = await client.control("Status", verbose=True)
            assert (status.state, status.info["task"]) == ("SANDBOX_READY", "RUNNING")
            entered = subprocess.run(
                ["nsenter", "-t", str(status.pid), "-u", "hostname"], capture_output=True, text=True
            )
            assert entered.stdout == "podhost\n"
            platform = (await client.control("Platform")).platform
            assert (platform.os, platform.architecture) == ("linux", "amd64")
            metrics = (await client.control("Metrics")).metrics
            assert (metrics.id, "cgroups" in metrics.data.type_url) == (POD, True)
            # It is nobody's container.
            tasks = await client.ask(tasks_pb2, "Tasks", "List")
            assert list(tasks.tasks) == []
            with pytest.raises(NotFound):
                await client.ask(tasks_pb2, "Tasks", "Get", container_id=f"{POD}_")

            limits = spec_of(linux={"resources": {"pids": {"limit": 77}}})
            limited = types_pb2.Sandbox(sandbox_id=POD, spec=limits)
            await client.control("Update", sandbox=limited, fields=["spec"])
            assert f"/{NS}/pod_" in Path(f"/proc/{status.pid}/cgroup").read_text()
            (found,) = [path for path in cgroups() if (path / "pids.max").exists()]
            assert (found / "pids.max").read_text() == "77\n"
            with pytest.raises(InvalidArgument):
                await client.control("Update", sandbox=limited, fields=["colour"])

            await client.control("Stop")
            ended = await client.control("Wait")
            assert (ended.exit_status, ended.exited_at.seconds > 0) == (0, True)
            after = await client.control("Status")
            assert (after.state, after.exited_at) == ("SANDBOX_NOTREADY", ended.exited_at)
            await client.control("Stop")
            await client.control("Shutdown")
            with pytest.raises(NotFound):
                await client.control("Status")
            await client.control("Stop")  # what is not there has stopped
            with pytest.raises(NotFound):
                await client.control("Shutdown")
            await client.store("Delete", sandbox_id=POD)
            told = await client.told("/sandboxes/")
            assert [topic for topic, _ in told] == [
                "/sandboxes/create", "/sandboxes/start", "/sandboxes/exit",
            ]  # fmt: skip
            exited = events_pb2.SandboxExit.FromString(told[2][1].value)
            assert exited == events_pb2.SandboxExit(
                sandbox_id=POD, exit_status=0, exited_at=ended.exited_at
            )
            assert await client.told("/tasks/") == []
        nothing_left(tmp_path)


async def test_what_is_not_ours_or_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            for name, refusal in {"": InvalidArgument, "podsandbox": NotFound}.items():
                with pytest.raises(refusal, match="sandbox controller"):
                    await client.ask(pb, "Controller", "Create", sandbox_id="x", sandboxer=name)
            for bad in ("", "a/b", "pod_"):
                with pytest.raises(InvalidArgument):
                    await client.control("Create", bad)
            for text in (
                b"no json",
                b"[]",
                b'{"process": {"args": ["x"]}}',
                b'{"linux": 1}',
                b'{"linux": {"namespaces": [1]}}',
                b'{"linux": {"namespaces": 1}}',
            ):
                spec = any_pb2.Any(type_url=SPEC_URL, value=text)
                with pytest.raises(InvalidArgument):
                    await client.control(
                        "Create", sandbox=types_pb2.Sandbox(sandbox_id=POD, spec=spec)
                    )
            for method in ("Start", "Wait", "Status", "Shutdown", "Metrics", "Platform"):
                with pytest.raises(NotFound):
                    await client.control(method)
        nothing_left(tmp_path)


def container(id: str, base: Path, sandbox: str, binary: str) -> containers_pb2.Container:
    """A container that needs no image: it runs the pause program too."""
    spec = {
        "ociVersion": "1.0.2",
        "hostname": "own",
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": f"{base}/state/pause", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/{NS}/{id}",
            "namespaces": [{"type": kind} for kind in (*NAMESPACES, "mount")],
        },
    }
    value = any_pb2.Any(type_url=SPEC_URL, value=json.dumps(spec).encode())
    options = any_pb2.Any(
        type_url=runc_pb2.Options.DESCRIPTOR.full_name,
        value=runc_pb2.Options(binary_name=binary).SerializeToString(),
    )
    runtime = containers_pb2.Container.Runtime(name="io.containerd.runc.v2", options=options)
    return containers_pb2.Container(id=id, spec=value, runtime=runtime, sandbox=sandbox)


async def test_containers_join_their_sandbox(tmp_path: Path) -> None:
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            for id, binary in (("one", "crun"), ("two", "runc")):
                record = container(id, tmp_path, POD, binary)
                await client.ask(containers_pb2, "Containers", "Create", container=record)
            with pytest.raises(NotFound, match="can't find sandbox pod"):
                await client.ask(tasks_pb2, "Tasks", "Create", container_id="one")
            spec = types_pb2.Sandbox(sandbox_id=POD, spec=spec_of(*NAMESPACES))
            await client.control("Create", sandbox=spec)
            with pytest.raises(FailedPrecondition, match="not running"):
                await client.ask(tasks_pb2, "Tasks", "Create", container_id="one")
            pod = (await client.control("Start")).pid
            shared = namespaces_of(pod)
            assert set(shared.values()).isdisjoint(namespaces_of("self").values())
            pids = []
            for id in ("one", "two"):
                await client.ask(tasks_pb2, "Tasks", "Create", container_id=id)
                pids.append((await client.ask(tasks_pb2, "Tasks", "Start", container_id=id)).pid)
            for pid in pids:
                assert namespaces_of(pid) == shared
                assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink(f"/proc/{pod}/ns/mnt")
            listed = await client.ask(tasks_pb2, "Tasks", "List")
            assert sorted(task.container_id for task in listed.tasks) == ["one", "two"]
            # The first process of a pid namespace takes all others along.
            await client.control("Stop")
            for id in ("one", "two"):
                ended = await client.ask(tasks_pb2, "Tasks", "Wait", container_id=id)
                assert ended.exit_status == 137
                await client.ask(tasks_pb2, "Tasks", "Delete", container_id=id)
            await client.control("Shutdown")
        nothing_left(tmp_path)


async def test_a_sandbox_may_have_a_root_a_process_and_a_network_of_its_own(
    tmp_path: Path,
) -> None:
    root = pause_root(tmp_path / "own")
    (root / "pause").rename(root / "hold")
    process = {"args": ["/hold"], "cwd": "/", "user": {"uid": 7, "gid": 7}}
    spec = spec_of("network", "uts", process=process)
    holder = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    network = Path(f"/proc/{holder.pid}/ns/net")
    try:
        with running("holdfast", tmp_path) as daemon:
            async with connected(daemon) as client:
                with trio.fail_after(5):
                    while os.readlink(network) == os.readlink("/proc/self/ns/net"):
                        await trio.sleep(0.01)
                sandbox = types_pb2.Sandbox(sandbox_id=POD, spec=spec)
                bind = types_pb2.Mount(type="bind", source=str(root), options=["rbind", "ro"])
                path = str(network)
                await client.control("Create", sandbox=sandbox, rootfs=[bind], netns_path=path)
                pid = (await client.control("Start")).pid
                assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(network)
                assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"/hold\0"
                assert os.stat(f"/proc/{pid}").st_uid == 7
                os.kill(pid, signal.SIGKILL)
                assert (await client.control("Wait")).exit_status == 137
                await client.control("Shutdown")
            nothing_left(tmp_path)
    finally:
        holder.kill()
        holder.wait()


async def test_a_sandbox_outlives_its_daemon(tmp_path: Path) -> None:
    with running("holdfast", tmp_path, containers_live_on=True) as daemon:
        async with connected(daemon) as client:
            for id in ("runs", "ends", "created"):
                await client.control("Create", id)
            pids = {id: (await client.control("Start", id)).pid for id in ("runs", "ends")}
            os.kill(daemon.pid, signal.SIGKILL)
    os.kill(pids["ends"], signal.SIGKILL)
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            ended = await client.control("Wait", "ends")
            assert ended.exit_status == 137
            status = await client.control("Status", "runs")
            assert (status.state, status.pid) == ("SANDBOX_READY", pids["runs"])
            await client.control("Start", "created")
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    assert (await client.control("Wait", "runs")).exit_status == 0

                nursery.start_soon(wait)
                await client.control("Stop", "runs")
            for id in ("runs", "ends", "created"):
                await client.control("Shutdown", id)
            told = [topic for topic, _ in await client.told("/sandboxes/")]
            assert sorted(told) == sorted(
                [f"/sandboxes/{verb}" for verb in ("create", "start", "exit")] * 3
            )
        nothing_left(tmp_path)


@pytest.mark.parametrize(
    "point", ["task.create.intended", "bundle.make.made", "bundle.make.written"]
)
async def test_a_create_that_its_daemon_does_not_survive_comes_to_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_FAILPOINTS", f"daemon:{point}=kill")
    with running("holdfast", tmp_path, containers_live_on=True) as daemon:
        async with connected(daemon) as client:
            with pytest.raises((Refusal, CallFailed)):
                await client.control("Create")
    monkeypatch.delenv("HOLDFAST_FAILPOINTS")
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            with trio.fail_after(20):
                while True:  # the undoing goes on beside the serving
                    try:
                        await client.control("Create")
                        break
                    except AlreadyExists:
                        await trio.sleep(0.05)
            await client.control("Start")
            await client.control("Shutdown")
        nothing_left(tmp_path)
