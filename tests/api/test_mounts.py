"""The mounts service of a daemon that is killed wherever it may be."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from holdfast.actors.errors import AlreadyExists, NotFound, Refusal, Unavailable
from holdfast.api.grpc.client import Channel
from holdfast.api.proto import types_pb2 as types
from holdfast.api.proto.services import leases_pb2
from holdfast.api.proto.services import mounts_pb2 as pb
from holdfast.api.status import CallFailed
from holdfast.storage.mountjobs import take_off

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import Daemon, running

pytestmark = pytest.mark.root

MOUNTS = "/containerd.services.mounts.v1.Mounts/"
LEASES = "/containerd.services.leases.v1.Leases/"
NAME = "disk"


@pytest.fixture(autouse=True)
def given_back(tmp_path: Path) -> Iterator[None]:
    """Whatever a test that failed has left."""
    yield
    for directory in (tmp_path / "state/mounts").glob("*"):
        take_off(directory)


class Client:
    """The service, for one namespace and lease."""

    def __init__(self, channel: Channel, lease: str = "") -> None:
        self.channel = channel
        self.metadata = {"containerd-namespace": "mounts"}
        if lease:
            self.metadata["containerd-lease"] = lease

    async def activate(self, base: Path, **more: bool) -> types.ActivationInfo:
        """A filesystem in a file, mounted."""
        size = "X-containerd.mkfs.size=4M"
        mounts = [
            types.Mount(type="mkfs/loop", source=f"{base}/root/disk", options=[size]),
            types.Mount(type="format/ext4", source="{{ mount 0 }}"),
        ]
        request = pb.ActivateRequest(name=NAME, mounts=mounts, labels={"a": "b"}, temporary=True)
        path = f"{MOUNTS}Activate"
        return (await self.channel.unary(path, request, pb.ActivateResponse, self.metadata)).info

    async def deactivate(self) -> None:
        request = pb.DeactivateRequest(name=NAME)
        await self.channel.unary(f"{MOUNTS}Deactivate", request, Empty, self.metadata)

    async def info(self) -> types.ActivationInfo:
        request = pb.InfoRequest(name=NAME)
        answer = await self.channel.unary(f"{MOUNTS}Info", request, pb.InfoResponse, self.metadata)
        return answer.info

    async def list(self, *filters: str) -> list[str]:
        request = pb.ListRequest(filters=filters)
        async with self.channel.stream(f"{MOUNTS}List", pb.ListMessage, self.metadata) as call:
            await call.send(request)
            await call.end()
            return [message.info.name async for message in call]


@asynccontextmanager
async def connected(daemon: Daemon) -> AsyncIterator[Client]:
    """A client with a lease, so that nothing is collected."""
    async with Channel.connect(daemon.socket) as channel:
        client = Client(channel, "held")
        with suppress(AlreadyExists):
            request = leases_pb2.CreateRequest(id="held")
            await channel.unary(
                f"{LEASES}Create", request, leases_pb2.CreateResponse, client.metadata
            )
        yield client


def standing(base: Path) -> list[str]:
    """What stands below a daemon's directory."""
    text = Path("/proc/self/mountinfo").read_text()
    found = [line.split()[4] for line in text.splitlines() if f"{base}/state/mounts" in line]
    for name in os.listdir("/sys/block"):
        with suppress(OSError):  # it is no loop device, or is one no longer
            backing = Path("/sys/block", name, "loop/backing_file").read_text()
            if backing.startswith(f"{base}/"):
                found.append(name)
    return [*found, *os.listdir(base / "state/mounts")]


async def until(base: Path, count: int) -> None:
    """The kernel takes a device away after its last user, not before."""
    with trio.move_on_after(5):
        while len(standing(base)) != count:
            await trio.sleep(0.02)
    assert len(standing(base)) == count, standing(base)


async def test_a_clients_mounts_are_made_told_changed_and_given_back(tmp_path: Path) -> None:
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            made = await client.activate(tmp_path)
            assert [each.mount.type for each in made.active] == ["loop", "ext4"]
            assert all(each.mounted_at.seconds for each in made.active)
            assert os.listdir(made.active[1].mount_point) == ["lost+found"]
            assert (made.name, dict(made.labels)) == (NAME, {"a": "b"})
            assert await client.info() == made
            assert await client.list() == [NAME]
            assert await client.list("labels.a==c", "name==other") == []
            changed = types.ActivationInfo(name=NAME, labels={"c": "d"})
            request = pb.UpdateRequest(info=changed, update_mask=FieldMask(paths=["labels.c"]))
            answer = await client.channel.unary(
                f"{MOUNTS}Update", request, pb.UpdateResponse, client.metadata
            )
            assert dict(answer.info.labels) == {"a": "b", "c": "d"}
            await client.deactivate()
            await until(tmp_path, 0)


DAEMON = ["mount.intended", "mount.activated", "mount.forgotten"]
WORKER = [
    "mount.activate.made",
    "mount.mkfs.formatted",
    "mount.loop.linked",
    "mount.activate.mounted",
    "mount.deactivate.unmounted",
    "mount.deactivate.released",
]


async def ask_all(daemon: Daemon, base: Path) -> None:
    """Make and give back, until the daemon dies over it."""
    with suppress(Refusal, CallFailed):
        async with connected(daemon) as client:
            await client.activate(base)
            await client.deactivate()


async def all_or_nothing(base: Path) -> None:
    """After a start: either all of it is there, and told, or none is."""
    with running("holdfast", base) as daemon:
        async with connected(daemon) as client:
            try:
                made = await client.info()
            except NotFound:
                await until(base, 0)
                made = await client.activate(base)
            assert os.listdir(made.active[1].mount_point) == ["lost+found"]
            await until(base, 3)
            await client.deactivate()
            await until(base, 0)


@pytest.mark.parametrize("point", DAEMON)
async def test_a_daemon_that_dies_leaves_all_or_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_FAILPOINTS", f"daemon:{point}=kill")
    with running("holdfast", tmp_path) as daemon:
        await ask_all(daemon, tmp_path)
        with trio.fail_after(20):  # it did die of it
            while Path(f"/proc/{daemon.pid}/stat").read_text().split()[2] != "Z":
                await trio.sleep(0.02)
    monkeypatch.delenv("HOLDFAST_FAILPOINTS")
    await all_or_nothing(tmp_path)


@pytest.mark.parametrize("point", WORKER)
async def test_daemon_and_worker_that_die_together_leave_all_or_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "noted"
    rules = f"worker:{point}=note:{noted},worker:{point}=delay:60"
    monkeypatch.setenv("HOLDFAST_FAILPOINTS", rules)
    with running("holdfast", tmp_path) as daemon:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_all, daemon, tmp_path)
            with trio.fail_after(20):
                while not noted.exists():
                    await trio.sleep(0.01)
            os.kill(daemon.pid, signal.SIGKILL)
    monkeypatch.delenv("HOLDFAST_FAILPOINTS")
    await all_or_nothing(tmp_path)


@pytest.mark.parametrize("point", WORKER[:4])
async def test_a_worker_that_dies_over_it_is_told_and_leaves_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"worker:{point}=kill")
    monkeypatch.setenv("HOLDFAST_FAILPOINTS", f"@{rules}")
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            with pytest.raises(Unavailable, match="died while doing activate"):
                await client.activate(tmp_path)
            assert await client.list() == []
            await until(tmp_path, 0)
            replacement = tmp_path / "no-rules"
            replacement.write_text("")
            replacement.rename(rules)
            await client.activate(tmp_path)
            await client.deactivate()
            await until(tmp_path, 0)


async def test_teardown_gives_them_up(tmp_path: Path) -> None:
    with running("holdfast", tmp_path) as daemon:
        async with connected(daemon) as client:
            await client.activate(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n')
    words = [sys.executable, "-m", "holdfast", "system", "teardown", "--config", str(config)]

    async def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = partial(subprocess.run, [*words, *more], capture_output=True, text=True)
        return await trio.to_thread.run_sync(command)

    # `running` ends what its daemon left, all mounts below its directory too; the device stays.
    refused = await run()
    assert refused.returncode == 1
    assert "1 mounts are active; --force gives them up" in refused.stderr
    assert (await run("--force")).stdout == "removed\n"
    await until(tmp_path, 0)
    assert (await run()).stdout == "nothing is kept\n"
