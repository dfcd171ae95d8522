"""Moments that seldom come: an end between two steps, a group of cancellations, a late thread."""

import threading
from typing import Any

import pykka
import pytest
import structlog.testing
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.exits import KILL, SHUTDOWN, ActorExited, CallTimeout, Kind, StopActor
from holdfast.actors.flag import Flag
from holdfast.actors.future import Future
from holdfast.actors.mailbox import refuse
from holdfast.actors.message import Suspend
from holdfast.actors.pykka_compat import Envelope
from holdfast.actors.reference import Ref
from holdfast.actors.system import System
from holdfast.actors.topic import Topic, publish, subscribe, unsubscribe


async def group_of_cancelled(*_: Any) -> None:
    """As a nursery of other libraries may raise it."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled as cancelled:
        raise BaseExceptionGroup("both", [cancelled]) from None


async def fail(error: BaseException) -> None:
    raise error


async def test_unlink_drops_a_signal_that_waits(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Trapping(scripted):
        trap_exit = True

    async def part(me: Any) -> None:
        me.link(other)
        other.exit(KILL)
        await other.wait_exit()
        me.unlink(other)

    one, other = await Trapping.spawn(log := []), await scripted.spawn()
    await one.call(part)
    assert await one.call("count") == 1
    assert log == ["start"]


@pytest.mark.parametrize("background", [False, True])
async def test_a_group_of_outer_cancellations_is_a_kill(
    autojump_clock: Any, system: System, scripted: Any, background: bool
) -> None:
    async with trio.open_nursery() as nursery:
        ref = await scripted.spawn(nursery=nursery)
        if background:
            await ref.call(lambda me: me.spawn_task(group_of_cancelled) and None)
        else:
            ref.tell(group_of_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (await ref.wait_exit()).kind is Kind.KILLED


async def test_a_host_whose_children_fail_together_ends_with_their_group(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Host(scripted):
        hosts_children = True

    def start_two(me: Any) -> None:
        me.cell.nursery.start_soon(fail, OSError())
        me.cell.nursery.start_soon(fail, LookupError())

    ref = await Host.spawn()
    ref.tell(start_two)
    assert (await ref.wait_exit()).detail == "ExceptionGroup"


async def test_a_background_task_may_end_its_actor_with_a_reason(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    await ref.call(lambda me: me.spawn_task(fail, StopActor(SHUTDOWN)) and None)
    assert await ref.wait_exit() == SHUTDOWN
    ref = await scripted.spawn()
    ref.tell(lambda _: fail(StopActor(SHUTDOWN)))
    assert await ref.wait_exit() == SHUTDOWN


async def test_a_call_withdrawn_from_an_unbounded_mailbox_is_skipped(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Unbounded(scripted):
        mailbox_bound = None

    ref = await Unbounded.spawn(log := [])
    ref.tell(("sleep", 2))
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(CallTimeout):
        await ref.call("never", timeout_s=1)
    assert await ref.call("count") == 1
    assert log == ["start"]


async def test_the_dead_take_nothing_more(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    box = ref.actor_inbox
    ref.exit(KILL)
    await ref.wait_exit()
    box.put_unbounded(Envelope(1))
    box.put_system(Suspend())
    assert box.empty()
    reply: Future[int] = Future()
    await box.put_when_room(Envelope(1, reply_to=reply))
    with pytest.raises(ActorExited):
        await reply
    threaded = pykka.ThreadingFuture[int]()
    refuse(Envelope(1, reply_to=threaded), ActorExited(ref, SHUTDOWN))
    with pytest.raises(ActorExited):
        threaded.get()
    with pytest.raises(ActorExited):
        system.register("late", ref)


async def test_a_sleeping_actor_wakes_for_what_a_waiting_sender_brought(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Small(scripted):
        mailbox_bound = 1

    ref = await Small.spawn(log := [])
    box = ref.actor_inbox
    await ref.call("count")
    async with trio.open_nursery() as nursery:
        box.user.append(Envelope("taken"))  # as if put, and taken out again below, unseen
        nursery.start_soon(ref.send, "brought")
        await trio.testing.wait_all_tasks_blocked()
        assert box.get().message == "taken"
    await ref.call("count")
    assert log[1:] == ["brought"]


async def test_a_cast_of_a_thread_that_waited_in_vain_is_dropped(scripted: Any) -> None:
    class Small(scripted):
        mailbox_bound = 1

    async with System.open():
        ref = await Small.spawn()
        ref.tell(("sleep", 30))
        await trio.testing.wait_all_tasks_blocked()
        ref.tell("one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ref.cast, "two")
            while not ref.actor_inbox.waiting:
                await trio.sleep(0.001)
            ref.exit(KILL)


async def test_a_post_that_raises_is_logged_and_hinders_no_other(system: System) -> None:
    posted: list[int] = []

    def raise_it(_: None) -> None:
        raise LookupError

    with structlog.testing.capture_logs() as lines:
        system.post(raise_it, None)
        system.post(posted.append, 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert [line["event"] for line in lines] == ["system.ingress_failed"]
    assert posted == [1]


def test_no_actor_without_a_system(scripted: Any) -> None:
    with pytest.raises(RuntimeError):
        scripted.start()


async def test_a_topic_does_not_mind_the_dead_nor_a_second_subscription(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    topic, ref = await Topic.spawn(), await scripted.spawn(log := [])
    await subscribe(topic, ref)
    await subscribe(topic, ref)
    assert await publish(topic, "k", 1) == 1
    await ref.call("count")
    assert len(log) == 2
    # Dead, and told of by a change before the Down: its flag is up, the topic knows it still.
    ref.actor_stopped.set()
    assert await publish(topic, "k", 2) == 2
    ref.exit(KILL)
    await ref.wait_exit()
    await unsubscribe(topic, ref)


def test_a_future_outside_any_loop_is_pykkas() -> None:
    async def wait() -> int:
        return await future

    future: Future[int] = Future()
    future.set(7)
    awaiting = wait()
    assert awaiting.send(None) is None
    with pytest.raises(StopIteration) as caught:
        awaiting.send(None)
    assert caught.value.value == 7


async def test_a_future_keeps_the_traceback_that_it_is_given() -> None:
    future: Future[int] = Future()
    try:
        raise LookupError
    except LookupError as error:
        traceback = error.__traceback__
        bare = error.with_traceback(None)
    future.set_exception((LookupError, bare, traceback))
    with pytest.raises(LookupError) as caught:
        await future
    assert caught.value is bare


def test_an_answer_to_a_loop_that_is_gone_is_dropped() -> None:
    future: Future[int] = Future()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(future.wait)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    thread = threading.Thread(target=future.set, args=(1,))
    thread.start()
    thread.join()
    assert future.get() == 1


def test_several_threads_wait_for_one_flag() -> None:
    flag = Flag()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(flag.wait(5))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(flag._waiters or ()) < 3:
        pass
    flag.set()
    for thread in threads:
        thread.join()
    assert woken == [True] * 3


async def test_a_reference_that_is_named_is_told_by_its_name(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref: Ref[Actor] = await scripted.spawn(log := [], name="it")
    system.at("it").cast("x")
    await system.at("it").call("count")  # type: ignore[arg-type]
    assert log == ["start", "x"]
    assert system.at("it").resolve() is ref
    system.unregister("nobody")
