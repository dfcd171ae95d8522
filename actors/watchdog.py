"""The watchdog: names the actor that holds the loop.

A handler that computes or blocks without ever waiting stops every other actor, and nothing on
the loop can say so. A thread looks at the loop from outside, and tells who has held it for
longer than the limit, with the stack.
"""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from trio.lowlevel import Task

from .cell import current_cell
from .logger import get_logger

log = get_logger(__name__)

REPORTS_KEPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One step of one task that held the loop over the limit. `held_s` is what had passed when
    it was noticed."""

    who: str
    held_s: float
    stack: str


def log_held(held: Held) -> None:
    """Log a step that held the loop, with the actor that did and where it was."""
    log.warning("loop.held", actor=held.who, held_s=round(held.held_s, 3), stack=held.stack)


class Watchdog(trio.abc.Instrument):
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
        # One tuple, so that the watching thread never pairs one task with another's time.
        self._step: tuple[Task, float] | None = None
        self._told: tuple[Task, float] | None = None
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Generator["Watchdog"]:
        """Watch for the block."""
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        trio.lowlevel.add_instrument(self)
        thread.start()
        try:
            yield self
        finally:
            trio.lowlevel.remove_instrument(self)
            self._over.set()
            thread.join()

    def before_task_step(self, task: Task) -> None:
        """trio calls this as a task begins to run."""
        self._step = (task, self._clock())

    def after_task_step(self, task: Task) -> None:
        """trio calls this as the task waits again."""
        self._step = None

    def _watch(self) -> None:
        while not self._over.wait(self.limit_s / 2):
            self.look()

    def look(self) -> None:
        """Report the step that runs now, once, if it is over the limit."""
        step = self._step
        if step is None or step is self._told:
            return
        task, since_s = step
        held_s = self._clock() - since_s
        if held_s <= self.limit_s:
            return
        self._told = step
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]
        stack = "" if frame is None else "".join(traceback.format_stack(frame, 8))
        who = str(task.context.get(current_cell) or task.name)
        held = Held(who=who, held_s=held_s, stack=stack)
        self.reports.append(held)
        self._tell(held)
