"""Thousands of containers through one daemon: nothing may be left, and nothing may grow.

    python -m bench.soak [--cycles 20000] [--parallel 8]

After each slice of the work the daemon's memory (resident, and of that what Python's allocator
gives back late is part) and its descriptors are noted. At the end there may be no more descriptors
than in the first half, and of the containers no task, mount, cgroup, bundle or process. Memory
grows until the event log has as many rows as are kept, which takes 8,000 cycles: of 16,000 or more,
the slope of the last half must be below 1 KB per 100 cycles.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

from bench import work
from bench.daemons import Daemon, measured
from bench.load import Client
from examples import busybox_image

SLICES = 40
SLOPE_KB_MAX = 1.0
SLOPE_COUNTS_FROM = 16_000
SETTLES_WITHIN_S = 10.0


def slope_kb(cycles: list[int], resident_kb: list[float]) -> float:
    """How many kilobytes 100 further cycles cost, by the median of the slopes between all pairs in
    the last half: what comes and goes in blocks of a megabyte sways it little."""
    half = len(cycles) // 2
    pairs = combinations(zip(cycles[half:], resident_kb[half:], strict=True), 2)
    return statistics.median((kb - was_kb) / (at - was) * 100 for (was, was_kb), (at, kb) in pairs)


def residue(daemon: Daemon, client: Client) -> list[str]:
    """What is left of containers that are all gone."""
    base = str(daemon.base)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [line.split()[4] for line in mounts if f"{base}/state/tasks" in line]
    left += map(str, (daemon.base / "state" / "tasks").glob("*/*"))
    left += map(str, Path("/sys/fs/cgroup").glob("**/bench/cycle-*"))
    return left + [f"task {task.id}" for task in client.tasks()]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=20_000)
    parser.add_argument("--parallel", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-soak-") as folder:
        base = Path(folder) / "holdfast"
        base.mkdir()
        busybox_image.build(base / "busybox.tar")
        with measured("holdfast", base) as daemon:
            target = work.prepared(daemon, base / "busybox.tar")
            done, memory_kb, open_files = [], [], []
            begun = time.perf_counter()
            for part in range(1, SLICES + 1):
                work.cycles(target, given.cycles // SLICES, given.parallel)
                done.append(part * given.cycles // SLICES)
                memory_kb.append(work.resident_mb(daemon.pid) * 1000)
                open_files.append(descriptors(daemon.pid))
                sys.stderr.write(f"{done[-1]} cycles, {memory_kb[-1]:.0f} kB\n")
            took_s = time.perf_counter() - begun
            deadline = time.monotonic() + SETTLES_WITHIN_S
            with work.clients(target, 1) as (client,):
                while (left := residue(daemon, client)) and time.monotonic() < deadline:
                    time.sleep(0.2)
    slope = round(slope_kb(done, memory_kb), 3)
    report = {
        "cycles": given.cycles,
        "seconds": round(took_s, 1),
        "memory_kb": [round(memory_kb[0]), round(memory_kb[-1])],
        "slope_kb_per_100_cycles": slope,
        "descriptors": [open_files[0], max(open_files), open_files[-1]],
        "left": left[:20],
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    most = max(open_files[: SLICES // 2])
    grows = given.cycles >= SLOPE_COUNTS_FROM and slope >= SLOPE_KB_MAX
    sys.exit(1 if left or grows or open_files[-1] > most else 0)


if __name__ == "__main__":
    main()
