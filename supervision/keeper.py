"""What every supervisor does with one child: start it in its place, stop it, report its fall.

A keeper runs its children in its own nursery, inside its own cancel scope: whoever kills the
keeper kills the subtree, and no child outlives it. Children are linked to it and it traps exits,
so that each child's end arrives as one `ExitSignal` in the system lane.

Invariant: `by_ref` holds exactly the children whose next end is not expected. A child that the
keeper stops leaves `by_ref` first, so that its end is nobody's surprise.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from types import UnionType
from typing import Any, Final

import trio

from ..actors.actor import Actor
from ..actors.errors import InvalidArgument
from ..actors.exits import KILL, Exit, Kind, StartFailed, StopActor
from ..actors.logger import get_logger
from ..actors.message import ExitSignal
from ..actors.reference import Ref
from .decision import Step, Window
from .report import crash_log, crash_report
from .spec import Backoff, ChildKind, ChildSpec, Intensity

log = get_logger("supervision")

CHILDREN_TOLD: Final = 50
"""How many children a supervisor names when it describes itself."""


class ChildState(StrEnum):
    """Where a child is in its life, as its supervisor sees it."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """One child as `which_children` tells it."""

    id: str
    ref: Ref[Any] | None
    state: ChildState
    kind: ChildKind
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many children: with a spec, alive, and of which kind."""

    specs: int
    active: int
    supervisors: int
    workers: int


@dataclass(eq=False, slots=True)
class Held:
    """A child as its keeper holds it. Invariant: `ref` is set exactly while RUNNING."""

    spec: ChildSpec
    ref: Ref[Any] | None = None
    state: ChildState = ChildState.STOPPED
    restarts: int = 0
    leaving: Ref[Any] | None = None  # the one that is waited for while STOPPING
    attempts: int = 0  # restarts in a row, for the backoff
    ready_at_s: float = -math.inf
    turn: int = 0  # of the restart that it waits for; an older one leaves it alone

    def info(self) -> ChildInfo:
        """The child in public words."""
        return ChildInfo(
            id=self.spec.id,
            ref=self.ref,
            state=self.state,
            kind=self.spec.kind,
            restarts=self.restarts,
        )


class _Place:
    """The place under one keeper for one child."""

    def __init__(self, keeper: "Keeper", spec: ChildSpec) -> None:
        self._keeper = keeper
        self._spec = spec
        self.taken: Ref[Any] | None = None

    async def spawn(self, actor: type[Actor], /, *args: Any, **kwargs: Any) -> Ref[Any]:
        """Start the child here; returns when it is ready. Once per place."""
        assert self.taken is None
        keeper, spec = self._keeper, self._spec
        if issubclass(actor, Keeper):
            kwargs.setdefault("label", f"{keeper.label}/{spec.id}")
        self.taken = await actor.spawn(
            *args,
            name=spec.name,
            parent=keeper,
            link=keeper.links_children,
            start_timeout_s=spec.start_within_s,
            **kwargs,
        )
        return self.taken


async def stop(ref: Ref[Any], within_s: float) -> bool:
    """Stop an actor: ask, wait `within_s`, then kill; whether it ended when asked.

    0 kills at once. Returns when the actor has ended.
    """
    if within_s > 0:
        ref.shutdown()
        with trio.move_on_after(within_s):
            await ref.wait_exit()
            return True
    ref.exit(KILL)
    await ref.wait_exit()
    return False


class Keeper(Actor):
    """The base of all supervisors. `label` is its path in the tree: "root/tasks"."""

    trap_exit = True
    hosts_children = True
    links_children = True
    """Whether a child's end comes as an exit signal. Without, the subclass watches it itself."""

    def __init__(self, *, label: str | None, intensity: Intensity, backoff: Backoff | None) -> None:
        super().__init__()
        self.label = label or type(self).__name__
        self.window = Window(intensity)
        self.backoff = backoff
        self.by_ref: dict[Ref[Any], Held] = {}

    def all_held(self) -> Mapping[str, Held]:
        """Every child, in start order."""
        raise NotImplementedError

    def arrangement(self) -> str:
        """How the children hang together, in a word."""
        raise NotImplementedError

    # -- one child

    async def start_one(self, held: Held) -> StartFailed | None:
        """Start a child; its failure is an answer, and leaves it STOPPED."""
        spec, place = held.spec, _Place(self, held.spec)
        held.state = ChildState.STARTING
        try:
            if isinstance(spec.start, type):
                ref = await place.spawn(spec.start, *spec.args, **spec.kwargs)
            else:
                ref = await spec.start(place)
            assert ref is place.taken
        except StartFailed as failure:
            held.state = ChildState.STOPPED
            return failure
        except Exception as error:
            # A starter may raise anything, even after its child was up.
            if place.taken is not None:
                await stop(place.taken, spec.stop_within_s)
            held.state = ChildState.STOPPED
            return StartFailed(spec.id, Exit(Kind.CRASH, type(error).__name__, error))
        held.ref, held.state = ref, ChildState.RUNNING
        held.ready_at_s = trio.current_time()
        self.by_ref[ref] = held
        return None

    async def stop_one(self, held: Held) -> None:
        """Stop a child, whatever its state; returns when it has ended."""
        ref, held.ref, held.state = held.ref, None, ChildState.STOPPED
        if ref is None:
            return
        held.state, held.leaving = ChildState.STOPPING, ref
        self.by_ref.pop(ref, None)
        in_time = await stop(ref, held.spec.stop_within_s)
        held.state, held.leaving = ChildState.STOPPED, None
        if not in_time and held.spec.stop_within_s > 0:
            log.warning(
                "child.killed",
                supervisor=self.label,
                child=held.spec.id,
                reason=f"not stopped within {held.spec.stop_within_s} s",
                next_step="go on",
            )

    def take_down(self, signal: ExitSignal) -> Held | None:
        """The child whose unexpected end this is, now STOPPED; None for a stranger's."""
        held = None if signal.sender is None else self.by_ref.pop(signal.sender, None)
        if held is not None:
            held.ref, held.state = None, ChildState.STOPPED
        return held

    def check_message(self, message: Any, known: UnionType) -> None:
        """Refuse a stray message: it must not end a supervisor, and with it all its children."""
        if not isinstance(message, known):
            raise InvalidArgument(f"{self.label}: not a supervisor's message: {type(message)}")

    def heed(self, signal: ExitSignal) -> None:
        """A signal that is no child's end: the parent's or an order is obeyed, others are not."""
        parent = self.cell.parent
        if signal.sender is None or (parent is not None and signal.sender is parent.ref):
            raise StopActor(signal.reason)

    def counts(self) -> Counts:
        """The children in numbers."""
        kinds = [held.spec.kind for held in self.all_held().values()]
        return Counts(
            specs=len(kinds),
            active=len(self.by_ref),
            supervisors=kinds.count(ChildKind.SUPERVISOR),
            workers=kinds.count(ChildKind.WORKER),
        )

    def describe_state(self) -> str:
        """The state in a line for crash reports and the observer."""
        every = self.all_held().values()
        text = ", ".join(f"{held.spec.id}: {held.state}" for held in islice(every, CHILDREN_TOLD))
        more = len(every) - CHILDREN_TOLD
        return text if more <= 0 else f"{text}, and {more} more"

    def delay_s(self, held: Held) -> float:
        """Count one more restart of a child; how long to wait before it."""
        now_s = trio.current_time()
        held.restarts += 1
        if self.backoff is None:
            return 0.0
        if now_s - held.ready_at_s >= self.backoff.reset_after_s:
            held.attempts = 0
        held.attempts += 1
        return self.backoff.delay_s(held.attempts, random.random())

    # -- telling

    def report_fall(self, held: Held, reason: Exit, gone: Ref[Any] | None, step: Step) -> None:
        """Log a child's end; keep a crash report when it was abnormal."""
        tell = log.error if reason.abnormal else log.info
        tell(
            "child.ended",
            supervisor=self.label,
            child=held.spec.id,
            reason=str(reason),
            next_step=step.value,
        )
        if reason.abnormal:
            self._keep(held, reason, step, gone)

    def _keep(self, held: Held, reason: Exit, step: Step, gone: Ref[Any] | None) -> None:
        crash_log(self.system).add(
            crash_report(
                supervisor=self.label,
                child=held.spec.id,
                reason=reason,
                next_step=step.value,
                restarts=held.restarts,
                obituary=None if gone is None else gone.obituary,
            )
        )

    def report_failed_start(self, held: Held, failure: StartFailed, step: Step) -> None:
        """Log a start that failed, and keep a crash report."""
        log.error(
            "child.not_started",
            supervisor=self.label,
            child=held.spec.id,
            reason=str(failure.reason),
            next_step=step.value,
        )
        self._keep(held, failure.reason, step, None)

    def report_giving_up(self, held: Held, reason: str) -> None:
        """Log that this supervisor ends because of a child."""
        log.error(
            "supervisor.gave_up",
            supervisor=self.label,
            child=held.spec.id,
            reason=reason,
            next_step=Step.GIVE_UP.value,
        )
