"""The daemon under test: started, killed and started again by the harness, as a service manager
would, only less kindly.

    down --start--> up --die--> down        `start` returns when the API answers
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from holdfast.actors.errors import Refusal
from holdfast.api.grpc.client import Channel
from holdfast.api.proto.services import admin_pb2

from . import processes
from .history import Boot, History
from .patience import PATIENCE
from .processes import Found, Role

INFO = "/holdfast.admin.v1.Admin/Info"
ANSWER_WITHIN_S = 30.0 * PATIENCE
END_WITHIN_S = 20.0 * PATIENCE
EVERYONE = (Role.DAEMON, Role.FORK_SERVER, Role.SHIM, Role.SPARE, Role.WORKER)


class DaemonFailed(Exception):
    """The daemon did not come to answer."""


@dataclass(slots=True, kw_only=True)
class Daemon:
    """One daemon below `base`, in all its lives; `config.toml` in there holds its settings."""

    base: Path
    history: History
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    root: Path | None = None
    has_pins: bool = False
    """Whether the kernel keeps exits for it; known once it has answered."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The API's socket."""
        return str(self.base / "daemon.sock")

    @property
    def log(self) -> Path:
        """What it said, in all its lives."""
        return self.base / "daemon.log"

    @property
    def pid(self) -> int:
        """The pid of its present, or last, life."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def processes(self, *roles: Role) -> list[Found]:
        """Its living processes, of these roles or all."""
        found = processes.find(self.mark)
        return processes.of_role(found, *roles) if roles else found

    async def start(self, **environment: str) -> float:
        """Start it; the seconds until its API answered. Given variables hold for this life."""
        assert not self.is_running
        self.base.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork, not a wait
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment, **environment, processes.MARK: self.mark},
            )
        answered = await self._answers()
        now_s = time.monotonic()
        text = "" if answered else self.log.read_text(errors="replace")[-2000:]
        self.history.add(
            Boot(started_at_s=began_s, answered_at_s=now_s if answered else None, text=text)
        )
        if not answered:
            raise DaemonFailed(text)
        return now_s - began_s

    def _command(self) -> list[str]:
        places = {
            "--root": self.root or self.base / "root",
            "--state": self.base / "state",
            "--address": self.address,
        }
        if (self.base / "config.toml").exists():
            places["--config"] = self.base / "config.toml"
        words = [word for flag, path in places.items() for word in (flag, str(path))]
        return [sys.executable, "-m", "holdfast.api.boot", *words, "--log-level", "info"]

    async def _answers(self) -> bool:
        with trio.move_on_after(ANSWER_WITHIN_S):
            while self.is_running:
                try:
                    async with Channel.connect(self.address) as channel:
                        info = await channel.unary(
                            INFO, admin_pb2.InfoRequest(), admin_pb2.InfoResponse, timeout_s=10
                        )
                        self.has_pins = info.guarantee.startswith("pins")
                        return True
                except Refusal:
                    await trio.sleep(0.005)
        return False

    async def wait_gone(self) -> None:
        """Return when the process has been reaped after its death."""
        assert self._process is not None
        while self._process.poll() is None:  # noqa: ASYNC110 - the kernel is asked, not an event
            await trio.sleep(0.002)

    async def stop(self) -> None:
        """End it in order; what does not end in time is killed."""
        if not self.is_running:
            return
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(END_WITHIN_S) as scope:
                await self.wait_gone()
            if scope.cancelled_caught:
                self._process.kill()
                await self.wait_gone()

    def clean(self) -> None:
        """End what a failed run left: processes with our mark, mounts below our directory."""
        for _ in range(3):
            for found in self.processes():
                found.signal(signal.SIGKILL)
            time.sleep(0.05)
        for target in mounts_below(self.base):
            subprocess.run(["umount", "-l", target], check=False, capture_output=True)


def mounts_below(folder: Path) -> list[str]:
    """Mount points below a directory, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(
        (m for line in lines if (m := line.split()[4]).startswith(f"{folder}/")), reverse=True
    )


@asynccontextmanager
async def running(
    base: Path,
    history: History,
    environment: Mapping[str, str] | None = None,
    root: Path | None = None,
) -> AsyncGenerator[Daemon]:
    """A daemon that has answered; ended, with all that it had, when the block is left."""
    daemon = Daemon(base=base, history=history, environment=environment or {}, root=root)
    try:
        await daemon.start()
        yield daemon
    finally:
        with trio.CancelScope(shield=True):
            for found in daemon.processes():
                found.signal(signal.SIGCONT)
            await daemon.stop()
            await trio.to_thread.run_sync(daemon.clean)
