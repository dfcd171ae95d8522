"""The death matrix: every set of Holdfast's processes dies, in every state of a task.

    python -m chaos_tests.deaths --containers 2000 --seed 7

A round is one set of victims and a batch of containers over all states, with and without terminal
and stdin. Some log by loggers, which die too in half of the rounds; some are in a sandbox. They
come to their states; the victims are killed with SIGKILL at one moment; the daemon
is started again after a blackout, in which a part of the containers come to their end. Then all are
taken to their end, and the history is judged. Prints a table; all its last columns must be 0.
"""

import argparse
import itertools
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from holdfast.api.proto.services import containers_pb2, snapshots_pb2, tasks_pb2

from . import checkers, containers, pods, residue
from .client import Client, connected
from .containers import Plan, State
from .daemon import Daemon, running
from .history import Harm, Heal, History, Left, Listed, MayBeLost
from .patience import PATIENCE
from .processes import Role
from .tally import Round, Tally
from .workloads import SNAPSHOTTER, Life, Stage, prepare_base

VICTIMS = (Role.DAEMON, Role.FORK_SERVER, Role.SHIM, Role.WORKER)
SETS: Sequence[tuple[Role, ...]] = tuple(
    chosen for size in range(1, 5) for chosen in itertools.combinations(VICTIMS, size)
)
REAPERS = {Role.DAEMON, Role.FORK_SERVER, Role.SHIM}
CELLS = tuple(itertools.product(State, (False, True), (False, True)))
REACHED_WITHIN_S = 40.0 * PATIENCE
STRUCK_FOR_S = 0.03
INSIDE_WITHIN_S = 3.0 * PATIENCE
BLACKOUT_S = (0.0, 0.8)
KILLS_MAX = 3


def draw_rounds(
    count: int,
    dice: random.Random,
    *,
    sets: Sequence[tuple[Role, ...]] = SETS,
    states: Iterable[State] = tuple(State),
    batch: int = 28,
    away: bool = True,
) -> list[Round]:
    """At least `count` containers, spread evenly over all cells of all sets of victims."""
    cells = [cell for cell in CELLS if cell[0] in set(states)]
    per_set = -(-count // len(sets))
    rounds: list[Round] = []
    decks = {victims: _deck(cells, per_set, dice) for victims in sets}
    for begun in range(0, per_set, batch):
        for victims in sets:
            plans: list[Plan] = []
            for state, terminal, stdin in decks[victims][begun : begun + batch]:
                name = f"r{len(rounds)}-{len(plans)}"
                plan = containers.draw(name, state, terminal=terminal, stdin=stdin, dice=dice)
                plans.append(plan if away else replace(plan, reader_away=False))
            kills = dice.choice((1, 1, 2, KILLS_MAX))
            rounds.append(
                Round(
                    number=len(rounds),
                    victims=victims,
                    plans=tuple(plans),
                    kills=kills,
                    loggers_die=dice.random() < 0.5,
                )
            )
    return rounds


def _deck(
    cells: Sequence[tuple[State, bool, bool]], size: int, dice: random.Random
) -> list[tuple[State, bool, bool]]:
    """That many cells: all of them, in a new order each time, before any comes again."""
    deck: list[tuple[State, bool, bool]] = []
    while len(deck) < size:
        # By state first, so that also a few containers are in all the states.
        shuffled = dice.sample(cells, len(cells))
        turn = Counter[State]()
        keyed: list[tuple[int, tuple[State, bool, bool]]] = []
        for cell in shuffled:
            keyed.append((turn[cell[0]], cell))
            turn[cell[0]] += 1
        deck += [cell for _, cell in sorted(keyed, key=lambda pair: pair[0])]
    return deck[:size]


@dataclass(slots=True)
class Matrix:
    """A run of it: the daemon, the client, and what has been counted."""

    daemon: Daemon
    client: Client
    history: History
    dice: random.Random
    folder: Path
    group: str

    async def round(self, number: Round) -> None:
        """One round, from its first container to the look at what is left."""
        stage = Stage()
        async with pods.sandbox(self.client, f"pod-{number.number}", self.group) as sandbox:
            stage.sandbox = sandbox
            await self._live(number, stage)
        for left in await residue.after_quiet(self.daemon, self.group):
            self.history.add(left)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _live(self, number: Round, stage: Stage) -> None:
        lives = [Life(self.client, plan, self.folder, self.group, stage) for plan in number.plans]
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(life.run)
            with trio.move_on_after(REACHED_WITHIN_S):
                for life in lives:
                    await life.reached.wait()
            await self._list_all()
            await self._strike(number, stage, lives)

    async def _strike(self, number: Round, stage: Stage, lives: Sequence[Life]) -> None:
        stage.struck.set()
        await trio.sleep(self.dice.uniform(0.0, STRUCK_FOR_S))
        self.history.add(Harm(nemesis=number.name, at_s=time.monotonic()))
        if not self.daemon.has_pins and set(number.victims) >= REAPERS:
            names = tuple(plan.name for plan in number.plans)
            self.history.add(MayBeLost(subjects=names))
        await self._kill(number)
        stage.gone.set()
        inside = [life for life in lives if life.plan.exits_inside]
        for again in range(number.kills):
            if again:
                await self._kill(number)
            if Role.DAEMON in number.victims:
                await trio.sleep(self.dice.uniform(*BLACKOUT_S))
                if not again:
                    await self._ends(inside)
                await self.daemon.start()
            await trio.sleep(self.dice.uniform(0.0, 0.1))
        self.history.add(Heal(nemesis=number.name, at_s=time.monotonic()))
        stage.healed.set()

    async def _kill(self, number: Round) -> None:
        # Looked for before the first dies: later they would have other parents.
        spares = (Role.SPARE,) if Role.SHIM in number.victims else ()
        loggers = (Role.LOGGER,) if number.loggers_die else ()
        for found in self.daemon.processes(*number.victims, *spares, *loggers):
            found.signal(signal.SIGKILL)
        if Role.DAEMON in number.victims:
            await self.daemon.wait_gone()

    async def _ends(self, inside: Sequence[Life]) -> None:
        """Wait, not for long, until those that shall end in the blackout have ended."""
        with trio.move_on_after(INSIDE_WITHIN_S):
            while any(life.is_running for life in inside):  # noqa: ASYNC110 - any of many
                await trio.sleep(0.005)

    async def _list_all(self) -> None:
        """What the daemon has, for the judge of acknowledged changes."""
        client, at_s = self.client, time.monotonic()
        made = await client.insist(
            "Containers.List",
            containers_pb2.ListContainersRequest(),
            containers_pb2.ListContainersResponse,
        )
        names = tuple(container.id for container in made.containers)
        self.history.add(Listed(kind="containers", names=names, at_s=at_s))
        at_s = time.monotonic()
        tasks = await client.insist(
            "Tasks.List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse
        )
        names = tuple(task.container_id or task.id for task in tasks.tasks)
        self.history.add(Listed(kind="tasks", names=names, at_s=at_s))


@dataclass(slots=True)
class Outcome:
    """What a run of the matrix came to."""

    rounds: list[Round]
    history: History
    violations: list[checkers.Violation]
    wall_s: float

    @property
    def tally(self) -> Tally:
        """What it came to in figures."""
        return Tally(self.rounds, self.history, self.violations)


async def run_matrix(
    base: Path, rounds: Sequence[Round], seed: int, *, say: bool = False
) -> Outcome:
    """Run these rounds against one daemon below `base`."""
    began_s = time.monotonic()
    history, dice = History(seed=seed), random.Random(seed)
    done: list[Round] = []
    group = ""
    try:
        async with running(base / "host", history) as daemon:
            group = daemon.mark[:8]
            async with connected(daemon.address, history) as client:
                await prepare_base(client)
                matrix = Matrix(daemon, client, history, dice, base / "containers", group)
                for number in rounds:
                    round_began_s = time.monotonic()
                    await matrix.round(number)
                    done.append(number)
                    if say:
                        took_s = time.monotonic() - round_began_s
                        print(
                            f"{len(done):3}/{len(rounds)} {number.name} {took_s:.1f} s", flush=True
                        )
                await _list_at_last(client, history)
                for event in await client.events():
                    history.add(event)
    finally:
        residue.remove_cgroups(group)
    violations = checkers.judge(history)
    return Outcome(done, history, violations, time.monotonic() - began_s)


async def _list_at_last(client: Client, history: History) -> None:
    """Which snapshots are left, when none should be."""
    made = await client.insist(
        "Containers.List",
        containers_pb2.ListContainersRequest(),
        containers_pb2.ListContainersResponse,
    )
    for container in made.containers:
        history.add(Left(kind="container", what=container.id))
    async with client.stream("Snapshots.List", snapshots_pb2.ListSnapshotsResponse) as call:
        await call.send(snapshots_pb2.ListSnapshotsRequest(snapshotter=SNAPSHOTTER))
        await call.end()
        async for answer in call:
            for info in answer.info:
                if not info.name.startswith("chaos-base"):
                    history.add(Left(kind="snapshot", what=info.name))


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--containers", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--victims", default="", help="only this set, as shim+worker")
    parser.add_argument("--states", default="", help="only these states, with commas")
    parser.add_argument("--reader-stays", action="store_true", help="no client goes away")
    parser.add_argument("--keep", type=Path, help="keep the history and the daemon's log here")
    given = parser.parse_args()
    sets = [tuple(Role(word) for word in given.victims.split("+"))] if given.victims else SETS
    states = [State(word) for word in given.states.split(",")] if given.states else tuple(State)
    rounds = draw_rounds(
        given.containers,
        random.Random(given.seed),
        sets=sets,
        states=states,
        batch=given.batch,
        away=not given.reader_stays,
    )
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-deaths-") as folder:
        try:
            outcome = trio.run(_run, Path(folder), rounds, given.seed)
        finally:
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                log = Path(folder, "host/daemon.log")
                if log.exists():
                    shutil.copy(log, given.keep)
    print(outcome.tally.table())
    print(f"seed {given.seed}    {outcome.wall_s:.0f} s")
    if given.keep or outcome.violations:
        kept = given.keep or Path(tempfile.mkdtemp(prefix=f"holdfast-deaths-{given.seed}-"))
        outcome.history.save(kept / "history.jsonl")
        print(f"the history is kept in {kept}/history.jsonl")
    if not outcome.violations:
        return 0
    print("\nfailed:", *outcome.tally.failed_cells(), "\nall violations:", sep="\n")
    print(*outcome.violations, sep="\n")
    return 1


async def _run(folder: Path, rounds: Sequence[Round], seed: int) -> Outcome:
    return await run_matrix(folder, rounds, seed, say=True)


if __name__ == "__main__":
    sys.exit(main())
