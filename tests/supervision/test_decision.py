"""The tables and plain functions: every pair, any sequence."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.exits import Exit, Kind
from holdfast.supervision.decision import (
    STEPS,
    Plan,
    Step,
    Window,
    ends_supervisor,
    next_step,
    plan,
)
from holdfast.supervision.spec import (
    AutoShutdown,
    ChildSpec,
    Intensity,
    Restart,
    Strategy,
)
from holdfast.supervision.supervisor import Supervisor


def specs_of(kinds: list[Restart]) -> list[ChildSpec]:
    return [ChildSpec(str(number), Supervisor, kind) for number, kind in enumerate(kinds)]


def test_the_table_knows_every_pair():
    assert set(STEPS) == set(itertools.product(Restart, Kind))


@pytest.mark.parametrize("kind", Kind)
def test_the_table_follows_the_three_words(kind):
    assert next_step(Restart.PERMANENT, kind) is Step.RESTART
    transient = Step.RESTART if Exit(kind).abnormal else Step.KEEP
    assert next_step(Restart.TRANSIENT, kind) is transient
    assert next_step(Restart.TEMPORARY, kind) is Step.FORGET


@given(
    kinds=st.lists(st.sampled_from(Restart), min_size=1, max_size=8),
    strategy=st.sampled_from(Strategy),
    data=st.data(),
)
def test_a_plan_stops_against_the_order_and_starts_along_it(kinds, strategy, data):
    specs = specs_of(kinds)
    lasting = [spec.id for spec in specs if spec.restart is not Restart.TEMPORARY]
    fallen = data.draw(st.sampled_from(lasting or ["0"]))
    made = plan(strategy, specs, fallen)
    first = {Strategy.ONE_FOR_ALL: 0, Strategy.REST_FOR_ONE: int(fallen)}
    begin = first.get(strategy)
    if begin is None:
        assert made == Plan((), (), (fallen,))
        return
    group = [spec.id for spec in specs[begin:]]
    temporary = {spec.id for spec in specs if spec.restart is Restart.TEMPORARY}
    assert list(made.stop) == [one for one in reversed(group) if one != fallen]
    assert list(made.start) == [one for one in group if one not in temporary]
    assert set(made.start) | set(made.forget) == set(group)


@given(
    gaps_s=st.lists(st.floats(0, 10), max_size=60),
    restarts=st.integers(0, 5),
    within_s=st.floats(0.1, 20),
)
def test_the_window_grants_as_a_naive_count_would(gaps_s, restarts, within_s):
    window = Window(Intensity(restarts=restarts, within_s=within_s))
    granted: list[float] = []
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        recent = [one for one in granted if one >= now_s - within_s]
        expected = len(recent) < restarts
        assert window.grant(now_s) is expected
        if not expected:
            return  # a supervisor that was refused asks no more
        granted.append(now_s)
        assert len(window.times_s) <= restarts + 1


@pytest.mark.parametrize(
    ("auto", "significant", "others", "ends"),
    [
        (AutoShutdown.NEVER, True, False, False),
        (AutoShutdown.ANY_SIGNIFICANT, True, True, True),
        (AutoShutdown.ANY_SIGNIFICANT, False, False, False),
        (AutoShutdown.ALL_SIGNIFICANT, True, True, False),
        (AutoShutdown.ALL_SIGNIFICANT, True, False, True),
        (AutoShutdown.ALL_SIGNIFICANT, False, False, False),
    ],
)
def test_whose_end_is_the_supervisors(auto, significant, others, ends):
    spec = ChildSpec("a", Supervisor, Restart.TEMPORARY, significant=significant)
    assert ends_supervisor(auto, spec, others) is ends
