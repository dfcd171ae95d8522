"""Any tree, any sequence of falls: whole afterwards, or ended in order with nothing left."""

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.actors.actor import Actor
from holdfast.actors.errors import AlreadyExists, NotFound
from holdfast.actors.exits import KILL, StartFailed
from holdfast.actors.system import System
from holdfast.supervision.dynamic import DynamicSupervisor, dynamic
from holdfast.supervision.keeper import ChildState, Keeper
from holdfast.supervision.report import crash_log
from holdfast.supervision.spec import Backoff, ChildSpec, Intensity, Strategy, Tree
from holdfast.supervision.supervisor import GAVE_UP, open_tree
from holdfast.supervision.tree import Node, look
from holdfast.supervision.verbs import start_child, terminate_child, which_children

BOUNDLESS = Intensity(restarts=10**6, within_s=1.0)
QUICK = Backoff(first_s=0.01, factor=2.0, cap_s=0.5, jitter=0.5)


class Leaf(Actor):
    """Falls when told, and sometimes fails to start."""

    def __init__(self, path: str, world: "World") -> None:
        super().__init__()
        self.path, self.world = path, world

    async def on_start(self) -> Any:
        await trio.sleep(0)
        if self.world.chance.random() < self.world.start_fails:
            raise OSError("not today")
        self.world.trace.append(f"+{self.path}")

    async def on_stop(self) -> Any:
        await trio.sleep(0)
        self.world.trace.append(f"-{self.path}")

    async def on_receive(self, message: Any) -> Any:
        if message == "crash":
            raise ValueError("boom")
        await trio.sleep(message)


class World:
    """One run: what is drawn from its seed, and what happened."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.trace: list[str] = []
        self.start_fails = 0.0  # the share of starts

    def leaf(self, child_id: str, path: str) -> ChildSpec:
        return ChildSpec(child_id, Leaf, args=(f"{path}/{child_id}", self))

    def draw_tree(
        self,
        node_id: str,
        depth: int,
        intensity: Intensity,
        backoff: Backoff | None,
        path: str = "",
    ) -> Tree:
        """A tree, at most `depth` supervisors deep."""
        path = f"{path}/{node_id}" if path else node_id
        children: list[ChildSpec | Tree] = []
        for number in range(self.chance.randint(1, 4)):
            if depth > 1 and self.chance.random() < 0.5:
                children.append(self.draw_tree(f"t{number}", depth - 1, intensity, backoff, path))
            else:
                children.append(self.leaf(f"l{number}", path))
        strategy = self.chance.choice(list(Strategy))
        return Tree(node_id, strategy, intensity, children, backoff=backoff)

    async def harm(self, system: System, top: Any, steps: int) -> None:
        """Crash workers and kill anybody but the top, with and without breath between."""
        for _ in range(steps):
            if not top.is_alive():
                return
            others = [cell for cell in system.cells if cell is not top.cell]
            if others:
                cell = self.chance.choice(others)
                if isinstance(cell.actor, Leaf) and self.chance.random() < 0.6:
                    cell.ref.cast(self.chance.choice(["crash", 0.01]))
                else:
                    cell.ref.exit(KILL)
            match self.chance.randrange(3):
                case 0:
                    await trio.sleep(self.chance.random() * 0.05)
                case 1:
                    await trio.testing.wait_all_tasks_blocked()
                case _:
                    for _ in range(self.chance.randrange(6)):
                        await trio.lowlevel.checkpoint()


def expected_paths(tree: Tree, path: str = "") -> list[str]:
    """The leaves in start order."""
    path = f"{path}/{tree.id}" if path else tree.id
    found: list[str] = []
    for child in tree.children:
        found += expected_paths(child, path) if isinstance(child, Tree) else [f"{path}/{child.id}"]
    return found


def leaves(top: Node) -> list[str]:
    """The running leaves in the order shown."""
    return [n.path for n in top.walk() if n.actor == "Leaf" and n.state == ChildState.RUNNING]


def live(run: Callable[[System], Awaitable[None]]) -> None:
    """One run of its own, in virtual time and silence."""

    async def main() -> None:
        async with System.open() as system:
            await run(system)

    logging.disable(logging.CRITICAL)
    try:
        with structlog.testing.capture_logs():
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 40), waits=st.booleans())
def test_a_boundless_tree_is_whole_again_and_stops_in_order(seed, steps, waits):
    async def run(system: System) -> None:
        world = World(seed)
        tree = world.draw_tree("root", 3, BOUNDLESS, QUICK if waits else None)
        top = await open_tree(tree)
        paths = expected_paths(tree)
        assert world.trace == [f"+{path}" for path in paths]
        await world.harm(system, top, steps)
        await trio.sleep(60)
        assert leaves(look(top)) == paths
        world.trace.clear()
        top.shutdown()
        await top.wait_exit()
        assert world.trace == [f"-{path}" for path in reversed(paths)]
        assert not system.cells

    live(run)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 40), restarts=st.integers(0, 4))
def test_a_bounded_tree_is_whole_again_or_has_given_up(seed, steps, restarts):
    async def run(system: System) -> None:
        world = World(seed)
        intensity = Intensity(restarts=restarts, within_s=5.0)
        tree = world.draw_tree("root", 3, intensity, None)
        top = await open_tree(tree)
        world.start_fails = 0.1
        await world.harm(system, top, steps)
        await trio.sleep(60)
        if top.is_alive():
            assert leaves(look(top)) == expected_paths(tree)
        else:
            assert await top.wait_exit() == GAVE_UP
            assert not system.cells

    live(run)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60))
def test_a_dynamic_supervisor_keeps_exactly_its_children(seed, steps):
    async def run(system: System) -> None:
        world = World(seed)
        sup = await DynamicSupervisor.spawn(intensity=BOUNDLESS, label="d", backoff=QUICK)
        for number in range(10):
            await start_child(sup, world.leaf(f"l{number}", "d"))
        world.start_fails = 0.2
        await world.harm(system, sup, steps)
        await trio.sleep(60)
        assert leaves(look(sup)) == [f"d/l{number}" for number in range(10)]
        keeper = sup.cell.actor
        assert isinstance(keeper, Keeper)
        assert len(keeper.by_ref) == 10

    live(run)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), callers=st.integers(1, 6))
def test_callers_at_odds_leave_a_dynamic_supervisor_consistent(seed, callers):
    async def run(system: System) -> None:
        world = World(seed)
        world.start_fails = 0.2
        chance = world.chance
        sup = await DynamicSupervisor.spawn(intensity=BOUNDLESS, backoff=QUICK)

        async def call() -> None:
            for _ in range(15):
                child_id = chance.choice("abc")
                await trio.sleep(chance.choice([0, 0, 0.01]))
                with suppress(AlreadyExists, NotFound, StartFailed):
                    match chance.randrange(3):
                        case 0:
                            await terminate_child(sup, child_id)
                        case 1:
                            await start_child(sup, world.leaf(child_id, "d"))
                        case _:
                            chance.choice(list(system.cells)).ref.cast("crash")

        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(call)
        await trio.sleep(60)
        infos = await which_children(sup)
        assert {info.state for info in infos} <= {ChildState.RUNNING}
        assert len(system.cells) == 1 + len(infos)
        for info in infos:
            await terminate_child(sup, info.id)
        assert len(system.cells) == 1

    live(run)


@pytest.mark.parametrize("seed", [random.randrange(2**32) for _ in range(3)])
def test_a_long_storm_leaves_a_whole_tree_and_a_bounded_log(seed):
    print(f"seed {seed}")

    async def run(system: System) -> None:
        world = World(seed)
        trees: list[ChildSpec | Tree] = [
            Tree(
                f"s{number}",
                strategy,
                BOUNDLESS,
                [world.leaf(f"l{i}", f"root/s{number}") for i in range(4)],
                backoff=QUICK if number % 2 else None,
            )
            for number, strategy in enumerate([*Strategy, *Strategy])
        ]
        tree = Tree("root", Strategy.ONE_FOR_ONE, BOUNDLESS, [*trees, dynamic("d", BOUNDLESS)])
        top = await open_tree(tree)
        world.start_fails = 0.1
        await world.harm(system, top, 1500)
        await trio.sleep(60)
        assert len(leaves(look(top))) == 24
        assert len(system.cells) == 1 + 6 + 24 + 1
        assert 0 < len(crash_log().reports()) <= 256
        top.shutdown()
        await top.wait_exit()
        assert not system.cells

    live(run)
