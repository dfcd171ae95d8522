"""The crash sweep: kill -9 at every point of every durable operation.

    python -m chaos_tests.sweep                              all points of all operations
    python -m chaos_tests.sweep --operation "task create"    of one
    python -m chaos_tests.sweep --sample 30 --seed 7         some, chosen by a seed

For each operation the points that it reaches are counted once. Then, for each k, the program is
killed at the k-th, the daemon is started anew, and the world must be the old or the new one: each
call of the operation was done or was not, records and events agree, nothing lies about. The
operation is then repeated to its end, and taken back: the world is the one before it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import trio
from examples import busybox_image

from holdfast.actors.errors import AlreadyExists, NotFound, Refusal
from holdfast.api.cli.session import Session
from holdfast.api.status import CallFailed

from . import sweep_asks as asks
from . import sweep_sources
from .sweep_catalogue import OTHER, catalogue
from .sweep_daemon import House
from .sweep_operation import Deed, Operation
from .sweep_view import View, collect, look, replay, strays

WORK_WITHIN_S = 30.0
SETTLED_WITHIN_S = 8.0
ROUND_WITHIN_S = 120.0
# Each round reads all events of the world, which has more of them with each.
ROUNDS_MAX = 50
FALLEN_WITHIN_S = 0.5
LINGERS_S = 0.15
LOOK_AGAIN_S = 0.002
PULLS = "pull-"
"""How the lease is called under which a pull keeps what it has brought."""

# Counting an operation's points takes time, so a sample is taken of a few.
SAMPLED_OPERATIONS_MAX = 6

# How a call ends whose daemon falls.
FALLS = (Refusal, CallFailed, OSError, trio.BrokenResourceError, trio.TooSlowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a program is killed."""

    operation: str
    program: str
    k: int
    name: str

    def __str__(self) -> str:
        return f"{self.operation}, {self.program} at {self.k} ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one point. `wrong` is empty when all is well."""

    point: Point
    fell: bool
    wrong: Sequence[str]
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What an operation does when nobody is killed."""

    views: Sequence[View]
    """The world before it, and after each of its calls."""
    points: Sequence[tuple[str, str]]
    """The programs and names of the points, in the order in which they were reached."""


class Sweep:
    """A daemon of its own directory, and the operations on it."""

    def __init__(self, base: Path) -> None:
        self.house = House(base, sweep_sources.plugin(base))
        self.operations: Sequence[Operation] = ()
        self._notes = base / "notes"
        self._harms = 0
        self._clean: View | None = None

    async def prepare(self) -> None:
        """Start a daemon with one image."""
        base, house = self.house.base, self.house
        archive, other = base / "busybox.tar", base / "other.tar"
        busybox_image.build(archive)
        busybox_image.build(other, OTHER, {"Labels": {"of": "other"}})
        self.operations = catalogue(other)
        house.arm("")
        await house.start()
        async with house.session() as session:
            await asks.import_image(session, archive)
            await collect(session)
            self._clean = await look(session)

    def clear(self) -> None:
        """End all that was started, and remove it."""
        sweep_sources.end(self.house.base)
        self.house.clear()

    async def count(self, operation: Operation) -> Course:
        """Do an operation in peace, and note the points it reaches."""
        async with self.house.session() as session:
            await _all(operation.before, session)
            await collect(session)
            views = [await look(session)]
            rules = [f"{program}:*=note:{self._notes}.{program}" for program in operation.programs]
            self.house.arm(",".join(rules))
            for deed in operation.work:
                await deed(session)
                views.append(await look(session))
            self.house.arm("")
            points = self._take_notes(operation)
            await collect(session)
            views[-1] = await look(session)
            await _take_back(operation, session)
        assert not operation.left()
        return Course(views=views, points=points)

    def _take_notes(self, operation: Operation) -> Sequence[tuple[str, str]]:
        points: list[tuple[str, str]] = []
        for program in operation.programs:
            notes = Path(f"{self._notes}.{program}")
            if notes.exists():
                points += [(program, name) for name in notes.read_text().split()]
                notes.unlink()
        return points

    async def try_one(self, operation: Operation, course: Course, point: Point) -> Outcome:
        """Kill a program at a point, and judge."""
        began_s = time.monotonic()
        wrong: list[str] = []
        fell = False
        try:
            with trio.fail_after(ROUND_WITHIN_S):
                fell = await self._harm(operation, point)
                wrong += await self._judge(operation, course)
        except Exception as error:  # whatever it is, it belongs to this point
            wrong.append(f"{type(error).__name__}: {error}")
        if wrong:
            await self.begin_anew()
        return Outcome(point=point, fell=fell, wrong=wrong, took_s=time.monotonic() - began_s)

    async def _harm(self, operation: Operation, point: Point) -> bool:
        """Do the operation with the kill armed; whether the daemon fell."""
        house = self.house
        async with house.session() as session:
            await _all(operation.before, session)
            await collect(session)
        self._harms += 1
        notes = Path(f"{self._notes}.{self._harms}")
        house.arm(f"{point.program}:*=note:{notes},{point.program}:*=kill@{point.k}")
        failed = False
        try:
            with trio.fail_after(WORK_WITHIN_S):
                async with house.session() as session, trio.open_nursery() as nursery:
                    nursery.start_soon(self._once, notes, point.k)
                    await _all(operation.work, session)
                    nursery.cancel_scope.cancel()
        except* FALLS:
            failed = True
        # Some points come after the answer, many of them one after the other.
        fell, before = await house.has_fallen(FALLEN_WITHIN_S if failed else LINGERS_S), -1
        while not fell and before < (reached := _count(notes)) < point.k:
            fell, before = await house.has_fallen(LINGERS_S), reached
        house.arm("")
        if fell:
            await house.start()
        return fell

    async def _once(self, notes: Path, k: int) -> None:
        """Disarm at the k-th point: who takes the killed one's place is not to die of it too."""
        # A file of another process: nobody here can set an event.
        while _count(notes) < k:  # noqa: ASYNC110
            await trio.sleep(LOOK_AGAIN_S)
        self.house.arm("")

    async def _judge(self, operation: Operation, course: Course) -> Sequence[str]:
        wrong: list[str] = []
        async with self.house.session() as session:
            seen, lying = await self._settled(
                session, lambda view: _is_known(view, operation, course)
            )
            wrong += lying
            if not _is_known(seen, operation, course):
                wrong.append(f"neither old nor new: {_difference(seen, course.views)}")
            for deed in operation.work:
                with suppress(AlreadyExists, NotFound):
                    await deed(session)
            seen, lying = await self._settled(session, lambda view: view == course.views[-1])
            wrong += [f"repeated: {one}" for one in lying]
            if seen != course.views[-1]:
                wrong.append(f"repeated: {_difference(seen, course.views[-1:])}")
            await _take_back(operation, session)
            seen, lying = await self._settled(session, lambda view: view == self._clean)
            wrong += [f"taken back: {one}" for one in lying]
            if seen != self._clean:
                assert self._clean is not None
                wrong.append(f"taken back: {_difference(seen, [self._clean])}")
            wrong += operation.left()
        return wrong

    async def _settled(
        self, session: Session, expected: Callable[[View], bool]
    ) -> tuple[View, Sequence[str]]:
        """The world once garbage is collected and recovery is over, and what is wrong in it."""
        deadline = trio.current_time() + SETTLED_WITHIN_S
        while True:
            await collect(session)
            view = await look(session)
            lying = strays(self.house, view, await replay(session))
            if (expected(view) and not lying) or trio.current_time() >= deadline:
                return view, lying
            await trio.sleep(0.05)

    async def begin_anew(self) -> None:
        """With another world: a wrong one must not spoil the next point."""
        base = self.house.base
        self.clear()
        self.house = House(base, sweep_sources.plugin(base))
        await self.prepare()


def _count(notes: Path) -> int:
    try:
        return notes.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


async def _all(deeds: Sequence[Deed], session: Session) -> None:
    for deed in deeds:
        await deed(session)


async def _take_back(operation: Operation, session: Session) -> None:
    for deed in operation.after:
        with suppress(NotFound):
            await deed(session)
    await collect(session)


def _is_known(view: View, operation: Operation, course: Course) -> bool:
    """Whether it is a world of the course; or one with what is kept for the next that resumes."""
    if view in course.views or not operation.resumes:
        return view in course.views
    leases = view.leases - course.views[0].leases
    is_kept = len(leases) <= 1 and all(lease.startswith(PULLS) for lease in leases)
    return (
        is_kept
        and view.content <= course.views[-1].content
        and any(
            replace(view, content=one.content, ingests=one.ingests, leases=one.leases) == one
            for one in course.views
        )
    )


def _difference(seen: View, expected: Sequence[View]) -> str:
    """How a world differs from the nearest expected one."""
    best = None
    for view in expected:
        parts = [
            f"{name} {getattr(seen, name)!r}, expected {getattr(view, name)!r}"
            for name in (field.name for field in fields(View))
            if getattr(seen, name) != getattr(view, name)
        ]
        if best is None or len(parts) < len(best):
            best = parts
    return "; ".join(best or ["nothing"])


async def run(
    names: Sequence[str],
    programs: Sequence[str],
    sample: int | None,
    seed: int,
    tell: Callable[[str], None],
) -> Sequence[Outcome]:
    """Sweep these operations in these programs (all for none), a sample or every point."""
    sweep = Sweep(Path(tempfile.mkdtemp(prefix="holdfast-sweep-")))
    outcomes: list[Outcome] = []
    try:
        await sweep.prepare()
        chosen = [one for one in sweep.operations if not names or one.name in names]
        chance = random.Random(seed)
        if sample is not None:
            chosen = chance.sample(chosen, min(SAMPLED_OPERATIONS_MAX, len(chosen)))
        courses = {one.name: await sweep.count(one) for one in chosen}
        for one in chosen:
            counts = {
                program: sum(1 for found, _ in courses[one.name].points if found == program)
                for program in one.programs
            }
            tell(f"{one.name}: {counts}")
        points = [
            Point(operation=one.name, program=program, k=k, name=name)
            for one in chosen
            for program in one.programs
            if program in programs or not programs
            for k, name in enumerate(
                (name for found, name in courses[one.name].points if found == program), 1
            )
        ]
        if sample is not None:
            points = chance.sample(points, min(sample, len(points)))
        by_name = {one.name: one for one in chosen}
        for point in points:
            outcome = await sweep.try_one(by_name[point.operation], courses[point.operation], point)
            outcomes.append(outcome)
            if len(outcomes) % ROUNDS_MAX == 0:
                await sweep.begin_anew()
            if outcome.wrong:
                tell(f"WRONG {point} {'' if outcome.fell else '(no fall)'}")
                for wrong in outcome.wrong:
                    tell(f"    {wrong}")
    finally:
        sweep.clear()
    return outcomes


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Kill -9 at every point of every durable operation."
    )
    parser.add_argument("--operation", action="append", default=[], help="All when none is named.")
    parser.add_argument("--program", action="append", default=[], help="All when none is named.")
    parser.add_argument("--sample", type=int, default=None, help="So many points, not all.")
    parser.add_argument("--seed", type=int, default=None, help="Chooses the sample.")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    if given.sample is not None:
        print(f"seed {seed}")
    began_s = time.monotonic()
    outcomes = trio.run(run, given.operation, given.program, given.sample, seed, print)
    wrong = [one for one in outcomes if one.wrong]
    fell = sum(one.fell for one in outcomes)
    print(
        f"{len(outcomes)} points, {fell} falls of the daemon, {len(wrong)} violations,"
        f" {time.monotonic() - began_s:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
