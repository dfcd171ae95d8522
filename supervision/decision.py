"""What a supervisor does next: tables and plain functions, no clock, no actor.

a child ended ----> next_step(restart kind, exit kind)
                      KEEP, FORGET   -> perhaps the supervisor's own end (auto shutdown)
                      RESTART        -> Window grants it? -> plan(strategy) : GIVE_UP
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ..actors.exits import Kind
from .spec import AutoShutdown, ChildSpec, Intensity, Restart, Strategy


class Step(StrEnum):
    """The next step after a child's end; the last of a report's four fields."""

    RESTART = "restart"
    """A new instance takes its place (and its siblings', as the strategy says)."""
    KEEP = "keep"
    """It stays stopped; its spec remains, and a sibling's restart may revive it."""
    FORGET = "forget"
    """It stays stopped and its spec is dropped."""
    GIVE_UP = "give up"
    """Too many restarts: all children stop, the supervisor ends, its own supervisor decides."""


STEPS: Mapping[tuple[Restart, Kind], Step] = {
    (Restart.PERMANENT, Kind.NORMAL): Step.RESTART,
    (Restart.PERMANENT, Kind.SHUTDOWN): Step.RESTART,
    (Restart.PERMANENT, Kind.KILLED): Step.RESTART,
    (Restart.PERMANENT, Kind.CRASH): Step.RESTART,
    (Restart.PERMANENT, Kind.NOPROC): Step.RESTART,
    (Restart.TRANSIENT, Kind.NORMAL): Step.KEEP,
    (Restart.TRANSIENT, Kind.SHUTDOWN): Step.KEEP,
    (Restart.TRANSIENT, Kind.KILLED): Step.RESTART,
    (Restart.TRANSIENT, Kind.CRASH): Step.RESTART,
    (Restart.TRANSIENT, Kind.NOPROC): Step.RESTART,
    (Restart.TEMPORARY, Kind.NORMAL): Step.FORGET,
    (Restart.TEMPORARY, Kind.SHUTDOWN): Step.FORGET,
    (Restart.TEMPORARY, Kind.KILLED): Step.FORGET,
    (Restart.TEMPORARY, Kind.CRASH): Step.FORGET,
    (Restart.TEMPORARY, Kind.NOPROC): Step.FORGET,
}


def next_step(restart: Restart, why: Kind) -> Step:
    """What follows a child's own end, as long as restarts are granted."""
    return STEPS[restart, why]


@dataclass(slots=True)
class Window:
    """The restarts of the last `within_s` seconds, counted against an intensity."""

    intensity: Intensity
    # Invariant: ascending, all younger than `within_s`, never more than restarts + 1.
    times_s: deque[float] = field(default_factory=deque[float])

    def grant(self, now_s: float) -> bool:
        """Count one restart; whether it is within the intensity."""
        oldest_s = now_s - self.intensity.within_s
        while self.times_s and self.times_s[0] < oldest_s:
            self.times_s.popleft()
        self.times_s.append(now_s)
        granted = len(self.times_s) <= self.intensity.restarts
        if not granted:
            self.times_s.popleft()
        return granted


@dataclass(frozen=True, slots=True)
class Plan:
    """A restart in full: first stop these in this order, forget those, then start these."""

    stop: Sequence[str]
    forget: Sequence[str]
    start: Sequence[str]


def plan(strategy: Strategy, specs: Iterable[ChildSpec], fallen: str) -> Plan:
    """The plan for one fallen child among its siblings, which come in start order.

    Stops run against the start order. A temporary sibling that is stopped is not started again.
    """
    if strategy is Strategy.ONE_FOR_ONE:
        return Plan((), (), (fallen,))
    group = list(specs)
    if strategy is Strategy.REST_FOR_ONE:
        group = group[[spec.id for spec in group].index(fallen) :]
    return Plan(
        stop=[spec.id for spec in reversed(group) if spec.id != fallen],
        forget=[spec.id for spec in group if spec.restart is Restart.TEMPORARY],
        start=[spec.id for spec in group if spec.restart is not Restart.TEMPORARY],
    )


def ends_supervisor(auto_shutdown: AutoShutdown, ended: ChildSpec, others_live: bool) -> bool:
    """Whether a child's own, unrestarted end is the supervisor's end too.

    `others_live`: whether another significant child runs or is on its way back.
    """
    if not ended.significant:
        return False
    match auto_shutdown:
        case AutoShutdown.NEVER:
            return False
        case AutoShutdown.ANY_SIGNIFICANT:
            return True
        case AutoShutdown.ALL_SIGNIFICANT:
            return not others_live
