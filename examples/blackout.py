"""The ending of `make demo`: every process of Holdfast dies, twice; a container counts on.

A daemon of its own, below a temporary directory; its client stays, as a terminal would.
"""

import json
import signal
import sys
import tempfile
from pathlib import Path

import trio

from holdfast.api.proto.services import containers_pb2, snapshots_pb2, tasks_pb2
from holdfast.chaos import nemeses
from holdfast.chaos.client import NOTHING, Client
from holdfast.chaos.containers import brief, spec
from holdfast.chaos.daemon import EVERYONE
from holdfast.chaos.history import History
from holdfast.chaos.isolation import House, house
from holdfast.chaos.streams import Reader
from holdfast.chaos.workloads import BASE, ROOTED, SNAPSHOTTER, SPEC_URL

NAME = "counter"
NUMBERS = 80
STATUS = 42
COUNT = f"i=0; while [ $i -lt {NUMBERS} ]; do i=$((i+1)); echo $i; sleep 0.1; done; exit {STATUS}"


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-blackout-") as folder:
        base, history = Path(folder), History()
        async with house(base, history) as home:
            reader = Reader(base / "stdout")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run)
                await begin(home, reader)
                say(f"A container counts to {NUMBERS} on a terminal.")
                for _ in range(2):
                    await trio.sleep(1.0)
                    await kill_everyone(home, reader)
                say("\nThe tree is whole again:\n")
                say(await tree(home.daemon.address))
                status = await wait(home.client)
                await reader.finish()
            numbers = [int(word) for word in reader.data.split()]
            say(f"It counted from {numbers[0]} to {numbers[-1]} without a gap, and exits {status}.")
            assert numbers == list(range(1, NUMBERS + 1)), numbers
            assert status == STATUS
            await remove(home.client)
        left = [record for record in history.records if type(record).__name__ == "Left"]
        assert not left, left
    say("Nothing of it is left. Nothing was lost.")


async def kill_everyone(home: House, reader: Reader) -> None:
    """SIGKILL for all processes at one moment; then the daemon is started again."""
    victims = home.daemon.processes(*EVERYONE)
    before = len(reader.data.split())
    nemeses.kill(victims, signal.SIGKILL)
    await home.daemon.wait_gone()
    roles = ", ".join(sorted({str(victim.role) for victim in victims}))
    say(f"At {before} all {len(victims)} processes of Holdfast are killed at once: {roles}.")
    await trio.sleep(1.0)
    took_s = await home.daemon.start()
    say(f"  A second later the daemon is started again, and answers after {took_s:.1f} s.")


async def tree(address: str) -> str:
    command = [sys.executable, "-m", "holdfast", "--address", address, "tree"]
    done = await trio.run_process(command, capture_stdout=True)
    return done.stdout.decode()


async def begin(home: House, reader: Reader) -> None:
    prepare = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter=SNAPSHOTTER, key=NAME, parent=BASE, labels=ROOTED
    )
    answer = snapshots_pb2.PrepareSnapshotResponse
    prepared = await home.client.insist("Snapshots.Prepare", prepare, answer)
    config = json.loads(spec(brief(NAME), home.folder, home.group))
    config["process"] |= {"args": ["sh", "-c", COUNT], "terminal": True}
    container = containers_pb2.Container(id=NAME, snapshotter=SNAPSHOTTER, snapshot_key=NAME)
    container.runtime.name = "io.containerd.runc.v2"
    container.spec.type_url = SPEC_URL
    container.spec.value = json.dumps(config).encode()
    home.folder.mkdir(parents=True, exist_ok=True)
    create = containers_pb2.CreateContainerRequest(container=container)
    await home.client.insist("Containers.Create", create, containers_pb2.CreateContainerResponse)
    task = tasks_pb2.CreateTaskRequest(
        container_id=NAME, rootfs=prepared.mounts, stdout=str(reader.path), terminal=True
    )
    await home.client.insist("Tasks.Create", task, tasks_pb2.CreateTaskResponse)
    start = tasks_pb2.StartRequest(container_id=NAME)
    await home.client.insist("Tasks.Start", start, tasks_pb2.StartResponse)


async def wait(client: Client) -> int:
    request = tasks_pb2.WaitRequest(container_id=NAME)
    answer = await client.insist("Tasks.Wait", request, tasks_pb2.WaitResponse, within_s=None)
    return answer.exit_status


async def remove(client: Client) -> None:
    task = tasks_pb2.DeleteTaskRequest(container_id=NAME)
    await client.insist("Tasks.Delete", task, tasks_pb2.DeleteResponse)
    container = containers_pb2.DeleteContainerRequest(id=NAME)
    await client.insist("Containers.Delete", container, NOTHING)
    snapshot = snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=NAME)
    await client.insist("Snapshots.Remove", snapshot, NOTHING)


if __name__ == "__main__":
    trio.run(main)
