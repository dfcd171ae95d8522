"""The dynamic supervisor: any number of children that come and go, each for itself.

A child costs O(1) to start, stop and restart, however many there are. Starts, stops and restarts
run beside each other, so that one that hangs delays nobody but its own caller; at the end all
children stop at once, each within its own deadline. A child that ended for good is forgotten.

    STARTING --ready--> RUNNING --terminate_child--> STOPPING --ended--> gone
                          ^ | fell
                          | v
                       RESTARTING

Invariants: (1) `work` is set exactly while a task of ours starts the child. (2) Once `ended` is
set the child is on its way out: whoever works on it, or one task made for it, takes it away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import trio

from ..actors.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unimplemented,
)
from ..actors.exits import SHUTDOWN, ActorExited, Exit, Kind, StartFailed, StopActor
from ..actors.future import Future
from ..actors.message import Down, ExitSignal
from .decision import Step, next_step
from .keeper import ChildState, Held, Keeper
from .spec import DEFAULT_INTENSITY, FOREVER, Backoff, ChildKind, ChildSpec, Intensity, Restart
from .supervisor import GAVE_UP, as_spec
from .verbs import (
    CountChildren,
    DeleteChild,
    RestartChild,
    StartChild,
    Started,
    TerminateChild,
    Verb,
    WhichChildren,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """The supervisor to itself: a restart failed; the next one is counted anew."""

    child: "Loose"


Message = Verb | TryAgain


@dataclass(eq=False, slots=True)
class Loose(Held):
    """A child of a dynamic supervisor."""

    work: trio.CancelScope | None = None
    ended: "Future[None] | None" = None


def dynamic(
    child_id: str,
    intensity: Intensity = DEFAULT_INTENSITY,
    *,
    restart: Restart = Restart.PERMANENT,
    name: str | None = None,
    children_max: int | None = None,
    backoff: Backoff | None = None,
) -> ChildSpec:
    """A dynamic supervisor's place in a tree."""
    return ChildSpec(
        child_id,
        DynamicSupervisor,
        restart,
        kwargs={"intensity": intensity, "children_max": children_max, "backoff": backoff},
        name=name,
        stop_within_s=FOREVER,
        kind=ChildKind.SUPERVISOR,
    )


class DynamicSupervisor(Keeper):
    """Begins empty; children come by `start_child`, at most `children_max` at a time."""

    links_children = False  # ended before its start was acknowledged: a monitor still tells

    def __init__(
        self,
        *,
        intensity: Intensity = DEFAULT_INTENSITY,
        children_max: int | None = None,
        backoff: Backoff | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(label=label, intensity=intensity, backoff=backoff)
        self.children_max = children_max
        self.children: dict[str, Loose] = {}

    def all_held(self) -> Mapping[str, Held]:
        """Every child, in start order."""
        return self.children

    def arrangement(self) -> str:
        """How the children hang together, in a word."""
        return "dynamic"

    async def on_stop(self) -> Any:
        """Stop all children at once."""
        for ended in [self._terminate(child_id) for child_id in self.children]:
            await ended.wait()

    # -- a child ended

    def on_exit(self, signal: ExitSignal) -> None:
        """Someone wants this supervisor to end."""
        self.heed(signal)

    def on_down(self, down: Down) -> None:
        """A child fell."""
        held = self.by_ref.pop(down.target, None)
        if held is None or self.children[held.spec.id].ended is not None:
            return  # its end is awaited
        assert isinstance(held, Loose)
        held.ref, held.state = None, ChildState.STOPPED
        reason = down.reason
        if reason.kind is Kind.NOPROC:  # it fell before it was watched
            reason = down.target.reason or reason
        step = next_step(held.spec.restart, reason.kind)
        if step is Step.KEEP:  # there is no sibling to revive it
            step = Step.FORGET
        if step is Step.RESTART and not self.window.grant(trio.current_time()):
            step = Step.GIVE_UP
        self.report_fall(held, reason, down.target, step)
        self._follow(step, held)

    def _follow(self, step: Step, held: Loose) -> None:
        if step is Step.RESTART:
            held.state, held.work = ChildState.RESTARTING, trio.CancelScope()
            self.spawn_task(self._restart, held, held.work, self.delay_s(held))
            return
        del self.children[held.spec.id]
        if step is Step.GIVE_UP:
            self.report_giving_up(held, str(GAVE_UP.detail))
            raise StopActor(GAVE_UP)

    # -- work beside the loop

    async def _start(self, held: Loose, work: trio.CancelScope, answer: "Future[Started]") -> None:
        try:
            failure = await self._bring_up(held, work, 0.0)
            if held.ref is not None:
                answer.set(held.ref)
            else:
                self.children.pop(held.spec.id, None)
                answer.set(failure or StartFailed(held.spec.id, Exit(Kind.KILLED, "terminated")))
            await self._heed_end(held)
        finally:
            if not answer.done():
                answer.set_error(ActorExited(self.ref, self.ref.reason or SHUTDOWN))

    async def _restart(self, held: Loose, work: trio.CancelScope, delay_s: float) -> None:
        failure = await self._bring_up(held, work, delay_s)
        if failure is not None and held.ended is None:
            self.report_failed_start(held, failure, Step.RESTART)
            held.state = ChildState.RESTARTING
            with trio.CancelScope() as held.work:
                await self.ref.send(TryAgain(child=held))
            held.work = None
        await self._heed_end(held)

    async def _bring_up(
        self, held: Loose, work: trio.CancelScope, delay_s: float
    ) -> StartFailed | None:
        failure = None
        with work:
            if delay_s > 0:
                await trio.sleep(delay_s)
            await trio.lowlevel.checkpoint_if_cancelled()
            failure = await self.start_one(held)
        held.work = None
        if held.ref is not None:
            self.monitor(held.ref)
        return failure

    async def _heed_end(self, held: Loose) -> None:
        """Where `terminate_child` came during the work, end the child now."""
        if held.ended is not None:
            await self._take_away(held, held.ended)

    async def _take_away(self, held: Loose, ended: "Future[None]") -> None:
        try:
            await self.stop_one(held)
            if self.children.get(held.spec.id) is held:
                del self.children[held.spec.id]
        finally:
            ended.set()  # at the latest when this supervisor ends, and the child with it

    # -- what callers ask

    def on_receive(self, message: Message) -> Any:
        """Answer a verb; nothing here waits."""
        self.check_message(message, Message)
        match message:
            case StartChild(spec=spec):
                return self._start_new(as_spec(spec))
            case TerminateChild(id=child_id):
                return self._terminate(child_id)
            case WhichChildren():
                return [held.info() for held in self.children.values()]
            case CountChildren():
                return self.counts()
            case TryAgain(child=held):
                self._try_again(held)
                return None
            case RestartChild() | DeleteChild():
                raise Unimplemented(f"{self.label}: children that ended are not kept")
            case _:
                assert_never(message)

    def _start_new(self, spec: ChildSpec) -> "Future[Started]":
        if spec.significant:
            raise InvalidArgument(f'child "{spec.id}": significant under a dynamic supervisor')
        known = self.children.get(spec.id)
        if known is not None:
            raise AlreadyExists(f'child "{spec.id}" under {self.label}: is {known.state}')
        if self.children_max is not None and len(self.children) >= self.children_max:
            raise ResourceExhausted(f"{self.label}: has its {self.children_max} children")
        work = trio.CancelScope()
        held = self.children[spec.id] = Loose(spec, state=ChildState.STARTING, work=work)
        answer: Future[Started] = Future()
        self.spawn_task(self._start, held, work, answer)
        return answer

    def _terminate(self, child_id: str) -> "Future[None]":
        held = self.children.get(child_id)
        if held is None:
            raise NotFound(f'child "{child_id}" under {self.label}: not found')
        if held.ended is None:
            ended: Future[None] = Future()
            held.ended = ended
            if held.work is not None:
                held.work.cancel()
            else:
                self.spawn_task(self._take_away, held, ended)
            held.state = ChildState.STOPPING
        return held.ended

    def _try_again(self, held: Loose) -> None:
        if self.children.get(held.spec.id) is not held or held.ended is not None:
            return
        granted = self.window.grant(trio.current_time())
        self._follow(Step.RESTART if granted else Step.GIVE_UP, held)
