"""Failpoints: what a rule does, to whom, and when."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.actors import failpoints


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")
    failpoints.enter("")


def run(rules: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, failpoints.VARIABLE: rules}
    return subprocess.run(
        [sys.executable, "-c", "from holdfast.actors import failpoints\n" + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_unarmed_points_do_nothing_and_cost_next_to_nothing() -> None:
    failpoints.reach("a")
    began_s = time.perf_counter()
    for _ in range(10_000):
        failpoints.reach("a")
    assert (time.perf_counter() - began_s) / 10_000 < 5e-6


def test_a_kill_ends_the_process_at_the_counted_point() -> None:
    program = "for n in range(9):\n print(n, flush=True)\n failpoints.reach(f'step.{n}')"
    done = run("*=kill@3", program)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1", "2"]


def test_a_kill_by_name_counts_points_of_that_name_alone() -> None:
    program = "for n in 'abab':\n print(n, flush=True)\n failpoints.passed(n)"
    assert run("b=kill@2", program).stdout.split() == list("abab")
    assert run("a=kill", program).stdout.split() == ["a"]


def test_rules_that_are_none_stop_the_program() -> None:
    done = run("nonsense", "print('ran')")
    assert done.returncode == 1
    assert "expected" in done.stderr
    for text in ("a=error:ENOTHING", "=kill", ":a=kill", "a=delay:long", "a=kill@many"):
        with pytest.raises(ValueError):
            failpoints.arm(text)


def test_an_error_is_an_oserror_once_at_its_point() -> None:
    failpoints.arm("a.*=error:ENOSPC@2")
    failpoints.reach("a.one")
    with pytest.raises(OSError) as caught:
        failpoints.reach("a.two")
    assert caught.value.errno == errno.ENOSPC
    failpoints.reach("a.three")


def test_an_error_may_last() -> None:
    failpoints.arm("a=error:EIO@2+")
    failpoints.reach("a")
    for _ in range(3):
        with pytest.raises(OSError):
            failpoints.reach("a")


def test_what_has_happened_cannot_fail() -> None:
    failpoints.arm("a=error:EIO@1+")
    failpoints.passed("a")


def test_a_rule_for_a_program_holds_there_alone() -> None:
    failpoints.arm("shim:*=error:EIO@1+")
    failpoints.reach("a")
    failpoints.enter("worker")
    failpoints.reach("a")
    failpoints.enter("shim")
    with pytest.raises(OSError):
        failpoints.reach("a")


def test_entering_a_program_counts_from_the_start() -> None:
    failpoints.arm("a=error:EIO@2")
    failpoints.reach("a")
    failpoints.enter("shim")
    failpoints.reach("a")
    with pytest.raises(OSError):
        failpoints.reach("a")


def test_a_delay_waits() -> None:
    failpoints.arm("a=delay:0.05")
    began_s = time.monotonic()
    failpoints.reach("a")
    assert time.monotonic() - began_s >= 0.05


def test_points_are_noted_in_their_order(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    failpoints.arm(f"*=note:{notes}")
    for name in ("a", "b", "a"):
        failpoints.reach(name)
    assert notes.read_text().split() == ["a", "b", "a"]


def test_rules_in_a_file_hold_from_when_it_is_there(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    failpoints.arm(f"@{rules}")
    failpoints.reach("a")
    rules.write_text("a=error:EIO@2")
    failpoints.reach("a")
    fresh = tmp_path / "fresh"
    fresh.write_text("a=error:EIO@2")
    fresh.rename(rules)
    failpoints.reach("a")  # counted anew
    with pytest.raises(OSError):
        failpoints.reach("a")
    rules.unlink()
    failpoints.reach("a")
