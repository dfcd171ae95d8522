"""A system on a virtual clock, and an actor that does as it is told."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.errors import NotFound
from holdfast.actors.exits import StopActor
from holdfast.actors.system import System


@pytest.fixture
async def system(autojump_clock: trio.testing.MockClock) -> AsyncIterator[System]:
    async with System.open(stop_within_s=1) as opened:
        yield opened


class Scripted(Actor):
    """Logs its life; a message is a function of the actor, or one of a few words."""

    def __init__(self, log: list[Any] | None = None) -> None:
        super().__init__()
        self.log = [] if log is None else log
        self.count = 0

    async def on_start(self) -> None:
        self.log.append("start")

    async def on_stop(self) -> None:
        self.log.append("stop")

    def on_down(self, down: Any) -> None:
        self.log.append(("down", down.reason.kind))

    def on_exit(self, signal: Any) -> None:
        self.log.append(("exit", signal.reason.kind))

    async def on_receive(self, message: Any) -> Any:
        if callable(message):
            result = message(self)
            return await result if hasattr(result, "__await__") else result
        match message:
            case "count":
                self.count += 1
                return self.count
            case "crash":
                raise ValueError("boom")
            case "refuse":
                raise NotFound("nothing here")
            case "end":
                raise StopActor
            case ("sleep", seconds):
                await trio.sleep(seconds)
                return "slept"
            case _:
                self.log.append(message)
                return message


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted
