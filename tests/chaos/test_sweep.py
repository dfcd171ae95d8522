"""A sample of the crash sweep and of the damages, by a seed that a failure prints."""

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from chaos_tests import sweep, sweep_damage
from chaos_tests.sweep_catalogue import catalogue
from chaos_tests.sweep_view import Told, View, untrue

pytestmark = [pytest.mark.root, pytest.mark.slow]

POINTS = 10
# A delete of what never ran stops it first, and may be found in between.
BY_COMMAND = ("task delete, never started",)
WOUNDS = 5


def seed() -> int:
    """HOLDFAST_SEED, or another each time."""
    return int(os.environ.get("HOLDFAST_SEED") or time.time_ns() % 1_000_000)


async def test_a_kill_at_any_point_leaves_the_old_world_or_the_new() -> None:
    chosen = seed()
    lines: list[str] = []
    names = [one.name for one in catalogue(Path()) if one.name not in BY_COMMAND]
    outcomes = await sweep.run(names, ["daemon"], POINTS, chosen, lines.append)
    assert len(outcomes) == POINTS
    assert not [one for one in outcomes if one.wrong], "\n".join([f"seed {chosen}", *lines])


async def test_no_wound_to_the_database_keeps_the_daemon_from_starting() -> None:
    first = seed()
    lines: list[str] = []
    wounds = [sweep_damage.draw(first + number) for number in range(WOUNDS)]
    found = await sweep_damage.run(wounds, lines.append)
    assert len(found) == WOUNDS
    assert not [one for one in found if one.wrong], "\n".join(lines)


WORLD = View(
    namespaces=frozenset({"a"}),
    containers={"box": ("image", "key")},
    images=frozenset({"image"}),
    content=frozenset(),
    ingests=frozenset(),
    snapshots={"key": "ACTIVE", "seen": "VIEW"},
    leases=frozenset(),
    tasks={"box": "RUNNING"},
    pods={"pod": "RUNNING"},
)


def told(**changes: object) -> Told:
    heard = Told(
        containers={"box"},
        images={"image"},
        snapshots={"key"},
        tasks={"box": "RUNNING"},
        pods={"pod": "RUNNING"},
    )
    for name, value in changes.items():
        setattr(heard, name, value)
    return heard


def test_records_and_events_that_agree_are_no_violation() -> None:
    assert list(untrue(WORLD, told())) == []


@pytest.mark.parametrize(
    ("heard", "says"),
    [
        (told(containers=set[str]()), "container box is there, no event tells of it"),
        (told(images={"image", "other"}), "image other is gone or never was"),
        (told(snapshots={"key", "seen", "x"}), "snapshot x is gone or never was"),
        (told(tasks={"box": "CREATED"}), "task box is RUNNING, the events say CREATED"),
        (told(pods={"pod": "STOPPED"}), "sandbox pod is RUNNING, the events say STOPPED"),
        (told(tasks={}), "task box is there, no event tells of it"),
    ],
)
def test_each_disagreement_is_named(heard: Told, says: str) -> None:
    assert any(says in one for one in untrue(WORLD, heard))


def test_a_seed_draws_the_same_wounds_again() -> None:
    drawn = [sweep_damage.draw(number) for number in range(300)]
    assert drawn == [sweep_damage.draw(number) for number in range(300)]
    assert {one.deed for one in drawn} == {"overwrite", "zero", "cut"}
    assert {(one.file, one.log_folded) for one in drawn} == {
        ("", True),
        ("", False),
        ("-wal", False),
    }
