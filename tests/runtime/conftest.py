"""Real containers for tests of the shim: a busybox root, bundles, and a house that cleans up."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from holdfast.runtime import cgroup
from holdfast.runtime.shimclient import Exited, ForkServer, OutOfMemory, ShimClient, ShimEvent
from holdfast.runtime.stdio import Stdio
from holdfast.runtime.vault import teardown
from holdfast.storage.mounts import Mount

CGROUP_PARENT = "/holdfast-tests"
CAPABILITIES = ["CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"]


@pytest.fixture(scope="session")
def busybox_root() -> Iterator[Path]:
    """A root filesystem with busybox and its applets."""
    root = Path(tempfile.mkdtemp(prefix="holdfast-root-"))
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "root", "run"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    yield root
    shutil.rmtree(root)


def config(args: Sequence[str], cgroups_path: str, **changes: Any) -> dict[str, Any]:
    """An OCI config: `changes` are terminal, resources, hooks, namespaces, oom_score_adj."""
    namespaces = changes.get("namespaces", ["pid", "ipc", "uts", "mount", "network"])
    process: dict[str, Any] = {
        "terminal": changes.get("terminal", False),
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        "noNewPrivileges": True,
    }
    if "oom_score_adj" in changes:
        process["oomScoreAdj"] = changes["oom_score_adj"]
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            }
            if changes.get("cgroup_mount")
            else {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        ],
        "hooks": changes.get("hooks", {}),
        "linux": {
            "cgroupsPath": cgroups_path,
            "namespaces": [{"type": kind} for kind in namespaces],
            "resources": changes.get("resources", {}),
        },
    }


@dataclass(slots=True)
class Task:
    """One container in a test: its bundle, its shim, what was heard from it."""

    id: str
    bundle: Path
    house: "House"
    shim: ShimClient | None = None
    shim_pid: int = 0
    events: list[ShimEvent] = field(default_factory=list[ShimEvent])
    heard: trio.Event = field(default_factory=trio.Event)

    @property
    def client(self) -> ShimClient:
        assert self.shim is not None
        return self.shim

    @property
    def rootfs(self) -> list[Mount]:
        return [Mount(type="bind", source=str(self.house.root), options=("rbind", "ro"))]

    def hear(self, event: ShimEvent) -> None:
        self.events.append(event)
        self.heard.set()
        self.heard = trio.Event()

    async def connect(self, *, adopt: bool = False, spawn: bool = True) -> ShimClient:
        """A shim for the bundle, connected and serving until the test ends."""
        if spawn:
            self.shim_pid = await self.house.server.spawn_shim(self.bundle, adopt=adopt)
            self.house.shim_pids.append(self.shim_pid)
        self.shim = await ShimClient.connect(self.bundle)
        self.house.nursery.start_soon(self.shim.serve, self.hear)
        return self.shim

    async def create(self, stdio: Stdio | None = None, **more: Any) -> int:
        return await self.client.create(
            id=self.id, namespace="tests", rootfs=self.rootfs, stdio=stdio or Stdio(), **more
        )

    async def exited(self, exec_id: str = "", within_s: float = 10.0) -> Exited:
        """The exit event of one process; waits for it."""
        with trio.fail_after(within_s):
            while True:
                for event in self.events:
                    if isinstance(event, Exited) and event.exec_id == exec_id:
                        return event
                await self.heard.wait()

    async def out_of_memory(self, within_s: float = 10.0) -> None:
        with trio.fail_after(within_s):
            while not any(isinstance(event, OutOfMemory) for event in self.events):
                await self.heard.wait()

    def fifo(self, name: str) -> str:
        path = self.bundle / name
        os.mkfifo(path)
        return str(path)


@dataclass(slots=True)
class House:
    """A fork server, and all that was made with it."""

    root: Path
    state: Path
    server: ForkServer
    nursery: trio.Nursery
    shim_pids: list[int] = field(default_factory=list[int])
    tasks: list[Task] = field(default_factory=list[Task])

    def bundle(self, args: Sequence[str], **changes: Any) -> Task:
        """A bundle that runs `args`."""
        id = f"t{os.getpid()}-{self.state.name[-6:]}-{len(self.tasks)}"
        bundle = self.state / "tests" / id
        bundle.mkdir(parents=True)
        text = json.dumps(config(args, f"{CGROUP_PARENT}/{id}", **changes))
        (bundle / "config.json").write_text(text)
        task = Task(id, bundle, self)
        self.tasks.append(task)
        return task

    async def renew(self, **how: Any) -> None:
        """Another fork server, after the first was ended."""
        self.server = await ForkServer.start(self.state, **how)
        self.nursery.start_soon(self.server.run)

    async def task(self, args: Sequence[str], **changes: Any) -> Task:
        """A bundle with a connected shim."""
        task = self.bundle(args, **changes)
        await task.connect()
        return task


def cgroups_of(id: str) -> list[str]:
    """Every directory of a cgroup tree that is named by the id."""
    # os.walk, unlike glob, bears that others' cgroups vanish meanwhile.
    return [
        os.path.join(path, name)
        for path, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(id)
    ]


@pytest.fixture
def residue() -> Callable[[Task], list[str]]:
    """What a deleted container must not leave, by name: cgroups, state, mounts, files."""

    def find(task: Task) -> list[str]:
        left = cgroups_of(task.id)
        for name in ("/run/crun", "/run/runc"):
            left += [str(path) for path in Path(name).glob(f"{task.id}*")]
        mountinfo = Path("/proc/self/mountinfo").read_text()
        left += [line for line in mountinfo.splitlines() if task.id in line]
        left += [str(path) for path in (task.bundle / "rootfs").iterdir()]
        kept = ("config.json", "rootfs", "exits", "shim.json", "shim.sock", "shim.lock")
        left += [path.name for path in task.bundle.iterdir() if path.name not in kept]
        return left

    return find


def end_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


@pytest.fixture
async def house(busybox_root: Path) -> AsyncIterator[House]:
    """A fork server with an empty state directory; whatever a test leaves is ended and removed."""
    state = Path(tempfile.mkdtemp(prefix="holdfast-shim-"))
    async with trio.open_nursery() as nursery:
        server = await ForkServer.start(state)
        nursery.start_soon(server.run)
        house = House(busybox_root, state, server, nursery)
        try:
            yield house
        finally:
            await clean(house)
            nursery.cancel_scope.cancel()
    teardown(str(state))  # pins of containers that a test left
    shutil.rmtree(state)


async def clean(house: House) -> None:
    """Shuts shims down well where they let us, for the sake of their coverage; else kills."""
    for task in house.tasks:
        for directory in cgroups_of(task.id):
            for pid in cgroup.pids({"freezer": directory}):
                end_process(pid)
        if task.shim is not None and not task.shim.closed.is_set():
            with trio.move_on_after(2):
                try:
                    await wait_until_dead(task)
                    await task.shim.shutdown(timeout_s=1)
                    await task.shim.closed.wait()
                except Exception:
                    pass
    # Without it, shims that have no task end.
    await house.server.aclose()
    await trio.to_thread.run_sync(house.server.process.wait)
    # A shim that ends by itself saves what it measured first.
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(map(is_alive, house.shim_pids)):
        await trio.sleep(0.01)
    for pid in house.shim_pids:
        end_process(pid)
    for task in house.tasks:
        with trio.move_on_after(2):
            while directories := cgroups_of(task.id):
                cgroup.remove({path: path for path in directories})
                await trio.sleep(0.01)
    top = Path("/sys/fs/cgroup")
    # In each tree of a controller, or in the one for all.
    for path in (*top.glob(f"*{CGROUP_PARENT}"), top / CGROUP_PARENT.lstrip("/")):
        try:
            path.rmdir()
        except OSError:
            pass


async def wait_until_dead(task: Task) -> None:
    while True:
        state = await task.client.state(timeout_s=1)
        if all(p.status == "stopped" or p.pid == 0 for p in state.processes.values()):
            return
        await trio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def settings() -> Mapping[str, Any]:
    """A process spec for execs."""
    spec = config(["/bin/true"], "/none")["process"]
    assert isinstance(spec, dict)
    return spec
