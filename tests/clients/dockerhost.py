"""Debian's dockerd on a Holdfast of its own: start them, kill them, and ask by `docker`.

    with DockerHost.open() as host:
        host.docker("run", "--rm", IMAGE, "echo", "hello")
        host.kill("holdfastd")
        host.start("holdfastd")

Everything lies below one directory of /tmp, with a cgroup beside Docker's usual one.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import command, end_shims_of
from examples import busybox_image

IMAGE = "busybox"
DOCKER = "/usr/bin/docker"  # Debian's; another one may come first in PATH
WITHIN_S = 30.0


class DockerHost:
    """Two daemons by name, `holdfastd` and `dockerd`, and the client of the second."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.holdfast_socket = base / "daemon.sock"
        self.cgroup_parent = f"/hf-docker-{os.getpid()}"
        self._commands = {"holdfastd": command("holdfast", base), "dockerd": self._dockerd()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Self]:
        """Both daemons with an image of busybox; afterwards nothing of them is left."""
        host = cls(Path(tempfile.mkdtemp(prefix="hf-docker-", dir="/tmp")))
        try:
            host.start("holdfastd")
            host.start("dockerd")
            archive = host.base / "busybox.tar"
            busybox_image.build(archive)
            host.docker("load", "-i", str(archive))
            yield host
        finally:
            host.close()

    def close(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError, AssertionError):
            if names := self.docker("ps", "-aq").split():
                self.docker("rm", "-f", *names)
        for name in ("dockerd", "holdfastd"):
            self.end(name)
        end_shims_of(self.base)
        for left in Path("/sys/fs/cgroup").glob(f"*{self.cgroup_parent}"):
            left.rmdir()
        shutil.rmtree(self.base)

    # The daemons.

    def start(self, name: str) -> None:
        """Start a daemon and wait until it answers."""
        with (self.base / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._commands[name], stdout=log, stderr=log, start_new_session=True
            )
        probes = {
            "holdfastd": ["ctr", "--address", str(self.holdfast_socket), "version"],
            "dockerd": [DOCKER, "--host", self._address, "version"],
        }
        until(lambda: self._answers(name, probes[name]), f"{name} answers")

    def kill(self, name: str) -> None:
        """kill -9, and its end."""
        self._processes[name].kill()
        self._processes.pop(name).wait()

    def end(self, name: str) -> None:
        """SIGTERM, and its end; nothing where it does not run."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # The clients.

    def words(self, *words: str) -> list[str]:
        """A command line of `docker`."""
        return [DOCKER, "--config", str(self.base / "config"), "--host", self._address, *words]

    def docker(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        """Run `docker`, check its exit code, give its standard output."""
        done = self.raw(*words, stdin=stdin)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def raw(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words),
            capture_output=True,
            text=True,
            timeout=60,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            check=False,
        )

    def get(self, path: str) -> Any:
        """What dockerd answers, without a `docker` between: cheap enough to be asked again and
        again."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(30)
            asking.connect(self._address.removeprefix("unix://"))
            asking.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            with asking.makefile() as said:
                status, _, answer = said.read().partition("\n\n")
        assert " 200 " in status, f"{path}: {status}\n{answer}"
        return json.loads(answer)

    def state(self, name: str, field: str) -> str:
        """A field of a container's state: `state("web", "ExitCode")`."""
        found: Any = self.get(f"/containers/{name}/json")["State"]
        for key in field.split("."):
            found = found[key]
        return str(found).lower() if isinstance(found, bool) else str(found)

    def exec_runs(self, name: str) -> None:
        """Wait until dockerd has been told the pid of a container's one exec."""

        def told() -> bool:
            ids = self.get(f"/containers/{name}/json")["ExecIDs"] or ()
            return any(self.get(f"/exec/{id}/json")["Pid"] for id in ids)

        until(told, f"an exec runs in {name}")

    def tasks(self) -> list[list[str]]:
        """What Holdfast itself says of Docker's containers: id, pid and status of each task."""
        words = ["ctr", "--address", str(self.holdfast_socket), "--namespace", "moby"]
        said = subprocess.run(
            [*words, "tasks", "ls"], capture_output=True, text=True, check=True, timeout=30
        )
        return [line.split() for line in said.stdout.splitlines()[1:]]

    # Inside.

    @property
    def _address(self) -> str:
        return f"unix://{self.base}/docker.sock"

    def _dockerd(self) -> list[str]:
        (self.base / "daemon.json").write_text("{}")  # and not the machine's own
        places = {
            "--config-file": self.base / "daemon.json",
            "--containerd": self.holdfast_socket,
            "--host": self._address,
            "--data-root": self.base / "data",
            "--exec-root": self.base / "exec",
            "--pidfile": self.base / "docker.pid",
            "--cgroup-parent": self.cgroup_parent,
        }
        flags = ["--live-restore", "--add-runtime=crun=/usr/bin/crun", "--storage-driver=overlay2"]
        flags += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        return ["dockerd", *(f"{flag}={value}" for flag, value in places.items()), *flags]

    def _answers(self, name: str, probe: list[str]) -> bool:
        ended = self._processes[name].poll()
        assert ended is None, (self.base / f"{name}.log").read_text()[-4000:]
        return subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode == 0


def until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        time.sleep(0.05)
