"""Execs under restarts of the daemon: a small campaign whose seed a failure prints."""

import os
import time
from pathlib import Path

import pytest

from holdfast.chaos import execs

pytestmark = [pytest.mark.root, pytest.mark.slow]

EXECS = 600
RESTART_EVERY_S = 3.0


async def test_each_exec_has_one_exit_record_whatever_the_daemon_suffers(tmp_path: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED") or time.time_ns() % 1_000_000)
    campaign = await execs.run_campaign(tmp_path, EXECS, seed, RESTART_EVERY_S)
    assert not campaign.faults(), f"seed {seed}"
    assert sum(campaign.exits.values()) == EXECS
    assert campaign.restarts > 0
