"""How long after its death is the daemon back: Holdfast and containerd, with containers running.

    python -m bench.restart [--containers 200] [--stopped 4]

Each daemon runs so many idle containers, is killed with SIGKILL and started again. Told are the
seconds from the start of the new process to the first answer, and until every task is back
(Holdfast: its actor has caught up; containerd: Tasks.List says RUNNING). With `--stopped` so many
shims of Holdfast are stopped by SIGSTOP first, and go on at the end: no container may be harmed.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.daemons import Daemon, command, measured
from bench.load import Client, fan_out
from bench.work import prepared
from examples import busybox_image

from holdfast.api.proto import task_types_pb2
from holdfast.api.proto.services import (
    admin_pb2,
    version_pb2,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", type=int, default=200)
    parser.add_argument("--stopped", type=int, default=4)
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for side, stopped in (("containerd", 0), ("holdfast", 0), ("holdfast", given.stopped)):
        name = side if not stopped else f"{side}, {stopped} shims stopped"
        with tempfile.TemporaryDirectory(prefix="holdfast-restart-") as folder:
            results[name] = measure(side, Path(folder), given.containers, stopped)
        sys.stdout.write(f"{name}: {json.dumps(results[name])}\n")
        sys.stdout.flush()


def measure(side: str, base: Path, containers: int, stopped: int) -> dict[str, Any]:
    """Start, kill, start again; give the figures."""
    archive = base / "busybox.tar"
    busybox_image.build(archive)
    with measured(side, base / side) as daemon:
        target = prepared(daemon, archive)
        names = [f"idle-{number}" for number in range(containers)]
        clients = [Client(target) for _ in range(4)]
        errors = fan_out(4, containers, lambda w, n: clients[w].start_idle(names[n]))
        if errors:
            raise SystemExit(f"{side} did not start {containers} containers: {errors[0]}")
        pids = {task.id: task.pid for task in clients[0].tasks()}
        for client in clients:
            client.close()
        frozen = shim_pids(daemon)[:stopped]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        os.kill(daemon.pid, signal.SIGKILL)
        os.waitpid(daemon.pid, 0)
        begun = time.perf_counter()
        again = subprocess.Popen(command(side, base / side, for_crun=True, log_level="warn"))
        try:
            client = Client(target)
            figures = {
                "containers": containers,
                "answers_s": wait_for_answer(client, begun),
                "all_back_s": wait_for_all(client, side, containers - stopped, begun),
            }
            for pid in frozen:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGCONT)
            figures["harmed"] = sum(not Path(f"/proc/{pid}").exists() for pid in pids.values())
            for name in names:
                client.remove_idle(name)
            client.close()
            return figures
        finally:
            again.terminate()
            again.wait(30)


def shim_pids(daemon: Daemon) -> list[int]:
    """The shims of Holdfast: whoever listens on the sockets of the bundles."""
    bundles = sorted((daemon.base / "state" / "tasks").glob("*/*/shim.sock"))
    return [peer_pid(path) for path in bundles]


def peer_pid(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return int.from_bytes(
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little"
        )


def wait_for_answer(client: Client, begun: float) -> float:
    while time.perf_counter() - begun < 60:
        try:
            client.ask("Version.Version", version_pb2.VersionResponse)
            return round(time.perf_counter() - begun, 3)
        except Exception:
            time.sleep(0.005)
    raise SystemExit("the daemon does not answer within 60 s of its start")


def wait_for_all(client: Client, side: str, wanted: int, begun: float) -> float:
    while time.perf_counter() - begun < 120:
        if (back_of_holdfast if side == "holdfast" else back_of_containerd)(client) >= wanted:
            return round(time.perf_counter() - begun, 3)
        time.sleep(0.02)
    raise SystemExit("not all tasks are back within 120 s")


def back_of_holdfast(client: Client) -> int:
    """The task actors that have caught up with their shims."""
    answer = client.ask("/holdfast.admin.v1.Admin/Tree", admin_pb2.TreeResponse)
    nodes = [answer.root]
    while nodes:
        node = nodes.pop()
        if node.name == "tasks":
            return sum(child.state == "running" for child in node.children)
        nodes += node.children
    return 0


def back_of_containerd(client: Client) -> int:
    return sum(task.status == task_types_pb2.RUNNING for task in client.tasks())


if __name__ == "__main__":
    main()
