"""Specs are checked where they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.supervision.spec import Backoff, Child, ChildSpec, Intensity, Restart, Strategy, Tree
from holdfast.supervision.supervisor import Supervisor


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChildSpec("", Supervisor),
        lambda: ChildSpec("a", Supervisor, stop_within_s=-1.0),
        lambda: ChildSpec("a", Supervisor, stop_within_s=float("nan")),
        lambda: ChildSpec("a", Supervisor, significant=True),
        lambda: Intensity(restarts=-1),
        lambda: Intensity(within_s=0.0),
        lambda: Backoff(first_s=0.0),
        lambda: Backoff(first_s=2.0, cap_s=1.0),
        lambda: Backoff(factor=0.5),
        lambda: Backoff(jitter=1.5),
    ],
)
def test_nonsense_is_refused_at_once(make):
    with pytest.raises(InvalidArgument):
        make()


def test_a_tree_reads_as_it_is_written():
    tree = Tree(
        "root",
        Strategy.REST_FOR_ONE,
        Intensity(restarts=3, within_s=5.0),
        [
            Child("store", Supervisor, Restart.PERMANENT, stop_within_s=5.0),
            Tree("tasks", Strategy.ONE_FOR_ONE, Intensity(restarts=10, within_s=60.0), []),
        ],
    )
    assert [child.id for child in tree.children] == ["store", "tasks"]
    assert tree.restart is Restart.PERMANENT


@given(
    first_s=st.floats(0.001, 10),
    times=st.floats(1, 1e6),
    factor=st.floats(1, 10),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**9),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_grows_to_its_cap_and_chance_only_shortens_it(
    first_s, times, factor, jitter, attempt, chance
):
    backoff = Backoff(first_s=first_s, cap_s=first_s * times, factor=factor, jitter=jitter)
    whole_s = backoff.delay_s(attempt, 0.0)
    assert first_s * 0.999 <= whole_s <= backoff.cap_s
    assert backoff.delay_s(attempt + 1, 0.0) >= whole_s * 0.999
    assert whole_s * (1 - jitter) * 0.999 <= backoff.delay_s(attempt, chance) <= whole_s


def test_the_first_waits_are_powers_of_the_factor():
    backoff = Backoff(first_s=0.5, factor=2.0, cap_s=3.0, jitter=0.0)
    assert [backoff.delay_s(attempt, 0.9) for attempt in (1, 2, 3, 4, 5)] == [0.5, 1, 2, 3, 3]
