"""The exec's table: every state with every step, and what a shim's report leads to."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import FailedPrecondition, NotFound, Refusal
from holdfast.runtime.exec import (
    TRANSITIONS,
    Delete,
    Start,
    Started,
    Step,
    exit_record,
    lost,
    next_state,
    steps_to_truth,
)
from holdfast.runtime.forwarded import CloseStdin, Kill, Resize
from holdfast.runtime.records import ExecState
from holdfast.runtime.shimclient import Exited, ProcessState
from holdfast.runtime.stdio import Stdio

STEPS: list[Step] = [
    Start(),
    Started(pid=7),
    Kill(signal=9),
    Resize(width=80, height=25),
    CloseStdin(),
    Exited(exec_id="top", pid=7, status=0, exited_at_ns=1),
    Delete(),
]

states = st.sampled_from(list(ExecState))
steps = st.sampled_from(STEPS)


def process(status: str, *, lost: bool = False) -> ProcessState:
    return ProcessState(
        exec_id="top",
        status=status,
        pid=7,
        stdio=Stdio(),
        exit_status=3,
        exited_at_ns=1,
        lost=lost,
    )


def test_every_kind_of_step_is_drawn() -> None:
    assert {type(step) for step in STEPS} == set(get_args(Step))


@given(states, steps)
def test_off_the_table_means_refused_and_unchanged(state: ExecState, step: Step) -> None:
    expected = TRANSITIONS.get((state, type(step)))
    if expected is None:
        with pytest.raises(Refusal) as refused:
            next_state(state, step)
        assert str(refused.value)
    else:
        assert next_state(state, step) is expected


def test_every_state_leads_to_gone() -> None:
    reached = {ExecState.GONE}
    while True:
        more = {old for (old, _), new in TRANSITIONS.items() if new in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(ExecState)


@pytest.mark.parametrize(
    ("state", "step", "kind", "text"),
    [
        (
            ExecState.ADDED,
            Kill(signal=9),
            FailedPrecondition,
            "process not created: failed precondition",
        ),
        (ExecState.STOPPED, Kill(signal=9), NotFound, "process already finished: not found"),
        (ExecState.RUNNING, Start(), FailedPrecondition, "cannot start a running process"),
        (ExecState.RUNNING, Delete(), FailedPrecondition, "cannot delete a running process"),
        (
            ExecState.STOPPED,
            Resize(width=1, height=1),
            FailedPrecondition,
            "cannot resize a stopped container",
        ),
        (ExecState.GONE, Delete(), NotFound, "Delete of a deleted process: not found"),
    ],
)
def test_refusals_are_in_containerds_words(
    state: ExecState, step: Step, kind: type[Refusal], text: str
) -> None:
    with pytest.raises(kind) as refused:
        next_state(state, step)
    assert str(refused.value) == text


@given(states, st.sampled_from([None, "created", "running", "stopped"]))
def test_a_shims_report_leads_to_its_truth_by_steps_of_the_table(
    state: ExecState, status: str | None
) -> None:
    if state is ExecState.GONE:
        return
    for step in steps_to_truth(state, None if status is None else process(status)):
        state = next_state(state, step)
    if status == "stopped":
        assert state is ExecState.STOPPED
    if status == "running":
        assert state in (ExecState.RUNNING, ExecState.STOPPED)


def test_an_exec_that_no_shim_knows_any_more_is_lost() -> None:
    (step,) = steps_to_truth(ExecState.RUNNING, None)
    assert isinstance(step, Exited)
    assert step.status == 255
    assert steps_to_truth(ExecState.ADDED, None) == []
    (stopped,) = steps_to_truth(ExecState.RUNNING, process("stopped", lost=True))
    assert isinstance(stopped, Exited)
    assert stopped.status == 255


def test_a_lost_exit_is_written_with_the_pid_that_was_known() -> None:
    record = exit_record(lost(), 42)
    assert record.pid == 42
    assert record.exited_at_ns > 0
