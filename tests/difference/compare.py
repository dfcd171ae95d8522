"""Run sequences on both daemons, and find the first step at which they differ.

A sequence runs in namespaces of its own, on one pair of daemons that serves all of them. What
differs and is no row of the table is reported with the shortest sequence that still shows it.
"""

import contextlib
import itertools
import os
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench.daemons import running

from .answer import Outcome
from .differences import row_for, told_by_both
from .draw import sequence
from .side import Side
from .step import CGROUP, Step

T = TypeVar("T")
EVENTS_WITHIN_S = 5.0

# What two refusals of one kind may differ in.
NAMES = re.compile(r'"[^"]*"|\[.*\]|r\d+-\w|\b(?:sha256:)?[0-9a-f]{64}|\b[cisblk]\d\b|\d+')

QUIET_CONTAINERD = """
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.000000001
deletion_threshold = 1000000
mutation_threshold = 0
startup_delay = "10ms"
"""


@dataclass(frozen=True)
class Difference:
    """Where a sequence told the daemons apart."""

    number: int
    steps: Sequence[Step]
    at: int
    holdfast: object
    containerd: object

    @property
    def kind(self) -> object:
        """What a survey shows once: the method, and how each of the two ended."""
        within = self.at < len(self.steps)
        method = self.steps[self.at].method if within else ""
        ends = [
            (each.code, NAMES.sub("", each.message))
            if isinstance(each, Outcome)
            else str(each)[:60]
            for each in (self.holdfast, self.containerd)
        ]
        return method, *ends

    def brief(self) -> str:
        """The difference without the way to it."""
        where = repr(self.steps[self.at]) if self.at < len(self.steps) else "the events"
        ours, theirs = str(self.holdfast)[:500], str(self.containerd)[:500]
        return f"{self.number}: {where[:400]}\n  H {ours}\n  C {theirs}"

    def __str__(self) -> str:
        script = "".join(f"    {step!r},\n" for step in self.steps)
        where = repr(self.steps[self.at]) if self.at < len(self.steps) else "the events"
        return (
            f"sequence {self.number}, at {where}\n  holdfast   {self.holdfast}\n"
            f"  containerd {self.containerd}\n  script\n[\n{script}]\n"
        )


@dataclass
class Found:
    """What a comparison came to."""

    sequences: int = 0
    steps: int = 0
    refusals: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)


class Pair:
    """Both daemons, and a counter that gives each run a name of its own."""

    def __init__(self, holdfast: Side, containerd: Side) -> None:
        self.holdfast = holdfast
        self.containerd = containerd
        self._runs = itertools.count()
        self._beside = ThreadPoolExecutor(1)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.holdfast, self.containerd

    def next_run(self) -> None:
        """Both begin a run of the same name."""
        prefix = f"r{next(self._runs)}"
        for side in self.sides:
            side.begin(prefix)

    def both(self, ask: Callable[[Side], T]) -> tuple[T, T]:
        """Ask both at the same time; Holdfast's answer and containerd's."""
        theirs = self._beside.submit(ask, self.containerd)
        ours = ask(self.holdfast)
        return ours, theirs.result()


@contextlib.contextmanager
def pair(base: Path) -> Iterator[Pair]:
    """Both daemons below `base`, each collecting garbage on request alone."""
    rootfs = make_rootfs(base / "rootfs")
    quiet = f"{sys.executable} {Path(__file__).with_name('quiet.py')}"
    before = os.environ.get("HOLDFASTD")
    os.environ["HOLDFASTD"] = quiet
    try:
        with (
            running("holdfast", base / "h", log_level="warn") as ours,
            running("containerd", base / "c", for_crun=True, settings=QUIET_CONTAINERD) as theirs,
        ):
            both = Pair(Side(ours, rootfs), Side(theirs, rootfs))
            try:
                both.next_run()
                for side in both.sides:
                    side.await_events()
                time.sleep(0.2)  # containerd's collection at its start
                yield both
            finally:
                for side in both.sides:
                    side.close()
                remove_cgroups()
    finally:
        if before is None:
            del os.environ["HOLDFASTD"]
        else:
            os.environ["HOLDFASTD"] = before


def compare(
    both: Pair,
    count: int,
    seed: int,
    *,
    differences_max: int = 5,
    kinds: Sequence[str] = (),
    survey: bool = False,
    tell: Callable[[Found], None] = lambda _: None,
) -> Found:
    """`count` sequences of this seed. A survey goes on and shows one difference of each kind.

    `tell` hears of each difference, and of every thousandth sequence.
    """
    seen: set[object] = set()
    found = Found()
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        steps = sequence(dice, kinds)
        found.sequences += 1
        difference = once(both, number, steps, found)
        if difference is not None and survey:
            if difference.kind not in seen:
                seen.add(difference.kind)
                found.differences.append(difference)
        elif difference is not None:
            found.differences.append(shortest(both, difference))
            tell(found)
            if len(found.differences) >= differences_max:
                break
        if found.sequences % 1000 == 0:
            tell(found)
    return found


def once(both: Pair, number: int, steps: Sequence[Step], found: Found) -> Difference | None:
    """One run of a sequence; its first difference that no row explains."""
    both.next_run()
    try:
        for at, step in enumerate(steps):
            ours, theirs = both.both(partial(_do, step))
            found.steps += 1
            found.refusals += theirs.code != "OK"
            if ours == theirs:
                continue
            row = row_for(steps[: at + 1], ours, theirs)
            if row is None:
                return Difference(number, steps, at, ours, theirs)
            found.rows[row.name] += 1
            if row.parts:
                return None
        collects = "'sync': True" in repr(steps)
        has_tasks = any(step.method.startswith("Tasks.") for step in steps)
        tell = partial(_told, collects=collects, has_tasks=has_tasks)
        deadline = time.monotonic() + (EVENTS_WITHIN_S if has_tasks else 0)
        ours, theirs = both.both(tell)
        while ours != theirs and time.monotonic() < deadline:
            time.sleep(0.05)
            ours, theirs = both.both(tell)
        if ours != theirs:
            return Difference(number, steps, len(steps), _only(ours, theirs), _only(theirs, ours))
        return None
    finally:
        both.both(lambda side: side.clean(steps))


def _told(side: Side, *, collects: bool, has_tasks: bool) -> list[Any]:
    """The events of a run. Those of tasks come from shims, in an order of each container's own."""
    events = told_by_both(side.events() or [], collects=collects)
    if not has_tasks:
        return events
    return sorted(events, key=lambda event: (_container_of(event), _process_of(event)))


def _container_of(event: dict[str, Any]) -> str:
    of_task = event["topic"].startswith("/tasks/")
    return str(event["event"]["value"]["container_id"]) if of_task else ""


def _process_of(event: dict[str, Any]) -> str:
    fields = event["event"]["value"]
    if event["topic"] == "/tasks/exit":
        return str(fields.get("id"))
    return str(fields.get("exec_id", fields.get("container_id", "")))


def make_rootfs(place: Path) -> Path:
    """Busybox and what mounts need, for all containers."""
    (place / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "sys"):
        (place / name).mkdir()
    shutil.copy("/bin/busybox", place / "bin/busybox")
    for applet in ("sh", "sleep", "true"):
        (place / "bin" / applet).symlink_to("busybox")
    return place


def remove_cgroups() -> None:
    """Take back the cgroup that the containers' own ones lay in."""
    for parent in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
        for below in parent.iterdir():
            if below.is_dir():
                below.rmdir()
        parent.rmdir()


def _do(step: Step, side: Side) -> Outcome:
    return side.do(step)


def _only(events: list, others: list) -> object:
    """The events from the first on that the other side does not tell so."""
    for at, event in enumerate(events):
        if at >= len(others) or others[at] != event:
            return events[at : at + 3]
    return "no further event"


def shortest(both: Pair, difference: Difference, runs_max: int = 150) -> Difference:
    """A sequence without the steps that the difference does not need."""
    steps = list(difference.steps[: difference.at + 1])
    best, runs = replace(difference, steps=steps), 0
    size = max(1, len(steps) // 2)
    while size and runs < runs_max:
        at = 0
        while at < len(steps) and runs < runs_max:
            fewer = steps[:at] + steps[at + size :]
            runs += 1
            again = once(both, difference.number, fewer, Found()) if fewer else None
            if again is not None and _same_kind(again, best):
                best, steps = again, list(again.steps[: again.at + 1])
            else:
                at += size
        size //= 2
    return best


def _same_kind(one: Difference, other: Difference) -> bool:
    def method(difference: Difference) -> str:
        within = difference.at < len(difference.steps)
        return difference.steps[difference.at].method if within else ""

    def code(outcome: object) -> str:
        return outcome.code if isinstance(outcome, Outcome) else ""

    return (
        method(one) == method(other)
        and code(one.holdfast) == code(other.holdfast)
        and code(one.containerd) == code(other.containerd)
    )
