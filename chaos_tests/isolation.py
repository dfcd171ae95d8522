"""The workload for harm that is aimed at one: a victim, and neighbours who must not feel it.

async with victim_of(house, plan) as (life, stage):
    with nemeses.hung_mount(...):
        stage.struck.set()              its create is asked for, and hangs
        await neighbours(house, 3)      whole lives beside it, each in the history
"""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from holdfast.api.proto.services import admin_pb2, tasks_pb2

from . import residue
from .client import NOTHING, Client, connected
from .containers import Plan, brief
from .daemon import Daemon, running
from .history import History, Visible
from .workloads import Life, Stage, prepare_base, whole_life

SEEN_WITHIN_S = 5.0
LOOK_S = 0.05
GIVEN_UP_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class House:
    """A daemon with a client, and where their containers' files are."""

    daemon: Daemon
    client: Client
    history: History
    folder: Path

    @property
    def group(self) -> str:
        """The cgroup below which its containers live."""
        return self.daemon.mark[:8]


@asynccontextmanager
async def house(
    base: Path, history: History, root: Path | None = None, settings: str = ""
) -> AsyncGenerator[House]:
    """A daemon that has a busybox; what it leaves on the host is in the history afterwards.
    `settings` are TOML."""
    group = ""
    (base / "host").mkdir(parents=True, exist_ok=True)
    (base / "host/config.toml").write_text(settings)
    try:
        async with running(base / "host", history, root=root) as daemon:
            group = daemon.mark[:8]
            async with connected(daemon.address, history) as client:
                await prepare_base(client)
                yield House(daemon, client, history, base / "containers")
                for left in await residue.after_quiet(daemon, group):
                    history.add(left)
    finally:
        residue.remove_cgroups(group)


@asynccontextmanager
async def victim_of(house: House, plan: Plan) -> AsyncGenerator[tuple[Life, Stage]]:
    """One that asks for its create when struck, and may hang; all of it is removed at the end.

    Heal the harm before the block is left.
    """
    stage = Stage()
    life = Life(house.client, plan, house.folder, house.group, stage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.begin)
        await life.reached.wait()
        yield life, stage
        with trio.fail_after(GIVEN_UP_WITHIN_S):
            await life.begun.wait()
            await life.give_up()


@asynccontextmanager
async def blocked(house: House, plan: Plan) -> AsyncGenerator[Life]:
    """One that runs and goes no further, until it is killed at the end of the block; its delete
    is under way then."""
    stage = Stage()
    for event in (stage.struck, stage.gone, stage.healed):
        event.set()
    life = Life(house.client, plan, house.folder, house.group, stage)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.run)
        with trio.fail_after(GIVEN_UP_WITHIN_S):
            while not life.is_running:  # noqa: ASYNC110 - it has no event for this
                await trio.sleep(LOOK_S)
        yield life
        assert life.is_running
        kill = tasks_pb2.KillRequest(container_id=plan.name, signal=9, all=True)
        await house.client.ask("Tasks.Kill", kill, NOTHING, subject=plan.name)
        await neighbours(house, 1)


async def neighbours(house: House, count: int) -> None:
    """Whole lives, one after the other."""
    begun = len(list(house.folder.glob("neighbour-*")))
    for number in range(begun, begun + count):
        plan = brief(f"neighbour-{number}")
        await whole_life(house.client, plan, house.folder, house.group)


async def see(house: House, nemesis: str, subject: str) -> None:
    """Look in the tree for an actor of the subject that is busy; the history has when, and why."""
    with trio.move_on_after(SEEN_WITHIN_S):
        while True:
            answer = await house.client.ask(
                "Admin.Tree", admin_pb2.TreeRequest(), admin_pb2.TreeResponse
            )
            for node in _nodes(answer.root):
                if subject in node.name and node.current:
                    reason = f"{node.name} is at {node.current}"
                    seen = Visible(nemesis=nemesis, at_s=time.monotonic(), reason=reason)
                    house.history.add(seen)
                    return
            await trio.sleep(LOOK_S)


def _nodes(node: admin_pb2.TreeNode) -> list[admin_pb2.TreeNode]:
    return [node, *(below for child in node.children for below in _nodes(child))]
