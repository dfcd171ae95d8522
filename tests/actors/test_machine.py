"""The state machine: its table, its timeouts, what it postpones."""

import enum
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import Aborted, FailedPrecondition
from holdfast.actors.exits import KILL, NORMAL, ActorExited
from holdfast.actors.machine import StateMachine, next_state
from holdfast.actors.message import Request
from holdfast.actors.system import System


class State(enum.Enum):
    CREATED = enum.auto()
    STARTING = enum.auto()
    RUNNING = enum.auto()
    FAILED = enum.auto()
    GONE = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Request[str]):
    refuse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Up(Request[str]):
    to: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Request[None]):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec(Request[str]):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Request[str]):
    pass


TRANSITIONS = {
    (State.CREATED, Start): State.STARTING,
    (State.STARTING, Up): State.RUNNING,
    (State.STARTING, Slow): State.FAILED,
    (State.RUNNING, Exec): State.RUNNING,
    (State.RUNNING, Slow): State.RUNNING,
    (State.RUNNING, Delete): State.GONE,
    (State.FAILED, Delete): State.GONE,
}


class Container(StateMachine[State]):
    initial = State.CREATED
    transitions = TRANSITIONS
    postpones = frozenset({(State.STARTING, Exec)})
    finals = frozenset({State.GONE})
    mailbox_bound = 4

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log

    async def on_enter(self, old: State | None) -> None:
        self.log.append((old, self.state))
        if self.state is State.STARTING:
            self.state_timeout(5, Slow())
        if self.state is State.RUNNING:
            self.event_timeout(3, Slow())
            self.timeout("late", 60, Slow())

    async def act(self, message: Any) -> str:
        if isinstance(message, Start) and message.refuse:
            self.become(State.FAILED)
            raise Aborted("not now")
        if isinstance(message, Up) and message.to is not None:
            self.become(message.to)
        self.log.append(type(message).__name__)
        return type(message).__name__


@given(st.sampled_from(State), st.sampled_from([Start(), Up(), Slow(), Exec(), Delete()]))
def test_off_the_table_is_refused(state: State, message: object) -> None:
    if (state, type(message)) in TRANSITIONS:
        assert next_state(TRANSITIONS, state, message) is TRANSITIONS[state, type(message)]
    else:
        with pytest.raises(FailedPrecondition, match=f"{type(message).__name__} while"):
            next_state(TRANSITIONS, state, message)


async def test_39_a_state_timeout_ends_with_its_state(autojump_clock: Any, system: System) -> None:
    ref = await Container.spawn(log := [])
    await ref.call(Start())
    await trio.sleep(6)
    assert ref.cell.actor.describe_state().startswith("FAILED")
    ref = await Container.spawn(log := [])
    await ref.call(Start())
    await ref.call(Up())
    await trio.sleep(2)
    await ref.call(Exec())
    await trio.sleep(50)
    assert "Slow" not in log  # both the state's and the event's timeout were cancelled
    await trio.sleep(10)
    assert log[-1] == "Slow"


async def test_39_a_postponed_message_comes_first_after_the_change(
    autojump_clock: Any, system: System
) -> None:
    ref = await Container.spawn(log := [])
    await ref.call(Start())
    answers = []

    async def ask() -> None:
        answers.append(await ref.call(Exec()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        ref.tell(Up())
        ref.tell(Delete())
    assert answers == ["Exec"]
    assert await ref.wait_exit() == NORMAL
    assert log[-4:] == [
        (State.STARTING, State.RUNNING),
        "Exec",
        "Delete",
        (State.RUNNING, State.GONE),
    ]


async def test_postponed_messages_have_a_bound_and_are_refused_at_the_end(
    autojump_clock: Any, system: System
) -> None:
    ref = await Container.spawn([])
    await ref.call(Start())
    told: list[str] = []

    async def ask() -> None:
        try:
            await ref.call(Exec(), timeout_s=None)
        except Exception as error:
            told.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
        ref.exit(KILL)
    assert sorted(told) == [ActorExited.__name__] * 4 + ["MailboxFull"]


async def test_a_refused_message_changes_nothing(autojump_clock: Any, system: System) -> None:
    ref = await Container.spawn(log := [])
    with pytest.raises(Aborted):
        await ref.call(Start(refuse=True))
    with pytest.raises(FailedPrecondition):
        await ref.call(Up())
    await ref.call(Start())
    await ref.call(Up(to=State.FAILED))
    assert log[-1] == (State.STARTING, State.FAILED)
    assert await ref.call(Delete()) == "Delete"
    assert await ref.wait_exit() == NORMAL
