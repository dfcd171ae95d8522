"""What `make demo` shows: a container runs under a supervision tree, and outlives its actor.

Everything happens in one process with the embedded host, below a temporary directory.
"""

import sys
import tempfile
from pathlib import Path

import busybox_image
import trio

import holdfast

COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as folder:
        base = Path(folder)
        archive = base / "busybox.tar"
        busybox_image.build(archive)
        say(f"An OCI image from Debian's busybox-static: {archive.stat().st_size} bytes.")

        async with holdfast.open(root=base / "root", state=base / "state") as host:
            (name,) = await host.import_archive(archive)
            say(f"Imported {name}.\n")

            done = await host.run("busybox", ["echo", "hello from a container"])
            say(f"A first container said: {done.stdout.decode().strip()!r}, exit {done.status}.")
            failed = await host.run("busybox", ["sh", "-c", "exit 7"])
            say(f"A second one failed on purpose: exit {failed.status}.\n")
            assert (done.stdout, done.status, failed.status) == (b"hello from a container\n", 0, 7)

            counter = await host.launch("busybox", ["sh", "-c", COUNT], name="counter")
            await trio.sleep(0.5)
            before = host.task(counter.name)
            say(f"A third counts in the background, pid {before.pid}. The tree:\n")
            say(host.tree_text())

            actor = host.task_actor(counter.name)
            say(f"\nNow its actor {actor} is killed ...")
            await host.kill_actor(actor)
            await trio.sleep(1.0)
            say("... and its supervisor has started it anew around the running container:\n")
            say(host.tree_text())
            after = host.task(counter.name)
            assert (after.pid, after.status) == (before.pid, "RUNNING")

            await trio.sleep(0.5)
            await host.kill(counter.name)
            status = await host.wait(counter.name)
            numbers = [int(line) for line in counter.stdout.read_text().split()]
            await host.remove(counter.name)
            say(f"\nThe container kept pid {after.pid} and counted to {numbers[-1]} without a gap.")
            say(f"Killed at last: exit {status}.")
            assert numbers == list(range(1, len(numbers) + 1))
            assert status == 137
    say("All is well.")


if __name__ == "__main__":
    trio.run(main)
