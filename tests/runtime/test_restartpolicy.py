"""Restart policies: every rule as a row of a table, and a restart that is killed at every step."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import DataLoss
from holdfast.runtime.records import ExitRecord, State
from holdfast.runtime.restartpolicy import (
    COUNT,
    EXPLICITLY_STOPPED,
    POLICY,
    STATUS,
    Desired,
    Intent,
    Step,
    View,
    allows,
    count_of,
    next_step,
)

GOOD = ExitRecord(pid=7, status=0, exited_at_ns=1)
BAD = ExitRecord(pid=7, status=3, exited_at_ns=1)
LATER = ExitRecord(pid=8, status=3, exited_at_ns=2)
AGAIN = Intent(desired=Desired.RUNNING, exit=BAD)
NEVER_RAN = Intent(desired=Desired.RUNNING)
END = Intent(desired=Desired.STOPPED)


@pytest.mark.parametrize(
    ("policy", "count", "explicit", "exit", "wanted"),
    [
        ("", "", "", GOOD, True),
        ("", "7", "true", BAD, True),
        ("", "", "", None, True),
        ("always", "", "", GOOD, True),
        ("always", "", "true", BAD, True),
        ("always", "no number", "", None, True),
        ("always:3", "", "", BAD, False),
        (":3", "", "", BAD, False),
        ("no", "", "", BAD, False),
        ("no", "", "", None, False),
        ("no:1", "", "", BAD, False),
        ("unless-stopped", "", "", GOOD, True),
        ("unless-stopped", "", "", None, True),
        ("unless-stopped", "", "false", BAD, True),
        ("unless-stopped", "", "maybe", BAD, True),
        ("unless-stopped", "", "true", BAD, False),
        ("unless-stopped", "", "1", BAD, False),
        ("unless-stopped", "", "T", None, False),
        ("unless-stopped:1", "", "", BAD, False),
        ("on-failure", "", "", BAD, True),
        ("on-failure", "1000", "", BAD, True),
        ("on-failure", "", "", GOOD, False),
        ("on-failure", "", "", None, False),
        ("on-failure", "", "true", BAD, True),
        ("on-failure:0", "5", "", BAD, True),
        ("on-failure:-1", "5", "", BAD, True),
        ("on-failure:2", "", "", BAD, True),
        ("on-failure:2", "1", "", BAD, True),
        ("on-failure:2", "2", "", BAD, False),
        ("on-failure:2", "3", "", BAD, False),
        ("on-failure:2", "1", "", GOOD, False),
        ("on-failure:2", "no number", "", BAD, False),
        ("on-failure:", "", "", BAD, False),
        ("on-failure:x", "", "", BAD, False),
        ("on-failure:1:2", "", "", BAD, False),
        ("sometimes", "", "", BAD, False),
        ("Always", "", "", BAD, False),
    ],
)
def test_a_policy_says_whether_a_task_comes_back(
    policy: str, count: str, explicit: str, exit: ExitRecord | None, wanted: bool
) -> None:
    labels = {POLICY: policy, COUNT: count, EXPLICITLY_STOPPED: explicit}
    assert allows({key: value for key, value in labels.items() if value}, exit) is wanted


@pytest.mark.parametrize(
    ("desired", "state", "exit", "intent", "wanted"),
    [
        # Not ours.
        ("", State.STOPPED, BAD, None, Step.REST),
        ("", State.RUNNING, None, None, Step.REST),
        ("paused", State.STOPPED, BAD, None, Step.REST),
        # Wanted running: nothing to do, or a decision.
        ("running", State.CREATED, None, None, Step.REST),
        ("running", State.RUNNING, None, None, Step.REST),
        ("running", State.PAUSED, None, None, Step.REST),
        ("running", State.STOPPED, BAD, None, Step.RESTART),
        ("running", State.GONE, None, None, Step.RESTART),
        ("running", State.CREATING, None, None, Step.REST),
        ("running", State.DELETING, None, None, Step.REST),
        # Decided: the way there.
        ("running", State.STOPPED, BAD, AGAIN, Step.DELETE),
        ("running", State.GONE, None, AGAIN, Step.CREATE),
        ("running", State.GONE, None, NEVER_RAN, Step.CREATE),
        ("running", State.CREATING, None, AGAIN, Step.REST),
        ("running", State.CREATED, None, AGAIN, Step.START),
        ("running", State.RUNNING, None, AGAIN, Step.FORGET),
        ("running", State.PAUSED, None, AGAIN, Step.FORGET),
        # The new task has ended already: that is another exit.
        ("running", State.STOPPED, LATER, AGAIN, Step.FORGET),
        ("running", State.STOPPED, LATER, NEVER_RAN, Step.FORGET),
        # Wanted stopped.
        ("stopped", State.GONE, None, None, Step.REST),
        ("stopped", State.STOPPED, BAD, None, Step.REST),
        ("stopped", State.RUNNING, None, None, Step.STOP),
        ("stopped", State.PAUSED, None, None, Step.STOP),
        ("stopped", State.CREATED, None, None, Step.STOP),
        ("stopped", State.CREATING, None, None, Step.REST),
        ("stopped", State.RUNNING, None, END, Step.KILL),
        ("stopped", State.CREATED, None, END, Step.KILL),
        ("stopped", State.STOPPED, BAD, END, Step.DELETE),
        ("stopped", State.GONE, None, END, Step.FORGET),
        # The wish changed before it was done.
        ("stopped", State.STOPPED, BAD, AGAIN, Step.FORGET),
        ("stopped", State.CREATED, None, AGAIN, Step.FORGET),
        ("running", State.RUNNING, None, END, Step.FORGET),
        ("", State.GONE, None, AGAIN, Step.FORGET),
    ],
)
def test_each_view_has_one_next_step(
    desired: str, state: State, exit: ExitRecord | None, intent: Intent | None, wanted: Step
) -> None:
    labels = {STATUS: desired} if desired else {}
    assert next_step(View(labels=labels, state=state, exit=exit, intent=intent)) is wanted


def test_the_last_restart_that_a_policy_gives_is_still_done() -> None:
    labels = {STATUS: "running", POLICY: "on-failure:2", COUNT: "2"}
    view = View(labels=labels, state=State.STOPPED, exit=BAD, intent=AGAIN)
    assert next_step(view) is Step.DELETE
    assert next_step(replace(view, intent=None)) is Step.REST


def test_a_stop_takes_back_a_restart_that_waits() -> None:
    labels = {STATUS: "running", POLICY: "unless-stopped", COUNT: "1"}
    view = View(labels=labels, state=State.STOPPED, exit=BAD, intent=AGAIN)
    assert next_step(view) is Step.DELETE
    assert next_step(replace(view, labels={**labels, EXPLICITLY_STOPPED: "1"})) is Step.FORGET


@pytest.mark.parametrize("intent", [AGAIN, NEVER_RAN, END])
def test_an_intent_is_read_as_it_was_written(intent: Intent) -> None:
    assert Intent.from_record(intent.to_record()) == intent
    with pytest.raises(DataLoss):
        Intent.from_record({**intent.to_record(), "desired": "dancing"})


def after(step: Step, view: View, made: ExitRecord) -> View:
    """The world after a step was done; `made` is how the next task will end."""
    count = count_of(view.labels) or 0
    match step:
        case Step.RESTART:
            intent = Intent(desired=Desired.RUNNING, exit=view.exit)
            return replace(view, labels={**view.labels, COUNT: str(count + 1)}, intent=intent)
        case Step.STOP:
            return replace(view, intent=Intent(desired=Desired.STOPPED))
        case Step.KILL:
            return replace(view, state=State.STOPPED, exit=made)
        case Step.DELETE:
            return replace(view, state=State.GONE, exit=None)
        case Step.CREATE:
            return replace(view, state=State.CREATED)
        case Step.START:
            return replace(view, state=State.RUNNING)
        case Step.FORGET:
            return replace(view, intent=None)
        case Step.REST:
            return view


@given(
    desired=st.sampled_from(["running", "stopped", "", "odd"]),
    policy=st.sampled_from(["", "no", "always", "on-failure", "on-failure:2", "unless-stopped"]),
    count=st.integers(0, 4),
    explicit=st.booleans(),
    state=st.sampled_from([s for s in State if s not in (State.CREATING, State.DELETING)]),
    exit=st.sampled_from([GOOD, BAD, LATER]),
    intent=st.sampled_from([None, AGAIN, NEVER_RAN, END]),
)
def test_whatever_was_left_comes_to_rest_and_counts_once(
    desired: str,
    policy: str,
    count: int,
    explicit: bool,
    state: State,
    exit: ExitRecord,
    intent: Intent | None,
) -> None:
    labels = {STATUS: desired, POLICY: policy, COUNT: str(count)}
    labels[EXPLICITLY_STOPPED] = str(explicit).lower()
    state = State.GONE if state is State.GONE else state
    view = View(
        labels=labels,
        state=state,
        exit=exit if state is State.STOPPED else None,
        intent=intent,
    )
    for _ in range(8):
        step = next_step(view)
        if step is Step.REST:
            break
        view = after(step, view, GOOD)
    assert next_step(view) is Step.REST
    assert view.intent is None
    assert (count_of(view.labels) or 0) - count in (0, 1)
