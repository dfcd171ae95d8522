"""The same random histories through Erlang/OTP's `supervisor` and through ours.

    PYTHONPATH=src python tests/supervision/otp_difference.py --histories 20000 --seed 7

A history is a tree (all strategies, restart kinds, intensities, significant children, brutal
kills, starts that fail at their n-th time, a supervisor under the supervisor) and a sequence of
deeds: ends of each kind, kills of a supervisor, and the verbs. Compared are the order of every
start and stop, each verb's answer, the tree that is left, and the order of its shutdown.

The seed is printed; the seed reruns it. Needs `erl` and `erlc` (Debian: erlang-base).
"""

import argparse
import logging
import random
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.errors import AlreadyExists, FailedPrecondition, NotFound
from holdfast.actors.exits import KILL, NORMAL, SHUTDOWN, StartFailed, StopActor
from holdfast.actors.reference import Ref
from holdfast.actors.system import System
from holdfast.supervision.keeper import ChildInfo, ChildState
from holdfast.supervision.spec import (
    BRUTALLY,
    AutoShutdown,
    ChildKind,
    ChildSpec,
    Intensity,
    Restart,
    Strategy,
    Tree,
)
from holdfast.supervision.supervisor import open_tree
from holdfast.supervision.verbs import (
    delete_child,
    restart_child,
    start_child,
    terminate_child,
    which_children,
)

ENDS = ("normal", "shutdown", "crash", "kill")
VERBS = ("terminate", "restart", "delete", "start")


@dataclass(frozen=True)
class Kid:
    """A worker as drawn."""

    id: str
    restart: Restart
    significant: bool
    brutal: bool
    fails: tuple[int, ...]  # the starts, from 1, that fail

    def term(self) -> str:
        """The same in Erlang."""
        shutdown = "brutal_kill" if self.brutal else "1000"
        fails = ",".join(map(str, self.fails))
        return f"{{kid,{self.id},{self.restart},{_atom(self.significant)},{shutdown},[{fails}]}}"


@dataclass(frozen=True)
class Sup:
    """A supervisor as drawn."""

    id: str
    strategy: Strategy
    restarts: int
    auto: AutoShutdown
    restart: Restart
    significant: bool
    children: tuple["Kid | Sup", ...]

    def term(self) -> str:
        """The same in Erlang."""
        children = ",".join(child.term() for child in self.children)
        return (
            f"{{sup,{self.id},{self.strategy},{self.restarts},{self.auto},{self.restart},"
            f"{_atom(self.significant)},[{children}]}}"
        )

    def below(self) -> Iterator["tuple[Kid | Sup, Sup]"]:
        """Everything below, with its owner."""
        for child in self.children:
            yield child, self
            if isinstance(child, Sup):
                yield from child.below()


@dataclass(frozen=True)
class History:
    """A tree, and what happens to it."""

    number: int
    tree: Sup
    deeds: tuple[tuple[str, str], ...]

    def term(self) -> str:
        """The same in Erlang."""
        deeds = ",".join(f"{{{deed},{child_id}}}" for deed, child_id in self.deeds)
        return f"{{{self.number},{self.tree.term()},[{deeds}]}}."


def _atom(flag: bool) -> str:
    return "true" if flag else "false"


# -- drawing


def draw_histories(count: int, seed: int) -> list[History]:
    """The histories of a seed."""
    chance = random.Random(seed)
    return [_draw_history(chance, number) for number in range(count)]


def _draw_history(chance: random.Random, number: int) -> History:
    names = iter("abcdefghijklmnopqrstuvwxyz")
    tree = _draw_sup(chance, "root", names, depth=0, heeded=False)
    below = [child for child, _ in tree.below()]
    deeds: list[tuple[str, str]] = []
    for _ in range(chance.randint(1, 10)):
        target = chance.choice(below)
        if chance.random() < 0.25:
            deeds.append((chance.choice(VERBS), target.id))
        elif isinstance(target, Kid):
            deeds.append((chance.choice(ENDS), target.id))
        else:
            deeds.append(("kill", target.id))
    return History(number, tree, tuple(deeds))


def _draw_sup(
    chance: random.Random, sup_id: str, names: Iterator[str], depth: int, heeded: bool
) -> Sup:
    auto = chance.choice([AutoShutdown.NEVER, AutoShutdown.NEVER, *AutoShutdown])
    heeds = auto is not AutoShutdown.NEVER
    children: list[Kid | Sup] = []
    for _ in range(chance.randint(1, 4 - depth)):
        if depth == 0 and chance.random() < 0.15:
            children.append(_draw_sup(chance, next(names), names, depth + 1, heeds))
        else:
            children.append(_draw_kid(chance, next(names), heeds))
    restart = _draw_restart(chance)
    return Sup(
        id=sup_id,
        strategy=chance.choice(list(Strategy)),
        restarts=chance.choice([0, 1, 2, 3, 5, 10]),
        auto=auto,
        restart=restart,
        significant=heeded and restart is not Restart.PERMANENT and chance.random() < 0.5,
        children=tuple(children),
    )


def _draw_kid(chance: random.Random, kid_id: str, heeded: bool) -> Kid:
    restart = _draw_restart(chance)
    fails = set(chance.sample(range(2, 7), chance.choice([0, 0, 0, 1, 2])))
    if chance.random() < 0.02:
        fails.add(1)
    return Kid(
        id=kid_id,
        restart=restart,
        significant=heeded and restart is not Restart.PERMANENT and chance.random() < 0.6,
        brutal=chance.random() < 0.15,
        fails=tuple(sorted(fails)),
    )


def _draw_restart(chance: random.Random) -> Restart:
    return chance.choice([Restart.PERMANENT, *Restart])


# -- living through them: ours


@dataclass
class World:
    """What one history leaves behind."""

    trace: list[str] = field(default_factory=list[str])
    starts: dict[str, int] = field(default_factory=dict[str, int])


class KidActor(Actor):
    """A worker that notes its starts and stops."""

    def __init__(self, kid: Kid, world: World) -> None:
        super().__init__()
        self.kid, self.world, self.by_itself = kid, world, False

    def on_start(self) -> Any:
        self.world.trace.append(f"+{self.kid.id}")
        count = self.world.starts[self.kid.id] = self.world.starts.get(self.kid.id, 0) + 1
        if count in self.kid.fails:
            raise RuntimeError("this start fails")

    def on_stop(self) -> Any:
        if not self.by_itself:
            self.world.trace.append(f"-{self.kid.id}")

    def on_receive(self, message: Any) -> Any:
        if message == "crash":
            raise RuntimeError("crash")
        self.by_itself = True
        raise StopActor(NORMAL if message == "normal" else SHUTDOWN)


def _spec(node: Kid | Sup, world: World) -> ChildSpec | Tree:
    if isinstance(node, Kid):
        return ChildSpec(
            node.id,
            KidActor,
            node.restart,
            args=(node, world),
            stop_within_s=BRUTALLY if node.brutal else 1.0,
            significant=node.significant,
        )
    return Tree(
        node.id,
        node.strategy,
        Intensity(restarts=node.restarts, within_s=3600.0),
        [_spec(child, world) for child in node.children],
        restart=node.restart,
        auto_shutdown=node.auto,
        significant=node.significant,
    )


async def live_ours(history: History) -> str:
    """One history's line."""
    world = World()
    tree = _spec(history.tree, world)
    assert isinstance(tree, Tree)
    try:
        root = await open_tree(tree)
    except StartFailed:
        return f"{history.number} |{''.join(world.trace)} unstarted |"
    for deed, child_id in history.deeds:
        await _happen(root, history.tree, world, deed, child_id)
    left = await _picture(root)
    during, world.trace[:] = "".join(world.trace), []
    root.shutdown()
    await root.wait_exit()
    return f"{history.number} |{during} {left} |{''.join(world.trace)}"


async def _happen(root: Ref[Any], tree: Sup, world: World, deed: str, child_id: str) -> None:
    if deed in ENDS:
        child = await _find(root, child_id)
        if child is not None and child.ref is not None:
            if deed == "kill":
                child.ref.exit(KILL)
            else:
                child.ref.tell(deed)
            await child.ref.wait_exit()
        await _settle(root)
        return
    node, owner_node = next(pair for pair in tree.below() if pair[0].id == child_id)
    owner: Ref[Any] | None = root if root.is_alive() else None
    if owner_node.id != "root":
        info = await _find(root, owner_node.id)
        owner = None if info is None else info.ref
    if owner is not None:
        answer = await _ask(owner, deed, _spec(node, world))
        world.trace.append(f"~{answer}")
    await _settle(root)


async def _ask(owner: Ref[Any], verb: str, spec: ChildSpec | Tree) -> str:
    try:
        match verb:
            case "terminate":
                await terminate_child(owner, spec.id)
            case "restart":
                await restart_child(owner, spec.id)
            case "delete":
                await delete_child(owner, spec.id)
            case _:
                await start_child(owner, spec)
    except NotFound:
        return "not_found"
    except FailedPrecondition:
        return "running"
    except AlreadyExists as error:
        return "already_started" if str(error).endswith("running") else "already_present"
    except StartFailed:
        return "failed"
    return "ok"


async def _settle(root: Ref[Any]) -> None:
    """Wait until nothing moves: no sleeper is left here, so blocked means done."""
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if not root.is_alive() or await _calm(root):
            return


async def _calm(sup: Ref[Any]) -> bool:
    for child in await which_children(sup):
        if child.state is ChildState.RESTARTING:
            return False
        if child.kind is ChildKind.WORKER or child.ref is None:
            continue
        if not child.ref.is_alive() or not await _calm(child.ref):
            return False
    return True


async def _find(sup: Ref[Any], child_id: str) -> ChildInfo | None:
    if not sup.is_alive():
        return None
    for child in await which_children(sup):
        if child.id == child_id:
            return child
        if child.kind is ChildKind.SUPERVISOR and child.ref is not None:
            found = await _find(child.ref, child_id)
            if found is not None:
                return found
    return None


async def _picture(sup: Ref[Any]) -> str:
    if not sup.is_alive():
        return "dead"
    words: list[str] = []
    for child in await which_children(sup):
        if child.ref is None:
            words.append(f"{child.id}?")
        elif child.kind is ChildKind.SUPERVISOR:
            words.append(child.id + await _picture(child.ref))
        else:
            words.append(child.id)
    return f"({','.join(words)})"


# -- living through them: OTP


def live_otp(histories: Sequence[History], folder: Path) -> list[str]:
    """All histories' lines, from one Erlang process."""
    source = Path(__file__).with_name("otp_histories.erl")
    subprocess.run(["erlc", "-o", str(folder), str(source)], check=True)
    terms = folder / "histories.terms"
    terms.write_text("\n".join(history.term() for history in histories))
    done = subprocess.run(
        ["erl", "-noshell", "-pa", str(folder), "-s", "otp_histories", "main", "-extra", terms],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


@dataclass(frozen=True)
class Difference:
    """One history on which the two do not agree."""

    history: History
    ours: str
    otp: str

    def __str__(self) -> str:
        return f"{self.history.term()}\n  ours {self.ours}\n  otp  {self.otp}"


@dataclass(frozen=True)
class Comparison:
    """What a run found."""

    histories: int
    deeds: int
    escalated: int
    differences: Sequence[Difference]

    def __str__(self) -> str:
        return (
            f"{self.histories} histories, {self.deeds} deeds, {self.escalated} escalated: "
            f"{len(self.differences)} differ"
        )


async def compare(count: int, seed: int) -> Comparison:
    """Live through the seed's histories twice; OTP's process runs beside ours."""
    histories = draw_histories(count, seed)
    otp: list[str] = []
    ours: list[str] = []
    with tempfile.TemporaryDirectory() as folder:

        async def run_otp() -> None:
            otp.extend(await trio.to_thread.run_sync(live_otp, histories, Path(folder)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_otp)
            for history in histories:
                ours.append(await live_ours(history))
    assert len(otp) == len(ours)
    return Comparison(
        histories=count,
        deeds=sum(len(history.deeds) for history in histories),
        escalated=sum(" dead " in line for line in otp),
        differences=[
            Difference(history, our_line, otp_line)
            for history, our_line, otp_line in zip(histories, ours, otp, strict=True)
            if our_line != otp_line
        ],
    )


def be_silent() -> None:
    """Thousands of crashes are meant here; none is news."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def main() -> int:
    """Run from the command line; 1 when there is a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    be_silent()

    async def run() -> Comparison:
        async with System.open():
            return await compare(options.histories, seed)

    found = trio.run(run)
    print(found)
    for difference in found.differences[:20]:
        print(difference)
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
