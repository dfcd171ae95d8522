"""What a user of OTP may expect of an actor, one test each. The number in a test's name is
that of the list of semantics; those of supervisors are tested in their own room."""

import gc
import logging
import threading
import time
import weakref
from typing import Any

import pykka
import pytest
import structlog.testing
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.errors import AlreadyExists, NotFound
from holdfast.actors.exits import (
    KILL,
    NORMAL,
    SHUTDOWN,
    ActorExited,
    CallTimeout,
    DeadlockError,
    Kind,
    MailboxFull,
    StartFailed,
    StopActor,
)
from holdfast.actors.future import wait_for
from holdfast.actors.mailbox import Overflow
from holdfast.actors.system import System


def elapsed_s(system: System) -> float:
    return round(trio.current_time() - system.opened_at_s, 3)


async def settle() -> None:
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()


async def test_01_messages_of_one_sender_keep_their_order(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    for number in range(200):
        ref.tell(number)
    await ref.call("count")
    assert log[1:] == list(range(200))


async def test_01_messages_of_a_thread_keep_their_order(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    await trio.to_thread.run_sync(lambda: [ref.tell(number) for number in range(400)])
    await ref.call("count")
    assert log[1:] == list(range(400))


async def test_02_one_message_at_a_time_also_across_awaits(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    inside = []

    async def work(_: Any) -> None:
        inside.append(1)
        assert len(inside) == 1
        await trio.sleep(0.1)
        inside.pop()

    ref = await scripted.spawn()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ref.call, work)


async def test_03_15_shutdown_overtakes_the_queue_and_runs_on_stop(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    ref.tell(("sleep", 1))
    await settle()
    ref.tell("late")
    ref.shutdown()
    assert await ref.wait_exit() == SHUTDOWN
    assert log == ["start", "stop"]
    assert elapsed_s(system) >= 1


@pytest.mark.parametrize("policy", Overflow)
async def test_04_each_policy_at_the_bound(
    autojump_clock: Any, system: System, scripted: Any, policy: Overflow
) -> None:
    class Bounded(scripted):
        mailbox_bound = 3
        overflow = policy

    ref = await Bounded.spawn(log := [])
    ref.tell(("sleep", 1))
    await settle()
    if policy in (Overflow.REJECT, Overflow.BLOCK):
        for number in range(3):
            ref.tell(number)
        with pytest.raises(MailboxFull):
            ref.tell(3)
        await ref.send(4)
        assert elapsed_s(system) >= 0.9
    else:
        for number in range(5):
            ref.cast(number)
    if policy is Overflow.KILL:
        assert (await ref.wait_exit()).detail == "mailbox overflow"
        return
    await trio.sleep(2)
    await ref.call("count")
    kept = {Overflow.DROP_NEW: [0, 1, 2], Overflow.DROP_OLD: [2, 3, 4]}
    assert log[1:] == kept.get(policy, [0, 1, 2, 4])


async def test_05_06_the_dead_refuse_tell_and_call_and_drop_cast(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    ref.shutdown()
    await ref.wait_exit()
    with pytest.raises(ActorExited):
        ref.tell(1)
    with pytest.raises(ActorExited):
        await ref.send(1)
    with pytest.raises(ActorExited) as caught:
        await ref.call("count")
    assert caught.value.reason == SHUTDOWN
    ref.cast(1)
    ref.exit(KILL)
    assert await ref.wait_exit() == SHUTDOWN


async def test_06_callers_waiting_and_queued_learn_of_a_kill(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    told = []

    async def ask(message: Any) -> None:
        with pytest.raises(ActorExited) as caught:
            await ref.call(message, timeout_s=None)
        told.append(caught.value.reason.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, ("sleep", 100))
        await settle()
        nursery.start_soon(ask, "count")
        await settle()
        ref.exit(KILL)
    assert told == [Kind.KILLED, Kind.KILLED]


async def test_07_a_fault_ends_the_actor_and_reaches_the_caller(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    with pytest.raises(ValueError, match="boom"):
        await ref.call("crash")
    reason = await ref.wait_exit()
    assert (reason.kind, reason.detail) == (Kind.CRASH, "ValueError")
    assert reason.abnormal
    assert log == ["start"]
    assert ref.obituary is not None
    assert ref.obituary.last_message == "'crash'"
    assert "boom" in ref.obituary.traceback


async def test_08_a_refusal_is_only_an_answer(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    with pytest.raises(NotFound):
        await ref.call("refuse")
    with structlog.testing.capture_logs() as lines:
        ref.tell("refuse")
        assert await ref.call("count") == 1
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("actor.refused", "debug")
    assert line["reason"] == "nothing here"


async def test_09_a_late_answer_is_dropped(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    with pytest.raises(CallTimeout):
        await ref.call(("sleep", 6))
    assert elapsed_s(system) == 5
    assert await ref.call("count") == 1


async def test_10_a_withdrawn_call_is_never_begun(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    ref.tell(("sleep", 5))
    await settle()
    with trio.move_on_after(1):
        await ref.call("count", timeout_s=None)
    assert len(ref.actor_inbox) == 0
    assert await ref.call("count", timeout_s=None) == 1


async def test_11_calling_oneself_or_in_a_ring_is_refused_at_once(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    one, two, three = [await scripted.spawn() for _ in range(3)]
    with pytest.raises(DeadlockError):
        await one.call(lambda me: me.ref.call("count"))
    one = await scripted.spawn()
    with pytest.raises(DeadlockError):
        await one.call(
            lambda _: two.call(lambda _: three.call(lambda _: one.call("count"))),
        )
    assert elapsed_s(system) == 0


async def test_11_a_background_task_may_be_called_back(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    one, two = await scripted.spawn(), await scripted.spawn()
    answers = []

    async def background() -> None:
        answers.append(await two.call(lambda _: one.call("count")))

    await one.call(lambda me: me.spawn_task(background) and None)
    await settle()
    assert answers == [1]


async def test_12_start_is_acknowledged_and_its_failure_leaves_nothing(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Slow(scripted):
        async def on_start(self) -> None:
            await trio.sleep(1)

    class Bad(scripted):
        def on_start(self) -> None:
            raise OSError("no")

    class Hung(scripted):
        async def on_start(self) -> None:
            await trio.sleep_forever()

    class Unmade(scripted):
        def __init__(self) -> None:
            raise KeyError

    await Slow.spawn()
    assert elapsed_s(system) == 1
    for cls in (Bad, Hung, Unmade):
        with pytest.raises(StartFailed):
            await cls.spawn(start_timeout_s=2)
    assert len(system.cells) == 1


async def test_13_exit_reasons(autojump_clock: Any, system: System, scripted: Any) -> None:
    ref = await scripted.spawn(log := [])
    ref.tell("end")
    assert await ref.wait_exit() == NORMAL
    assert log == ["start", "stop"]
    ref = await scripted.spawn()
    assert await wait_for(ref.stop(block=False))
    assert await ref.wait_exit() == NORMAL


async def test_13_stop_actor_may_carry_the_answer(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    def end(_: Any) -> None:
        raise StopActor(SHUTDOWN, answer="bye")

    ref = await scripted.spawn()
    assert await ref.call(end) == "bye"
    assert await ref.wait_exit() == SHUTDOWN


async def test_14_kill_interrupts_a_handler_and_skips_on_stop(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def swallow(_: Any) -> None:
        for _ in range(3):
            try:
                await trio.sleep(1000)
            except BaseException:
                pass

    for work in (("sleep", 1000), swallow):
        ref = await scripted.spawn(log := [])
        ref.tell(work)
        await settle()
        ref.exit(KILL)
        assert (await ref.wait_exit()).kind is Kind.KILLED
        assert log == ["start"]
    assert elapsed_s(system) < 10


async def test_16_on_stop_and_on_failure_may_raise(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Bad(scripted):
        async def on_stop(self) -> None:
            raise ValueError

        def on_failure(self, *_: Any) -> None:
            raise TypeError

    ref = await Bad.spawn()
    ref.shutdown()
    assert (await ref.wait_exit()).kind is Kind.CRASH


async def test_17_siblings_do_not_feel_a_crash(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    refs = [await scripted.spawn() for _ in range(10)]
    for ref in refs[::2]:
        ref.tell("crash")
    await settle()
    assert [ref.is_alive() for ref in refs] == [False, True] * 5


async def test_18_19_a_monitor_gives_one_down_and_none_after_demonitor(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    watcher, target = await scripted.spawn(log := []), await scripted.spawn()
    await watcher.call(lambda me: me.monitor(target) and None)
    target.tell("crash")
    await settle()
    await watcher.call(lambda me: me.monitor(target) and None)
    await settle()
    assert log[1:] == [("down", Kind.CRASH), ("down", Kind.NOPROC)]
    other = await scripted.spawn()

    async def flush(me: Any) -> None:
        monitor = me.monitor(other)
        other.exit(KILL)
        await other.wait_exit()
        me.demonitor(monitor)

    await watcher.call(flush)
    await settle()
    assert len(log) == 3


async def test_20_22_links(autojump_clock: Any, system: System, scripted: Any) -> None:
    one, two, three, four = [await scripted.spawn() for _ in range(4)]
    await one.call(lambda me: me.link(two))
    await two.call(lambda me: me.link(three))
    await two.call(lambda me: me.link(four))
    await two.call(lambda me: me.unlink(four))
    three.tell("crash")
    assert (await one.wait_exit()).kind is Kind.CRASH
    assert four.is_alive()
    five = await scripted.spawn()
    await four.call(lambda me: me.link(five))
    five.tell("end")
    await settle()
    assert four.is_alive()
    four.tell(lambda me: me.link(five))
    assert (await four.wait_exit()).kind is Kind.NOPROC


async def test_21_a_trapped_signal_is_a_message_but_kill_is_not(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Trapping(scripted):
        trap_exit = True

    ref, other = await Trapping.spawn(log := []), await scripted.spawn()
    await ref.call(lambda me: me.link(other))
    other.tell("end")
    ref.exit(SHUTDOWN)
    await settle()
    assert ("exit", Kind.NORMAL) in log
    assert ("exit", Kind.SHUTDOWN) in log
    ref.exit(KILL)
    assert (await ref.wait_exit()).kind is Kind.KILLED


async def test_38_names_are_unique_and_freed(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(name="store")
    store = system.at("store")
    assert await store.call("count") == 1
    with pytest.raises(StartFailed):
        await scripted.spawn(name="store")
    with pytest.raises(AlreadyExists):
        system.register("other", ref)
    ref.exit(KILL)
    await ref.wait_exit()
    assert not store.is_alive()
    store.cast(1)
    with pytest.raises(ActorExited):
        store.tell(1)
    with trio.fail_after(9):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(system.wait_for_name, "store")
            await settle()
            again = await scripted.spawn(name="store")
    store.tell("x")
    await store.send("y")
    assert system.names() == {"store": again}
    system.unregister("store")
    assert system.whereis("store") is None


def test_44_leaving_the_system_ends_all_in_order(scripted: Any) -> None:
    class Named(scripted):
        def __init__(self, log: list[Any], name: str) -> None:
            super().__init__(log)
            self.name = name

        async def on_stop(self) -> None:
            self.log.append(self.name)

    log: list[Any] = []
    refs = []

    async def main(error: type[BaseException] | None) -> None:
        with trio.move_on_after(0.05):
            async with System.open():
                for name in "abc":
                    refs.append(await Named.spawn(log, name))
                if error is not None:

                    def fail(_: Any) -> None:
                        raise error

                    refs[-1].tell(fail)
                await trio.sleep_forever()

    trio.run(main, None)
    assert log[3:] == ["c", "b", "a"]
    with pytest.raises(pykka.ActorDeadError):
        refs[0].ask(1)
    log.clear()
    with pytest.raises(KeyboardInterrupt):
        trio.run(main, KeyboardInterrupt)
    assert log[3:] == ["b", "a"]


async def test_the_block_raises_its_own_exception_unwrapped() -> None:
    with pytest.raises(LookupError):
        async with System.open():
            raise LookupError


async def test_45_a_crash_leaks_nothing(autojump_clock: Any, system: System, scripted: Any) -> None:
    logging.disable(logging.CRITICAL)

    async def one() -> Any:
        ref = await scripted.spawn()
        gone = weakref.ref(ref.cell.actor)
        ref.tell("crash")
        await ref.wait_exit()
        return ref, gone

    dead = [await one() for _ in range(5)]
    await settle()
    gc.collect()
    logging.disable(logging.NOTSET)
    assert [gone() for _, gone in dead] == [None] * 5


async def test_hazard_exception_groups(autojump_clock: Any, system: System, scripted: Any) -> None:
    async def fail() -> None:
        raise ValueError

    async def stop() -> None:
        raise StopActor(SHUTDOWN)

    def in_nursery(function: Any) -> Any:
        async def work(_: Any) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(function)
                nursery.start_soon(trio.sleep_forever)

        return work

    ref = await scripted.spawn()
    ref.tell(in_nursery(fail))
    assert isinstance((await ref.wait_exit()).exception, ExceptionGroup)
    ref = await scripted.spawn()
    ref.tell(in_nursery(stop))
    assert await ref.wait_exit() == SHUTDOWN


async def test_a_background_task_ends_with_the_actor_and_its_fault_is_the_actors(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def fail() -> None:
        raise OSError

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(1)

    ended: list[int] = []
    ref = await scripted.spawn()
    await ref.call(lambda me: me.spawn_task(wait) and None)
    await settle()
    await ref.call(lambda me: me.spawn_task(fail) and None)
    assert (await ref.wait_exit()).detail == "OSError"
    assert ended == [1]


async def test_43_a_thread_waits_for_room() -> None:
    class Slow(Actor):
        mailbox_bound = 2

        async def on_receive(self, message: Any) -> None:
            await trio.sleep(0.02)
            seen.append(message)

    seen: list[Any] = []

    def flood() -> float:
        begun = time.monotonic()
        for number in range(6):
            ref.tell(number)
        return time.monotonic() - begun

    async with System.open():
        ref = await Slow.spawn()
        assert await trio.to_thread.run_sync(flood) > 0.03
        await trio.sleep(0.2)
    assert seen == list(range(6))
    assert threading.active_count() < 20
