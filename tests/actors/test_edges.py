"""The rarer paths: children, pykka's plain start, late threads, derived futures."""

import queue
from typing import Any

import pykka
import pytest
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.exits import KILL, ActorExited, Kind, MailboxFull, StopActor
from holdfast.actors.flag import Flag
from holdfast.actors.future import Future, wait_for
from holdfast.actors.mailbox import Overflow
from holdfast.actors.obituary import short_repr
from holdfast.actors.system import System


async def test_killing_a_host_kills_its_children(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Host(scripted):
        hosts_children = True

    async def adopt(me: Any) -> Any:
        return await scripted.spawn(parent=me, link=True)

    for end in (KILL, None):
        host = await Host.spawn()
        child = await host.call(adopt)
        if end is None:
            host.tell("crash")
        else:
            host.exit(end)
        await host.wait_exit()
        assert not child.is_alive()


async def test_a_failed_child_start_leaves_no_link(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Stopping(scripted):
        def on_start(self) -> None:
            raise StopActor

    async def adopt(me: Any) -> bool:
        try:
            await Stopping.spawn(parent=me, link=True)
        except Exception:
            return me.cell.links == {}
        return False

    host = await scripted.spawn()
    assert await host.call(adopt)


async def test_an_outer_cancellation_ends_an_actor_as_killed(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async with trio.open_nursery() as nursery:
        ref = await scripted.spawn(nursery=nursery)
        nursery.cancel_scope.cancel()
    assert (await ref.wait_exit()).kind is Kind.KILLED


async def test_start_as_in_pykka_from_the_loop_and_a_thread(scripted: Any) -> None:
    async with System.open():
        here = scripted.start()
        there = await trio.to_thread.run_sync(scripted.start)
        assert await here.call("count") == 1
        assert await trio.to_thread.run_sync(lambda: there.ask("count")) == 1
        assert await trio.to_thread.run_sync(lambda: there.stop(timeout=5))
        await trio.to_thread.run_sync(lambda: here.exit(KILL))
        await here.wait_exit()
        assert here not in pykka.ActorRegistry.get_all()


async def test_a_thread_is_refused_or_dropped_at_the_bound(scripted: Any) -> None:
    class Rejecting(scripted):
        mailbox_bound = 1
        overflow = Overflow.REJECT

    async with System.open():
        ref = await Rejecting.spawn()
        ref.tell(("sleep", 30))
        await trio.testing.wait_all_tasks_blocked()
        ref.tell(1)
        with pytest.raises(MailboxFull):
            await trio.to_thread.run_sync(ref.tell, 2)
        with pytest.raises(MailboxFull):
            await ref.call("count")
        await trio.to_thread.run_sync(ref.shutdown)
        ref.exit(KILL)
        await ref.wait_exit()
        with pytest.raises(ActorExited):
            await trio.to_thread.run_sync(ref.tell, 3)


async def test_futures_derive_and_refuse_a_second_answer() -> None:
    future: Future[list[int]] = Future()
    evens = future.filter(lambda number: number % 2 == 0)
    total = future.reduce(lambda one, two: one + two, 0)
    future.set([1, 2, 3, 4])
    assert "Value" in repr(future)
    assert await evens == [2, 4]
    assert await total == 10
    with pytest.raises(queue.Full):
        future.set([])
    with pytest.raises(queue.Full):
        future.set_get_hook(lambda _: [])
    hooked: Future[int] = Future()
    hooked.set_get_hook(lambda _: 7)
    assert await hooked == 7
    threaded = pykka.ThreadingFuture[int]()
    threaded.set(3)
    assert await wait_for(threaded) == 3
    late: Future[int] = Future()
    late.set_exception((LookupError, None, None))
    with pytest.raises(LookupError):
        await late
    with pytest.raises(pykka.Timeout):
        await trio.to_thread.run_sync(lambda: Future[int]().get(timeout=0.01))


def test_a_flag_wakes_the_threads_that_wait() -> None:
    flag = Flag()
    assert not flag.is_set()
    assert not flag.wait(0.01)
    flag.set()
    assert flag.wait(0.01)


def test_a_repr_that_raises_is_told() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise ValueError

    assert "Bad" in short_repr(Bad())


def test_a_system_in_a_thread_serves_a_plain_program(scripted: Any) -> None:
    system = System.in_thread()
    ref = scripted.start()
    assert ref.ask("count", timeout=5) == 1
    assert ref.stop(timeout=5)
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("count", timeout=5)
    system.close()


async def test_unexpected_messages_are_logged(system: System, caplog: Any) -> None:
    ref = await Actor.spawn()
    ref.tell("what")
    await trio.testing.wait_all_tasks_blocked()
    assert "Unexpected message" in caplog.text


async def test_a_refusal_in_on_down_ends_nothing(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Refusing(scripted):
        async def on_down(self, down: Any) -> None:
            raise MailboxFull("no room")

    watcher, target = await Refusing.spawn(), await scripted.spawn()
    await watcher.call(lambda me: me.monitor(target) and None)
    target.exit(KILL)
    await target.wait_exit()
    assert await watcher.call("count") == 1


async def test_the_end_of_a_watcher_ends_its_watch(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    watcher, target = await scripted.spawn(), await scripted.spawn()
    await watcher.call(lambda me: me.monitor(target) and None)
    watcher.exit(KILL)
    await watcher.wait_exit()
    assert not target.cell.monitors


async def test_background_tasks_may_raise_groups_and_are_cut_off_with_their_host(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def fail_in_group() -> None:
        raise ExceptionGroup("both", [OSError()])

    ref = await scripted.spawn()
    await ref.call(lambda me: me.spawn_task(fail_in_group) and None)
    assert (await ref.wait_exit()).detail == "ExceptionGroup"
    async with trio.open_nursery() as nursery:
        ref = await scripted.spawn(nursery=nursery)
        await ref.call(lambda me: me.spawn_task(trio.sleep_forever) and None)
        nursery.cancel_scope.cancel()
    assert (await ref.wait_exit()).kind is Kind.KILLED


async def test_an_actor_stops_itself_after_what_waits(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])

    def stop(me: Any) -> None:
        me.stop()
        me.ref.tell("never")

    ref.tell(stop)
    ref.tell("before")
    assert (await ref.wait_exit()).kind is Kind.NORMAL
    assert log == ["start", "before", "stop"]


async def test_a_kill_before_the_first_step_and_a_group_of_faults_with_cancelled(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = scripted.start()
    ref.exit(KILL)
    ref.exit(KILL)
    assert (await ref.wait_exit()).kind is Kind.KILLED


def test_a_group_with_an_interrupt_ends_the_system(scripted: Any) -> None:
    async def main() -> None:
        async with System.open():
            ref = await scripted.spawn()

            async def work(_: Any) -> None:
                raise BaseExceptionGroup("both", [KeyboardInterrupt(), OSError()])

            ref.tell(work)
            await trio.sleep(5)

    with pytest.raises(BaseExceptionGroup):
        trio.run(main)


async def test_no_system_no_actor(scripted: Any) -> None:
    async with System.open():
        async with System.open() as inner:
            assert System.current() is inner
        assert System.current() is not inner


async def test_pykka_rules_answer_an_ask_that_raised(system: System, scripted: Any) -> None:
    class Lenient(scripted):
        pykka_rules = True

    ref = Lenient.start()
    with pytest.raises(ValueError, match="boom"):
        await ref.call("crash")
    assert await ref.call("count") == 1
    assert repr(system.at("x")) == "<NameRef x>"
    assert ref.actor_inbox.empty()
    ref.tell(1)
    assert ref.actor_inbox.get().message == 1


async def test_a_thread_that_finds_the_mailbox_full_too_late_is_told(scripted: Any) -> None:
    class Dropping(scripted):
        mailbox_bound = 1
        overflow = Overflow.DROP_NEW

    async with System.open():
        ref = await Dropping.spawn()
        ref.tell(("sleep", 30))
        await trio.testing.wait_all_tasks_blocked()
        ref.tell(1)
        with pytest.raises(MailboxFull):
            await trio.to_thread.run_sync(lambda: ref.ask(2, timeout=5))
        assert ref.actor_inbox.dropped == 1
        ref.exit(KILL)


async def test_a_state_that_cannot_be_described_does_not_hide_the_end(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Shy(scripted):
        def describe_state(self) -> str:
            raise LookupError

    ref = await Shy.spawn()
    ref.tell("crash")
    assert (await ref.wait_exit()).kind is Kind.CRASH
    assert "LookupError" in ref.obituary.state
