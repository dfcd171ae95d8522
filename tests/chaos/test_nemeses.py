"""Each nemesis does what it says, and takes it back."""

import errno
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.exits import CallTimeout
from holdfast.actors.system import System
from holdfast.chaos import nemeses
from holdfast.chaos.history import Harm, Heal, History
from holdfast.chaos.isolation import house
from holdfast.chaos.processes import Found, Role, stat


class Echo(Actor):
    async def on_receive(self, message: Any) -> Any:
        return message


@contextmanager
def sleeper() -> Generator[Found]:
    with subprocess.Popen(["sleep", "60"]) as process:
        found = stat(process.pid)
        assert found is not None
        yield Found(process.pid, found[0], Role.RUNTIME)
        process.kill()


def told(history: History) -> list[type]:
    return [type(record) for record in history.records]


def test_a_stopped_process_goes_on_after_the_block() -> None:
    history = History()
    with sleeper() as victim:
        with nemeses.stopped(history, [victim]):
            os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WNOWAIT)
            assert stat(victim.pid) == (victim.start_time_ticks, "T")
        os.waitid(os.P_PID, victim.pid, os.WCONTINUED | os.WNOWAIT)
    assert told(history) == [Harm, Heal]


def test_another_process_with_the_same_pid_is_not_hit() -> None:
    with sleeper() as victim:
        earlier = Found(victim.pid, victim.start_time_ticks - 1, victim.role)
        assert nemeses.kill([earlier]) == 0
        assert stat(victim.pid) is not None


async def test_a_delayed_mailbox_is_read_after_the_block() -> None:
    async with System.open():
        actor = await Echo.spawn()
        with nemeses.delayed_mailbox(History(), actor):
            with pytest.raises(CallTimeout):
                await actor.call("hello", timeout_s=0.05)  # type: ignore[call-overload]
        assert await actor.call("hello", timeout_s=5) == "hello"  # type: ignore[call-overload]


@pytest.mark.root
def test_a_full_disk_takes_no_byte_and_then_takes_some_again(tmp_path: Path) -> None:
    with nemeses.small_disk(tmp_path / "disk", 1 << 20) as disk:
        with nemeses.full_disk(History(), disk):
            with pytest.raises(OSError) as raised:
                (disk / "file").write_bytes(b"x")
            assert raised.value.errno == errno.ENOSPC
        (disk / "file").write_bytes(b"x")
    assert not (tmp_path / "disk/file").exists()


@pytest.mark.root
@pytest.mark.slow
async def test_a_killed_actor_is_started_anew(tmp_path: Path) -> None:
    async with house(tmp_path, History()) as home:
        with trio.fail_after(20):
            await nemeses.kill_actor(home.client, "workers")
            await home.client.events()
