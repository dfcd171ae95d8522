"""A daemon of one directory: started, armed with failpoints, killed, started again, asked."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from holdfast.actors.failpoints import VARIABLE
from holdfast.api.cli.session import Session
from holdfast.api.grpc.client import Channel

ANSWERS_WITHIN_S = 60.0
DIES_WITHIN_S = 20.0


class NoAnswer(Exception):
    """The daemon ended, or did not accept in time."""


class House:
    """The directory of a daemon, and the daemon while it runs."""

    def __init__(self, base: Path, settings: str = "") -> None:
        self.base = base
        self.settings = settings
        self.namespace = f"sweep{os.getpid()}"
        self.root = base / "root"
        self.state = base / "state"
        self.socket = base / "daemon.sock"
        self.rules = base / "rules"
        self.log = base / "daemon.log"
        self.database = self.root / "holdfast.db"
        self._process: subprocess.Popen[bytes] | None = None
        base.mkdir(parents=True, exist_ok=True)

    async def start(self) -> float:
        """Start the daemon; how long it took until it accepted, in seconds."""
        assert self._process is None
        return await trio.to_thread.run_sync(self._start)

    def _start(self) -> float:
        self.socket.unlink(missing_ok=True)
        config = self.base / "config.toml"
        config.write_text(self.settings)
        places = {"--root": self.root, "--state": self.state, "--address": self.socket}
        places["--config"] = config
        words = [word for flag, path in places.items() for word in (flag, str(path))]
        began_s = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.api.boot", *words],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, VARIABLE: f"@{self.rules}", "PYTHONFAULTHANDLER": "1"},
            )
        while time.monotonic() < began_s + ANSWERS_WITHIN_S:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return time.monotonic() - began_s
            time.sleep(0.01)
        # So asked, Python tells where it stands.
        self._process.send_signal(signal.SIGABRT)
        self._process.wait(DIES_WITHIN_S)
        raise NoAnswer(f"the daemon does not accept: {self.log.read_text()[-3000:]}")

    async def has_fallen(self, within_s: float) -> bool:
        """Whether the daemon has ended by itself, or does so within this time."""
        assert self._process is not None
        try:
            await trio.to_thread.run_sync(self._process.wait, within_s)
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        return True

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon with a signal, SIGKILL as a rule; no matter if it has ended."""
        if self._process is not None:
            self._process.send_signal(number)
            await trio.to_thread.run_sync(self._process.wait, DIES_WITHIN_S)
            self._process = None

    def arm(self, rules: str) -> None:
        """Put failpoint rules in force, in whatever runs; "" disarms all."""
        fresh = self.rules.with_suffix(".new")
        fresh.write_text(rules)
        fresh.replace(self.rules)

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Calls to the running daemon."""
        async with Channel.connect(self.socket) as channel:
            yield Session(channel, self.namespace)

    def clear(self) -> None:
        """End whatever of this directory still runs, let go of its mounts, remove it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for _ in range(3):
            inside = [int(pid) for one in self.cgroups() for pid in _lines(one / "cgroup.procs")]
            for pid in (*self.processes(), *inside):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for cgroup in [*self.cgroups(), *self._cgroup_parents()]:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
        for target in sorted(self.mounts(), reverse=True):
            subprocess.run(["umount", "-l", target], check=False, capture_output=True)
        for device in self.loops():
            subprocess.run(["losetup", "-d", f"/dev/{device}"], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)

    def processes(self) -> list[int]:
        """The processes of this directory: by the rules file in their environment, which a
        container does not have, or by its name in their command line."""
        found: list[int] = []
        rules = f"{VARIABLE}=@{self.rules}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    folder = Path("/proc", name)
                    words = (folder / "cmdline").read_bytes()
                    if (
                        rules in (folder / "environ").read_bytes()
                        or f"{self.base}/".encode() in words
                    ):
                        found.append(int(name))
        return found

    def named(self, comm: str) -> list[int]:
        """Those of the directory's processes that bear this name."""
        found: list[int] = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == comm:
                    found.append(pid)
        return found

    def cgroups(self) -> list[Path]:
        """The cgroups of this directory's containers."""
        parents = self._cgroup_parents()
        return [cgroup for one in parents for cgroup in one.iterdir() if cgroup.is_dir()]

    def _cgroup_parents(self) -> list[Path]:
        top = Path("/sys/fs/cgroup")
        parents = [controller / self.namespace for controller in (top, *top.iterdir())]
        return [parent for parent in parents if parent.is_dir()]

    def mounts(self) -> list[str]:
        """What is mounted below the directory, as this process sees it."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [at for line in lines if (at := line.split()[4]).startswith(f"{self.base}/")]

    def loops(self) -> list[str]:
        """The loop devices of files below the directory."""
        found: list[str] = []
        for device in Path("/sys/block").glob("loop*"):
            with contextlib.suppress(OSError):  # it is none, or is one no longer
                if (device / "loop/backing_file").read_text().startswith(f"{self.base}/"):
                    found.append(device.name)
        return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
