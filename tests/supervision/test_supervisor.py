"""What a supervisor promises."""

from typing import Any

import pytest
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from holdfast.actors.exits import KILL, SHUTDOWN, Exit, Kind, StartFailed
from holdfast.supervision.dynamic import DynamicSupervisor
from holdfast.supervision.keeper import ChildState, Counts, stop
from holdfast.supervision.spec import (
    BRUTALLY,
    FOREVER,
    AutoShutdown,
    Backoff,
    ChildKind,
    ChildSpec,
    Intensity,
    Place,
    Restart,
    Strategy,
    Tree,
)
from holdfast.supervision.supervisor import GAVE_UP, Supervisor, open_tree
from holdfast.supervision.verbs import (
    count_children,
    delete_child,
    restart_child,
    start_child,
    terminate_child,
    which_children,
)

OFTEN = Intensity(restarts=1000, within_s=5.0)


# -- who is restarted


async def test_a_fallen_child_alone_is_restarted_afresh_and_as_another(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("abc"))
    before = await talk.child(sup, "b")
    assert await before.call("count") == 1
    diary.take()
    await talk.harm(sup, "b")
    after = await talk.child(sup, "b")
    assert diary.take() == ["+b"]
    assert after is not before
    assert await after.call("count") == 1


async def test_one_for_all_stops_backwards_and_starts_forwards(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("abc"), strategy=Strategy.ONE_FOR_ALL)
    diary.take()
    await talk.harm(sup, "b")
    assert diary.take() == ["-c", "-a", "+a", "+b", "+c"]


async def test_rest_for_one_touches_only_those_started_later(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("abcd"), strategy=Strategy.REST_FOR_ONE)
    diary.take()
    await talk.harm(sup, "b")
    assert diary.take() == ["-d", "-c", "+b", "+c", "+d"]


@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("end", ["stop", "shutdown", "crash", "kill"])
async def test_the_restart_kind_and_the_reason_decide(system, diary, talk, restart, end):
    sup = await Supervisor.spawn(diary.specs("a", restart=restart))
    diary.take()
    if end == "kill":
        (await talk.child(sup, "a")).exit(KILL)
        await talk.calm()
    else:
        await talk.harm(sup, "a", end)
    returns = restart is Restart.PERMANENT or (
        restart is Restart.TRANSIENT and end in ("crash", "kill")
    )
    assert ("+a" in diary.lines) is returns
    assert len(await which_children(sup)) == (0 if restart is Restart.TEMPORARY else 1)


async def test_a_transient_child_that_is_done_is_revived_by_a_siblings_restart(system, diary, talk):
    specs = [diary.spec("a", Restart.TRANSIENT), diary.spec("b")]
    sup = await Supervisor.spawn(specs, strategy=Strategy.ONE_FOR_ALL)
    await talk.harm(sup, "a", "stop")
    diary.take()
    await talk.harm(sup, "b")
    assert diary.take() == ["+a", "+b"]


async def test_a_temporary_sibling_is_stopped_with_the_others_and_forgotten(system, diary, talk):
    specs = [diary.spec("a"), diary.spec("b", Restart.TEMPORARY)]
    sup = await Supervisor.spawn(specs, strategy=Strategy.ONE_FOR_ALL)
    diary.take()
    await talk.harm(sup, "a")
    assert diary.take() == ["-b", "+a"]
    assert [info.id for info in await which_children(sup)] == ["a"]


async def test_a_refusal_restarts_nobody(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"))
    with pytest.raises(NotFound):
        await (await talk.child(sup, "a")).call("refuse")
    assert diary.take() == ["+a"]


# -- intensity


async def test_one_restart_too_many_ends_the_supervisor_in_order(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("abc"), intensity=Intensity(restarts=1, within_s=5))
    await talk.harm(sup, "b")
    diary.take()
    ref = await talk.child(sup, "b")
    ref.tell("crash")
    assert await sup.wait_exit() == GAVE_UP
    assert diary.take() == ["-c", "-a"]


async def test_zero_restarts_means_that_the_first_fall_is_the_end(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"), intensity=Intensity(restarts=0, within_s=5))
    (await talk.child(sup, "a")).tell("crash")
    assert (await sup.wait_exit()).kind is Kind.SHUTDOWN


async def test_the_window_slides(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"), intensity=Intensity(restarts=1, within_s=5))
    for _ in range(6):
        await talk.harm(sup, "a")
        await trio.sleep(5.1)
    assert sup.is_alive()


async def test_one_restart_of_a_whole_group_counts_once(system, diary, talk):
    sup = await Supervisor.spawn(
        diary.specs("abcde"),
        strategy=Strategy.ONE_FOR_ALL,
        intensity=Intensity(restarts=1, within_s=5),
    )
    await talk.harm(sup, "a")
    assert sup.is_alive()


async def test_giving_up_is_the_next_supervisors_matter_and_renews_the_subtree(system, diary, talk):
    top = await Supervisor.spawn(
        [Tree("mid", intensity=Intensity(restarts=2, within_s=5), children=diary.specs("ab"))],
        intensity=Intensity(restarts=1, within_s=60),
    )
    first = await talk.child(top, "mid")
    for _ in range(3):
        await talk.harm(first, "a")
    assert not first.is_alive()
    second = await talk.child(top, "mid")
    assert await (await talk.child(second, "b")).call("count") == 1
    for _ in range(3):
        await talk.harm(second, "a")
    assert await top.wait_exit() == GAVE_UP


async def test_a_transient_supervisor_that_gave_up_is_left_alone(system, diary, talk):
    mid = Tree(
        "mid",
        intensity=Intensity(restarts=0, within_s=5),
        children=diary.specs("a"),
        restart=Restart.TRANSIENT,
    )
    top = await Supervisor.spawn([mid])
    await talk.harm(await talk.child(top, "mid"), "a")
    assert [info.state for info in await which_children(top)] == [ChildState.STOPPED]


# -- stopping


async def test_children_stop_in_the_opposite_order(system, diary):
    sup = await Supervisor.spawn(diary.specs("abc"))
    diary.take()
    sup.shutdown()
    assert await sup.wait_exit() == SHUTDOWN
    assert diary.take() == ["-c", "-b", "-a"]


async def test_a_child_past_its_deadline_is_killed_and_that_is_told(system, diary, talk, told):
    diary.stop_takes_s["slow"] = 100.0
    sup = await Supervisor.spawn([diary.spec("a"), diary.spec("slow", stop_within_s=2.0)])
    slow = await talk.child(sup, "slow")
    began_s = trio.current_time()
    sup.shutdown()
    await sup.wait_exit()
    assert trio.current_time() - began_s == pytest.approx(2.0)
    assert (await slow.wait_exit()).kind is Kind.KILLED
    assert diary.lines[-1] == "-a"
    assert [entry["child"] for entry in told if entry["event"] == "child.killed"] == ["slow"]


async def test_brutally_means_never_asked(system, diary, told):
    sup = await Supervisor.spawn(diary.specs("a", stop_within_s=BRUTALLY))
    sup.shutdown()
    await sup.wait_exit()
    assert diary.take() == ["+a"]
    assert not told


async def test_forever_means_waited_for(system, diary):
    diary.stop_takes_s["a"] = 10_000.0
    sup = await Supervisor.spawn(diary.specs("a", stop_within_s=FOREVER))
    sup.shutdown()
    await sup.wait_exit()
    assert diary.lines[-1] == "-a"
    assert trio.current_time() >= 10_000.0


async def test_a_deadline_belongs_to_each_child(system, diary):
    diary.stop_takes_s.update(a=100.0, b=100.0)
    sup = await Supervisor.spawn(diary.specs("ab", stop_within_s=3.0))
    sup.shutdown()
    await sup.wait_exit()
    assert trio.current_time() == pytest.approx(6.0)


async def test_a_handler_that_shields_itself_delays_only_its_own_kill(system, diary, talk):
    async def shielded(_: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    sup = await Supervisor.spawn(diary.specs("ab", stop_within_s=1.0))
    (await talk.child(sup, "b")).tell(shielded)
    await talk.calm()
    sup.shutdown()
    await sup.wait_exit()
    assert trio.current_time() == pytest.approx(10.0)
    assert diary.lines[-1] == "-a"


async def test_an_end_that_was_asked_for_is_no_fall(system, diary, told):
    sup = await Supervisor.spawn(diary.specs("ab"), strategy=Strategy.ONE_FOR_ALL)
    await terminate_child(sup, "a")
    await trio.sleep(1)
    assert diary.take() == ["+a", "+b", "-a"]
    assert not told


async def test_a_child_that_falls_while_it_is_being_stopped_is_not_restarted(system, diary, talk):
    async def fall_at_the_end(worker: Any) -> None:
        worker.diary.stop_takes_s["a"] = -1.0  # sleep refuses it: on_stop raises

    sup = await Supervisor.spawn(diary.specs("a"))
    await (await talk.child(sup, "a")).call(fall_at_the_end)
    await terminate_child(sup, "a")
    await trio.sleep(1)
    assert diary.take() == ["+a"]
    assert [info.state for info in await which_children(sup)] == [ChildState.STOPPED]


async def test_a_killed_supervisor_leaves_no_orphan(system, diary, talk):
    top = await Supervisor.spawn([Tree("mid", children=diary.specs("abc"))])
    mid = await talk.child(top, "mid")
    children = [info.ref for info in await which_children(mid)]
    diary.take()
    mid.exit(KILL)
    assert (await mid.wait_exit()).kind is Kind.KILLED
    assert not any(ref.is_alive() for ref in children if ref)
    await talk.calm()
    assert diary.take() == ["+a", "+b", "+c"]


async def test_a_supervisor_killed_in_the_middle_of_a_restart_leaves_no_orphan(system, diary, talk):
    diary.start_takes_s["a"] = lambda number: 0 if number == 1 else 20
    sup = await Supervisor.spawn(diary.specs("ab"))
    (await talk.child(sup, "a")).tell("crash")
    await trio.sleep(1)
    assert diary.starts["a"] == 2
    sup.exit(KILL)
    await sup.wait_exit()
    assert not system.cells


async def test_a_signal_from_nobody_is_obeyed_in_order_and_a_strangers_is_not(system, diary, talk):
    async def link_to_supervisor(worker: Any) -> None:
        worker.link(sup)

    sup = await Supervisor.spawn(diary.specs("ab"))
    stranger = await diary.spec("s").start.spawn("s", diary)
    await stranger.call(link_to_supervisor)
    stranger.tell("crash")
    await talk.calm()
    assert sup.is_alive()
    diary.take()
    sup.exit(SHUTDOWN)
    assert await sup.wait_exit() == SHUTDOWN
    assert diary.take() == ["-b", "-a"]


async def test_the_end_of_an_actor_that_is_the_parent_is_obeyed(system, diary):
    class Parent(Actor):
        async def on_start(self) -> Any:
            self.sup = await Supervisor.spawn(diary.specs("a"), parent=self, link=True)

        async def on_receive(self, message: Any) -> Any:
            if message == "sup":
                return self.sup
            raise ValueError

    parent = await Parent.spawn()
    sup = await parent.call("sup")
    parent.tell("crash")
    await parent.wait_exit()
    assert (await sup.wait_exit()).kind is Kind.CRASH
    assert diary.lines[-1] == "-a"


# -- starting


async def test_a_tree_is_ready_when_its_start_returns(system, diary):
    diary.start_takes_s = {"a": lambda _: 1.0, "b": lambda _: 2.0}
    await open_tree(Tree("root", children=[Tree("mid", children=diary.specs("ab"))]))
    assert trio.current_time() == pytest.approx(3.0)


async def test_a_failed_start_rolls_back_those_before_it(system, diary):
    diary.failing["c"] = {1}
    with pytest.raises(StartFailed) as failed:
        await Supervisor.spawn(diary.specs("abcd"))
    assert diary.take() == ["+a", "+b", "+c", "-b", "-a"]
    assert 'child "c" did not start' in str(failed.value.reason)
    assert not system.cells


async def test_a_start_that_hangs_is_ended_at_its_deadline(system, diary):
    diary.start_takes_s["b"] = lambda _: 1000.0
    with pytest.raises(StartFailed):
        await Supervisor.spawn(diary.specs("ab", start_within_s=7.0))
    assert trio.current_time() == pytest.approx(7.0)
    assert not system.cells


async def test_a_restart_that_fails_is_tried_again_and_each_try_counts(system, diary, talk):
    diary.failing["a"] = {2, 3}
    sup = await Supervisor.spawn(diary.specs("a"), intensity=Intensity(restarts=3, within_s=5))
    await talk.harm(sup, "a")
    assert diary.starts["a"] == 4
    assert sup.is_alive()
    diary.failing["a"] = range(100)
    (await talk.child(sup, "a")).tell("crash")
    assert await sup.wait_exit() == GAVE_UP
    assert diary.starts["a"] == 4


async def test_a_group_restart_goes_on_from_the_one_that_failed(system, diary, talk):
    diary.failing["c"] = {2}
    sup = await Supervisor.spawn(diary.specs("abcd"), strategy=Strategy.REST_FOR_ONE)
    diary.take()
    await talk.harm(sup, "b")
    assert diary.take() == ["-d", "-c", "+b", "+c", "+c", "+d"]


async def test_shutdown_wins_over_an_endless_restart(system, diary, talk):
    diary.failing["a"] = range(2, 10**9)
    sup = await Supervisor.spawn(
        diary.specs("a"), intensity=Intensity(restarts=10**9, within_s=5.0)
    )
    (await talk.child(sup, "a")).tell("crash")
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    sup.shutdown()
    assert await sup.wait_exit() == SHUTDOWN


async def test_a_caller_is_heard_during_an_endless_restart(system, diary, talk):
    diary.failing["a"] = range(2, 10**9)
    sup = await Supervisor.spawn(
        diary.specs("a"), intensity=Intensity(restarts=10**9, within_s=5.0)
    )
    (await talk.child(sup, "a")).tell("crash")
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    await terminate_child(sup, "a")
    await talk.calm()
    assert [info.state for info in await which_children(sup)] == [ChildState.STOPPED]


async def test_a_starter_starts_what_a_class_cannot_say(system, diary, talk):
    async def start_twin(place: Place) -> Any:
        return await place.spawn(diary.spec("x").start, "twin", diary)

    sup = await Supervisor.spawn([ChildSpec("a", start_twin, name="twin")])
    await talk.harm(sup, "a")
    assert diary.take() == ["+twin", "+twin"]
    assert system.whereis("twin") is await talk.child(sup, "a")


async def test_a_starter_that_raises_is_a_failed_start_and_leaves_nothing(system, diary):
    async def start_and_raise(place: Place) -> Any:
        await place.spawn(diary.spec("x").start, "x", diary)
        raise OSError("late")

    async def raise_at_once(place: Place) -> Any:
        raise OSError("early")

    for starter in (start_and_raise, raise_at_once):
        with pytest.raises(StartFailed) as failed:
            await Supervisor.spawn([ChildSpec("a", starter)])
        assert "OSError" in str(failed.value.reason)
        assert not system.cells
    assert diary.take() == ["+x", "-x"]


# -- names


async def test_a_name_is_kept_across_restarts(system, diary, talk):
    sup = await Supervisor.spawn([diary.spec("a", name="store")])
    address = system.at("store")
    before = system.whereis("store")
    assert await address.call("count") == 1
    await talk.harm(sup, "a")
    assert system.whereis("store") is not before
    assert await address.call("count") == 1


async def test_a_supervisor_may_bear_a_name(system, diary):
    await open_tree(Tree("root", children=[Tree("tasks", name="tasks")]))
    ref = await start_child(system.at("tasks"), diary.spec("a"))
    assert ref.is_alive()


async def test_a_name_that_is_taken_is_a_failed_start(system, diary):
    sup = await Supervisor.spawn([diary.spec("a", name="n")])
    with pytest.raises(StartFailed):
        await start_child(sup, diary.spec("b", name="n"))


# -- the verbs


async def test_the_verbs_refuse_what_the_state_forbids(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("ab"))
    with pytest.raises(AlreadyExists, match="running"):
        await start_child(sup, diary.spec("a"))
    with pytest.raises(FailedPrecondition):
        await restart_child(sup, "a")
    with pytest.raises(FailedPrecondition):
        await delete_child(sup, "a")
    for verb in (terminate_child, restart_child, delete_child):
        with pytest.raises(NotFound):
            await verb(sup, "z")
    await terminate_child(sup, "a")
    await terminate_child(sup, "a")
    with pytest.raises(AlreadyExists, match="stopped"):
        await start_child(sup, diary.spec("a"))
    assert (await restart_child(sup, "a")).is_alive()
    await terminate_child(sup, "a")
    await delete_child(sup, "a")
    assert [info.id for info in await which_children(sup)] == ["b"]
    assert sup.is_alive()


async def test_a_child_started_later_is_last_in_the_order(system, diary):
    sup = await Supervisor.spawn(diary.specs("a"))
    await start_child(sup, Tree("t", children=diary.specs("b")))
    await start_child(sup, diary.spec("c"))
    diary.take()
    sup.shutdown()
    await sup.wait_exit()
    assert diary.take() == ["-c", "-b", "-a"]


async def test_children_are_counted_by_kind(system, diary):
    sup = await Supervisor.spawn([*diary.specs("ab"), Tree("t")])
    await terminate_child(sup, "a")
    assert await count_children(sup) == Counts(specs=3, active=2, supervisors=1, workers=2)


async def test_a_child_that_does_not_start_is_not_kept(system, diary):
    sup = await Supervisor.spawn()
    diary.failing["a"] = {1}
    with pytest.raises(StartFailed):
        await start_child(sup, diary.spec("a"))
    assert await which_children(sup) == []
    assert (await start_child(sup, diary.spec("a"))).is_alive()


async def test_a_stopped_child_that_does_not_restart_stays_stopped(system, diary):
    sup = await Supervisor.spawn(diary.specs("a"))
    await terminate_child(sup, "a")
    diary.failing["a"] = {2}
    with pytest.raises(StartFailed):
        await restart_child(sup, "a")
    assert [info.state for info in await which_children(sup)] == [ChildState.STOPPED]


async def test_a_terminated_temporary_child_is_forgotten(system, diary):
    sup = await Supervisor.spawn(diary.specs("a", restart=Restart.TEMPORARY))
    await terminate_child(sup, "a")
    assert await which_children(sup) == []


async def test_children_that_cannot_stand_together_are_refused(system, diary):
    with pytest.raises(StartFailed, match="twice"):
        await Supervisor.spawn(diary.specs("aa"))
    significant = diary.spec("a", Restart.TRANSIENT, significant=True)
    with pytest.raises(StartFailed, match="significant"):
        await Supervisor.spawn([significant])
    sup = await Supervisor.spawn()
    with pytest.raises(InvalidArgument, match="significant"):
        await start_child(sup, significant)


# -- the work's end is the supervisor's end


async def test_any_significant_childs_end_ends_all(system, diary, talk):
    sup = await Supervisor.spawn(
        [diary.spec("a", Restart.TRANSIENT, significant=True), diary.spec("b")],
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
    )
    await talk.harm(sup, "a")
    assert sup.is_alive()
    diary.take()
    (await talk.child(sup, "a")).tell("stop")
    assert await sup.wait_exit() == SHUTDOWN
    assert diary.take() == ["-b"]


async def test_the_last_significant_childs_end_ends_all(system, diary, talk):
    sup = await Supervisor.spawn(
        [
            diary.spec("a", Restart.TRANSIENT, significant=True),
            diary.spec("b", Restart.TEMPORARY, significant=True),
            diary.spec("c", Restart.TEMPORARY),
        ],
        auto_shutdown=AutoShutdown.ALL_SIGNIFICANT,
    )
    await talk.harm(sup, "c", "stop")
    await talk.harm(sup, "a", "stop")
    assert sup.is_alive()
    (await talk.child(sup, "b")).tell("crash")
    assert await sup.wait_exit() == SHUTDOWN


async def test_a_significant_child_that_is_terminated_ends_nobody(system, diary):
    sup = await Supervisor.spawn(
        [diary.spec("a", Restart.TRANSIENT, significant=True)],
        auto_shutdown=AutoShutdown.ANY_SIGNIFICANT,
    )
    await terminate_child(sup, "a")
    await trio.sleep(1)
    assert sup.is_alive()


# -- backoff

STEADY = Backoff(first_s=1.0, factor=2.0, cap_s=10.0, jitter=0.0, reset_after_s=60.0)


async def test_a_restart_waits_its_turn_and_the_wait_grows(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"), intensity=OFTEN, backoff=STEADY)
    for wait_s in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        await talk.harm(sup, "a")
        diary.take()
        infos = await which_children(sup)
        assert [info.state for info in infos] == [ChildState.RESTARTING]
        await trio.sleep(wait_s - 0.01)
        assert diary.take() == []
        await trio.sleep(0.02)
        assert diary.take() == ["+a"]


async def test_a_child_that_lived_long_begins_anew(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"), intensity=OFTEN, backoff=STEADY)
    for _ in range(3):
        await talk.harm(sup, "a")
        await trio.sleep(61.0 + 8.0)
    await talk.harm(sup, "a")
    await trio.sleep(1.01)
    assert diary.starts["a"] == 5


async def test_a_group_waits_together_with_its_siblings_stopped(system, diary, talk):
    sup = await Supervisor.spawn(
        diary.specs("ab"), strategy=Strategy.ONE_FOR_ALL, intensity=OFTEN, backoff=STEADY
    )
    diary.take()
    await talk.harm(sup, "a")
    assert diary.take() == ["-b"]
    await trio.sleep(1.01)
    assert diary.take() == ["+a", "+b"]


async def test_a_failed_restart_waits_too(system, diary, talk):
    diary.failing["a"] = {2}
    sup = await Supervisor.spawn(diary.specs("a"), intensity=OFTEN, backoff=STEADY)
    await talk.harm(sup, "a")
    await trio.sleep(1.5)
    assert diary.starts["a"] == 2
    await trio.sleep(2.0)
    assert diary.starts["a"] == 3


async def test_an_earlier_fall_of_the_line_takes_over_a_later_ones_wait(system, diary, talk):
    sup = await Supervisor.spawn(
        diary.specs("ab"), strategy=Strategy.REST_FOR_ONE, intensity=OFTEN, backoff=STEADY
    )
    diary.take()
    await talk.harm(sup, "b")
    await trio.sleep(0.5)
    await talk.harm(sup, "a")
    await trio.sleep(0.6)  # b's own wait is over, but a comes first now
    assert diary.take() == []
    await trio.sleep(0.5)
    assert diary.take() == ["+a", "+b"]


async def test_a_child_terminated_or_deleted_in_its_wait_stays_away(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("ab"), intensity=OFTEN, backoff=STEADY)
    await talk.harm(sup, "a")
    await talk.harm(sup, "b")
    with pytest.raises(FailedPrecondition, match="restarting"):
        await restart_child(sup, "a")
    await terminate_child(sup, "a")
    await terminate_child(sup, "b")
    await delete_child(sup, "b")
    diary.take()
    await trio.sleep(5)
    assert diary.take() == []


async def test_shutdown_does_not_wait_for_a_backoff(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("a"), intensity=OFTEN, backoff=STEADY)
    await talk.harm(sup, "a")
    sup.shutdown()
    await sup.wait_exit()
    assert trio.current_time() < 0.5


async def test_a_backoff_that_ends_during_a_long_stop_changes_nothing(system, diary, talk):
    diary.stop_takes_s["b"] = 4.0
    sup = await Supervisor.spawn(diary.specs("ab"), intensity=OFTEN, backoff=STEADY)
    await talk.harm(sup, "a")
    diary.take()
    sup.shutdown()
    assert await sup.wait_exit() == SHUTDOWN
    assert diary.take() == ["-b"]
    assert trio.current_time() == pytest.approx(4.0)


# -- odds and ends


@pytest.mark.parametrize("kind", [Supervisor, DynamicSupervisor])
async def test_a_stray_message_is_refused_and_ends_nobody(system, kind):
    sup = await kind.spawn()
    sup.tell("stray")
    with pytest.raises(InvalidArgument):
        await sup.call("stray")
    assert sup.is_alive()


async def test_stop_tells_whether_it_was_obeyed(system, diary):
    diary.stop_takes_s["b"] = 10.0
    worker = diary.spec("x").start
    assert await stop(await worker.spawn("a", diary), 1.0)
    assert not await stop(await worker.spawn("b", diary), 1.0)
    assert not await stop(await worker.spawn("c", diary), BRUTALLY)


async def test_a_childs_supervisor_is_known_by_its_path(system, diary, told, talk):
    top = await open_tree(
        Tree("root", children=[Tree("tasks", children=[Tree("web", children=diary.specs("a"))])])
    )
    tasks = await talk.child(top, "tasks")
    await talk.harm(await talk.child(tasks, "web"), "a")
    assert told[-1]["supervisor"] == "root/tasks/web"


async def test_a_supervisor_describes_itself_in_a_line(system, diary):
    sup = await Supervisor.spawn(diary.specs("ab"))
    assert sup.cell.actor.describe_state() == "a: running, b: running"


def test_a_child_is_told_apart_by_kind():
    assert {kind.value for kind in ChildKind} == {"worker", "supervisor"}
    assert Exit(Kind.SHUTDOWN, "restart intensity exceeded") == GAVE_UP
