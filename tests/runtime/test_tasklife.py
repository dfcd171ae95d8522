"""The task's table: every state with every step, and what a shim's report leads to."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal
from holdfast.runtime.forwarded import CloseStdin, Kill, Resize
from holdfast.runtime.records import State
from holdfast.runtime.shimclient import Exited, ProcessState, ShimState
from holdfast.runtime.stdio import Stdio
from holdfast.runtime.tasklife import (
    HALFWAY,
    TRANSITIONS,
    AddExec,
    Create,
    Delete,
    Frozen,
    Pause,
    Resume,
    Start,
    Started,
    Step,
    Thawed,
    Update,
    next_state,
    steps_to_truth,
)

EXITED = Exited(exec_id="", pid=7, status=3, exited_at_ns=1)
STEPS: list[Step] = [
    Create(config=b"{}"),
    Start(),
    Started(),
    Pause(),
    Resume(),
    Frozen(),
    Thawed(),
    Kill(signal=9),
    Update(resources=b"{}"),
    AddExec(),
    Resize(width=80, height=25),
    CloseStdin(),
    EXITED,
    Delete(),
]

states = st.sampled_from(list(State))
steps = st.sampled_from(STEPS)


def process(status: str, *, lost: bool = False) -> ProcessState:
    return ProcessState(
        exec_id="",
        status=status,
        pid=7,
        stdio=Stdio(),
        exit_status=3,
        exited_at_ns=1,
        lost=lost,
    )


def shim(status: str | None, *, paused: bool = False, lost: bool = False) -> ShimState:
    return ShimState(
        id="web",
        namespace="default",
        paused=paused,
        cgroups={},
        processes={} if status is None else {"": process(status, lost=lost)},
        runtime_spawns=0,
        operations=[],
    )


def test_every_kind_of_step_is_drawn() -> None:
    assert {type(step) for step in STEPS} == set(get_args(Step))


@given(states, steps)
def test_off_the_table_means_refused_and_unchanged(state: State, step: Step) -> None:
    expected = TRANSITIONS.get((state, type(step)))
    if expected is None:
        with pytest.raises(Refusal) as refused:
            next_state(state, step)
        assert str(refused.value)
    else:
        assert next_state(state, step) is expected


@given(st.lists(steps, max_size=30))
def test_a_task_stops_once_and_a_gone_task_stays_gone(walk: list[Step]) -> None:
    state = State.CREATING
    for step in walk:
        before = state
        try:
            state = next_state(state, step)
        except Refusal:
            assert state is before
        assert not (before is State.GONE and state is not State.GONE)
        assert not (before is State.STOPPED and state not in (State.STOPPED, State.GONE))


def test_every_state_leads_to_gone() -> None:
    reached = {State.GONE}
    while True:
        more = {old for (old, _), new in TRANSITIONS.items() if new in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize(
    ("state", "step", "kind", "text"),
    [
        (
            State.RUNNING,
            Delete(),
            FailedPrecondition,
            "task must be stopped before deletion: running: failed precondition",
        ),
        (State.STOPPED, Kill(signal=9), NotFound, "process already finished: not found"),
        (State.DELETING, Kill(signal=9), NotFound, "process already finished: not found"),
        (State.DELETING, Start(), FailedPrecondition, "cannot start a deleting process"),
        (State.STOPPED, Start(), FailedPrecondition, "cannot start a stopped process"),
        (State.RUNNING, Start(), FailedPrecondition, "cannot start a running process"),
        (State.CREATED, Pause(), FailedPrecondition, "cannot pause task in created state"),
        (State.PAUSED, Pause(), FailedPrecondition, "cannot pause a paused container"),
        (State.STOPPED, Pause(), FailedPrecondition, "cannot pause a stopped container"),
        (State.CREATED, Resume(), FailedPrecondition, "cannot resume task in created state"),
        (State.RUNNING, Resume(), FailedPrecondition, "cannot resume a running process"),
        (State.STOPPED, Resume(), FailedPrecondition, "cannot resume a stopped container"),
        (
            State.STOPPED,
            Update(resources=b""),
            FailedPrecondition,
            "cannot update a stopped container",
        ),
        (State.STOPPED, AddExec(), FailedPrecondition, "cannot exec in a stopped state"),
        (State.PAUSED, AddExec(), FailedPrecondition, "cannot exec in a paused state"),
        (State.CREATED, Create(config=b""), AlreadyExists, "Create while created: already exists"),
        (State.GONE, Start(), NotFound, "Start of a deleted task: not found"),
    ],
)
def test_refusals_are_in_containerds_words(
    state: State, step: Step, kind: type[Refusal], text: str
) -> None:
    with pytest.raises(kind) as refused:
        next_state(state, step)
    assert str(refused.value) == text


@given(states, st.sampled_from([None, "created", "running", "stopped"]), st.booleans())
def test_a_shims_report_leads_to_its_truth_by_steps_of_the_table(
    state: State, status: str | None, paused: bool
) -> None:
    if state is State.GONE:
        return
    for step in steps_to_truth(state, shim(status, paused=paused)):
        state = next_state(state, step)
    if state in HALFWAY:
        return
    if status in (None, "stopped"):
        assert state is State.STOPPED
    if status == "running" and state is not State.STOPPED:
        assert state is (State.PAUSED if paused else State.RUNNING)


@given(states)
def test_what_is_known_is_not_told_again(state: State) -> None:
    known = {
        State.CREATED: shim("created"),
        State.RUNNING: shim("running"),
        State.PAUSED: shim("running", paused=True),
        State.STOPPED: shim("stopped"),
    }
    if state in known:
        assert steps_to_truth(state, known[state]) == []


def test_a_missed_exit_keeps_its_status_and_a_lost_one_says_so() -> None:
    (missed,) = steps_to_truth(State.RUNNING, shim("stopped"))
    assert isinstance(missed, Exited)
    assert (missed.status, missed.exited_at_ns) == (3, 1)
    (lost,) = steps_to_truth(State.RUNNING, shim("stopped", lost=True))
    assert isinstance(lost, Exited)
    assert lost.status == 255


def test_a_missed_start_is_told_before_the_freeze() -> None:
    steps = steps_to_truth(State.CREATED, shim("running", paused=True))
    assert steps == [Started(), Frozen()]
