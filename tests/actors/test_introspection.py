"""Looking into live actors, and the watchdog that looks at the loop."""

import time
from typing import Any

import pytest
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.exits import ActorExited
from holdfast.actors.introspection import everyone, info, resume, suspend, trace
from holdfast.actors.system import System
from holdfast.actors.watchdog import Watchdog


async def test_42_info_tells_what_an_actor_does(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(name="web")
    ref.tell(("sleep", 4))
    ref.tell("next")
    await trio.sleep(1)
    seen = info(ref)
    assert (seen.name, seen.alive, seen.mailbox_depth, seen.handled) == ("web", True, 1, 0)
    assert seen.current == "('sleep', 4)"
    assert seen.current_age_s == pytest.approx(1, abs=0.2)
    assert [each.urn for each in everyone(system)] == [ref.actor_urn]
    ref.shutdown()
    await ref.wait_exit()
    assert not info(ref).alive
    with pytest.raises(ActorExited):
        suspend(ref)


async def test_42_a_suspended_actor_handles_nothing_until_resumed(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    traced: list[Any] = []
    suspend(ref)
    trace(ref, traced.append)
    ref.tell("x")
    await trio.testing.wait_all_tasks_blocked()
    assert (log, info(ref).suspended) == (["start"], True)
    resume(ref)
    await trio.testing.wait_all_tasks_blocked()
    trace(ref, None)
    await ref.call("count")
    assert (log, traced) == (["start", "x"], ["x"])


async def test_hazard_the_watchdog_names_the_one_who_holds_the_loop() -> None:
    class Holder(Actor):
        def on_receive(self, message: Any) -> None:
            time.sleep(0.15)

    with Watchdog(0.05).watching() as watchdog:
        async with System.open():
            ref = await Holder.spawn(name="holder")
            ref.tell(1)
            await trio.sleep(0.05)
    reports = [report for report in watchdog.reports if "holder" in report.who]
    assert len(reports) == 1
    assert "time.sleep" in reports[0].stack


async def test_many_short_steps_of_one_task_hold_nothing() -> None:
    with Watchdog(0.05).watching() as watchdog:
        until_s = trio.current_time() + 0.4
        while trio.current_time() < until_s:
            time.sleep(0.005)
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.2)  # nor does a loop that has nothing to do
    assert list(watchdog.reports) == []


async def test_the_watchdog_names_a_task_that_is_no_actors_and_tells_each_hold_once() -> None:
    async def hog() -> None:
        time.sleep(0.2)
        await trio.sleep(0.1)
        time.sleep(0.2)

    with Watchdog(0.05).watching() as watchdog:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hog)
    assert ["hog" in report.who for report in watchdog.reports] == [True, True]
    assert all(0.05 < report.held_s < 0.2 for report in watchdog.reports)
