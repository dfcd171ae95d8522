"""Restart labels that `ctr` sets, and a daemon that is killed at every step of a restart."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples import busybox_image

from holdfast.chaos.history import History
from holdfast.chaos.lent import LentDaemon, lend
from holdfast.chaos.nemeses import Failpoints

pytestmark = [pytest.mark.root, pytest.mark.slow]

IMAGE = busybox_image.DEFAULT_NAME
STATUS = "containerd.io/restart.status"
COUNT = "containerd.io/restart.count"
STEPS = ["decided", "deleted", "created", "started", "forgotten"]
TASK_STEPS = [
    "task.delete.shim",
    "task.delete.deleted",
    "task.delete.record",
    "task.delete.recorded",
    "task.create.intended",
    "task.create.made",
    "task.create.recorded",
    "task.start.started",
]


class House:
    """A daemon, the harm it is to suffer, and `ctr` with it."""

    def __init__(self, daemon: LentDaemon, failpoints: Failpoints, history: History) -> None:
        self.daemon = daemon
        self.failpoints = failpoints
        self.history = history

    def ctr(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["ctr", "--address", self.daemon.address, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def run(self, name: str, *words: str, **labels: str) -> None:
        flags = ["--label", f"{STATUS}=running"]
        for key, value in labels.items():
            flags += ["--label", f"containerd.io/restart.{key}={value}"]
        self.ctr("run", "-d", *flags, IMAGE, name, *(words or ("sleep", "1000")))

    def task(self, name: str) -> tuple[int, str]:
        """Pid and status of a task."""
        for line in self.ctr("tasks", "ls").splitlines():
            words = line.split()
            if words[0] == name:
                return int(words[1]), words[2]
        return 0, "GONE"

    def count(self, name: str) -> int:
        labels = json.loads(self.ctr("containers", "info", name)).get("Labels", {})
        return int(labels.get(COUNT, "0"))

    def runs_again(self, name: str, before: int) -> int:
        def again() -> bool:
            pid, status = self.task(name)
            return status == "RUNNING" and pid != before

        until(again)
        return self.task(name)[0]


def until(true: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    base = tmp_path_factory.mktemp("restarts")
    archive = base / "busybox.tar"
    busybox_image.build(archive)
    history, failpoints = History(), Failpoints(base / "failpoints")
    with lend(history, failpoints.environment) as daemon:
        house = House(daemon, failpoints, history)
        house.ctr("images", "import", str(archive))
        yield house


@pytest.fixture
def name(house: House) -> Iterator[str]:
    chosen = f"r-{time.monotonic_ns():x}"
    yield chosen
    house.ctr("containers", "label", chosen, f"{STATUS}=stopped", check=False)
    with contextlib.suppress(AssertionError):
        until(lambda: house.task(chosen)[1] in ("GONE", "STOPPED"), within_s=10.0)
    house.ctr("tasks", "rm", "-f", chosen, check=False)
    house.ctr("containers", "rm", chosen, check=False)


def test_a_killed_container_comes_back_and_its_count_rises(house: House, name: str) -> None:
    house.run(name)
    for number in (1, 2):
        before, _ = house.task(name)
        house.ctr("tasks", "kill", "-s", "SIGKILL", name)
        house.runs_again(name, before)
        assert house.count(name) == number


def test_a_label_given_later_is_heeded_at_once(house: House, name: str) -> None:
    house.ctr("run", "-d", IMAGE, name, "sleep", "1000")
    house.ctr("containers", "label", name, f"{STATUS}=stopped")
    until(lambda: house.task(name)[1] == "GONE", within_s=5.0)
    house.ctr("containers", "label", name, f"{STATUS}=running")
    until(lambda: house.task(name)[1] == "RUNNING", within_s=5.0)


def test_an_image_cannot_ask_for_restarts(house: House, name: str, tmp_path: Path) -> None:
    """`ctr` copies the labels of an image's config: what they would decide is left out."""
    hostile = {STATUS: "running", "containerd.io/restart.loguri": f"file://{tmp_path}/owned"}
    labels = {"kept": "yes", "containerd.io/restart.policy": "always", **hostile}
    archive = tmp_path / "hostile.tar"
    busybox_image.build(archive, "example.org/hostile:1", {"Labels": labels})
    house.ctr("images", "import", str(archive))
    house.ctr("run", "-d", "example.org/hostile:1", name, "sleep", "1000")
    found = json.loads(house.ctr("containers", "info", name))["Labels"]
    assert found["kept"] == "yes"
    assert not [key for key in found if key.startswith("containerd.io/restart.")]
    # A client that says otherwise is heeded, but for what stands in the image word for word.
    house.ctr("containers", "label", name, f"{STATUS}=running")
    before, _ = house.task(name)
    house.ctr("tasks", "kill", "-s", "SIGKILL", name)
    house.runs_again(name, before)
    assert not (tmp_path / "owned").exists()


def test_on_failure_counts_to_its_number(house: House, name: str) -> None:
    house.run(name, "sh", "-c", "exit 4", policy="on-failure:2")
    until(lambda: house.count(name) == 2 and house.task(name)[1] == "STOPPED")
    time.sleep(1.0)
    assert (house.count(name), house.task(name)[1]) == (2, "STOPPED")


def test_the_command_removes_what_is_looked_after(house: House, name: str) -> None:
    house.run(name)
    command = [sys.executable, "-m", "holdfast", "--address", house.daemon.address]
    subprocess.run([*command, "rm", "-f", name], check=True, timeout=60, capture_output=True)
    time.sleep(0.5)
    assert house.task(name) == (0, "GONE")
    assert name not in house.ctr("containers", "ls")


def test_an_exit_while_everything_is_down_leads_to_one_restart(house: House, name: str) -> None:
    house.run(name)
    before, _ = house.task(name)
    house.daemon.kill()
    os.kill(before, signal.SIGKILL)
    time.sleep(0.3)
    house.daemon.start_again()
    first = house.runs_again(name, before)
    time.sleep(1.5)
    assert (house.task(name), house.count(name)) == ((first, "RUNNING"), 1)


@pytest.mark.parametrize("step", [*(f"restart.{step}" for step in STEPS), *TASK_STEPS])
def test_a_daemon_killed_at_any_step_restarts_once(house: House, name: str, step: str) -> None:
    """One exit, one count, one further life; the log shows each beginning of the process."""
    log = house.daemon.log.parent / f"{name}.log"
    command = "echo begun; exec sleep 1000"
    house.run(name, "sh", "-c", command, loguri=f"file://{log}")
    before, _ = house.task(name)
    with house.failpoints.armed(house.history, f"daemon:{step}=kill"):
        os.kill(before, signal.SIGKILL)
        house.daemon.wait_dead()
    house.daemon.start_again()
    first = house.runs_again(name, before)
    time.sleep(0.7)
    assert (house.task(name), house.count(name)) == ((first, "RUNNING"), 1)
    until(log.exists)
    assert log.read_text() == "begun\n"
    log.unlink()


@pytest.mark.parametrize("step", ["restart.stop.decided", "restart.killed", "restart.deleted"])
def test_a_daemon_killed_at_any_step_of_a_stop_ends_it(house: House, name: str, step: str) -> None:
    house.ctr("run", "-d", IMAGE, name, "sleep", "1000")
    with house.failpoints.armed(house.history, f"daemon:{step}=kill"):
        house.ctr("containers", "label", name, f"{STATUS}=stopped", check=False)
        house.daemon.wait_dead()
    house.daemon.start_again()
    until(lambda: house.task(name)[1] == "GONE")
