"""The watch over a host's loop: whoever holds it for too long is named in the log."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..actors.watchdog import Watchdog

LOOP_HELD_MAX_S = 0.1


@asynccontextmanager
async def watched_loop() -> AsyncGenerator[Watchdog]:
    """Watch this loop for the block."""
    with Watchdog(limit_s=LOOP_HELD_MAX_S).watching() as watchdog:
        yield watchdog
