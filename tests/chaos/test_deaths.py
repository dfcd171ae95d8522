"""The death matrix: a sample of it whose seed a failure prints."""

import os
import random
import time
from pathlib import Path

import pytest

from holdfast.chaos import deaths
from holdfast.chaos.containers import State

CONTAINERS = 200
BATCH = 14
INSIDE_SHARE_MIN = 0.2


def test_each_set_of_victims_meets_each_state() -> None:
    rounds = deaths.draw_rounds(210, random.Random(1), batch=BATCH)
    met = {(r.name, plan.state) for r in rounds for plan in r.plans}
    assert len(deaths.SETS) == 15
    assert met == {("+".join(victims), state) for victims in deaths.SETS for state in State}


def test_all_cells_are_met_before_any_is_met_again() -> None:
    rounds = deaths.draw_rounds(15 * len(deaths.CELLS), random.Random(1))
    met = [(r.name, p.state, p.terminal, p.stdin) for r in rounds for p in r.plans]
    assert len(met) == len(set(met)) == 15 * 7 * 2 * 2


def test_loggers_and_sandboxes_have_their_share() -> None:
    rounds = deaths.draw_rounds(CONTAINERS, random.Random(1), batch=BATCH)
    plans = [plan for r in rounds for plan in r.plans]
    assert sum(plan.capped for plan in plans) >= CONTAINERS // 20
    assert sum(plan.in_sandbox for plan in plans) >= CONTAINERS // 10
    bereft = [plan for r in rounds if r.loggers_die for plan in r.plans if plan.capped]
    assert len(bereft) >= CONTAINERS // 50


def test_a_seed_draws_the_same_rounds_again() -> None:
    drawn = [deaths.draw_rounds(60, random.Random(7)) for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.root
@pytest.mark.slow
async def test_nothing_is_lost_whoever_dies(tmp_path: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED") or time.time_ns() % 1_000_000)
    rounds = deaths.draw_rounds(CONTAINERS, random.Random(seed), batch=BATCH)
    outcome = await deaths.run_matrix(tmp_path, rounds, seed)
    outcome.history.save(tmp_path / "history.jsonl")
    tally = outcome.tally
    told = [f"seed {seed}", tally.table(), *tally.failed_cells(), f"history: {tmp_path}"]
    assert not outcome.violations, "\n".join(told)
    assert tally.inside_share >= INSIDE_SHARE_MIN, "\n".join(told)
