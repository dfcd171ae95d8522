"""What a daemon says that it is made of is what is there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.actors.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)
from holdfast.api.config import ProxyPlugin
from holdfast.api.grpc.client import Channel
from holdfast.api.host import Host, embedded, open_host
from holdfast.api.plugins import GRPC, SERVED, is_part
from holdfast.api.proto import runc_pb2
from holdfast.api.proto import types_pb2 as types
from holdfast.api.proto.services import introspection_pb2 as pb
from holdfast.api.sockets import serving
from holdfast.api.status import Code
from holdfast.runtime import procfs
from holdfast.storage.mounts import Mount, mount_all, unmount_all

pytestmark = pytest.mark.root

SHIM = "/usr/bin/containerd-shim-runc-v2"
SERVICE = "/containerd.services.introspection.v1.Introspection/"
SNAPSHOTTER, RUNTIME = "io.containerd.snapshotter.v1", "io.containerd.runtime.v2"


class Client:
    """The service."""

    def __init__(self, channel: Channel, host: Host) -> None:
        self.channel = channel
        self.host = host

    async def plugins(self, *filters: str) -> Mapping[tuple[str, str], pb.Plugin]:
        request = pb.PluginsRequest(filters=filters)
        answer = await self.channel.unary(f"{SERVICE}Plugins", request, pb.PluginsResponse)
        return {(each.type, each.id): each for each in answer.plugins}

    async def info(
        self, kind: str, id: str, options: Message | None = None
    ) -> pb.PluginInfoResponse:
        request = pb.PluginInfoRequest(type=kind, id=id)
        if options is not None:
            request.options.CopyFrom(packed(options))
        return await self.channel.unary(f"{SERVICE}PluginInfo", request, pb.PluginInfoResponse)


def packed(message: Message) -> AnyMessage:
    name = message.DESCRIPTOR.full_name
    return AnyMessage(type_url=name, value=message.SerializeToString())


@asynccontextmanager
async def a_daemon(base: Path, **settings: object) -> AsyncIterator[Client]:
    config = embedded(base / "root", base / "state", settings)
    async with (
        open_host(replace(config, address=str(base / "sock")), serving) as host,
        Channel.connect(base / "sock") as channel,
    ):
        yield Client(channel, host)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with a_daemon(tmp_path) as client:
        yield client


async def test_each_part_tells_where_it_is_and_what_it_needs(
    client: Client, tmp_path: Path
) -> None:
    plugins = await client.plugins()
    assert all(not each.HasField("init_err") for each in plugins.values())
    assert all(is_part(f"{type}.{id}") for type, id in plugins)
    assert {id for type, id in plugins if type == GRPC} == set(SERVED)
    here = types.Platform(os="linux", architecture="amd64")
    for name in ("overlayfs", "native"):
        snapshotter = plugins[SNAPSHOTTER, name]
        assert dict(snapshotter.exports) == {"root": str(tmp_path / "root" / name)}
        assert os.path.isdir(snapshotter.exports["root"])
        assert list(snapshotter.platforms) == [here]
    content = plugins["io.containerd.content.v1", "content"]
    assert os.path.isdir(content.exports["root"])
    assert (list(content.platforms), list(content.requires)) == ([], [])
    metadata = plugins["io.containerd.metadata.v1", "bolt"]
    assert os.path.isfile(metadata.exports["path"])
    types_there = {kind for kind, _ in plugins}
    for each in plugins.values():
        assert set(each.requires) <= types_there, each
    assert "io.containerd.content.v1" in metadata.requires
    # The gRPC parts are the services that are served, no more and no less.
    grpc = {id for kind, id in plugins if kind == "io.containerd.grpc.v1"}
    assert grpc >= {"containers", "tasks", "mounts", "sandboxes", "sandbox-controllers", "events"}
    assert grpc >= {"introspection", "healthcheck", "version"}
    assert not grpc & {"cri", "admin"}


async def test_a_snapshotter_that_does_not_work_says_why(tmp_path: Path) -> None:
    # On an overlay there is no overlay.
    for name in ("lower", "upper", "work", "at"):
        (tmp_path / name).mkdir()
    options = [f"{name}dir={tmp_path}/{name}" for name in ("lower", "upper", "work")]
    overlay = Mount(type="overlay", source="overlay", options=tuple(options))
    at = tmp_path / "at"
    mount_all([overlay], str(at))
    try:
        async with a_daemon(at) as client:
            plugins = await client.plugins("type==io.containerd.snapshotter.v1")
            broken = plugins[SNAPSHOTTER, "overlayfs"]
            assert broken.init_err.code == Code.FAILED_PRECONDITION
            assert "skip plugin" in broken.init_err.message
            assert not plugins[SNAPSHOTTER, "native"].HasField("init_err")
            assert "overlayfs" not in client.host.snapshotters
            with pytest.raises(FailedPrecondition, match="not successfully loaded"):
                await client.info(SNAPSHOTTER, "overlayfs", types.RuntimeRequest())
            answer = await client.info(SNAPSHOTTER, "overlayfs")
            assert answer.plugin == broken
    finally:
        unmount_all(str(at))


async def test_proxy_plugins_are_parts_of_their_types(tmp_path: Path) -> None:
    proxies = {
        kind: ProxyPlugin(type=kind, address=f"/run/{kind}.sock")
        for kind in ("snapshot", "content", "diff")
    }
    async with a_daemon(tmp_path, proxy_plugins=proxies) as client:
        plugins = await client.plugins()
    for type, kind in (
        (SNAPSHOTTER, "snapshot"),
        ("io.containerd.content.v1", "content"),
        ("io.containerd.differ.v1", "diff"),
    ):
        assert dict(plugins[type, kind].exports) == {"address": f"/run/{kind}.sock"}
        assert [found for found, id in plugins if id == kind and found != GRPC] == [type]


async def test_filters_choose_among_them(client: Client) -> None:
    assert set(await client.plugins("type==io.containerd.snapshotter.v1,id==native")) == {
        (SNAPSHOTTER, "native")
    }
    assert set(await client.plugins("id==walking", "id==task")) == {
        ("io.containerd.differ.v1", "walking"),
        (RUNTIME, "task"),
    }
    assert await client.plugins("capabilities==none") == {}
    with pytest.raises(InvalidArgument):
        await client.plugins("type==")


async def test_the_server_is_this_process(client: Client) -> None:
    answer = await client.channel.unary(f"{SERVICE}Server", Empty(), pb.ServerResponse)
    assert (answer.uuid, answer.pid) == (client.host.uuid, os.getpid())
    assert answer.pidns == os.stat("/proc/self/ns/pid").st_ino
    assert list(answer.deprecations) == []


async def test_a_runtime_tells_its_features(client: Client) -> None:
    assert not (await client.info(RUNTIME, "task")).HasField("extra")
    options = packed(runc_pb2.Options(binary_name="runc"))
    request = types.RuntimeRequest(runtime_path="io.containerd.runc.v2", options=options)
    answer = await client.info(RUNTIME, "task", request)
    assert answer.plugin.id == "task"
    assert answer.extra.type_url == "containerd.types.RuntimeInfo"
    info = types.RuntimeInfo.FromString(answer.extra.value)
    assert (info.name, info.options) == ("io.containerd.runc.v2", options)
    assert info.version.version
    assert info.features.type_url == (
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    )
    features = json.loads(info.features.value)
    assert "ociVersionMax" in features
    assert "rbind" in features["mountOptions"]


@pytest.mark.parametrize("program", ["runc", "crun"])
async def test_an_oci_runtimes_features_are_what_it_prints(client: Client, program: str) -> None:
    """Of crun, which has the command since 1.9, none where it has none."""
    printed = subprocess.run([program, "features"], capture_output=True, check=False)
    options = packed(runc_pb2.Options(binary_name=program))
    for name in ("io.containerd.runc.v2", "io.holdfast.v1"):
        request = types.RuntimeRequest(runtime_path=name, options=options)
        answer = await client.info(RUNTIME, "task", request)
        info = types.RuntimeInfo.FromString(answer.extra.value)
        assert (info.name, info.options) == (name, options)
        assert info.features.value == (b"" if printed.returncode else printed.stdout)


@pytest.mark.parametrize("by", ["name", "path"])
async def test_another_shim_tells_of_itself(
    client: Client, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own as such a binary: it is asked by `-info`, with the options on its input."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    binary = shutil.which("containerd-shim-holdfast-v1")
    assert binary is not None
    path = "io.containerd.holdfast.v1" if by == "name" else binary
    options = packed(runc_pb2.Options(binary_name="runc"))
    request = types.RuntimeRequest(runtime_path=path, options=options)
    answer = await client.info(RUNTIME, "task", request)
    info = types.RuntimeInfo.FromString(answer.extra.value)
    assert (info.name, info.options) == ("io.containerd.holdfast.v1", options)
    assert "ociVersionMax" in json.loads(info.features.value)
    missing = packed(runc_pb2.Options(binary_name="no-such-runtime"))
    request = types.RuntimeRequest(runtime_path=path, options=missing)
    with pytest.raises(Unknown, match=r"-info\]: exit status 1 .*no-such-runtime"):
        await client.info(RUNTIME, "task", request)


async def test_a_shim_that_tells_nothing_of_itself_is_a_refusal(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's, which knows no `-info`, and programs that are no shims."""
    (tmp_path / "plain").touch(mode=0o600)
    silent = tmp_path / "silent"
    silent.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/pid\nwait\n")
    (tmp_path / "endless").write_text("#!/bin/sh\nexec yes\n")
    for file in (silent, tmp_path / "endless"):
        file.chmod(0o755)
    monkeypatch.setattr("holdfast.runtime.foreign.INFO_WITHIN_S", 0.5)
    for path, kind, said in (
        (SHIM, Unknown, r"-info\]: exit status 2 \(stderr: \"flag provided but not defined: -info"),
        ("io.containerd.absent.v1", NotFound, 'path: runtime "io.containerd.absent.v1" binary'),
        ("runc", InvalidArgument, "failed to resolve runtime path: invalid runtime name runc"),
        (str(tmp_path / "plain"), Unavailable, "Permission denied"),
        ("/bin/echo", Unknown, "failed to unmarshal stdout"),
        (str(tmp_path / "endless"), ResourceExhausted, "says more than"),
        (str(silent), DeadlineExceeded, "no end in 0.5 s"),
    ):
        with trio.fail_after(8), pytest.raises(kind, match=said):
            await client.info(RUNTIME, "task", types.RuntimeRequest(runtime_path=path))
    pid = int((tmp_path / "pid").read_text())
    with trio.fail_after(10):
        while (left := procfs.stat(pid)) is not None and left.state not in "ZX":
            await trio.sleep(0.01)


async def test_a_runtime_without_the_command_has_no_features(
    client: Client, tmp_path: Path
) -> None:
    for name, text in {"old": "exit 1", "odd": "echo nothing", "list": "echo []"}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        options = packed(runc_pb2.Options(binary_name=str(program)))
        answer = await client.info(RUNTIME, "task", types.RuntimeRequest(options=options))
        info = types.RuntimeInfo.FromString(answer.extra.value)
        assert (info.name, info.HasField("features")) == ("io.containerd.runc.v2", False)


async def test_what_it_cannot_tell_is_refused(client: Client) -> None:
    for kind, id in ((RUNTIME, "other"), ("x", "task")):
        with pytest.raises(NotFound):
            await client.info(kind, id)
    with pytest.raises(Unimplemented, match="extra information"):
        await client.info("io.containerd.content.v1", "content", types.RuntimeRequest())
    with pytest.raises(Unimplemented, match="unknown request type"):
        await client.info(RUNTIME, "task", types.Mount())
    with pytest.raises(NotFound, match="runtime path"):
        await client.info(RUNTIME, "task", types.RuntimeRequest(runtime_path="/bin/kata"))
    torn = AnyMessage(type_url="containerd.types.RuntimeRequest", value=b"\x0a\xff")
    request = pb.PluginInfoRequest(type=RUNTIME, id="task", options=torn)
    with pytest.raises(InvalidArgument, match=r"containerd\.types\.RuntimeRequest: "):
        await client.channel.unary(f"{SERVICE}PluginInfo", request, pb.PluginInfoResponse)
    for value in (b"\x0a\xff", b"{torn"):
        options = AnyMessage(type_url="containerd.runc.v1.Options", value=value)
        with pytest.raises(InvalidArgument, match=r"containerd\.runc\.v1\.Options: "):
            await client.info(RUNTIME, "task", types.RuntimeRequest(options=options))
    missing = packed(runc_pb2.Options(binary_name="no-such-runtime"))
    with pytest.raises(NotFound, match="no-such-runtime"):
        await client.info(RUNTIME, "task", types.RuntimeRequest(options=missing))
