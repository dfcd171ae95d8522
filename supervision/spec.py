"""What a supervisor is told: children, strategies, intensity, backoff. Data, nothing else.

Terms. A *child* is an actor that a supervisor starts, watches, restarts and stops. A *spec* says
how. The *intensity* bounds how many restarts a supervisor grants within a span of time; beyond it
the supervisor stops its children and ends, which is its own supervisor's matter (*escalation*).

A tree is written as data, in start order:

    Tree("root", Strategy.REST_FOR_ONE, Intensity(restarts=3, within_s=5.0), [
        ChildSpec("store", Store, args=(path,), stop_within_s=5.0),
        Tree("services", Strategy.ONE_FOR_ONE, Intensity(restarts=10, within_s=60.0), [
            ChildSpec("events", Events, restart=Restart.TRANSIENT),
        ]),
    ])
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from ..actors.actor import Actor
from ..actors.errors import InvalidArgument
from ..actors.reference import Ref

BRUTALLY: Final = 0.0
"""As `stop_within_s`: killed at once, never asked."""

FOREVER: Final = math.inf
"""As `stop_within_s`: asked, and waited for. What a supervisor as a child needs."""


class Restart(StrEnum):
    """Which ends of a child are answered by a restart."""

    PERMANENT = "permanent"
    """Every end."""
    TRANSIENT = "transient"
    """A crash or a kill; `normal` and `shutdown` mean that the work is done."""
    TEMPORARY = "temporary"
    """None; the child is forgotten."""


class Strategy(StrEnum):
    """Who is restarted together with a child that fell."""

    ONE_FOR_ONE = "one_for_one"
    """It alone."""
    ONE_FOR_ALL = "one_for_all"
    """All children: they cannot live without each other."""
    REST_FOR_ONE = "rest_for_one"
    """It and those started after it: they lean on it."""


class AutoShutdown(StrEnum):
    """When the work's end is the supervisor's end."""

    NEVER = "never"
    ANY_SIGNIFICANT = "any_significant"
    """When one significant child ends by itself."""
    ALL_SIGNIFICANT = "all_significant"
    """When the last significant child ends by itself."""


class ChildKind(StrEnum):
    """What a child is, for whoever looks at a tree."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """At most `restarts` restarts within any `within_s` seconds; one more, and it gives up."""

    restarts: int = 3
    within_s: float = 5.0

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise InvalidArgument(f"intensity: {self.restarts} restarts: negative")
        if not self.within_s > 0:
            raise InvalidArgument(f"intensity: within {self.within_s} s: not positive")


DEFAULT_INTENSITY: Final = Intensity()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a supervisor waits before a child's n-th restart in a row.

    The wait grows from `first_s` by `factor` to `cap_s`; `jitter` is the share of it that chance
    may take away, so that children which fell together do not rise together.
    A child that lived `reset_after_s` begins anew.
    """

    first_s: float = 0.1
    factor: float = 2.0
    cap_s: float = 30.0
    jitter: float = 0.2
    reset_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.cap_s:
            raise InvalidArgument(f"backoff: {self.first_s} s .. {self.cap_s} s: not ascending")
        if self.factor < 1:
            raise InvalidArgument(f"backoff: factor {self.factor}: below 1")
        if not 0 <= self.jitter <= 1:
            raise InvalidArgument(f"backoff: jitter {self.jitter}: not a share")

    def delay_s(self, attempt: int, chance: float) -> float:
        """The wait before the `attempt`-th restart in a row (from 1); `chance` is in [0, 1)."""
        # The exponent is bounded first: factor ** 10_000 does not fit a float.
        steps_max = math.log(self.cap_s / self.first_s, self.factor) if self.factor > 1 else 0.0
        whole_s = min(self.cap_s, self.first_s * math.pow(self.factor, min(attempt - 1, steps_max)))
        return whole_s * (1.0 - self.jitter * chance)


class Place(Protocol):
    """Where a child is started: under its supervisor, with its name, in its nursery."""

    async def spawn(self, actor: type[Actor], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start the child here; returns when it is ready."""
        ...


class Starter(Protocol):
    """How a child is started when a class and its arguments do not say enough.

    It calls `place.spawn(...)` exactly once and returns what that returned.
    """

    async def __call__(self, place: Place, /) -> Ref[Any]: ...


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How one child is started, restarted and stopped.

    `id` is unique among its siblings. `start` is an actor class, called with `args` and `kwargs`,
    or a `Starter`. `name`, if any, is registered in the System by each new instance, so that the
    address outlives restarts. `stop_within_s` may be BRUTALLY or FOREVER.
    """

    id: str
    start: type[Actor] | Starter
    restart: Restart = Restart.PERMANENT
    args: Sequence[Any] = field(default=(), kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any], kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    stop_within_s: float = field(default=5.0, kw_only=True)
    start_within_s: float | None = field(default=30.0, kw_only=True)
    significant: bool = field(default=False, kw_only=True)
    kind: ChildKind = field(default=ChildKind.WORKER, kw_only=True)

    def __post_init__(self) -> None:
        if not self.id:
            raise InvalidArgument("child: id is empty")
        if not self.stop_within_s >= 0:
            raise InvalidArgument(f'child "{self.id}": stop within {self.stop_within_s} s')
        if self.significant and self.restart is Restart.PERMANENT:
            raise InvalidArgument(f'child "{self.id}": permanent, so never significant')


Child = ChildSpec
"""A child's name inside a `Tree`."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A supervisor as data: its children in start order, some of them trees."""

    id: str
    strategy: Strategy = Strategy.ONE_FOR_ONE
    intensity: Intensity = DEFAULT_INTENSITY
    children: Sequence["ChildSpec | Tree"] = ()
    restart: Restart = field(default=Restart.PERMANENT, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    backoff: Backoff | None = field(default=None, kw_only=True)
    auto_shutdown: AutoShutdown = field(default=AutoShutdown.NEVER, kw_only=True)
    significant: bool = field(default=False, kw_only=True)


def check_children(specs: Sequence[ChildSpec], auto_shutdown: AutoShutdown) -> None:
    """Refuse (InvalidArgument) children that cannot stand side by side."""
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            raise InvalidArgument(f'child "{spec.id}": twice under one supervisor')
        seen.add(spec.id)
        check_significance(spec, auto_shutdown)


def check_significance(spec: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Refuse (InvalidArgument) a significant child where nothing would heed it."""
    if spec.significant and auto_shutdown is AutoShutdown.NEVER:
        raise InvalidArgument(f'child "{spec.id}": significant under a supervisor that never heeds')
