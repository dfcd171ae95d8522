"""What a dynamic supervisor promises."""

import time

import pytest
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from holdfast.actors.exits import KILL, SHUTDOWN, ActorExited, Kind, StartFailed
from holdfast.supervision.dynamic import DynamicSupervisor, TryAgain, dynamic
from holdfast.supervision.keeper import ChildState
from holdfast.supervision.report import crash_log
from holdfast.supervision.spec import BRUTALLY, Backoff, Intensity, Restart, Tree
from holdfast.supervision.supervisor import GAVE_UP, open_tree
from holdfast.supervision.verbs import (
    count_children,
    delete_child,
    restart_child,
    start_child,
    terminate_child,
    which_children,
)

OFTEN = Intensity(restarts=1000, within_s=5.0)


async def states(sup) -> dict[str, ChildState]:
    return {info.id: info.state for info in await which_children(sup)}


async def test_children_come_and_go_each_for_itself(system, diary, talk):
    sup = await DynamicSupervisor.spawn(intensity=OFTEN)
    for child_id in "abcd":
        await start_child(sup, diary.spec(child_id, Restart.TRANSIENT))
    await talk.harm(sup, "a")
    await talk.harm(sup, "b", "stop")
    (await talk.child(sup, "c")).exit(KILL)
    await talk.calm()
    await terminate_child(sup, "d")
    assert await states(sup) == {"a": ChildState.RUNNING, "c": ChildState.RUNNING}
    assert diary.starts == {"a": 2, "b": 1, "c": 2, "d": 1}
    assert diary.lines[-1] == "-d"
    assert (await count_children(sup)).active == 2


async def test_a_temporary_child_is_forgotten_whatever_its_end(system, diary, talk):
    sup = await DynamicSupervisor.spawn()
    await start_child(sup, diary.spec("a", Restart.TEMPORARY))
    await talk.harm(sup, "a")
    assert await which_children(sup) == []
    assert (await start_child(sup, diary.spec("a"))).is_alive()


async def test_all_stop_at_once_each_within_its_own_deadline(system, diary):
    sup = await DynamicSupervisor.spawn()
    diary.stop_takes_s = {str(number): 2.0 for number in range(50)}
    diary.stop_takes_s["49"] = 1000.0
    for number in range(50):
        await start_child(sup, diary.spec(str(number), stop_within_s=3.0))
    sup.shutdown()
    assert await sup.wait_exit() == SHUTDOWN
    assert trio.current_time() == pytest.approx(3.0)
    assert len([line for line in diary.lines if line.startswith("-")]) == 49


async def test_a_start_that_hangs_delays_nobody_else(system, diary):
    diary.start_takes_s["slow"] = lambda _: 20.0
    sup = await DynamicSupervisor.spawn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_child, sup, diary.spec("slow"))
        await trio.sleep(1)
        assert await states(sup) == {"slow": ChildState.STARTING}
        await start_child(sup, diary.spec("quick"))
        assert trio.current_time() == pytest.approx(1.0)
    assert trio.current_time() == pytest.approx(20.0)


async def test_a_stop_that_hangs_delays_nobody_else(system, diary):
    diary.stop_takes_s["slow"] = 4.0
    sup = await DynamicSupervisor.spawn()
    await start_child(sup, diary.spec("slow"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_child, sup, "slow")
        nursery.start_soon(terminate_child, sup, "slow")  # both wait for the same end
        await trio.sleep(1)
        assert await states(sup) == {"slow": ChildState.STOPPING}
        with pytest.raises(AlreadyExists, match="stopping"):
            await start_child(sup, diary.spec("slow"))
        await start_child(sup, diary.spec("quick"))
        assert trio.current_time() == pytest.approx(1.0)
    assert trio.current_time() == pytest.approx(4.0)
    assert await states(sup) == {"quick": ChildState.RUNNING}


async def test_a_full_supervisor_refuses(system, diary):
    sup = await DynamicSupervisor.spawn(children_max=2)
    await start_child(sup, diary.spec("a"))
    await start_child(sup, diary.spec("b"))
    with pytest.raises(ResourceExhausted):
        await start_child(sup, diary.spec("c"))
    await terminate_child(sup, "a")
    assert (await start_child(sup, diary.spec("c"))).is_alive()


async def test_the_verbs_refuse_what_makes_no_sense_here(system, diary):
    sup = await DynamicSupervisor.spawn()
    await start_child(sup, diary.spec("a"))
    with pytest.raises(AlreadyExists):
        await start_child(sup, diary.spec("a"))
    with pytest.raises(NotFound):
        await terminate_child(sup, "z")
    for verb in (restart_child, delete_child):
        with pytest.raises(Unimplemented):
            await verb(sup, "a")
    with pytest.raises(InvalidArgument):
        await start_child(sup, diary.spec("b", Restart.TRANSIENT, significant=True))
    assert sup.is_alive()


async def test_a_failed_start_is_told_and_forgotten(system, diary):
    diary.failing["a"] = {1}
    sup = await DynamicSupervisor.spawn()
    with pytest.raises(StartFailed):
        await start_child(sup, diary.spec("a"))
    assert await which_children(sup) == []


async def test_too_many_restarts_of_all_together_are_the_end(system, diary, talk):
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=2, within_s=5))
    for child_id in "abc":
        await start_child(sup, diary.spec(child_id))
    await talk.harm(sup, "a")
    await talk.harm(sup, "b")
    (await talk.child(sup, "c")).tell("crash")
    assert await sup.wait_exit() == GAVE_UP
    assert sorted(diary.lines[-2:]) == ["-a", "-b"]


async def test_a_restart_that_fails_is_tried_again_and_each_try_counts(system, diary, talk):
    diary.failing["a"] = {2, 3}
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=3, within_s=5))
    await start_child(sup, diary.spec("a"))
    await talk.harm(sup, "a")
    assert diary.starts["a"] == 4
    diary.failing["a"] = range(100)
    (await talk.child(sup, "a")).tell("crash")
    assert await sup.wait_exit() == GAVE_UP


async def test_a_restart_waits_for_its_backoff_and_can_be_called_off(system, diary, talk):
    steady = Backoff(first_s=1.0, factor=1.0, cap_s=1.0, jitter=0.0)
    sup = await DynamicSupervisor.spawn(intensity=OFTEN, backoff=steady)
    await start_child(sup, diary.spec("a"))
    await start_child(sup, diary.spec("b"))
    diary.take()
    await talk.harm(sup, "a")
    await talk.harm(sup, "b")
    assert await states(sup) == {"a": ChildState.RESTARTING, "b": ChildState.RESTARTING}
    await terminate_child(sup, "a")
    assert trio.current_time() < 0.5
    await trio.sleep(1.01)
    assert diary.take() == ["+b"]
    assert await states(sup) == {"b": ChildState.RUNNING}


async def test_a_start_can_be_called_off(system, diary):
    diary.start_takes_s["a"] = lambda _: 20.0
    sup = await DynamicSupervisor.spawn()
    told: list[str] = []

    async def start() -> None:
        with pytest.raises(StartFailed, match="terminated"):
            await start_child(sup, diary.spec("a"))
        told.append("failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.sleep(1)
        await terminate_child(sup, "a")
    assert told == ["failed"]
    assert trio.current_time() == pytest.approx(1.0)
    assert await which_children(sup) == []
    assert len(system.cells) == 1


async def test_an_end_of_the_supervisor_is_told_to_who_waits_for_a_start(system, diary):
    diary.start_takes_s["a"] = lambda _: 20.0
    for end in (lambda sup: sup.shutdown(), lambda sup: sup.exit(KILL)):
        sup = await DynamicSupervisor.spawn()

        async def start(sup=sup) -> None:
            with pytest.raises((StartFailed, ActorExited)):
                await start_child(sup, diary.spec("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            await trio.sleep(1)
            end(sup)
        await sup.wait_exit()
        assert not system.cells
    assert trio.current_time() < 5


async def test_a_shutdown_waits_for_a_stop_that_is_under_way(system, diary):
    diary.stop_takes_s["a"] = 4.0
    sup = await DynamicSupervisor.spawn()
    await start_child(sup, diary.spec("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_child, sup, "a")
        await trio.sleep(1)
        sup.shutdown()
        await sup.wait_exit()
    assert diary.lines == ["+a", "-a"]


async def test_a_killed_supervisor_leaves_no_orphan(system, diary):
    sup = await DynamicSupervisor.spawn()
    refs = [await start_child(sup, diary.spec(str(number))) for number in range(20)]
    diary.stop_takes_s["3"] = 4.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_child, sup, "3")
        await trio.sleep(1)
        sup.exit(KILL)
    assert not any(ref.is_alive() for ref in refs)
    assert (await sup.wait_exit()).kind is Kind.KILLED


async def test_a_child_that_falls_at_once_is_restarted(system, diary, talk):
    class Brief(Actor):
        lives = 0

        def on_start(self) -> None:
            Brief.lives += 1
            if Brief.lives < 4:
                self.ref.tell("now")

        def on_receive(self, message) -> None:
            raise ValueError(message)

    sup = await DynamicSupervisor.spawn(intensity=OFTEN)
    from holdfast.supervision.spec import ChildSpec

    await start_child(sup, ChildSpec("a", Brief))
    await talk.calm()
    assert Brief.lives == 4
    assert (await talk.child(sup, "a")).is_alive()
    assert len(crash_log().reports(child="a")) == 3


async def test_a_child_that_falls_while_its_end_is_awaited_is_not_restarted(system, diary, talk):
    sup = await DynamicSupervisor.spawn(intensity=OFTEN)
    ref = await start_child(sup, diary.spec("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_child, sup, "a")
        ref.exit(KILL)
    await talk.calm()
    assert diary.take() == ["+a"]
    assert await which_children(sup) == []


async def test_a_try_that_came_too_late_is_not_heeded(system, diary, talk):
    sup = await DynamicSupervisor.spawn(intensity=OFTEN)
    await start_child(sup, diary.spec("a"))
    held = sup.cell.actor.children["a"]
    await terminate_child(sup, "a")
    sup.tell(TryAgain(child=held))
    await talk.calm()
    assert diary.starts == {"a": 1}


async def test_a_child_can_be_terminated_between_two_tries(system, diary, talk):
    diary.failing["a"] = range(2, 10**6)
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=10**6, within_s=5))
    (await start_child(sup, diary.spec("a"))).tell("crash")
    for _ in range(7):
        await trio.lowlevel.checkpoint()
    await terminate_child(sup, "a")
    await talk.calm()
    assert await which_children(sup) == []
    assert sup.is_alive()


@pytest.mark.parametrize("moment", range(25))
async def test_terminate_wins_at_any_moment_of_a_restart_loop(system, diary, talk, moment):
    diary.failing["a"] = range(2, 10**6)
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=10**6, within_s=5))
    (await start_child(sup, diary.spec("a"))).tell("crash")
    for _ in range(moment):
        await trio.lowlevel.checkpoint()
    await terminate_child(sup, "a")
    await talk.calm()
    assert await which_children(sup) == []
    assert len(system.cells) == 1


@pytest.mark.parametrize("moment", range(25))
async def test_shutdown_wins_at_any_moment_of_a_restart_loop(system, diary, talk, moment):
    diary.failing["a"] = range(2, 10**6, 2)
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=10**6, within_s=5))
    (await start_child(sup, diary.spec("a"))).tell("crash")
    for _ in range(moment):
        await trio.lowlevel.checkpoint()
    sup.shutdown()
    assert await sup.wait_exit() == SHUTDOWN
    assert not system.cells


async def test_a_dynamic_supervisor_has_a_place_in_a_tree(system, diary, talk):
    top = await open_tree(
        Tree("root", children=[dynamic("tasks", OFTEN, name="tasks", children_max=5)])
    )
    await start_child(system.at("tasks"), diary.spec("a", stop_within_s=BRUTALLY))
    sub = await start_child(system.at("tasks"), Tree("pod", children=diary.specs("bc")))
    await talk.harm(sub, "b")
    assert crash_log().reports()[0].supervisor == "root/tasks/pod"
    tasks = await talk.child(top, "tasks")
    tasks.exit(SHUTDOWN)
    await talk.calm()
    assert await count_children(system.at("tasks")) != await count_children(top)
    assert tasks.cell.exit is not None


async def test_its_state_is_told_in_a_line(system, diary):
    sup = await DynamicSupervisor.spawn()
    await start_child(sup, diary.spec("a"))
    assert sup.cell.actor.describe_state() == "a: running"
    for number in range(60):
        await start_child(sup, diary.spec(str(number)))
    assert sup.cell.actor.describe_state().endswith("48: running, and 11 more")


async def test_the_cost_of_a_child_does_not_grow_with_their_number(system, diary):
    def per_child_s(count: int) -> float:
        return (clock() - began) / count

    clock = time.perf_counter
    sup = await DynamicSupervisor.spawn(intensity=Intensity(restarts=10**6, within_s=1e6))
    costs: list[float] = []
    for batch in range(4):
        began = clock()
        for number in range(500):
            await start_child(sup, diary.spec(f"{batch}-{number}"))
        for number in range(0, 500, 10):
            await terminate_child(sup, f"{batch}-{number}")
        costs.append(per_child_s(500))
    assert min(costs[2:]) < 8 * min(costs[:2])
