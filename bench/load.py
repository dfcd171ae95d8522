"""A client that takes containers through their whole life on any containerd API socket.

    python -m bench.load --address SOCKET --parent CHAIN_ID --cycles 100 --parallel 8

Prints one JSON object: cycles per second, the whole machine's processor time per cycle, and
the p50 and p99 of each phase in milliseconds.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.wire import Wire
from google.protobuf.empty_pb2 import Empty

from holdfast.api.proto import runc_pb2
from holdfast.api.proto.services import containers_pb2, snapshots_pb2, tasks_pb2

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
ROOTED = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
PHASES = (
    "snapshot_prepare", "container_create", "task_create", "task_start", "task_wait",
    "task_delete", "container_delete", "snapshot_remove",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is measured: a daemon's socket and how its containers are made."""

    address: str
    parent: str
    binary: str = ""
    namespace: str = "bench"
    snapshotter: str = "overlayfs"
    runtime: str = "io.containerd.runc.v2"


class Client:
    """One connection, for one thread, and the calls that a container's life needs.

    It is made when it is needed, and anew after it was lost.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        if self._wire is None:
            metadata = (("containerd-namespace", self.target.namespace),)
            self._wire = Wire(self.target.address, metadata)
        return self._wire

    def call(self, path: str, request: Any, answer: Any) -> Any:
        """Ask and wait. Raises Refused, or OSError when the daemon is not there."""
        return self.begin(path, request, answer)()

    def begin(self, path: str, request: Any, answer: Any) -> Callable[[], Any]:
        """Ask; what is given waits for the answer."""
        try:
            wire = self.wire
            stream = wire.begin(full_path(path), request.SerializeToString())
        except OSError:
            self.close()
            raise

        def end() -> Any:
            try:
                data = wire.end(stream)
            except OSError:
                self.close()
                raise
            return answer.FromString(data) if answer else data

        return end

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def ask(self, path: str, answer: Any) -> Any:
        """A call whose request says nothing."""
        return self.call(path, Empty(), answer)

    def tasks(self) -> Any:
        return self.ask("Tasks.List", tasks_pb2.ListTasksResponse).tasks

    def start_idle(self, name: str) -> None:
        """A container that sleeps until it is killed."""
        mounts = self.prepare(name)
        self._create_container(name, ("sleep", "100000"))
        self.call(
            "Tasks.Create",
            tasks_pb2.CreateTaskRequest(container_id=name, rootfs=mounts),
            tasks_pb2.CreateTaskResponse,
        )
        request = tasks_pb2.StartRequest(container_id=name)
        self.call("Tasks.Start", request, tasks_pb2.StartResponse)

    def remove_idle(self, name: str) -> None:
        """Kill it and remove all that it had."""
        kill = tasks_pb2.KillRequest(container_id=name, signal=9, all=True)
        self.call("Tasks.Kill", kill, None)
        self.call("Tasks.Wait", tasks_pb2.WaitRequest(container_id=name), tasks_pb2.WaitResponse)
        gone = tasks_pb2.DeleteTaskRequest(container_id=name)
        self.call("Tasks.Delete", gone, tasks_pb2.DeleteResponse)
        self.call("Containers.Delete", containers_pb2.DeleteContainerRequest(id=name), None)
        removed = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.target.snapshotter, key=name)
        self.call("Snapshots.Remove", removed, None)

    def prepare(self, name: str) -> Any:
        """A writable snapshot over the image; its mounts."""
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.target.snapshotter,
            key=name,
            parent=self.target.parent,
            labels=ROOTED,
        )
        return self.call("Snapshots.Prepare", request, snapshots_pb2.PrepareSnapshotResponse).mounts

    def _create_container(self, name: str, args: Sequence[str]) -> None:
        container = container_message(self.target, name, args)
        self.call(
            "Containers.Create",
            containers_pb2.CreateContainerRequest(container=container),
            containers_pb2.CreateContainerResponse,
        )

    # -- the life of a container, phase by phase

    def cycle(self, name: str, args: Sequence[str], seconds: dict[str, list[float]]) -> None:
        """Prepare, create, start, wait, delete, remove; raise when the exit status is not 0."""
        target = self.target
        marks = [time.perf_counter()]

        def lap() -> None:
            marks.append(time.perf_counter())

        mounts = self.prepare(name)
        lap()
        self._create_container(name, args)
        lap()
        self.call(
            "Tasks.Create",
            tasks_pb2.CreateTaskRequest(container_id=name, rootfs=mounts),
            tasks_pb2.CreateTaskResponse,
        )
        lap()
        ended = self.begin(
            "Tasks.Wait", tasks_pb2.WaitRequest(container_id=name), tasks_pb2.WaitResponse
        )
        self.call("Tasks.Start", tasks_pb2.StartRequest(container_id=name), tasks_pb2.StartResponse)
        lap()
        status = ended().exit_status
        lap()
        self.call(
            "Tasks.Delete",
            tasks_pb2.DeleteTaskRequest(container_id=name),
            tasks_pb2.DeleteResponse,
        )
        lap()
        self.call("Containers.Delete", containers_pb2.DeleteContainerRequest(id=name), None)
        lap()
        self.call(
            "Snapshots.Remove",
            snapshots_pb2.RemoveSnapshotRequest(snapshotter=target.snapshotter, key=name),
            None,
        )
        lap()
        if status != 0:
            raise AssertionError(f"{name}: exit status {status}")
        for phase, begun, over in zip(PHASES, marks, marks[1:], strict=False):
            seconds.setdefault(phase, []).append(over - begun)
        seconds.setdefault("cycle", []).append(marks[-1] - marks[0])


def full_path(path: str) -> str:
    """`Tasks.List` as gRPC names it."""
    if path.startswith("/"):
        return path
    service, _, name = path.partition(".")
    return f"/containerd.services.{service.lower()}.v1.{service}/{name}"


@dataclass
class Churn:
    """What one run of the load measured. Times in seconds."""

    wall_s: float
    busy_s: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        done = len(self.seconds.get("cycle", []))
        return {
            "cycles": done,
            "errors": len(self.errors),
            "first_error": self.errors[:1],
            "cycles_per_s": round(done / self.wall_s, 2),
            "cpu_ms_per_cycle": round(self.busy_s / max(done, 1) * 1e3, 2),
            "phases": {
                phase: {"p50_ms": _ms(values, 50), "p99_ms": _ms(values, 99)}
                for phase, values in self.seconds.items()
            },
        }


def churn(
    target: Target, *, cycles: int, parallel: int, warm: int = 4, args: Sequence[str] = ("true",)
) -> Churn:
    """Take `cycles` containers through their life, `parallel` at a time."""
    clients = [Client(target) for _ in range(parallel)]
    collected: list[dict[str, list[float]]] = [{} for _ in clients]
    tag = f"{os.getpid():x}{time.monotonic_ns() & 0xFFFFFF:x}"
    for number in range(warm):
        clients[number % parallel].cycle(f"w{tag}-{number}", args, {})

    def one(worker: int, number: int) -> None:
        clients[worker].cycle(f"c{tag}-{number}", args, collected[worker])

    busy, begun = machine_busy_s(), time.perf_counter()
    errors = fan_out(parallel, cycles, one)
    result = Churn(time.perf_counter() - begun, machine_busy_s() - busy, errors=errors)
    for part in collected:
        for phase, values in part.items():
            result.seconds.setdefault(phase, []).extend(values)
    for client in clients:
        client.close()
    return result


def fan_out(workers: int, total: int, job: Callable[[int, int], None]) -> list[str]:
    """Run job(worker, n) for each n below total on that many threads; give the errors."""
    numbers, lock = iter(range(total)), threading.Lock()
    errors: list[str] = []

    def work(worker: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None or len(errors) > 20:
                return
            try:
                job(worker, number)
            except Exception as error:
                errors.append(repr(error)[:400])

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def machine_busy_s() -> float:
    """Processor time that the whole machine has spent, idle and waiting for disks apart."""
    with open("/proc/stat") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_S


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))]


def _ms(values: Sequence[float], percent: float) -> float:
    middle = statistics.median(values) if percent == 50 else percentile(values, percent)
    return round(middle * 1e3, 2)


def container_message(target: Target, name: str, args: Sequence[str]) -> Any:
    """The record of a container whose snapshot has its name."""
    container = containers_pb2.Container(id=name, snapshotter=target.snapshotter, snapshot_key=name)
    container.runtime.name = target.runtime
    if target.binary:
        options = runc_pb2.Options(binary_name=target.binary)
        container.runtime.options.type_url = "containerd.runc.v1.Options"
        container.runtime.options.value = options.SerializeToString()
    container.spec.type_url = SPEC_URL
    container.spec.value = json.dumps(spec(name, args)).encode()
    return container


def spec(name: str, args: Sequence[str]) -> dict[str, Any]:
    """A container with its own pid, ipc, uts, mount and network namespaces and a cgroup."""

    def mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "cwd": "/",
            "env": ["PATH=/bin:/usr/bin"],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "gid=5"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "size=65536k"),
            mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "cgroupsPath": f"/bench/{name}",
            "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--address", required=True)
    parser.add_argument("--parent", required=True, help="chain id of the image's top layer")
    parser.add_argument("--namespace", default="bench")
    parser.add_argument("--binary", default="", help="the OCI runtime, as runc's BinaryName")
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--parallel", type=int, default=8)
    given = parser.parse_args()
    target = Target(given.address, given.parent, given.binary, given.namespace)
    result = churn(target, cycles=given.cycles, parallel=given.parallel)
    sys.stdout.write(json.dumps(result.report()) + "\n")


if __name__ == "__main__":
    main()
