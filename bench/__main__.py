"""`make bench`: Holdfast and Debian's containerd, the same work, the same OCI runtime, in one run.

    python -m bench [--rounds 5] [--only cycles records many layers] [--against FILE]

Both daemons run crun. crun 1.8 refuses hosts with a hybrid cgroup tree, so containerd is put in a
mount namespace without /sys/fs/cgroup/unified, as Holdfast's shims are by themselves. Rounds
alternate; a figure is the median of its rounds. A side that did not do the work is refused, not
reported. Prints the table and writes bench/results/latest.json; `--against` tells what has become
worse than in another such file.
"""

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import layer, work
from bench.daemons import Daemon, command, measured
from bench.load import Client, Target
from bench.restart import wait_for_all, wait_for_answer
from bench.rows import Row, at_least, at_most, bound, load, save, table, worse
from examples import busybox_image

RESULTS = Path(__file__).parent / "results" / "latest.json"
WORSE_BY = 0.25
MANY = 200
STORED = 1000
PARTS = ("cycles", "records", "many", "layers")

Figures = Mapping[str, float]


class Side:
    """A daemon that may be killed and started again, and what is asked of it."""

    def __init__(self, daemon: Daemon, archive: Path) -> None:
        self.daemon = daemon
        self.target: Target = work.prepared(daemon, archive)
        self.pid = daemon.pid
        self._again: subprocess.Popen[bytes] | None = None

    @property
    def kind(self) -> str:
        return self.daemon.kind

    def restart(self, wanted: int | None) -> Figures:
        """Kill it, start it; the seconds until it answers, and until so many tasks are back."""
        os.kill(self.pid, signal.SIGKILL)
        if self._again is not None:
            self._again.wait()
        else:
            os.waitpid(self.pid, 0)
        begun = time.perf_counter()
        words = command(self.kind, self.daemon.base, for_crun=True, log_level="warn")
        self._again = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
        self.pid = self._again.pid
        client = Client(self.target)
        try:
            figures = {"answers": wait_for_answer(client, begun)}
            if wanted is not None:
                figures["all"] = wait_for_all(client, self.kind, wanted, begun)
            return figures
        finally:
            client.close()

    def close(self) -> None:
        if self._again is not None:
            self._again.terminate()
            self._again.wait(30)


@contextmanager
def side_of(kind: str, folder: Path, archive: Path, settings: str = "") -> Iterator[Side]:
    """One of them, with the image."""
    with measured(kind, folder / kind, settings) as daemon:
        side = Side(daemon, archive)
        try:
            yield side
        finally:
            side.close()


@contextmanager
def both(archive: Path) -> Iterator[list[Side]]:
    """Ours and theirs, each with the image."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder, ExitStack() as stack:
        yield [
            stack.enter_context(side_of(kind, Path(folder), archive))
            for kind in ("holdfast", "containerd")
        ]


def alternate(
    sides: list[Side], rounds: int, measure: Callable[[Side], Figures]
) -> tuple[Figures, Figures]:
    """The medians of ours and of theirs. A first round warms up, and does not count."""
    found: dict[str, list[Figures]] = {side.kind: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 == 0 else reversed(sides):
            figures = measure(side)
            if number:
                found[side.kind].append(figures)
    ours, theirs = (
        {name: statistics.median([each[name] for each in found[side.kind]]) for name in figures}
        for side in sides
    )
    return ours, theirs


def of_cycles(sides: list[Side], rounds: int) -> Iterator[Row]:
    ours, theirs = alternate(sides, rounds, lambda side: work.cycles(side.target, 160, 8))
    yield at_least("container cycles/s, 8 in parallel", 4, ours["per_s"], theirs["per_s"])
    yield at_most("processor ms/cycle of the machine, 8 in parallel", 1 / 3,
                  ours["busy_s"] * 1e3, theirs["busy_s"] * 1e3)  # fmt: skip
    bare = statistics.median([work.bare_runs(160, 8) for _ in range(rounds)])
    yield at_least("container cycles/s beside bare crun run, 8 in parallel", 0.55,
                   ours["per_s"], bare)  # fmt: skip
    ours, theirs = alternate(sides, rounds, lambda side: work.cycles(side.target, 30, 1))
    yield at_most("container cycle, one at a time, p50 ms", 1 / 3,
                  ours["p50_s"] * 1e3, theirs["p50_s"] * 1e3)  # fmt: skip
    ours, theirs = alternate(sides, rounds, lambda side: work.cycles(side.target, 160, 32))
    yield at_most("container cycle, 32 in parallel, p99 ms", 1 / 4,
                  ours["p99_s"] * 1e3, theirs["p99_s"] * 1e3)  # fmt: skip

    def exec_both(side: Side) -> Figures:
        with work.idle(side.target, 1) as (name,):
            one, eight = (
                work.execs(side.target, name, 40, 1), work.execs(side.target, name, 120, 8)
            )  # fmt: skip
        return {"p50_s": one["p50_s"], "per_s": eight["per_s"]}

    ours, theirs = alternate(sides, rounds, exec_both)
    yield at_most("exec of true, p50 ms", 1 / 2, ours["p50_s"] * 1e3, theirs["p50_s"] * 1e3)
    yield at_least("execs/s, 8 in parallel", 2, ours["per_s"], theirs["per_s"])


def of_records(sides: list[Side], rounds: int) -> Iterator[Row]:
    ours, theirs = alternate(
        sides,
        rounds,
        lambda side: {
            str(parallel): work.create_containers(side.target, 600, parallel)
            for parallel in (1, 64)
        },
    )
    yield at_least("container records made/s, 64 clients", 3, ours["64"], theirs["64"])
    yield at_least("container records made/s, 64 clients beside 1", 1, ours["64"], ours["1"])
    ours, theirs = alternate(
        sides,
        rounds,
        lambda side: {
            str(parallel): work.prepare_snapshots(side.target, 400, parallel)
            for parallel in (8, 64)
        },
    )
    for parallel in ("8", "64"):
        name = f"snapshots prepared/s, {parallel} clients"
        yield at_least(name, 4, ours[parallel], theirs[parallel])
    ours, theirs = alternate(
        sides, rounds, lambda side: {"rate": work.write_content(side.target, 256 << 20) / 1e6}
    )
    yield at_least("content written, 256 MiB, MB/s", 1, ours["rate"], theirs["rate"])
    ours, theirs = alternate(
        sides, rounds, lambda side: {"rate": work.deliver_events(side.target, 500, 10)}
    )
    yield at_least("events delivered/s, 1 to 10", 1, ours["rate"], theirs["rate"])
    ours, theirs = alternate(
        sides, rounds, lambda side: {"p50_s": work.ask_version(side.target, 500)}
    )
    yield at_most("Version, p50 ms", 3, ours["p50_s"] * 1e3, theirs["p50_s"] * 1e3)

    empty_s = statistics.median([sides[0].restart(None)["answers"] for _ in range(rounds)])
    stored = [work.fresh("stored") for _ in range(STORED)]
    for side in sides:
        work.store_containers(side.target, stored)
    ours, theirs = alternate(sides, rounds, lambda side: side.restart(None))
    yield bound(f"start to first answer, {STORED} containers stored, ms", 300,
                ours["answers"] * 1e3, theirs["answers"] * 1e3)  # fmt: skip
    yield at_most(f"start to first answer, {STORED} containers stored beside none", 1.2,
                  ours["answers"], empty_s)  # fmt: skip


def of_many(sides: list[Side], rounds: int) -> Iterator[Row]:
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(work.idle(side.target, MANY))
        ours, theirs = alternate(
            sides, rounds, lambda side: {"p50_s": work.list_tasks(side.target, 20, MANY)}
        )
        yield at_most(f"Tasks.List of {MANY}, p50 ms", 1 / 10,
                      ours["p50_s"] * 1e3, theirs["p50_s"] * 1e3)  # fmt: skip
        mine, others = (work.shims_pss_mb(side.daemon, MANY) for side in sides)
        yield bound(f"shims' memory per container, of {MANY}, PSS MB", 0.6, mine, others)
        mine, others = (work.resident_mb(side.pid) for side in sides)
        yield at_most(f"daemon's memory, {MANY} running, MB", 1, mine, others)
        ours, theirs = alternate(sides, rounds, lambda side: side.restart(MANY))
        yield at_most(f"restart with {MANY} running, s to the first answer", 1 / 5,
                      ours["answers"], theirs["answers"])  # fmt: skip
        yield at_most(f"restart with {MANY} running, s until all are back", 1 / 2,
                      ours["all"], theirs["all"])  # fmt: skip


def of_layers(rounds: int) -> Iterator[Row]:
    for compression, sides in layer.measured(rounds).items():
        theirs = sides["containerd"]["seconds"]
        for name in ("holdfast", "holdfast import"):
            how = "by ctr" if name == "holdfast" else "by holdfast"
            yield at_least(f"reference layer in and unpacked, {compression}, {how}, 1/s", 2,
                           1 / sides[name]["seconds"], 1 / theirs)  # fmt: skip
        yield bound(f"the same, {compression}, the daemon's peak memory, MB", 150,
                    max(sides[name]["peak_mb"] for name in sides if name != "containerd"),
                    sides["containerd"]["peak_mb"])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--against", type=Path, help="a file of rows, to be compared with")
    given = parser.parse_args()
    before = load(given.against) if given.against else []
    begun, rows = time.perf_counter(), []

    def take(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            sys.stderr.write(f"{time.perf_counter() - begun:5.0f} s  {row.name}\n")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        archive = Path(folder) / "busybox.tar"
        busybox_image.build(archive)
        of_sides = {"cycles": of_cycles, "records": of_records, "many": of_many}
        for part, measure in of_sides.items():
            if part in given.only:
                with both(archive) as sides:
                    take(measure(sides, given.rounds))
    if "layers" in given.only:
        take(of_layers(given.rounds))
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "rounds": given.rounds}
    save(rows, machine, RESULTS)
    sys.stdout.write(table(rows) + f"\n\nwritten to {RESULTS}\n")
    told = worse(before, rows, WORSE_BY)
    if told:
        sys.stdout.write("worse than before:\n" + "".join(f"  {line}\n" for line in told))
        sys.exit(1)


if __name__ == "__main__":
    main()
