"""A system for each test, and workers whose lives are written into a diary."""

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from holdfast.actors.actor import Actor
from holdfast.actors.errors import NotFound
from holdfast.actors.exits import NORMAL, SHUTDOWN, StopActor
from holdfast.actors.reference import Ref
from holdfast.actors.system import System
from holdfast.supervision.spec import ChildSpec
from holdfast.supervision.verbs import which_children


class Diary:
    """What happened, in order: "+a" a started, "-a" a stopped in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.starts: dict[str, int] = {}
        self.failing: dict[str, Any] = {}  # id -> numbers of starts that fail
        self.start_takes_s: dict[str, Any] = {}  # id -> function of the start's number
        self.stop_takes_s: dict[str, float] = {}

    def spec(self, child_id: str, *args: Any, **kwargs: Any) -> ChildSpec:
        """The spec of a worker that writes here."""
        return ChildSpec(child_id, Worker, *args, args=(child_id, self), **kwargs)

    def specs(self, ids: str, **kwargs: Any) -> list[ChildSpec]:
        """One spec per letter."""
        return [self.spec(child_id, **kwargs) for child_id in ids]

    def take(self) -> list[str]:
        """The lines since the last time."""
        lines, self.lines = self.lines, []
        return lines


class Worker(Actor):
    """Does as it is told: "crash", "stop", "shutdown", "count", "refuse", or a function of it."""

    def __init__(self, worker_id: str, diary: Diary) -> None:
        super().__init__()
        self.id, self.diary, self.count = worker_id, diary, 0

    async def on_start(self) -> Any:
        diary = self.diary
        diary.lines.append(f"+{self.id}")
        number = diary.starts[self.id] = diary.starts.get(self.id, 0) + 1
        if self.id in diary.start_takes_s:
            await trio.sleep(diary.start_takes_s[self.id](number))
        if number in diary.failing.get(self.id, ()):
            raise RuntimeError(f"start {number} of {self.id} fails")

    async def on_stop(self) -> Any:
        await trio.sleep(self.diary.stop_takes_s.get(self.id, 0.0))
        self.diary.lines.append(f"-{self.id}")

    async def on_receive(self, message: Any) -> Any:
        match message:
            case "crash":
                raise ValueError("boom")
            case "stop":
                self.diary = Diary()
                raise StopActor(NORMAL)
            case "shutdown":
                self.diary = Diary()
                raise StopActor(SHUTDOWN)
            case "count":
                self.count += 1
                return self.count
            case "refuse":
                raise NotFound("nothing there")
            case _:
                return await message(self)


@pytest.fixture
def diary() -> Diary:
    return Diary()


def run_virtually(function: Any, *, clock: Any = None, instruments: Any = ()) -> Any:
    """trio.run, on a clock that jumps to the next deadline when nobody moves."""
    clock = clock or trio.testing.MockClock(autojump_threshold=0)
    return trio.run(function, clock=clock, instruments=instruments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test that uses `system` runs in virtual time, without asking for it by name."""
    for item in items:
        if "system" in getattr(item, "fixturenames", ()) and item.path.parent == HERE:
            item.add_marker(pytest.mark.trio(run=run_virtually))


HERE = Path(__file__).parent


@pytest.fixture
async def system() -> AsyncIterator[System]:
    """A system in virtual time; nothing is left of it after the test."""
    async with System.open() as opened:
        yield opened
    assert not opened.cells


@pytest.fixture(autouse=True)
def told() -> Iterator[list[Any]]:
    """What the supervisors logged. Crashes are meant here, so the terminal stays quiet."""
    logging.getLogger("holdfast").setLevel(logging.CRITICAL)
    with structlog.testing.capture_logs() as entries:
        yield entries


class Talk:
    """How tests speak to a tree."""

    @staticmethod
    async def child(supervisor: Any, child_id: str) -> Ref[Any]:
        """The living child of that id."""
        found = {info.id: info.ref for info in await which_children(supervisor)}[child_id]
        assert found is not None
        return found

    @classmethod
    async def harm(cls, supervisor: Any, child_id: str, message: Any = "crash") -> None:
        """Tell a child something that ends it, and wait until all that follows has followed."""
        ref = await cls.child(supervisor, child_id)
        ref.tell(message)
        await ref.wait_exit()
        await cls.calm()

    @staticmethod
    async def calm() -> None:
        """Wait until nobody moves without the clock."""
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def talk() -> type[Talk]:
    return Talk
