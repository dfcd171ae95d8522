"""How cost grows: with containers that are there, and with records that are stored.

    python -m bench.growth [--idle 0 100 1000 5000] [--stored 10 10000 100000] [--plot]

Each side is asked for the same, in one run. containerd has a shim of a dozen threads for each
container, and the kernel numbers for 2,000 of them: it is measured up to `--their-idle`. So many
containers of ours share shims, eight to one; how much memory that saves is told too. Writes
bench/results/growth.json; `--plot` draws docs/explanation/growth.png from it, and needs matplotlib.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import work
from bench.__main__ import Side, side_of
from bench.load import Target, container_message
from examples import busybox_image

from holdfast.api.proto.services import containers_pb2

RESULTS = Path(__file__).parent / "results" / "growth.json"
PICTURE = Path(__file__).parents[1] / "docs" / "explanation" / "growth.png"
SIDES = ("holdfast", "containerd")
SHARED = "tasks_per_shim = 8\n"
ASKED = 100
SNAPSHOTS = 10_000

Figures = dict[str, float]


@contextmanager
def side(kind: str, settings: str = "") -> Iterator[Side]:
    with tempfile.TemporaryDirectory(prefix="holdfast-growth-") as folder:
        archive = Path(folder) / "busybox.tar"
        busybox_image.build(archive)
        with side_of(kind, Path(folder), archive, settings) as made:
            yield made


def with_idle(kind: str, counts: Sequence[int], settings: str = "") -> dict[int, Figures]:
    """Cycles beside so many containers that sleep, and what those hold."""
    found: dict[int, Figures] = {}
    with side(kind, settings) as one, ExitStack() as stack:
        work.cycles(one.target, 80, 8)
        there = 0
        for count in counts:
            stack.enter_context(work.idle(one.target, count - there, 8))
            there = count
            cycles = [work.cycles(one.target, 160, 8) for _ in range(3)]
            found[count] = {
                "cycles_per_s": statistics.median(each["per_s"] for each in cycles),
                "p99_ms": statistics.median(each["p99_s"] for each in cycles) * 1e3,
                "daemon_mb": work.resident_mb(one.pid),
            }
            if count:
                found[count]["shims_mb_each"] = work.shims_pss_mb(one.daemon, count)
            tell(kind, f"{count} idle", found[count])
    return found


def with_stored(kind: str, counts: Sequence[int]) -> dict[int, Figures]:
    """What one asks of records, by one client, with so many stored."""
    found: dict[int, Figures] = {}
    with side(kind) as one:
        there = 0
        for count in counts:
            names = [work.fresh("stored") for _ in range(count - there)]
            work.store_containers(one.target, names, 8)
            there = count
            found[count] = of_records(one.target, names[0])
            found[count]["daemon_mb"] = work.resident_mb(one.pid)
            found[count]["start_ms"] = statistics.median(
                one.restart(None)["answers"] * 1e3 for _ in range(3)
            )
            tell(kind, f"{count} stored", found[count])
    return found


def of_records(target: Target, known: str) -> Figures:
    with work.clients(target, 1) as (client,):
        names = [work.fresh("asked") for _ in range(ASKED)]
        made = [container_message(target, name, ("true",)) for name in names]
        return {
            "create_ms": median_ms(
                lambda n: client.call(
                    "Containers.Create",
                    containers_pb2.CreateContainerRequest(container=made[n]),
                    None,
                )
            ),
            "get_ms": median_ms(
                lambda _: client.call(
                    "Containers.Get", containers_pb2.GetContainerRequest(id=known), None
                )
            ),
            "delete_ms": median_ms(
                lambda n: client.call(
                    "Containers.Delete", containers_pb2.DeleteContainerRequest(id=names[n]), None
                )
            ),
        }


def with_snapshots(kind: str, count: int) -> Figures:
    """How long one prepare takes among few and among many, and what the many hold in memory."""
    with side(kind) as one, work.clients(one.target, 8) as clients:
        few_ms = median_ms(lambda n: clients[0].prepare(f"few-{n}"))
        before_mb = work.resident_mb(one.pid)
        work.spread(8, count, lambda w, n: clients[w].prepare(f"many-{n}"))
        time.sleep(1)
        held_mb = work.resident_mb(one.pid) - before_mb
        figures = {
            "few_ms": few_ms,
            "many_ms": median_ms(lambda n: clients[0].prepare(f"last-{n}")),
            "kb_each": held_mb * 1000 / count,
        }
    tell(kind, f"{count} snapshots", figures)
    return figures


def median_ms(ask: Callable[[int], object]) -> float:
    return work.median_s(ASKED, ask) * 1e3


def tell(kind: str, about: str, figures: Figures) -> None:
    words = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    sys.stderr.write(f"{kind}, {about}: {words}\n")


def plot(found: dict[str, Any]) -> None:
    """Ours beside theirs, as far as each was measured."""
    from matplotlib import pyplot

    charts = (
        ("idle", "cycles_per_s", "container cycles/s", "idle containers"),
        ("idle", "p99_ms", "p99 of a cycle, ms", "idle containers"),
        ("idle", "daemon_mb", "daemon's memory, MB", "idle containers"),
        ("stored", "create_ms", "Containers.Create, p50 ms", "stored containers"),
        ("stored", "get_ms", "Containers.Get, p50 ms", "stored containers"),
        ("stored", "start_ms", "start to first answer, ms", "stored containers"),
    )
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis, (part, name, title, across) in zip(axes.flat, charts, strict=True):
        for kind, colour in zip(SIDES, ("tab:blue", "tab:orange"), strict=True):
            rows = sorted((int(count), row[name]) for count, row in found[part][kind].items())
            axis.plot(*zip(*rows, strict=True), "o-", color=colour, label=kind)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(across)
    axes[0][0].legend()
    figure.savefig(PICTURE, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--idle", type=int, nargs="+", default=[0, 100, 1000, 5000])
    parser.add_argument("--their-idle", type=int, default=1000)
    parser.add_argument("--stored", type=int, nargs="+", default=[10, 10_000, 100_000])
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    parser.add_argument("--plot", action="store_true", help="draw what was found before")
    given = parser.parse_args()
    if given.plot:
        plot(json.loads(RESULTS.read_text()))
        return
    theirs = [count for count in given.idle if count <= given.their_idle]
    found = {
        "idle": {
            "holdfast": with_idle("holdfast", given.idle, SHARED),
            "containerd": with_idle("containerd", theirs),
        },
        "a shim each": with_idle("holdfast", [min(200, *filter(None, given.idle))]),
        "stored": {kind: with_stored(kind, given.stored) for kind in SIDES},
        "snapshots": {kind: with_snapshots(kind, given.snapshots) for kind in SIDES},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    sys.stdout.write(f"written to {RESULTS}\n")


if __name__ == "__main__":
    main()
