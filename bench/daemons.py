"""The daemons that clients are tested and measured against: ours, and Debian's containerd."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

START_WITHIN_S = 30.0

CONTAINERD_CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.aufs", {disabled}
]
[grpc]
address = "{base}/daemon.sock"
[ttrpc]
address = "{base}/daemon.sock.ttrpc"
"""
# What hides the other cgroup tree of a hybrid host, which crun 1.8 refuses to run on.
WITHOUT_UNIFIED = "mountpoint -q /sys/fs/cgroup/unified && umount -l /sys/fs/cgroup/unified; exec "


@dataclass(frozen=True)
class Daemon:
    """A running daemon: where it listens, what it is, where it keeps things."""

    kind: str
    socket: Path
    base: Path
    pid: int


def command(
    kind: str,
    base: Path,
    *,
    for_crun: bool = False,
    log_level: str = "info",
    settings: str = "",
    disabled: Sequence[str] = (),
) -> list[str]:
    """The command line that starts a daemon of this kind below `base`.

    `for_crun` says that containerd will be asked for crun; Holdfast's shims see to it themselves.
    `settings` are further lines of its configuration file, `disabled` further parts that
    containerd does without.
    """
    config = base / "config.toml"
    if kind == "containerd":
        config.write_text(
            CONTAINERD_CONFIG.format(base=base, disabled=json.dumps([*disabled])[1:-1]) + settings
        )
        words = ["containerd", "--config", str(config), "--log-level", "warn"]
        if for_crun:
            shell = ["sh", "-c", WITHOUT_UNIFIED + shlex.join(words)]
            return ["unshare", "--mount", "--propagation", "slave", *shell]
        return words
    program = shlex.split(os.environ.get("HOLDFASTD", f"{sys.executable} -m holdfast.api.boot"))
    places = {"--root": base / "root", "--state": base / "state", "--address": base / "daemon.sock"}
    if settings:
        config.write_text(settings)
        places["--config"] = config
    words = [word for flag, path in places.items() for word in (flag, str(path))]
    return [*program, *words, "--log-level", log_level]


@contextlib.contextmanager
def running(
    kind: str,
    base: Path,
    *,
    for_crun: bool = False,
    log_level: str = "info",
    containers_live_on: bool = False,
    settings: str = "",
    disabled: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Start the daemon, wait until it accepts, end it afterwards and wait for its end.

    What it ran is ended too, unless it is to live on.
    """
    base.mkdir(parents=True, exist_ok=True)
    log = base / "daemon.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command(
                kind,
                base,
                for_crun=for_crun,
                log_level=log_level,
                settings=settings,
                disabled=disabled,
            ),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = base / "daemon.sock"
    try:
        _wait_until_it_accepts(process, address, log)
        yield Daemon(kind, address, base, process.pid)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if not containers_live_on:
            end_shims_of(base)


@contextlib.contextmanager
def measured(kind: str, base: Path, settings: str = "") -> Iterator[Daemon]:
    """A daemon as it is where it matters: its log quiet, its state in memory, as /run is.

    On ext4 each new file looks past all that were deleted a moment ago: where containers come and
    go that takes a seventh of the machine's time.
    """
    state = base / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "tmpfs", state], check=True)
    with running(kind, base, for_crun=True, log_level="warn", settings=settings) as daemon:
        yield daemon


def _wait_until_it_accepts(process: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(address))
            return
        time.sleep(0.05)
    raise AssertionError(f"the daemon does not accept: {log.read_text()[-4000:]}")


def end_shims_of(base: Path) -> None:
    """What failed half-way may leave shims and containers: end those of this base alone."""
    for _ in range(3):
        found = [pid for pid in _processes() if _belongs(pid, str(base))]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(0.1)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted((m for m in mounts if m.startswith(f"{base}/")), reverse=True):
        subprocess.run(["umount", "-l", target], check=False, capture_output=True)


def _processes() -> list[int]:
    return [
        int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()
    ]


def _belongs(pid: int, base: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return base in words
    except OSError:
        return False
