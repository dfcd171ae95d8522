"""The watch over the loop, as a host keeps it."""

import time
from typing import Any

import structlog.testing
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.system import System
from holdfast.api.watch import watched_loop


async def test_who_holds_the_loop_is_named_in_a_warning() -> None:
    class Holder(Actor):
        def on_receive(self, message: Any) -> None:
            time.sleep(0.3)

    with structlog.testing.capture_logs() as lines:
        async with watched_loop(), System.open():
            ref = await Holder.spawn(name="holder")
            ref.tell(1)
            await trio.sleep(0.05)
    (line,) = [line for line in lines if "holder" in line["actor"]]
    assert (line["event"], line["log_level"]) == ("loop.held", "warning")
    assert line["held_s"] >= 0.1
    assert "time.sleep" in line["stack"]
