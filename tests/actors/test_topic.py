"""A topic: snapshot and sequence, and subscribers that lag or end."""

from typing import Any

import trio
import trio.testing

from holdfast.actors.exits import KILL
from holdfast.actors.system import System
from holdfast.actors.topic import Changed, Lagged, Topic, publish, subscribe, unsubscribe


async def test_40_a_subscriber_sees_a_snapshot_then_every_change(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    topic = await Topic.spawn()
    quick = await scripted.spawn(log := [])
    assert await publish(topic, "k", 0) == 1
    snapshot = await subscribe(topic, quick)
    assert (snapshot.sequence, dict(snapshot.values)) == (1, {"k": 0})
    await publish(topic, "k", 1)
    await unsubscribe(topic, quick)
    await publish(topic, "k", 2)
    await trio.testing.wait_all_tasks_blocked()
    assert log[1:] == [Changed(sequence=2, key="k", value=1)]


async def test_40_a_slow_subscriber_lags_and_a_dead_one_is_forgotten(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Slow(scripted):
        mailbox_bound = 4

    topic = await Topic.spawn()
    slow = await Slow.spawn(log := [])
    await subscribe(topic, slow)
    slow.tell(("sleep", 1))
    await trio.testing.wait_all_tasks_blocked()
    for number in range(10):
        await publish(topic, "k", number)
    await trio.sleep(2)
    await publish(topic, "k", 99)
    await trio.testing.wait_all_tasks_blocked()
    assert Lagged(missed=6) in log
    assert log[-1].value == 99
    slow.exit(KILL)
    await trio.testing.wait_all_tasks_blocked()
    assert topic.cell.actor.subscribers == {}
