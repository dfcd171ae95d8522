"""The mailbox against a model, and the order in which those who wait for room are served."""

import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast.actors.actor import Actor
from holdfast.actors.exits import SHUTDOWN, ActorExited, MailboxFull
from holdfast.actors.mailbox import Mailbox, Overflow
from holdfast.actors.pykka_compat import Envelope
from holdfast.actors.system import System


async def test_those_who_wait_for_room_are_served_in_their_order(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Small(scripted):
        mailbox_bound = 2

    ref = await Small.spawn(log := [])
    ref.tell(("sleep", 1))
    await trio.testing.wait_all_tasks_blocked()
    ref.tell("a")
    ref.tell("b")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ref.send, number)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(MailboxFull):
            ref.tell("overtaking")
    await ref.call("count")
    assert log[1:] == ["a", "b", *range(20)]


async def test_one_who_comes_as_room_is_made_does_not_overtake(
    autojump_clock: Any, system: System, scripted: Any
) -> None:
    class Small(scripted):
        mailbox_bound = 1

    ref = await Small.spawn(log := [])

    async def take_another_sender_along(_: Any) -> None:
        # Runs right after the mailbox made room for "waiting", before its sender has run.
        nursery.start_soon(ref.send, "newcomer")

    async with trio.open_nursery() as nursery:
        ref.tell(("sleep", 1))
        await trio.testing.wait_all_tasks_blocked()
        ref.tell(take_another_sender_along)
        nursery.start_soon(ref.send, "waiting")
        await trio.testing.wait_all_tasks_blocked()
    await ref.call("count")
    assert log[1:] == ["waiting", "newcomer"]


class Loop:
    """A trio run in a thread of its own, for rules that are plain functions."""

    def __init__(self) -> None:
        opened: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def main() -> None:
            self.over = trio.Event()
            async with trio.open_nursery() as self.nursery:
                opened.put(trio.lowlevel.current_trio_token())
                await self.over.wait()
                self.nursery.cancel_scope.cancel()

        self.thread = threading.Thread(target=trio.run, args=(main,))
        self.thread.start()
        self.token = opened.get()

    def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async def settled() -> Any:
            try:
                return await function(*args)
            finally:
                await trio.testing.wait_all_tasks_blocked()

        return trio.from_thread.run(settled, trio_token=self.token)

    def end(self) -> None:
        trio.from_thread.run_sync(self.over.set, trio_token=self.token)
        self.thread.join()


class MailboxAgainstModel(RuleBasedStateMachine):
    """The model is three lists: what lies there, who waits for room, what is postponed."""

    box: Mailbox

    @initialize(
        bound=st.integers(1, 3) | st.none(),
        overflow=st.sampled_from([o for o in Overflow if o is not Overflow.KILL]),
    )
    def open(self, bound: int | None, overflow: Overflow) -> None:
        async def make() -> Actor:
            return type("Boxed", (Actor,), {"mailbox_bound": bound, "overflow": overflow})()

        self.loop = Loop()
        self.actor = self.loop.run(make)
        self.box = self.actor.cell.mailbox
        self.bound, self.overflow = bound, overflow
        self.user: list[int] = []
        self.waiting: list[int] = []
        self.held: list[int] = []
        self.closed = False
        self.dropped = 0
        self.number = 0
        self.scopes: dict[int, trio.CancelScope] = {}
        self.sent: list[int] = []
        self.failed: list[int] = []
        self.expected_sent: list[int] = []
        self.expected_failed: list[int] = []
        self.envelopes: dict[int, Envelope[Any]] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.end()

    def new(self) -> Envelope[Any]:
        self.number += 1
        envelope = self.envelopes[self.number] = Envelope(self.number)
        return envelope

    def full(self) -> bool:
        return self.bound is not None and len(self.user) >= self.bound

    def admit(self) -> None:
        while self.waiting and not self.full():
            number = self.waiting.pop(0)
            self.user.append(number)
            self.expected_sent.append(number)

    @rule()
    def tell(self) -> None:
        envelope = self.new()
        refused = False

        async def put() -> None:
            self.box.put(envelope)

        try:
            self.loop.run(put)
        except MailboxFull:
            refused = True
        if self.closed:
            return
        assert refused == (self.full() and self.overflow in (Overflow.BLOCK, Overflow.REJECT))
        if not self.full():
            self.user.append(self.number)
        elif self.overflow is Overflow.DROP_NEW:
            self.dropped += 1
        elif self.overflow is Overflow.DROP_OLD:
            self.user.pop(0)
            self.user.append(self.number)
            self.dropped += 1

    @rule()
    def send(self) -> None:
        envelope, number = self.new(), self.number
        scope = self.scopes[number] = trio.CancelScope()

        async def task() -> None:
            with scope:
                try:
                    await self.box.put_when_room(envelope)
                    self.sent.append(number)
                except ActorExited:
                    self.failed.append(number)

        async def start() -> None:
            self.loop.nursery.start_soon(task)

        self.loop.run(start)
        if not self.closed and self.full():
            self.waiting.append(number)
            return
        self.expected_sent.append(number)
        if not self.closed:
            self.user.append(number)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.waiting))

        async def cancel() -> None:
            self.scopes[number].cancel()

        self.loop.run(cancel)
        self.waiting.remove(number)

    @precondition(lambda self: self.user)
    @rule()
    def take(self) -> None:
        async def get() -> Any:
            return self.box.get()

        assert self.loop.run(get).message == self.user.pop(0)
        self.admit()

    @precondition(lambda self: self.user)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.user))

        async def withdraw() -> None:
            self.box.withdraw(self.envelopes[number])

        self.loop.run(withdraw)
        if self.bound is not None:
            self.user.remove(number)
            self.admit()

    @precondition(lambda self: self.user)
    @rule()
    def postpone(self) -> None:
        async def hold() -> None:
            envelope = self.box.get()
            try:
                self.box.hold(envelope)
            except MailboxFull:
                assert len(self.held) == self.bound

        self.loop.run(hold)
        number = self.user.pop(0)
        if self.bound is None or len(self.held) < self.bound:
            self.held.append(number)
        self.admit()

    @rule()
    def release(self) -> None:
        async def release() -> None:
            self.box.release()

        self.loop.run(release)
        self.user[:0] = self.held
        self.held = []

    @precondition(lambda self: not self.closed and self.number > 5)
    @rule()
    def close(self) -> None:
        async def close() -> None:
            self.box.close(SHUTDOWN)

        self.loop.run(close)
        self.closed = True
        self.expected_failed += self.waiting
        self.user, self.waiting, self.held = [], [], []

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "box"):
            return
        box = self.box
        assert [envelope.message for envelope in box.user] == self.user
        assert [envelope.message for envelope in (box.waiting or {}).values()] == self.waiting
        assert [envelope.message for envelope in box.held or ()] == self.held
        assert box.dropped == self.dropped
        assert len(box) == len(self.user) + len(self.held)
        # Several senders that are let in at once may run in any order; their messages do not.
        assert sorted(self.sent) == sorted(self.expected_sent)
        assert sorted(self.failed) == sorted(self.expected_failed)
        assert not self.waiting or self.full()


TestMailbox = MailboxAgainstModel.TestCase
TestMailbox.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
