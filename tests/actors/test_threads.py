"""Thread actors, spoken to from the loop and from each other."""

import threading
from typing import Any

import pykka
import pytest
import structlog.testing
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.exits import ActorExited, MailboxFull, StartFailed
from holdfast.actors.future import Future, wait_for
from holdfast.actors.pykka_compat import Envelope
from holdfast.actors.system import System
from holdfast.actors.threads import ThreadActor, call_thread, stop_thread


class Worker(ThreadActor):
    inbox_bound = 2

    def __init__(self, gate: threading.Event | None = None, fail: bool = False) -> None:
        super().__init__()
        self.gate = gate
        self.fail = fail

    def on_start(self) -> None:
        if self.fail:
            raise OSError("no")

    def on_receive(self, message: Any) -> Any:
        if self.gate is not None:
            self.gate.wait(5)
        if message == "crash":
            raise ValueError("boom")
        taken = self.take_waiting(10)
        for envelope in taken:
            if envelope.reply_to is not None:
                envelope.reply_to.set("batched")
        return message, len(taken)

    def double(self, number: int) -> int:
        return 2 * number


async def test_43_the_loop_awaits_a_thread() -> None:
    ref = await Worker.spawn()
    assert await call_thread(ref, 1) == (1, 0)
    with pytest.raises(ValueError, match="boom"):
        await call_thread(ref, "crash")
    assert await wait_for(ref.proxy().double(21)) == 42
    assert ref not in pykka.ActorRegistry.get_all()
    assert await stop_thread(ref)
    with pytest.raises(ActorExited):
        await call_thread(ref, 1)
    assert not await stop_thread(ref)


async def test_a_full_inbox_refuses_the_loop_and_waiting_ones_are_taken_at_once() -> None:
    gate = threading.Event()
    ref = Worker.start(gate)
    first = ref.ask(1, block=False)
    while not ref.actor_inbox.empty():
        pass
    second = ref.ask(2, block=False)
    ref.tell(3)
    with pytest.raises(MailboxFull):
        ref.tell(4)
    stopped = ref.stop(block=False)
    gate.set()
    assert await wait_for(first) == (1, 2)
    assert await wait_for(second) == "batched"
    assert await wait_for(stopped)


async def test_a_thread_actor_that_does_not_start_is_told(caplog: Any) -> None:
    with pytest.raises(StartFailed):
        await Worker.spawn(None, True)
    with pytest.raises(StartFailed):
        await Worker.spawn(nonsense=1)


async def test_43_a_thread_asks_an_actor_on_the_loop() -> None:
    class Doubler(Actor):
        async def double(self, number: int) -> int:
            return 2 * number

        def on_receive(self, message: Any) -> Any:
            return ("heard", message)

    class Asker(ThreadActor):
        def on_receive(self, message: Any) -> Any:
            return doubler.ask(message, timeout=5), doubler.proxy().double(4).get(timeout=5)

    async with System.open():
        doubler = await Doubler.spawn()
        asker = await Asker.spawn()
        assert await call_thread(asker, 1) == (("heard", 1), 8)
        future = doubler.proxy().double(4)
        assert await future.map(lambda number: number + 1) == 9
        assert await future.join(doubler.proxy().double(5)) == [8, 10]
        await stop_thread(asker)


async def test_a_system_ends_its_threads_in_their_place_among_the_actors() -> None:
    class Logging(ThreadActor):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def on_stop(self) -> None:
            log.append(self.name)

    class Hosted(Actor):
        def on_stop(self) -> None:
            log.append("actor")

    log: list[str] = []
    async with System.open() as system:
        first = await Logging.spawn("first")
        await Hosted.spawn()
        await Logging.spawn("second")
        third = await trio.to_thread.run_sync(Logging.start, "third")
        gone = await Logging.spawn("gone")
        await stop_thread(gone)
        while gone in system.threads:
            await trio.sleep(0.001)
        assert len(system.threads) == 3
    assert log == ["gone", "third", "second", "actor", "first"]
    for ref in (first, third):
        with pytest.raises(ActorExited):
            await call_thread(ref, 1)


async def test_a_thread_that_does_not_end_is_left_behind_with_a_line() -> None:
    gate = threading.Event()
    with structlog.testing.capture_logs() as lines:
        async with System.open(stop_within_s=0.05):
            ref = await Worker.spawn(gate)
            ref.tell(1)
    assert [line["event"] for line in lines] == ["thread.left_behind"]
    assert lines[0]["actor"] == str(ref)
    gate.set()


async def test_a_thread_outside_a_system_is_its_starters() -> None:
    ref = await Worker.spawn()
    assert await call_thread(ref, 1) == (1, 0)
    assert await stop_thread(ref)


@pytest.mark.parametrize("fatal", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_is_no_exception_fails_every_caller_at_once_and_ends_the_system(
    fatal: type[BaseException],
) -> None:
    class Falling(ThreadActor):
        def on_receive(self, message: Any) -> None:
            gate.wait(5)
            self.take_waiting(1)
            raise fatal

    async def ask(message: Any) -> None:
        with pytest.raises(ActorExited):
            await call_thread(ref, message, timeout_s=None)
        told.append(message)

    gate = threading.Event()
    told: list[int] = []

    async def serve() -> None:
        nonlocal ref
        async with System.open():
            ref = await Falling.spawn()
            for message in range(4):  # one in work, one taken, two in the inbox
                nursery.start_soon(ask, message)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.set()
            with trio.move_on_after(5):
                await trio.sleep_forever()

    ref: Any = None
    async with trio.open_nursery() as nursery:
        with pytest.raises(fatal):
            await serve()
    assert sorted(told) == [0, 1, 2, 3]
    assert not ref.is_alive()


async def test_a_fault_that_nobody_asked_for_ends_the_thread_and_tells_who_waits() -> None:
    class Bad(Worker):
        def on_failure(self, *_: Any) -> None:
            failures.append(1)
            raise TypeError

    failures: list[int] = []
    gate = threading.Event()
    ref = Bad.start(gate)
    ref.tell("crash")
    while not ref.actor_inbox.empty():
        await trio.sleep(0.001)
    ref.tell("waits")
    answer = ref.ask("waits", block=False)
    stop = ref.stop(block=False)
    blocked: list[bool] = []

    def tell_when_room() -> None:
        with pytest.raises(ActorExited):
            ref.tell("no room")
        blocked.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, tell_when_room)
        await trio.sleep(0.02)
        gate.set()
    assert (failures, blocked) == ([1], [True])
    with pytest.raises(ActorExited):
        await answer
    await wait_for(stop)
    with pytest.raises(ActorExited):
        ref.actor_inbox.put(Envelope("late"))
    late: Future[Any] = Future()
    ref.actor_inbox.put(Envelope("late", reply_to=late))
    with pytest.raises(ActorExited):
        await late


async def test_whoever_was_taken_in_a_batch_shares_its_fault() -> None:
    class Batching(ThreadActor):
        def on_receive(self, message: Any) -> None:
            gate.wait(5)
            answered, *_ = self.take_waiting(10)
            answered.reply_to.set("done")
            raise LookupError

    gate = threading.Event()
    ref = await Batching.spawn()
    answers = [ref.ask(number, block=False) for number in range(3)]
    while ref.actor_inbox.depth() > 2:
        await trio.sleep(0.001)
    gate.set()
    with pytest.raises(LookupError):
        await answers[0]
    assert await answers[1] == "done"
    with pytest.raises(LookupError):
        await answers[2]
    assert await stop_thread(ref)


async def test_a_start_that_exits_hangs_or_is_called_off_is_told() -> None:
    class Starting(ThreadActor):
        def __init__(self, act: Any) -> None:
            super().__init__()
            self.act = act

        def on_start(self) -> None:
            self.act()

    def leave() -> None:
        raise SystemExit

    gate = threading.Event()
    with pytest.raises(StartFailed):
        await Starting.spawn(leave)
    with pytest.raises(StartFailed):
        await Starting.spawn(lambda: gate.wait(5), start_timeout_s=0.02)
    with trio.move_on_after(0.02) as scope:
        await Starting.spawn(lambda: gate.wait(5))
    assert scope.cancelled_caught
    gate.set()
