"""A hundred containers, eight at a time, leave nothing behind."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import running
from bench.load import churn
from bench.work import prepared
from examples import busybox_image

pytestmark = [pytest.mark.root, pytest.mark.slow]


def kernel_facts(daemon_pid: int, base: Path) -> dict[str, object]:
    """What a container may leave: mounts, cgroups, processes, files, descriptors."""
    cgroups = {
        f"{folder}/{name}"
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if folder.endswith("/bench") or "/bench/" in f"{folder}/{name}/"
    }
    processes = {
        pid
        for pid in os.listdir("/proc")
        if pid.isdigit() and str(base) in _words(pid) and "pytest" not in _words(pid)
    }
    files = {str(path) for path in (base / "state").rglob("*")}
    snapshots = {str(path) for path in (base / "root").glob("*/snapshots/*")}
    return {
        "mounts": Path("/proc/self/mountinfo").read_text().count("\n"),
        "cgroups": {path for path in cgroups if "/bench/" in path},
        "processes": processes,
        "files": files,
        "snapshots": snapshots,
        "daemon descriptors": len(os.listdir(f"/proc/{daemon_pid}/fd")),
        "crun state": set(os.listdir("/run/crun")) if Path("/run/crun").exists() else set(),
    }


def _words(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_hundred_containers_leave_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    with running("holdfast", tmp_path / "host") as daemon:
        ctr = ["ctr", "--address", str(daemon.socket), "--namespace", "bench"]
        target = replace(prepared(daemon, archive), binary="")
        churn(target, cycles=8, parallel=8, warm=0)
        time.sleep(1)
        before = kernel_facts(daemon.pid, daemon.base)
        result = churn(target, cycles=100, parallel=8, warm=0)
        assert result.errors == []
        assert len(result.seconds["cycle"]) == 100
        deadline = time.monotonic() + 15
        while (after := kernel_facts(daemon.pid, daemon.base)) != before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        assert after == before
        for what in ("containers", "tasks"):
            said = subprocess.run([*ctr, what, "ls", "-q"], capture_output=True, text=True).stdout
            assert said == ""
