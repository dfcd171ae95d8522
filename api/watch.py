"""The watch over a host's loop: whoever holds it for too long is named in the log."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog

from ..actors.watchdog import Held, Watchdog

log: structlog.stdlib.BoundLogger = structlog.get_logger("holdfast.watch")

LOOP_HELD_MAX_S = 0.1


@asynccontextmanager
async def watched_loop() -> AsyncGenerator[Watchdog]:
    """Watch this loop for the block."""
    with Watchdog(limit_s=LOOP_HELD_MAX_S, tell=tell_held).watching() as watchdog:
        yield watchdog


def tell_held(held: Held) -> None:
    """Log a step that held the loop, with the actor that did and where it was."""
    log.warning("loop.held", actor=held.who, held_s=round(held.held_s, 3), stack=held.stack)
