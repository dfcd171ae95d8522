"""Thread actors, spoken to from the loop and from each other."""

import threading
from typing import Any

import pykka
import pytest

from holdfast.actors.actor import Actor
from holdfast.actors.exits import ActorExited, MailboxFull, StartFailed
from holdfast.actors.future import wait_for
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
