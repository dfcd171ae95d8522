"""What the bench asks of a daemon: each function does one kind of work and gives its figures.

Whatever is made is removed again, and whatever fails raises: a side that did not do the work has no
figure. Seconds throughout; where a figure is per second, its name says so.
"""

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from bench.daemons import WITHOUT_UNIFIED, Daemon
from bench.load import (
    Client,
    Target,
    container_message,
    fan_out,
    full_path,
    machine_busy_s,
    percentile,
    spec,
)
from bench.wire import Wire
from examples import busybox_image
from google.protobuf.any_pb2 import Any as AnyMessage

from holdfast.api.proto import types_pb2
from holdfast.api.proto.services import (
    containers_pb2,
    content_pb2,
    events_pb2,
    snapshots_pb2,
    tasks_pb2,
    version_pb2,
)

MIB = 1 << 20
SHIMS = {
    "holdfast": (b"holdfast-shim", b"holdfast-spare", b"holdfast-fork"),
    "containerd": (b"containerd-shim",),
}
_numbers = itertools.count()


def fresh(kind: str) -> str:
    """A name that nothing has."""
    return f"{kind}-{os.getpid():x}-{next(_numbers)}"


@contextlib.contextmanager
def clients(target: Target, count: int) -> Generator[list[Client]]:
    made = [Client(target) for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            client.close()


def spread(workers: int, total: int, job: Callable[[int, int], None]) -> float:
    """Run job(worker, n) for each n on so many threads; the seconds. Raises when one failed."""
    begun = time.perf_counter()
    errors = fan_out(workers, total, job)
    took_s = time.perf_counter() - begun
    if errors:
        raise SystemExit(f"the work was not done: {errors[0]}")
    return took_s


def median_s(count: int, ask: Callable[[int], object]) -> float:
    """How long ask(n) takes, for each n below `count`, one after the other."""
    took_s: list[float] = []
    for number in range(count):
        begun = time.perf_counter()
        ask(number)
        took_s.append(time.perf_counter() - begun)
    return statistics.median(took_s)


def prepared(daemon: Daemon, archive: Path) -> Target:
    """The image taken in and unpacked; what the load needs to know."""
    ctr = ["ctr", "--address", str(daemon.socket), "--namespace", "bench"]
    subprocess.run([*ctr, "images", "import", str(archive)], check=True, capture_output=True)
    listed = subprocess.run(
        [*ctr, "snapshots", "ls"], check=True, capture_output=True, text=True
    ).stdout
    chain = next(line.split()[0] for line in listed.splitlines() if "Committed" in line)
    return Target(str(daemon.socket), chain, binary="crun")


# -- containers


def cycles(target: Target, count: int, parallel: int) -> dict[str, float]:
    """Containers through their whole life."""
    took: list[dict[str, list[float]]] = [{} for _ in range(parallel)]
    with clients(target, parallel) as each:
        busy_s = machine_busy_s()
        whole_s = spread(
            parallel, count, lambda w, _: each[w].cycle(fresh("cycle"), ("true",), took[w])
        )
        busy_s = machine_busy_s() - busy_s
    all_s = [one for part in took for one in part.get("cycle", [])]
    if len(all_s) != count:
        raise SystemExit(f"{len(all_s)} of {count} cycles were done")
    return {
        "per_s": count / whole_s,
        "p50_s": statistics.median(all_s),
        "p99_s": percentile(all_s, 99),
        "busy_s": busy_s / count,
    }


def bare_runs(count: int, parallel: int) -> float:
    """`crun run` alone with the same spec, per second: what no daemon can exceed."""
    with tempfile.TemporaryDirectory(prefix="bench-crun-") as folder:
        rootfs = Path(folder, "rootfs")
        for name in ("bin", "proc", "dev", "sys"):
            (rootfs / name).mkdir(parents=True)
        shutil.copy(busybox_image.BUSYBOX, rootfs / "bin/true")
        names = [fresh("bare") for _ in range(count)]
        for name in names:
            bundle = Path(folder, name)
            bundle.mkdir()
            config = spec(name, ("true",))
            config["root"] = {"path": str(rootfs), "readonly": True}
            (bundle / "config.json").write_text(json.dumps(config))
        script = (
            WITHOUT_UNIFIED + f"xargs -P {parallel} -I NAME"
            f" crun --root {folder}/state run --bundle {folder}/NAME NAME"
        )
        begun = time.perf_counter()
        subprocess.run(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script],
            input="\n".join(names), text=True, check=True,
        )  # fmt: skip
        return count / (time.perf_counter() - begun)


@contextlib.contextmanager
def idle(target: Target, count: int, parallel: int = 4) -> Generator[list[str]]:
    """So many containers that sleep."""
    names = [fresh("idle") for _ in range(count)]
    with clients(target, parallel) as each:
        spread(parallel, count, lambda w, n: each[w].start_idle(names[n]))
    yield names
    with clients(target, parallel) as each:
        spread(parallel, count, lambda w, n: each[w].remove_idle(names[n]))


def execs(target: Target, container: str, count: int, parallel: int) -> dict[str, float]:
    """Processes added to a running container and waited for."""
    process = AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
        value=json.dumps(spec("", ("true",))["process"]).encode(),
    )
    took_s: list[float] = []

    def one(client: Client) -> None:
        named = {"container_id": container, "exec_id": fresh("exec")}
        begun = time.perf_counter()
        client.call("Tasks.Exec", tasks_pb2.ExecProcessRequest(**named, spec=process), None)
        wait = client.begin("Tasks.Wait", tasks_pb2.WaitRequest(**named), tasks_pb2.WaitResponse)
        client.call("Tasks.Start", tasks_pb2.StartRequest(**named), None)
        status = wait().exit_status
        client.call("Tasks.DeleteProcess", tasks_pb2.DeleteProcessRequest(**named), None)
        took_s.append(time.perf_counter() - begun)
        if status:
            raise AssertionError(f"an exec has exited with {status}")

    with clients(target, parallel) as each:
        whole_s = spread(parallel, count, lambda w, _: one(each[w]))
    return {"per_s": count / whole_s, "p50_s": statistics.median(took_s)}


def list_tasks(target: Target, count: int, expected: int) -> float:
    """The median of Tasks.List."""
    took_s = []
    with clients(target, 1) as (client,):
        for _ in range(count):
            begun = time.perf_counter()
            found = client.tasks()
            took_s.append(time.perf_counter() - begun)
            if len(found) != expected:
                raise SystemExit(f"{len(found)} of {expected} tasks are listed")
    return statistics.median(took_s)


# -- records


def create_containers(target: Target, count: int, parallel: int) -> float:
    """Records of containers, per second."""
    names = [fresh("record") for _ in range(count)]
    took_s = store_containers(target, names, parallel)

    def remove(client: Client, name: str) -> None:
        client.call("Containers.Delete", containers_pb2.DeleteContainerRequest(id=name), None)

    with clients(target, parallel) as each:
        spread(parallel, count, lambda w, n: remove(each[w], names[n]))
    return count / took_s


def store_containers(target: Target, names: Sequence[str], parallel: int = 4) -> float:
    """Records of these containers, which stay; the seconds."""

    def create(client: Client, name: str) -> None:
        container = container_message(target, name, ("true",))
        request = containers_pb2.CreateContainerRequest(container=container)
        client.call("Containers.Create", request, None)

    with clients(target, parallel) as each:
        return spread(parallel, len(names), lambda w, n: create(each[w], names[n]))


def prepare_snapshots(target: Target, count: int, parallel: int) -> float:
    """Writable snapshots over the image, per second."""
    names = [fresh("snapshot") for _ in range(count)]

    def remove(client: Client, name: str) -> None:
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=target.snapshotter, key=name)
        client.call("Snapshots.Remove", request, None)

    with clients(target, parallel) as each:
        took_s = spread(parallel, count, lambda w, n: each[w].prepare(names[n]))
        spread(parallel, count, lambda w, n: remove(each[w], names[n]))
    return count / took_s


# -- bytes, events, nothing at all


def write_content(target: Target, size: int) -> float:
    """One blob in messages of a mebibyte, committed; bytes per second."""
    name, piece = fresh("blob"), os.urandom(MIB)
    with clients(target, 1) as (client,):
        begun = time.perf_counter()
        stream = client.wire.begin(full_path("Content.Write"), None, ends=False)
        for at in range(0, size, MIB):
            request = content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref=name, total=size, offset=at, data=piece
            )
            client.wire.send(stream, request.SerializeToString())
            client.wire.next(stream)
        commit = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT, ref=name, total=size, offset=size
        )
        client.wire.send(stream, commit.SerializeToString(), ends=True)
        answer = content_pb2.WriteContentResponse.FromString(client.wire.next(stream) or b"")
        took_s = time.perf_counter() - begun
        if answer.offset != size or not answer.digest:
            raise SystemExit(f"the blob has {answer.offset} of {size} bytes")
        client.call("Content.Delete", content_pb2.DeleteContentRequest(digest=answer.digest), None)
    return size / took_s


def deliver_events(target: Target, count: int, subscribers: int) -> float:
    """One publisher, everybody hears everything; deliveries per second."""
    topic, heard = f"/bench/{fresh('topic')}", [0] * subscribers
    listening = threading.Barrier(subscribers + 1)

    def listen(at: int) -> None:
        with contextlib.closing(Wire(target.address)) as wire:
            request = events_pb2.SubscribeRequest(filters=[f'topic=="{topic}"'])
            stream = wire.begin(full_path("Events.Subscribe"), request.SerializeToString())
            listening.wait()
            while heard[at] < count:
                envelope = types_pb2.Envelope.FromString(wire.next(stream) or b"")
                heard[at] += envelope.event.value == b"counted"

    threads = [threading.Thread(target=listen, args=(at,)) for at in range(subscribers)]
    for thread in threads:
        thread.start()
    listening.wait()
    event = AnyMessage(type_url="bench.Event", value=b"counted")
    with clients(target, 1) as (client,):
        # A subscription begins when the daemon has read it.
        time.sleep(0.3)
        begun = time.perf_counter()
        for _ in range(count):
            client.call("Events.Publish", events_pb2.PublishRequest(topic=topic, event=event), None)
        for thread in threads:
            thread.join(60)
    took_s = time.perf_counter() - begun
    if heard != [count] * subscribers:
        raise SystemExit(f"of {count} events were heard: {heard}")
    return count * subscribers / took_s


def ask_version(target: Target, count: int) -> float:
    """The median of the call that asks for nothing."""
    with clients(target, 1) as (client,):
        return median_s(count, lambda _: client.ask("Version.Version", version_pb2.VersionResponse))


# -- what it holds


def shims_pss_mb(daemon: Daemon, count: int) -> float:
    """The memory of all shims, each page shared out among its users, per container."""
    names = SHIMS[daemon.kind]
    pids = [pid for pid in _all_pids() if _comm(pid) in names and _belongs(pid, daemon)]
    if not pids:
        raise SystemExit(f"{daemon.kind} has no shim")
    return sum(_field_kb(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids) / 1000 / count


def resident_mb(pid: int) -> float:
    return _field_kb(Path(f"/proc/{pid}/status"), "VmRSS:") / 1000


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _comm(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes().strip()
    return b""


def _belongs(pid: int, daemon: Daemon) -> bool:
    with contextlib.suppress(OSError):
        return str(daemon.base).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _field_kb(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise SystemExit(f"{path} has no {field}")
