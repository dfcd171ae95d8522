"""Turns: long work on the loop that takes no longer than a slice at a time.

    turns = Turns()
    await turns.walk(steps)     # a generator that yields after each small step

After each slice the work rests three times as long as it took, so that whoever waits for the
loop, or for the writer's thread, seldom meets one slice, and hardly ever two.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import trio

SLICE_S = 0.001
REST = 3.0


class Turns:
    """How one job shares the loop."""

    def __init__(self, slice_s: float = SLICE_S) -> None:
        self._slice_s = slice_s
        self.busy_s = 0.0
        """How long it has worked; its rests do not count."""
        self.longest_s = 0.0
        """How long the longest slice was, in processor time."""

    async def walk(self, steps: Iterable[object]) -> None:
        """Go through all steps."""
        began_s, worked_s = time.perf_counter(), time.thread_time()
        for _ in steps:
            took_s = time.perf_counter() - began_s
            if took_s >= self._slice_s:
                self._note(worked_s)
                await self.rest(took_s)
                began_s, worked_s = time.perf_counter(), time.thread_time()
        self._note(worked_s)
        self.busy_s += time.perf_counter() - began_s
        await trio.lowlevel.checkpoint()

    def _note(self, worked_s: float) -> None:
        self.longest_s = max(self.longest_s, time.thread_time() - worked_s)

    async def rest(self, took_s: float) -> None:
        """Count work that took so long, and let others work longer."""
        self.busy_s += took_s
        await trio.sleep(took_s * REST)
