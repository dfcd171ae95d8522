"""A daemon with containers under shims that are not its own, and `ctr` to ask it."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import Daemon
from examples import busybox_image

IMAGE = busybox_image.DEFAULT_NAME
SHIM = shutil.which("containerd-shim-runc-v2") or ""
SLEEP = ("sleep", "1000")


@dataclass
class House:
    """A daemon that may be killed and started again, and `ctr` for a namespace of the test's."""

    base: Path
    namespace: str
    daemon: Daemon

    def ctr(self, *words: str, code: int | None = 0) -> str:
        """Run it, check its exit code, give its standard output."""
        done = self.raw(*words)
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def raw(self, *words: str) -> subprocess.CompletedProcess[str]:
        address = ["--address", str(self.daemon.socket), "--namespace", self.namespace]
        return subprocess.run(
            ["ctr", *address, *words], capture_output=True, text=True, timeout=60, check=False
        )

    def run(self, name: str, *args: str, runtime: str = SHIM) -> None:
        self.ctr("run", "--detach", "--runtime", runtime, IMAGE, name, *args)

    def status(self, name: str) -> str:
        rows = [line.split() for line in self.ctr("tasks", "ls").splitlines()]
        return next((row[2] for row in rows if row[0] == name), "GONE")

    def remove(self, name: str) -> None:
        self.ctr("tasks", "rm", name, code=None)
        self.ctr("containers", "rm", name)
        until(lambda: not self.left())

    def bundle(self, name: str) -> Path:
        return self.base / "state/tasks" / self.namespace / name

    def shim(self, name: str) -> int:
        note = self.bundle(name) / "foreign.pid"
        until(note.exists)
        return int(note.read_text().split()[0])

    def address(self, name: str) -> Path:
        note = json.loads((self.bundle(name) / "foreign.json").read_text())
        return Path(note["address"].removeprefix("unix://"))

    def events(self, *topics: str) -> list[tuple[str, dict[str, Any]]]:
        """Topic and payload of each task event of this namespace so far."""
        words = ["--address", str(self.daemon.socket), "events", "--since", "0"]
        words += ["--format", "json"]
        holdfast = [sys.executable, "-m", "holdfast", *words]
        process = subprocess.Popen(holdfast, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        found: list[tuple[str, dict[str, Any]]] = []
        try:
            last = f"last-{uuid.uuid4().hex}"
            self.ctr("namespaces", "create", last)
            for line in process.stdout:
                event = json.loads(line)
                if last in line:
                    break
                if event["namespace"] == self.namespace and event["topic"].startswith("/tasks/"):
                    found.append((event["topic"].removeprefix("/tasks/"), event["event"]))
            self.ctr("namespaces", "rm", last)
        finally:
            process.kill()
            process.communicate()
        return [(topic, event) for topic, event in found if not topics or topic in topics]

    def left(self) -> list[str]:
        """What the containers of this namespace must not leave."""
        found = [str(path) for path in self.bundle("x").parent.glob("*")]
        found += [
            f"{folder}/{name}"
            for folder, names, _ in os.walk("/sys/fs/cgroup")
            for name in names
            if folder.endswith(f"/{self.namespace}")
        ]
        found += [words for words in command_lines() if self.namespace in words]
        return found


def command_lines() -> Iterator[str]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "containerd-shim" in words or "holdfast.api.shimcommand" in words:
            yield f"{pid} {words}"


def until(condition: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def clean(house: House) -> None:
    for line in house.ctr("containers", "ls", "--quiet").split():
        house.raw("tasks", "kill", "--signal", "SIGKILL", line)
        until(lambda name=line: house.status(name) != "RUNNING")
        house.raw("tasks", "rm", line)
        house.raw("containers", "rm", line)
    until(lambda: not house.left())


def ask_every_verb(house: House, runtime: str) -> Path:
    """A container's life under a shim, with each verb; where the shim listened."""
    script = "trap 'exit 9' TERM; while :; do sleep 0.05; done"
    house.run("c", "sh", "-c", script, runtime=runtime)
    address = house.address("c")
    done = house.raw("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "echo in; exit 3")
    assert (done.returncode, done.stdout) == (3, "in\n")
    house.ctr("tasks", "pause", "c")
    assert house.status("c") == "PAUSED"
    house.ctr("tasks", "resume", "c")
    assert house.status("c") == "RUNNING"
    assert "memory" in house.ctr("tasks", "metrics", "c")
    house.ctr("tasks", "exec", "--detach", "--exec-id", "f", "c", *SLEEP)
    pids = [line.split()[0] for line in house.ctr("tasks", "ps", "c").splitlines()[1:]]
    assert len(pids) >= 2
    house.ctr("tasks", "kill", "--exec-id", "f", "--signal", "SIGKILL", "c")
    assert "must be stopped before deletion" in house.raw("tasks", "rm", "c").stderr
    house.ctr("tasks", "kill", "c")
    until(lambda: house.status("c") == "STOPPED")
    house.ctr("tasks", "rm", "c", code=None)
    return address
