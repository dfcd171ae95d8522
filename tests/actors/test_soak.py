"""A storm over actors that call, watch and link each other: whoever dies, nobody is left waiting
and nothing is left behind."""

import logging
import random
from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.errors import NotFound
from holdfast.actors.exits import (
    KILL,
    SHUTDOWN,
    ActorExited,
    CallTimeout,
    DeadlockError,
    MailboxFull,
)
from holdfast.actors.mailbox import Overflow
from holdfast.actors.message import Down
from holdfast.actors.system import System

STEPS = 400
ACTORS_MAX = 15
ENDS = (ActorExited, CallTimeout, DeadlockError, MailboxFull, NotFound, ZeroDivisionError)


class Peer(Actor):
    """Does what it is told, to others too."""

    mailbox_bound = 4

    async def on_receive(self, message: Any) -> Any:
        match message:
            case "crash":
                raise ZeroDivisionError
            case "refuse":
                raise NotFound("nothing here")
            case ("sleep", seconds):
                await trio.sleep(seconds)
            case ("call", other, inner):
                try:
                    return await other.call(inner, timeout_s=3)
                except ENDS as error:
                    return error
            case ("link", other):
                self.link(other)
            case ("unlink", other):
                self.unlink(other)
            case ("task", seconds):
                self.spawn_task(trio.sleep, seconds)
        return None


class Rejecting(Peer):
    overflow = Overflow.REJECT


class Trapping(Peer):
    trap_exit = True


class Witness(Actor):
    """Watches everyone, and is not harmed."""

    mailbox_bound = None

    def __init__(self, downs: Counter[Any]) -> None:
        super().__init__()
        self.downs = downs

    def on_receive(self, message: Any) -> None:
        self.monitor(message)

    def on_down(self, down: Down) -> None:
        self.downs[down.target] += 1


def check_links(system: System) -> None:
    for cell in system.cells:
        for other in cell.links or ():
            assert other in system.cells
            assert cell in (other.links or {})


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_kills_leaves_nobody_waiting_and_nothing_behind(
    autojump_clock: Any, system: System, seed: int
) -> None:
    chance = random.Random(seed)
    logging.disable(logging.CRITICAL)
    downs: Counter[Any] = Counter()
    witness = await Witness.spawn(downs)
    everyone: list[Any] = []
    asked, answered = 0, 0

    async def ask(ref: Any, message: Any) -> None:
        nonlocal answered
        try:
            await ref.call(message, timeout_s=chance.choice([0.5, 5, None]))
        except ENDS:
            pass
        answered += 1

    async def send(ref: Any, message: Any) -> None:
        nonlocal answered
        try:
            await ref.send(message)
        except ActorExited:
            pass
        answered += 1

    def living() -> list[Any]:
        return [ref for ref in everyone if ref.is_alive()]

    try:
        async with trio.open_nursery() as nursery:
            for step in range(STEPS):
                peers = living()
                if len(peers) < 3 or (len(peers) < ACTORS_MAX and chance.random() < 0.2):
                    kind = chance.choice([Peer, Rejecting, Trapping])
                    ref = await kind.spawn(name=f"peer {step}")
                    everyone.append(ref)
                    witness.tell(ref)
                    continue
                one, two, three = (chance.choice(peers) for _ in range(3))
                inner = chance.choice([("sleep", 0.3), "crash", "refuse", ("call", three, "x")])
                match chance.randrange(9):
                    case 0:
                        one.exit(KILL)
                    case 1:
                        one.shutdown()
                    case 2:
                        one.exit(SHUTDOWN)
                    case 3:
                        message = chance.choice([("link", two), ("unlink", two), ("task", 2)])
                        asked += 1
                        nursery.start_soon(ask, one, message)
                    case 4:
                        asked += 1
                        nursery.start_soon(send, one, inner)
                    case 5:
                        await trio.sleep(chance.random())
                        check_links(system)
                    case _:
                        asked += 1
                        nursery.start_soon(ask, one, ("call", two, inner))
            await trio.sleep(10)  # all that have a deadline are past it
            for ref in living():
                ref.exit(KILL)
        await trio.testing.wait_all_tasks_blocked()
    finally:
        logging.disable(logging.NOTSET)
    assert answered == asked > 100
    assert downs == Counter(everyone)
    assert list(system.cells) == [witness.cell]
    assert not system.names()
    assert not witness.cell.watching
    for ref in everyone:
        assert not ref.cell.links
        assert not ref.cell.waiting_on
        assert not ref.cell.tasks
        assert ref.cell.actor is None
        assert not ref.actor_inbox.user
        assert not ref.actor_inbox.waiting
