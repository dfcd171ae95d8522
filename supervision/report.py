"""Crash reports: what is known of a child at the moment it fell, kept for whoever asks.

A report is text and numbers: it holds no frame, no message and no actor, so that keeping it keeps
nothing else alive. The log is bounded and keeps the newest.
"""

import time
import traceback as tracebacks
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from ..actors.exits import Exit
from ..actors.obituary import Obituary, short_repr
from ..actors.system import System

TRACEBACK_MAX: Final = 8000
"""Characters kept of a traceback: the last ones, where the fault is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """One child's fall. `supervisor` and `child` say where, `next_step` what followed.

    `exception` and `traceback` are empty unless something was raised; `last_message`, `state` and
    the mailbox are those of the moment, and unknown (None, empty) when the child never came up.
    """

    at_ns: int
    supervisor: str
    child: str
    reason: str
    next_step: str
    restarts: int
    exception: str = ""
    traceback: str = ""
    last_message: str | None = None
    state: str | None = None
    mailbox: Sequence[str] = ()
    mailbox_depth: int = 0
    handled: int = 0
    age_s: float = 0.0


def crash_report(
    *,
    supervisor: str,
    child: str,
    reason: Exit,
    next_step: str,
    restarts: int,
    obituary: Obituary | None,
) -> CrashReport:
    """Put a fall into words, now, while its pieces still exist."""
    report = partial(
        CrashReport,
        at_ns=time.time_ns(),
        supervisor=supervisor,
        child=child,
        reason=str(reason),
        next_step=next_step,
        restarts=restarts,
    )
    if obituary is not None:
        return report(
            exception=obituary.exception,
            traceback=_end_of(obituary.traceback),
            last_message=obituary.last_message,
            state=obituary.state,
            mailbox=obituary.mailbox,
            mailbox_depth=obituary.mailbox_depth,
            handled=obituary.handled,
            age_s=obituary.age_s,
        )
    error = reason.exception
    if error is None:
        return report()
    return report(
        exception=f"{type(error).__name__}: {short_repr(str(error))}",
        traceback=_end_of("".join(tracebacks.format_exception(error))),
    )


def _end_of(text: str) -> str:
    return text if len(text) <= TRACEBACK_MAX else "…" + text[1 - TRACEBACK_MAX :]


class CrashLog:
    """The newest crash reports of one system, oldest first; `total` counts all ever added."""

    def __init__(self, bound: int = 256) -> None:
        assert bound > 0
        self._reports: deque[CrashReport] = deque(maxlen=bound)
        self.total = 0

    def add(self, report: CrashReport) -> None:
        """Keep a report; when the log is full the oldest makes room."""
        self._reports.append(report)
        self.total += 1

    def reports(
        self, *, supervisor: str | None = None, child: str | None = None
    ) -> Sequence[CrashReport]:
        """What is kept: of the whole system, of one supervisor with all below it, of one child."""
        return [
            report
            for report in self._reports
            if (supervisor is None or is_within(report.supervisor, supervisor))
            and (child is None or report.child == child)
        ]


def is_within(path: str, top: str) -> bool:
    """Whether a supervisor's path is `top` or lies below it."""
    return path == top or path.startswith(top + "/")


_logs: "WeakKeyDictionary[System, CrashLog]" = WeakKeyDictionary()


def crash_log(system: System | None = None) -> CrashLog:
    """The crash log of a system (the current one by default); it lives as long as the system."""
    return _logs.setdefault(system or System.current(), CrashLog())
