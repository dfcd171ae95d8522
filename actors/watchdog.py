"""The watchdog: names the actor that holds the loop.

A handler that computes or blocks without ever waiting stops every other actor, and nothing on
the loop can say so. A thread looks at the loop from outside: when it finds a task at work it posts
a beat, which the loop handles within two rounds; when it does not, and the same task is at work at
each look, for longer than the limit, that task is told, with its stack. To the loop it costs a beat
now and then: an instrument of trio's would be called at each step of each task.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import CO_COROUTINE
from types import FrameType

import trio

from .cell import Cell
from .logger import get_logger

log = get_logger(__name__)

REPORTS_KEPT = 100
LOOP = "unrolled_run"
"""trio's function that runs the steps of all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One step of one task that held the loop over the limit. `held_s` is for how long it had been
    looked at when it was told."""

    who: str
    held_s: float
    stack: str


def log_held(held: Held) -> None:
    """Log a step that held the loop, with the actor that did and where it was."""
    log.warning("loop.held", actor=held.who, held_s=round(held.held_s, 3), stack=held.stack)


class Watchdog:
    """Watches the loop of the thread it is made on. `tell` is called, in the watching thread,
    with each report."""

    def __init__(
        self,
        limit_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[Held], None] = log_held,
    ) -> None:
        self.limit_s = limit_s
        self._tell = tell
        self.reports: deque[Held] = deque(maxlen=REPORTS_KEPT)
        self._clock = clock
        self._thread_id = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        # The step that was found, by its frame's id; None when none is, or its beat was handled.
        self._found: int | None = None
        self._found_at_s = 0.0
        self._is_told = False
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Generator["Watchdog"]:
        """Watch for the block."""
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self.limit_s / 2):
            try:
                self.look()
            except trio.RunFinishedError:
                return

    def look(self) -> None:
        """Report the step that runs now, once, if it is over the limit."""
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]
        frames = [] if frame is None else _step(frame)
        if not frames:
            self._found = None
            return
        root = id(frames[-1])
        if self._found is None:
            self._found, self._found_at_s, self._is_told = root, self._clock(), False
            self._token.run_sync_soon(self._beat, idempotent=True)
            return
        held_s = self._clock() - self._found_at_s
        if self._found != root or self._is_told or held_s <= self.limit_s:
            return
        self._is_told = True
        stack = "".join(traceback.format_stack(frame, 8))
        held = Held(who=_who(frames), held_s=held_s, stack=stack)
        self.reports.append(held)
        self._tell(held)

    def _beat(self) -> None:
        self._found = None


def _step(frame: FrameType) -> list[FrameType]:
    """The frames of the step that a loop's thread is in, the task's last; none between steps."""
    frames: list[FrameType] = []
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_name == LOOP:
            return frames if frames and frames[-1].f_code.co_flags & CO_COROUTINE else []
        frames.append(at)
        at = at.f_back
    return []


def _who(frames: Sequence[FrameType]) -> str:
    """The actor whose code it is; where there is none, the task."""
    for frame in reversed(frames):
        for name in ("cell", "self"):
            cell = frame.f_locals.get(name)
            if isinstance(cell, Cell):
                return str(cell)
    return frames[-1].f_code.co_qualname
