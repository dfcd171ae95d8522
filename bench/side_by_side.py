"""`make bench`: Holdfast and Debian's containerd, same load, same OCI runtime, in one run.

    python -m bench.side_by_side [--rounds 3] [--cycles 120] [--parallel 1 8]

Both daemons run crun. crun 1.8 refuses hosts with a hybrid cgroup tree, so containerd is put
in a mount namespace without /sys/fs/cgroup/unified, as Holdfast's shims are by themselves.
Rounds alternate; the figures are medians over rounds. A side whose cycles failed is refused,
not reported. Prints a table and writes bench/results/latest.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.daemons import running
from bench.execs import ExecCounter
from bench.load import PHASES, Target, churn
from examples import busybox_image

RESULTS = Path(__file__).parent / "results" / "latest.json"

Report = dict[str, Any]


@contextlib.contextmanager
def target(side: str, base: Path, archive: Path) -> Iterator[Target]:
    """A daemon with the image unpacked; gives what the load needs to know."""
    with running(side, base, for_crun=True, log_level="warn") as daemon:
        ctr = ["ctr", "--address", str(daemon.socket), "--namespace", "bench"]
        subprocess.run([*ctr, "images", "import", str(archive)], check=True, capture_output=True)
        listed = subprocess.run(
            [*ctr, "snapshots", "ls"], check=True, capture_output=True, text=True
        ).stdout
        chain = next(line.split()[0] for line in listed.splitlines() if "Committed" in line)
        yield Target(str(daemon.socket), chain, binary="crun")


def measure(targets: dict[str, Target], parallel: int, cycles: int, rounds: int) -> Report:
    """Alternate the sides; give for each the median of its rounds."""
    reports: dict[str, list[Report]] = {side: [] for side in targets}
    for number in range(rounds):
        order = list(targets) if number % 2 == 0 else list(reversed(targets))
        for side in order:
            with ExecCounter() as execs:
                report = churn(targets[side], cycles=cycles, parallel=parallel, warm=0).report()
            if report["errors"] or report["cycles"] != cycles:
                raise SystemExit(f"{side} did not do the work: {report}")
            report["execs"] = {
                name: round(count / cycles, 2) for name, count in sorted(execs.names.items())
            }
            report["execs_per_cycle"] = round(execs.total / cycles, 2)
            reports[side].append(report)
    return {side: _median(parts) for side, parts in reports.items()}


def _median(parts: list[Report]) -> Report:
    """The median of each figure, over dictionaries of figures."""
    first = parts[0]
    return {
        key: _median([part.get(key, {}) for part in parts])
        if isinstance(value, dict)
        else statistics.median([part.get(key, 0) for part in parts])
        for key, value in first.items()
        if isinstance(value, dict | int | float)
    }


def table(results: dict[str, Report]) -> str:
    lines = []
    for parallel, sides in results.items():
        ours, theirs = sides["holdfast"], sides["containerd"]
        lines += [
            "",
            f"{parallel} in parallel" + " " * 16 + "holdfast   containerd   ratio",
            _row("cycles/s", ours["cycles_per_s"], theirs["cycles_per_s"]),
            _row("CPU ms/cycle", ours["cpu_ms_per_cycle"], theirs["cpu_ms_per_cycle"]),
            _row(
                "execs/cycle, workload included", ours["execs_per_cycle"], theirs["execs_per_cycle"]
            ),
        ]
        for phase in ("cycle", *PHASES):
            for figure in ("p50_ms", "p99_ms"):
                mine, other = ours["phases"][phase][figure], theirs["phases"][phase][figure]
                lines.append(_row(f"{phase} {figure.replace('_', ' ')}", mine, other))
        for side in (ours, theirs):
            side_name = "holdfast" if side is ours else "containerd"
            said = ", ".join(f"{name} {count}" for name, count in side["execs"].items())
            lines.append(f"  execs of {side_name}: {said}")
    return "\n".join(lines)


def _row(name: str, ours: float, theirs: float) -> str:
    ratio = f"{ours / theirs:6.2f}" if theirs else "     -"
    return f"  {name:<32}{ours:>10.2f}{theirs:>13.2f}  {ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=120)
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 8])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        base = Path(folder)
        archive = base / "busybox.tar"
        busybox_image.build(archive)
        with (
            target("holdfast", base / "holdfast", archive) as ours,
            target("containerd", base / "containerd", archive) as theirs,
        ):
            targets = {"holdfast": ours, "containerd": theirs}
            for side in targets:
                churn(targets[side], cycles=8, parallel=4, warm=0)
            results = {
                str(parallel): measure(targets, parallel, given.cycles, given.rounds)
                for parallel in given.parallel
            }
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"kernel": platform.release(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({"machine": machine, "parallel": results}, indent=2) + "\n")
    sys.stdout.write(table(results) + f"\n\nwritten to {RESULTS}\n")


if __name__ == "__main__":
    main()
