"""The hazards of actors on a loop, one named test each; `test_table.py` lists them all."""

import dataclasses
import gc
import importlib
import logging
import pkgutil
import weakref
from typing import Any

import pykka
import pytest
import trio
import trio.testing

import holdfast.actors
from holdfast.actors.actor import Actor
from holdfast.actors.cell import current_cell, handling_cell
from holdfast.actors.exits import (
    KILL,
    SHUTDOWN,
    ActorExited,
    CallTimeout,
    DeadlockError,
    Kind,
    StartFailed,
    WouldBlockLoop,
)
from holdfast.actors.future import Future
from holdfast.actors.loop import BUDGET
from holdfast.actors.message import Down, ExitSignal, Request, Shutdown
from holdfast.actors.pykka_compat import Envelope
from holdfast.actors.system import System
from holdfast.actors.threads import ThreadActor, stop_thread


async def settle() -> None:
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()


async def test_hazard_cancelled_ends_one_actor_and_no_other(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def cancelled(_: Any) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep(1)
        raise LookupError

    bystander = await scripted.spawn()
    killed, inner = await scripted.spawn(), await scripted.spawn()
    async with trio.open_nursery() as nursery:
        outer = await scripted.spawn(nursery=nursery)
        killed.exit(KILL)
        inner.tell(cancelled)
        nursery.cancel_scope.cancel()
    assert (await outer.wait_exit()).kind is Kind.KILLED
    assert (await killed.wait_exit()).kind is Kind.KILLED
    assert (await inner.wait_exit()).detail == "LookupError"
    assert await bystander.call("count") == 1


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
def test_hazard_an_interrupt_in_an_actor_ends_the_system_in_order(
    scripted: Any, fatal: type[BaseException]
) -> None:
    def fail(_: Any) -> None:
        raise fatal

    log: list[Any] = []

    async def main() -> None:
        async with System.open():
            await scripted.spawn(log)
            ref = await scripted.spawn()
            ref.tell(fail)
            await trio.sleep_forever()

    with pytest.raises(fatal):
        trio.run(main)
    assert log == ["start", "stop"]


async def test_hazard_a_handler_that_swallows_cancelled_dies_at_its_next_checkpoint(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def swallow(me: Any) -> None:
        for number in range(3):
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                me.log.append(number)

    ref = await scripted.spawn(log := [])
    ref.tell(swallow)
    await settle()
    ref.exit(KILL)
    assert (await ref.wait_exit()).kind is Kind.KILLED
    assert log == ["start", 0, 1, 2]


async def test_hazard_a_shielded_handler_delays_only_its_own_kill(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    async def shielded(me: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)
        me.log.append("done")
        await trio.sleep_forever()

    ref, other = await scripted.spawn(log := []), await scripted.spawn()
    ref.tell(shielded)
    await settle()
    begun = trio.current_time()
    ref.exit(KILL)
    other.exit(KILL)
    await other.wait_exit()
    assert trio.current_time() == begun
    assert ref.is_alive()
    assert (await ref.wait_exit()).kind is Kind.KILLED
    assert trio.current_time() - begun == pytest.approx(3)
    assert log == ["start", "done"]


async def test_hazard_a_flood_leaves_others_their_turn(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Flooded(Actor):
        handled = 0

        def on_receive(self, message: Any) -> None:
            self.handled += 1
            self.ref.tell(message)

    flooded, other = await Flooded.spawn(), await scripted.spawn()
    flooded.tell(1)
    actor = flooded.cell.actor
    asked = 20
    for _ in range(asked):
        await other.call("count")
    assert 0 < actor.handled <= (asked + 1) * 4 * BUDGET
    flooded.exit(KILL)
    await flooded.wait_exit()


async def test_hazard_every_blocking_call_of_pykka_is_refused_on_the_loop(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    proxy = ref.proxy()
    with pytest.raises(WouldBlockLoop):
        ref.ask("count")
    with pytest.raises(WouldBlockLoop):
        ref.ask("count", block=False).get()
    with pytest.raises(WouldBlockLoop):
        proxy.count.get()
    with pytest.raises(WouldBlockLoop):
        proxy.count = 7
    with pytest.raises(WouldBlockLoop):
        pykka.get_all([ref.ask("count", block=False)])
    with pytest.raises(WouldBlockLoop):
        ref.stop()


async def test_hazard_blocking_on_a_thread_actor_is_refused_on_the_loop(system: System) -> None:
    ref = await ThreadActor.spawn()
    with pytest.raises(WouldBlockLoop):
        ref.ask("x")
    with pytest.raises(WouldBlockLoop):
        ref.stop()
    await stop_thread(ref)


async def test_hazard_a_start_that_raises_or_hangs_is_told_and_leaves_nothing(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Bad(scripted):
        async def on_start(self) -> None:
            raise OSError("no")

    class Hung(scripted):
        async def on_start(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.append(1)

    class Unmade(scripted):
        def __init__(self) -> None:
            raise KeyError

    ended: list[int] = []
    for kind, detail in ((Bad, "OSError"), (Hung, "start timeout"), (Unmade, "init")):
        with pytest.raises(StartFailed) as caught:
            await kind.spawn(name="it", start_timeout_s=2)
        assert caught.value.reason.detail == detail
        assert system.whereis("it") is None
    assert ended == [1]
    assert not system.cells


async def test_hazard_a_cancelled_ask_is_skipped_and_a_late_reply_dropped(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn(log := [])
    with pytest.raises(CallTimeout):
        await ref.call(("sleep", 3), timeout_s=1)
    with trio.move_on_after(1):
        await ref.call("never", timeout_s=None)
    assert await ref.call("count") == 1
    assert log == ["start"]


async def test_hazard_two_that_call_each_other_at_once_are_not_stuck(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    one, two = await scripted.spawn(), await scripted.spawn()
    begun = trio.current_time()
    outcomes = []

    async def ask(me: Any, other: Any) -> None:
        async def work(_: Any) -> Any:
            await trio.sleep(1)  # both are in their handlers when the first of them asks
            try:
                return await other.call("count")
            except DeadlockError:
                return "refused"

        outcomes.append(await me.call(work))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, one, two)
        nursery.start_soon(ask, two, one)
    assert sorted(outcomes, key=str) == [1, "refused"]
    assert trio.current_time() - begun == pytest.approx(1)


async def test_hazard_what_is_told_to_the_dead_is_refused_or_dropped_as_declared(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    ref.exit(KILL)
    await ref.wait_exit()
    with pytest.raises(pykka.ActorDeadError):
        ref.tell(1)
    ref.cast(1)


async def test_hazard_asks_in_flight_fail_when_the_target_or_the_system_ends(
    autojump_clock: Any, scripted: Any
) -> None:
    async def ask(ref: Any, message: Any) -> None:
        with pytest.raises(ActorExited) as caught:
            await ref.call(message, timeout_s=None)
        told.append(caught.value.reason.kind)

    told: list[Kind] = []
    async with trio.open_nursery() as nursery:
        async with System.open(stop_within_s=1) as system:
            one, two = await scripted.spawn(), await scripted.spawn()
            for ref in (one, two):
                nursery.start_soon(ask, ref, ("sleep", 100))
                await settle()
                nursery.start_soon(ask, ref, "count")
            await settle()
            one.exit(KILL)
            await settle()
            assert told == [Kind.KILLED] * 2
    assert len(told) == 4
    reply: Future[Any] = Future()
    system.post(two.actor_inbox.put, Envelope("count", reply_to=reply))  # as from a late thread
    system._drain()
    with pytest.raises(pykka.ActorDeadError):
        await reply


async def test_hazard_an_actor_that_waits_keeps_no_dead_one_alive(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Trapping(scripted):
        trap_exit = True

    def watch(me: Any, target: Any) -> None:
        me.monitor(target)
        me.link(target)

    watcher = await Trapping.spawn()

    async def one() -> Any:
        target = await scripted.spawn()
        await watcher.call(lambda me: watch(me, target))
        gone = weakref.ref(target.cell.actor)
        with pytest.raises(ValueError, match="boom"):
            await target.call("crash")
        return gone

    logging.disable(logging.CRITICAL)  # pytest keeps what is logged, with its frames
    gone = await one()
    await settle()
    gc.collect()
    logging.disable(logging.NOTSET)
    assert watcher.is_alive()
    assert gone() is None


async def test_hazard_an_actor_that_nobody_refers_to_lives_on(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    await scripted.spawn(name="alone")
    await settle()
    gc.collect()
    assert await system.at("alone").call("count") == 1


async def test_hazard_actors_start_in_the_order_of_their_spawns(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Numbered(scripted):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        async def on_start(self) -> None:
            await trio.sleep(0.1 / (self.number + 1))
            order.append(self.number)

    order: list[int] = []
    for number in range(30):
        await Numbered.spawn(number)
    assert order == list(range(30))


async def test_hazard_messages_are_shared_and_so_frozen(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    message = ("the", ["very", "same"])
    assert await ref.call(message) is message
    for module in pkgutil.iter_modules(holdfast.actors.__path__):
        importlib.import_module(f"holdfast.actors.{module.name}")
    kinds: list[type] = [Down, ExitSignal, Shutdown, *Request.__subclasses__()]
    for kind in kinds:
        if kind.__module__.startswith("holdfast."):
            assert dataclasses.is_dataclass(kind), kind
            assert kind.__dataclass_params__.frozen, kind


async def test_hazard_a_child_does_not_inherit_whose_handler_runs(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    def who(me: Any) -> Any:
        return (current_cell.get() is me.cell, handling_cell.get() is me.cell)

    parent = await scripted.spawn()

    async def adopt(me: Any) -> Any:
        assert who(me) == (True, True)
        return await scripted.spawn(parent=me)

    child = await parent.call(adopt)
    assert await child.call(who) == (True, True)
    # Were the child taken for its parent, this would look like a call of oneself.
    assert await child.call(lambda _: parent.call("count")) == 1
    assert (current_cell.get(), handling_cell.get()) == (None, None)


async def test_hazard_an_on_stop_that_hangs_or_raises_does_not_escape_a_kill(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Hanging(scripted):
        async def on_stop(self) -> None:
            await trio.sleep_forever()

    class Raising(scripted):
        async def on_stop(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

    for kind, end in ((Hanging, Kind.KILLED), (Raising, Kind.CRASH)):
        ref, watcher = await kind.spawn(), await scripted.spawn(log := [])
        await watcher.call(lambda me, ref=ref: me.monitor(ref) and None)
        ref.shutdown()
        await settle()
        with pytest.raises(ActorExited):
            ref.tell("late")
        ref.exit(KILL)
        assert (await ref.wait_exit()).kind is end
        await settle()
        assert log[1:] == [("down", end)]


async def test_a_future_that_a_handler_returns_is_the_answer_and_not_awaited(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    ref = await scripted.spawn()
    future: Future[int] = Future()
    answer = await ref.call(lambda me: me.log.append(future) or [future])
    assert answer == [future]


async def test_a_call_waits_for_room_within_its_timeout(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Small(scripted):
        mailbox_bound = 1

    ref = await Small.spawn(log := [])
    ref.tell(("sleep", 10))
    await settle()
    ref.tell("one")
    begun = trio.current_time()
    with pytest.raises(CallTimeout):
        await ref.call("never", timeout_s=2)
    assert trio.current_time() - begun == pytest.approx(2)
    assert await ref.call("count", timeout_s=None) == 1
    assert log == ["start", "one"]


async def test_senders_that_wait_learn_of_the_end(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Small(scripted):
        mailbox_bound = 1

    async def send(message: Any) -> None:
        with pytest.raises(ActorExited) as caught:
            await ref.send(message)
        assert caught.value.reason == SHUTDOWN

    ref = await Small.spawn()
    ref.tell(("sleep", 1))
    await settle()
    ref.tell("one")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, "two")
        nursery.start_soon(send, "three")
        await settle()
        ref.shutdown()
