"""What is promised on a host with cgroup v2 alone, checked inside the guest of run.py.

Each promise is kept with crun and with runc. The machine is emulated and slow: deadlines here are
for hangs, not for speed. Run by name: the file is none that pytest collects by itself.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.api.cli.session import Session, Where
from holdfast.api.proto import cgroups_v2_pb2, events_pb2, runc_pb2, task_types_pb2
from holdfast.api.proto.services import admin_pb2, containers_pb2, snapshots_pb2, tasks_pb2

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import Daemon, running
from examples import busybox_image

A = TypeVar("A", bound=Message)

NAMESPACE = "guest"
CGROUPS = Path("/sys/fs/cgroup")
PARENT = "guest-test"
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
RUNTIMES = ("crun", "runc")
HANGS_AFTER_S = 90.0
MIB = 1 << 20
CONTAINERS_OF_THE_MATRIX = 20
CAPABILITIES = ["CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"]


def spec(name: str, args: Sequence[str], **changes: Any) -> dict[str, Any]:
    """An OCI config. `changes` are terminal and resources."""
    places = [("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")]
    mounts = [{"destination": to, "type": kind, "source": kind} for to, kind in places]
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    return {
        "ociVersion": "1.0.2",
        "process": process(args, terminal=changes.get("terminal", False)),
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "mounts": [*mounts, {**cgroup, "options": ["ro", "nosuid", "noexec", "nodev"]}],
        "linux": {
            "cgroupsPath": f"/{PARENT}/{name}",
            "namespaces": [
                {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup")
            ],
            "resources": changes.get("resources", {}),
        },
    }


def process(args: Sequence[str], *, terminal: bool = False) -> dict[str, Any]:
    """An OCI process as root."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    }


class Stream:
    """A FIFO that we hold open, so that neither side waits for the other."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self.descriptor: int | None = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.seen = b""

    async def until(self, wanted: bytes) -> bytes:
        """All that was read, once `wanted` is in it."""
        while True:
            assert self.descriptor is not None
            with suppress(BlockingIOError):
                self.seen += os.read(self.descriptor, 65536)
            if wanted in self.seen:
                return self.seen
            await trio.sleep(0.05)

    async def write(self, data: bytes) -> None:
        assert self.descriptor is not None
        os.write(self.descriptor, data)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@dataclass(slots=True)
class Container:
    """One container of a test, with the verbs of its life. Left running, it is ended."""

    name: str
    runtime: str
    session: Session
    parent: str
    folder: Path
    streams: list[Stream] = field(default_factory=list[Stream])

    @property
    def cgroup(self) -> Path:
        return CGROUPS / PARENT / self.name

    async def call(self, verb: str, request: Message, answer: type[A]) -> A:
        return await self.session.call(verb, request, answer, HANGS_AFTER_S)

    def stream(self, kind: str) -> Stream:
        stream = Stream(self.folder / f"{self.name}-{kind}-{len(self.streams)}")
        self.streams.append(stream)
        return stream

    async def create(self, args: Sequence[str], *, stdin: str = "", **changes: Any) -> int:
        """Snapshot, record and task; stdout and stderr are files unless `out` names FIFOs."""
        prepared = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter="overlayfs",
            key=self.name,
            parent=self.parent,
            labels={"containerd.io/gc.root": "2026-01-01T00:00:00Z"},
        )
        made = await self.call("Snapshots/Prepare", prepared, snapshots_pb2.PrepareSnapshotResponse)
        record = containers_pb2.Container(
            id=self.name, snapshotter="overlayfs", snapshot_key=self.name
        )
        record.runtime.name = "io.containerd.runc.v2"
        options = runc_pb2.Options(binary_name=self.runtime)
        record.runtime.options.type_url = "containerd.runc.v1.Options"
        record.runtime.options.value = options.SerializeToString()
        record.spec.type_url = SPEC_URL
        record.spec.value = json.dumps(spec(self.name, args, **changes)).encode()
        await self.call(
            "Containers/Create",
            containers_pb2.CreateContainerRequest(container=record),
            containers_pb2.CreateContainerResponse,
        )
        terminal = bool(changes.get("terminal"))
        request = tasks_pb2.CreateTaskRequest(
            container_id=self.name,
            rootfs=made.mounts,
            stdin=stdin,
            stdout=changes.get("stdout", f"file://{self.folder}/{self.name}.out"),
            stderr=""
            if terminal
            else changes.get("stderr", f"file://{self.folder}/{self.name}.err"),
            terminal=terminal,
        )
        return (await self.call("Tasks/Create", request, tasks_pb2.CreateTaskResponse)).pid

    async def start(self, exec_id: str = "") -> int:
        request = tasks_pb2.StartRequest(container_id=self.name, exec_id=exec_id)
        return (await self.call("Tasks/Start", request, tasks_pb2.StartResponse)).pid

    async def run(self, args: Sequence[str], **more: Any) -> int:
        await self.create(args, **more)
        return await self.start()

    async def exec(
        self, exec_id: str, args: Sequence[str], stdout: str = "", *, terminal: bool = False
    ) -> None:
        given = AnyMessage(
            type_url=PROCESS_URL, value=json.dumps(process(args, terminal=terminal)).encode()
        )
        request = tasks_pb2.ExecProcessRequest(
            container_id=self.name, exec_id=exec_id, spec=given, stdout=stdout, terminal=terminal
        )
        await self.call("Tasks/Exec", request, Empty)
        await self.start(exec_id)

    async def wait(self, exec_id: str = "") -> int:
        with trio.fail_after(HANGS_AFTER_S):
            return await self.session.wait(self.name, exec_id)

    async def kill(self, number: int, *, all: bool = False) -> None:
        request = tasks_pb2.KillRequest(container_id=self.name, signal=number, all=all)
        await self.call("Tasks/Kill", request, Empty)

    async def pause(self) -> None:
        await self.call("Tasks/Pause", tasks_pb2.PauseTaskRequest(container_id=self.name), Empty)

    async def resume(self) -> None:
        await self.call("Tasks/Resume", tasks_pb2.ResumeTaskRequest(container_id=self.name), Empty)

    async def status(self) -> str:
        answer = await self.session.task(self.name)
        return task_types_pb2.Status.Name(answer.process.status)

    async def pids(self) -> list[int]:
        request = tasks_pb2.ListPidsRequest(container_id=self.name)
        answer = await self.call("Tasks/ListPids", request, tasks_pb2.ListPidsResponse)
        return [found.pid for found in answer.processes]

    async def metrics(self) -> cgroups_v2_pb2.Metrics:
        request = tasks_pb2.MetricsRequest(filters=[f"id=={self.name}"])
        answer = await self.call("Tasks/Metrics", request, tasks_pb2.MetricsResponse)
        (metric,) = answer.metrics
        assert metric.data.type_url.endswith("io.containerd.cgroups.v2.Metrics")
        return cgroups_v2_pb2.Metrics.FromString(metric.data.value)

    async def delete_exec(self, exec_id: str) -> int:
        request = tasks_pb2.DeleteProcessRequest(container_id=self.name, exec_id=exec_id)
        return (
            await self.call("Tasks/DeleteProcess", request, tasks_pb2.DeleteResponse)
        ).exit_status

    async def delete(self) -> int:
        """Task, snapshot and record; the exit status that the task's delete told."""
        status = (await self.session.delete_task(self.name)).exit_status
        await self.session.delete_container(await self.session.container(self.name))
        return status

    def output(self, kind: str = "out") -> str:
        return (self.folder / f"{self.name}.{kind}").read_text()

    async def output_has(self, text: str) -> None:
        await becomes(lambda: text in self.output())

    async def end(self) -> None:
        """For a test that failed: whatever is left goes."""
        for stream in self.streams:
            stream.close()
        with trio.move_on_after(30), suppress(Exception):
            await self.kill(signal.SIGKILL, all=True)
            await self.wait()
        with trio.move_on_after(30), suppress(Exception):
            await self.delete()


async def becomes(true: Callable[[], bool], within_s: float = HANGS_AFTER_S) -> None:
    with trio.fail_after(within_s):
        while not true():
            await trio.sleep(0.05)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("host")
    with running("holdfast", base) as started:
        archive = base / "busybox.tar"
        busybox_image.build(archive)
        command(started, "import", str(archive))
        yield started


def command(daemon: Daemon, *words: str) -> str:
    """What the `holdfast` command prints."""
    start = [sys.executable, "-m", "holdfast", "-a", str(daemon.socket), "-n", NAMESPACE]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=HANGS_AFTER_S)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ctr(daemon: Daemon, *words: str) -> str:
    """What Debian's own `ctr` prints."""
    start = ["ctr", "--address", str(daemon.socket), "--namespace", NAMESPACE]
    done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=HANGS_AFTER_S)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def chain(daemon: Daemon) -> str:
    rows = [line.split() for line in ctr(daemon, "snapshots", "ls").splitlines()]
    (row,) = [row for row in rows if row[-1] == "Committed"]
    return row[0]


@pytest.fixture
async def session(daemon: Daemon) -> AsyncIterator[Session]:
    async with Where(str(daemon.socket), NAMESPACE).session() as opened:
        yield opened


@pytest.fixture(params=RUNTIMES)
async def container(
    request: pytest.FixtureRequest, session: Session, chain: str, tmp_path: Path
) -> AsyncIterator[Container]:
    name = f"{request.param}-{uuid.uuid4().hex[:8]}"
    made = Container(name, request.param, session, chain, tmp_path)
    yield made
    with trio.CancelScope(shield=True):
        await made.end()


def left_of(container: Container, daemon: Daemon) -> list[str]:
    """What a deleted container must not leave: processes, mounts, cgroups, state, snapshots."""
    left = [str(path) for path in CGROUPS.rglob(f"*{container.name}*") if path.is_dir()]
    for folder in (Path("/run/crun"), Path("/run/runc"), daemon.base / "state"):
        left += [str(path) for path in folder.rglob(f"*{container.name}*")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
            if container.name in words or container.name in mounts:
                left.append(f"process {pid}: {words}")
    return left


# ---------------------------------------------------------------- the host


def test_the_guest_is_a_host_with_unified_cgroups_and_info_names_its_guarantee(
    daemon: Daemon,
) -> None:
    facts = json.loads(command(daemon, "info", "--format", "json"))
    assert facts["cgroups"] == "unified"
    assert facts["kernel"].startswith("6.12.")
    assert facts["guarantee"]
    print(f"\nguarantee: {facts['guarantee']}")


# ---------------------------------------------------------------- the life of a container


async def test_a_container_lives_from_create_to_delete_and_leaves_nothing(
    container: Container, daemon: Daemon
) -> None:
    pid = await container.create(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert await container.status() == "CREATED"
    assert (CGROUPS / PARENT / container.name).is_dir()
    assert await container.start() == pid
    assert await container.wait() == 7
    assert (container.output(), container.output("err")) == ("out\n", "err\n")
    assert await container.delete() == 7
    await becomes(lambda: not left_of(container, daemon), within_s=20)


async def test_a_created_container_is_deleted_without_a_start(
    container: Container, daemon: Daemon
) -> None:
    await container.create(["sleep", "1000"])
    await container.delete()
    await becomes(lambda: not left_of(container, daemon), within_s=20)


async def test_stdio_passes_every_byte_and_stdin_ends_when_it_is_closed(
    container: Container,
) -> None:
    stdin, out, err = (container.stream(kind) for kind in ("in", "out", "err"))
    script = "seq 1 5000; cat; echo done; echo err >&2"
    await container.run(["sh", "-c", script], stdin=stdin.path, stdout=out.path, stderr=err.path)
    with trio.fail_after(HANGS_AFTER_S):
        await stdin.write(b"typed\n")
        await out.until(b"typed\n")
        stdin.close()
        closed = tasks_pb2.CloseIORequest(container_id=container.name, stdin=True)
        await container.call("Tasks/CloseIO", closed, Empty)
        said = await out.until(b"done\n")
        assert await err.until(b"err\n") == b"err\n"
    assert said == b"".join(b"%d\n" % n for n in range(1, 5001)) + b"typed\ndone\n"
    assert await container.wait() == 0
    assert await container.delete() == 0


async def test_a_terminal_has_the_size_that_it_was_given(container: Container) -> None:
    stdin, out = container.stream("in"), container.stream("out")
    await container.run(["sh"], stdin=stdin.path, stdout=out.path, terminal=True)
    with trio.fail_after(HANGS_AFTER_S):
        size = tasks_pb2.ResizePtyRequest(container_id=container.name, width=97, height=31)
        await container.call("Tasks/ResizePty", size, Empty)
        await stdin.write(b"tty; stty size; exit 4\n")
        said = await out.until(b"31 97")
    assert b"/dev/" in said
    assert await container.wait() == 4
    assert await container.delete() == 4


async def test_an_exec_has_its_own_output_and_exit_status(container: Container) -> None:
    await container.run(["sleep", "1000"])
    out = container.stream("exec")
    await container.exec("e1", ["sh", "-c", "echo from the exec; hostname; exit 3"], out.path)
    assert await container.wait("e1") == 3
    with trio.fail_after(HANGS_AFTER_S):
        assert await out.until(b"inside\n") == b"from the exec\ninside\n"
    assert await container.delete_exec("e1") == 3
    await container.exec(
        "e2", ["sh", "-c", "tty; exit 5"], container.stream("tty").path, terminal=True
    )
    assert await container.wait("e2") == 5
    assert await container.delete_exec("e2") == 5
    await container.kill(signal.SIGKILL)
    assert await container.wait() == 137
    assert await container.delete() == 137


async def test_signals_reach_the_first_process_and_count_as_128_more(
    container: Container,
) -> None:
    script = "trap 'echo heard; exit 9' TERM; echo ready; while true; do sleep 0.1; done"
    await container.run(["sh", "-c", script])
    await container.output_has("ready")
    await container.kill(signal.SIGTERM)
    assert await container.wait() == 9
    await container.output_has("heard")
    assert await container.delete() == 9


# ---------------------------------------------------------------- cgroup v2


async def test_limits_stand_in_the_containers_cgroup_and_can_be_changed(
    container: Container,
) -> None:
    limits = {
        "memory": {"limit": 64 * MIB},
        "pids": {"limit": 50},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512},
    }
    await container.run(["sleep", "1000"], resources=limits)
    assert (container.cgroup / "memory.max").read_text() == f"{64 * MIB}\n"
    assert (container.cgroup / "pids.max").read_text() == "50\n"
    assert (container.cgroup / "cpu.max").read_text() == "50000 100000\n"
    resources = AnyMessage(
        type_url=RESOURCES_URL,
        value=json.dumps({"memory": {"limit": 96 * MIB}, "pids": {"limit": 60}}).encode(),
    )
    request = tasks_pb2.UpdateTaskRequest(container_id=container.name, resources=resources)
    await container.call("Tasks/Update", request, Empty)
    assert (container.cgroup / "memory.max").read_text() == f"{96 * MIB}\n"
    assert (container.cgroup / "pids.max").read_text() == "60\n"


async def test_metrics_count_what_the_container_uses(container: Container) -> None:
    script = (
        "sleep 1000 & dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>&1;"
        " dd if=/dev/zero of=/file bs=1M count=4 conv=fsync 2>&1; echo ready; wait"
    )
    limits = {"memory": {"limit": 128 * MIB}, "pids": {"limit": 50}}
    await container.run(["sh", "-c", script], resources=limits)
    await container.output_has("ready")
    used = await container.metrics()
    assert used.pids.current == 2
    assert used.pids.limit == 50
    assert used.memory.usage_limit == 128 * MIB
    assert 8 * MIB <= used.memory.usage <= 128 * MIB
    assert used.memory.shmem >= 8 * MIB
    assert used.memory.max_usage >= used.memory.usage
    assert used.cpu.usage_usec > 0
    assert used.cpu.user_usec + used.cpu.system_usec <= used.cpu.usage_usec + 1000
    assert sum(entry.wbytes for entry in used.io.usage) >= 4 * MIB
    assert used.memory_events.oom_kill == 0
    assert used.memory.psi.full.total >= 0
    assert used.HasField("memory_events")


async def test_want_of_memory_ends_the_process_and_is_told_once(
    container: Container, session: Session
) -> None:
    info = await session.info()
    await container.run(
        ["sh", "-c", "tail /dev/zero; echo ended $?; sleep 1000"],
        resources={"memory": {"limit": 16 * MIB}},
    )
    await container.output_has("ended 137")
    told = await first_event(session, "/tasks/oom", container.name, since=info.sequence)
    assert events_pb2.TaskOOM.FromString(told).container_id == container.name
    assert (await container.metrics()).memory_events.oom_kill >= 1
    await container.kill(signal.SIGKILL)
    assert await container.wait() == 137


async def first_event(session: Session, topic: str, name: str, since: int) -> bytes:
    """The payload of the first event with that topic about the container."""
    request = admin_pb2.EventsRequest(since=since, filters=[f'topic=="{topic}"'])
    with trio.fail_after(HANGS_AFTER_S):
        async with session.stream("admin/Events", admin_pb2.EventsResponse) as call:
            await call.send(request)
            await call.end()
            while True:
                answer = await call.receive()
                assert answer is not None
                if name.encode() in answer.envelope.event.value:
                    return answer.envelope.event.value


async def test_a_paused_container_stands_still_and_goes_on(container: Container) -> None:
    await container.run(["sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"])
    await container.output_has("3\n")
    await container.pause()
    assert await container.status() == "PAUSED"
    assert "frozen 1" in (container.cgroup / "cgroup.events").read_text()
    before = container.output()
    await trio.sleep(2)
    assert container.output() == before
    await container.resume()
    assert await container.status() == "RUNNING"
    await becomes(lambda: len(container.output()) > len(before))
    numbers = [int(line) for line in container.output().split()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_paused_container_can_be_killed(container: Container, daemon: Daemon) -> None:
    await container.run(["sleep", "1000"])
    await container.pause()
    await container.kill(signal.SIGKILL)
    assert await container.wait() == 137
    assert await container.delete() == 137
    await becomes(lambda: not left_of(container, daemon), within_s=20)


async def test_kill_all_reaches_every_process(container: Container, daemon: Daemon) -> None:
    script = "for i in 1 2 3; do setsid sleep 1000 & done; (sleep 1000 & sleep 1000) & wait"
    await container.run(["sh", "-c", script])
    await container.exec("e1", ["sh", "-c", "sleep 1000 & sleep 1000"])
    seen: list[int] = []
    with trio.fail_after(HANGS_AFTER_S):
        while len(seen) < 8:
            seen = await container.pids()
            await trio.sleep(0.1)
    await container.kill(signal.SIGKILL, all=True)
    assert await container.wait("e1") == 137
    assert await container.wait() == 137
    await becomes(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in seen))
    assert await container.delete_exec("e1") == 137
    assert await container.delete() == 137
    await becomes(lambda: not left_of(container, daemon), within_s=20)


# ---------------------------------------------------------------- an unmodified client


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_debians_ctr_runs_pauses_measures_and_removes(daemon: Daemon, runtime: str) -> None:
    image, name = busybox_image.DEFAULT_NAME, f"ctr-{runtime}"
    flags = ["--runc-binary", runtime]
    assert ctr(daemon, "run", "--rm", *flags, image, "once", "echo", "hello") == "hello\n"
    ctr(daemon, "run", "-d", *flags, "--memory-limit", str(64 * MIB), image, name, "sleep", "1000")
    said = ctr(daemon, "tasks", "metrics", name)
    assert re.search(r"memory\.usage_in_bytes +\d+|memory\.usage +\d+", said), said
    assert ctr(daemon, "tasks", "exec", "--exec-id", "x", name, "hostname").strip()
    ctr(daemon, "tasks", "pause", name)
    assert "PAUSED" in ctr(daemon, "tasks", "ls")
    ctr(daemon, "tasks", "resume", name)
    ctr(daemon, "tasks", "kill", "-s", "SIGKILL", name)
    deadline = time.monotonic() + HANGS_AFTER_S
    while "STOPPED" not in ctr(daemon, "tasks", "ls") and time.monotonic() < deadline:
        time.sleep(0.1)
    ctr(daemon, "tasks", "rm", name)
    ctr(daemon, "containers", "rm", name)


# ---------------------------------------------------------------- when processes die


@pytest.mark.skipif(find_spec("chaos_tests.deaths") is None, reason="no death matrix here")
def test_the_death_matrix_loses_nothing_on_the_fallback_guarantee() -> None:
    words = ["--containers", str(CONTAINERS_OF_THE_MATRIX), "--seed", "12"]
    done = subprocess.run(
        [sys.executable, "-m", "chaos_tests.deaths", *words],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1200,
        env={**os.environ, "HOLDFAST_PATIENCE": "8"},
    )  # fmt: skip
    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr[-4000:]
