"""Holdfast and Debian's containerd give the same answers to the same questions."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.difference import explained
from tests.difference.answer import Outcome
from tests.difference.compare import Found, Pair, compare, once, pair
from tests.difference.differences import EVENT_ROWS, ROWS, row_for
from tests.difference.step import Step, parse

PAGE = Path(__file__).parents[2] / "docs/reference/differences.md"
SEQUENCES = 300


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The two daemons, for all tests here."""
    with pair(tmp_path_factory.mktemp("difference")) as started:
        yield started


@pytest.mark.root
@pytest.mark.slow
def test_no_sequence_tells_them_apart(both: Pair) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    found = compare(both, SEQUENCES, seed, differences_max=3)
    assert not found.differences, f"seed {seed}:\n" + "\n".join(map(str, found.differences))
    # The test is worth its time only where much succeeds and much is refused.
    assert found.steps / 10 < found.refusals < found.steps * 9 / 10


@pytest.mark.root
def test_a_difference_is_found_out(both: Pair) -> None:
    # Nothing but a row stands between this step and a report.
    step = Step("Namespaces.Update", {"namespace": {"name": "@ns-a", "labels": {"k1": "v1"}}})
    found = Found()
    assert once(both, 0, [step], found) is None
    assert found.rows == {"Namespaces.Update answers": 1}
    assert row_for([Step("Namespaces.Get")], Outcome(answer=1), Outcome(answer=2)) is None


def test_a_script_is_read_as_it_was_printed() -> None:
    steps = [
        Step("Containers.Get", {"id": "c\n1"}, ns=None, lease="l1"),
        Step("Content.Write", [{"data": b"\x00"}], stream="s"),
    ]
    assert parse(repr(steps)) == steps


def test_a_row_may_ask_for_what_came_before() -> None:
    write = Step("Content.Write", [{"ref": "r", "total": 9}, {"total": -1}])
    assert explained.began_anew([write])
    assert explained.began_anew([Step("Namespaces.Delete", {"name": "n"})])
    assert not explained.began_anew([Step(write.method, write.request[:1])] * 2)
    start = Step("Tasks.Start", {"container_id": "c", "exec_id": "e"})
    pause = Step("Tasks.Pause", {"container_id": "c"})
    assert explained.exec_started_again([start, pause, start])
    assert not explained.exec_started_again([start, pause])
    assert not explained.exec_started_again([start, start])
    fallen = Outcome(code="NOT_FOUND", message="not found")
    assert row_for([start, pause, start], Outcome(), fallen) is not None
    assert row_for([start, pause], Outcome(), fallen) is None


def test_the_page_has_the_same_rows_as_the_table() -> None:
    written = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)
    wanted = [(row.name, row.reason) for row in (*ROWS, *EVENT_ROWS)]
    assert written[1:] == wanted
