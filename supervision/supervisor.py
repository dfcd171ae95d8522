"""The supervisor: a fixed line of children, started in order, stopped against it.

    starting --all children ready--> RUNNING --shutdown, gave up, work done--> stopping --> gone
        +----a child does not start: those before it stop, StartFailed----------------------^

A child's life under it:

    STOPPED --start--> RUNNING --ended--> (decision.py) --> RESTARTING --started--> RUNNING
       ^---terminate_child----+                    +--> STOPPED (kept), or forgotten
                                                   +--> the supervisor gives up

A restart that fails goes through the supervisor's own mailbox before it is tried again, and counts
against the intensity each time: so a shutdown, or a caller, is heard between two tries.

Semantics are those of Erlang/OTP's `supervisor`, compared with it in `tests/supervision`; the
backoff is an extension. Callers use the verbs: `await start_child(supervisor, spec)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import trio

from ..actors.errors import AlreadyExists, FailedPrecondition, NotFound
from ..actors.exits import SHUTDOWN, ActorExited, Exit, Kind, StopActor
from ..actors.message import ExitSignal
from ..actors.reference import Ref
from .decision import Step, ends_supervisor, next_step, plan
from .keeper import ChildState, Held, Keeper
from .spec import (
    DEFAULT_INTENSITY,
    FOREVER,
    AutoShutdown,
    Backoff,
    ChildKind,
    ChildSpec,
    Intensity,
    Restart,
    Strategy,
    Tree,
    check_children,
    check_significance,
)
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

GAVE_UP = Exit(Kind.SHUTDOWN, "restart intensity exceeded")
"""How a supervisor ends that restarted too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """The supervisor to itself: a start failed; restart that child, counted anew."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The supervisor to itself: the backoff is over; start those that still wait for it."""

    ids: Sequence[str]
    turn: int


Message = Verb | TryAgain | Resume


def as_spec(child: ChildSpec | Tree) -> ChildSpec:
    """A tree as the spec of the supervisor that holds it; a spec as it is."""
    if isinstance(child, ChildSpec):
        return child
    return ChildSpec(
        child.id,
        Supervisor,
        child.restart,
        args=(child.children,),
        kwargs={
            "strategy": child.strategy,
            "intensity": child.intensity,
            "auto_shutdown": child.auto_shutdown,
            "backoff": child.backoff,
        },
        name=child.name,
        stop_within_s=FOREVER,
        start_within_s=None,
        significant=child.significant,
        kind=ChildKind.SUPERVISOR,
    )


async def open_tree(tree: Tree) -> Ref["Supervisor"]:
    """Start a whole tree; returns when every child is ready, in order."""
    return await Supervisor.spawn(
        tree.children,
        strategy=tree.strategy,
        intensity=tree.intensity,
        auto_shutdown=tree.auto_shutdown,
        backoff=tree.backoff,
        label=tree.id,
        name=tree.name,
        start_timeout_s=None,
    )


# -- the actor


class Supervisor(Keeper):
    """Starts `children` in order, keeps them alive, stops them in the opposite order."""

    def __init__(
        self,
        children: Sequence[ChildSpec | Tree] = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity = DEFAULT_INTENSITY,
        auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
        backoff: Backoff | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(label=label, intensity=intensity, backoff=backoff)
        specs = [as_spec(child) for child in children]
        check_children(specs, auto_shutdown)
        self.strategy = strategy
        self.auto_shutdown = auto_shutdown
        self.children = {spec.id: Held(spec) for spec in specs}
        self._turn = 0

    def all_held(self) -> Mapping[str, Held]:
        """Every child, in start order."""
        return self.children

    def arrangement(self) -> str:
        """How the children hang together, in a word."""
        return self.strategy.value

    # -- life

    async def on_start(self) -> Any:
        """Start all children in order; if one fails, stop those before it and fail too."""
        for held in list(self.children.values()):
            failure = await self.start_one(held)
            if failure is not None:
                self.report_failed_start(held, failure, Step.GIVE_UP)
                await self._stop_all()
                why = f'child "{held.spec.id}" did not start: {failure.reason}'
                raise StopActor(Exit(Kind.SHUTDOWN, why, failure))

    async def on_stop(self) -> Any:
        """Stop all children, last first."""
        await self._stop_all()

    async def _stop_all(self) -> None:
        for held in reversed(list(self.children.values())):
            await self.stop_one(held)

    # -- a child ended

    async def on_exit(self, signal: ExitSignal) -> None:
        """A child fell, or someone wants this supervisor to end."""
        held = self.take_down(signal)
        if held is None:
            self.heed(signal)
            return
        step = next_step(held.spec.restart, signal.reason.kind)
        if step is Step.RESTART and not self.window.grant(trio.current_time()):
            step = Step.GIVE_UP
        self.report_fall(held, signal.reason, signal.sender, step)
        match step:
            case Step.RESTART:
                await self._restart(held)
            case Step.GIVE_UP:
                self._give_up(held)
            case Step.KEEP:
                self._end_with(held)
            case Step.FORGET:
                del self.children[held.spec.id]
                self._end_with(held)

    def _give_up(self, held: Held) -> None:
        # It has ended already; OTP forgets it before it stops the others.
        del self.children[held.spec.id]
        self.report_giving_up(held, str(GAVE_UP.detail))
        raise StopActor(GAVE_UP)

    def _end_with(self, held: Held) -> None:
        others_live = any(
            other.spec.significant and other.state is not ChildState.STOPPED
            for other in self.children.values()
        )
        if ends_supervisor(self.auto_shutdown, held.spec, others_live):
            raise StopActor(SHUTDOWN)

    async def _restart(self, fallen: Held) -> None:
        """Carry out one granted restart."""
        todo = plan(self.strategy, (h.spec for h in self.children.values()), fallen.spec.id)
        for child_id in todo.stop:
            await self.stop_one(self.children[child_id])
        for child_id in todo.forget:
            del self.children[child_id]
        delay_s = self.delay_s(fallen)
        if delay_s == 0:
            await self._start_all([self.children[child_id] for child_id in todo.start])
            return
        self._turn += 1
        for child_id in todo.start:
            waiting = self.children[child_id]
            waiting.state, waiting.turn = ChildState.RESTARTING, self._turn
        self._tell_later(delay_s, Resume(ids=todo.start, turn=self._turn))

    async def _start_all(self, group: Sequence[Held]) -> None:
        for held in group:
            if held.ref is not None:
                continue
            failure = await self.start_one(held)
            if failure is not None:
                self.report_failed_start(held, failure, Step.RESTART)
                held.state = ChildState.RESTARTING
                self._tell_later(0.0, TryAgain(id=held.spec.id))
                return

    async def _try_again(self, child_id: str) -> None:
        held = self.children.get(child_id)
        if held is None or held.state is not ChildState.RESTARTING:
            return
        if not self.window.grant(trio.current_time()):
            self._give_up(held)
        await self._restart(held)

    async def _resume(self, ids: Sequence[str], turn: int) -> None:
        await self._start_all(
            [
                held
                for child_id in ids
                if (held := self.children.get(child_id)) is not None
                and held.state is ChildState.RESTARTING
                and held.turn == turn
            ]
        )

    def _tell_later(self, delay_s: float, message: TryAgain | Resume) -> None:
        async def tell() -> None:
            await trio.sleep(delay_s)
            try:
                await self.ref.send(message)
            except ActorExited:
                pass  # it is stopping its children now; there is nothing left to restart

        self.spawn_task(tell)

    # -- what callers ask

    async def on_receive(self, message: Message) -> Any:
        """Answer a verb, or go on with a restart."""
        self.check_message(message, Message)
        match message:
            case StartChild(spec=spec):
                return await self._start_new(as_spec(spec))
            case TerminateChild(id=child_id):
                held = self._known(child_id)
                await self.stop_one(held)
                if held.spec.restart is Restart.TEMPORARY:
                    del self.children[child_id]
                return None
            case RestartChild(id=child_id):
                held = self._stopped("restart", child_id)
                return await self.start_one(held) or held.ref
            case DeleteChild(id=child_id):
                del self.children[self._stopped("delete", child_id).spec.id]
                return None
            case WhichChildren():
                return [held.info() for held in self.children.values()]
            case CountChildren():
                return self.counts()
            case TryAgain(id=child_id):
                await self._try_again(child_id)
                return None
            case Resume(ids=ids, turn=turn):
                await self._resume(ids, turn)
                return None
            case _:
                assert_never(message)

    async def _start_new(self, spec: ChildSpec) -> Started | None:
        known = self.children.get(spec.id)
        if known is not None:
            raise AlreadyExists(f'child "{spec.id}" under {self.label}: is {known.state}')
        check_significance(spec, self.auto_shutdown)
        held = Held(spec)
        failure = await self.start_one(held)
        if failure is not None:
            return failure
        self.children[spec.id] = held
        return held.ref

    def _known(self, child_id: str) -> Held:
        held = self.children.get(child_id)
        if held is None:
            raise NotFound(f'child "{child_id}" under {self.label}: not found')
        return held

    def _stopped(self, deed: str, child_id: str) -> Held:
        held = self._known(child_id)
        if held.state is not ChildState.STOPPED:
            raise FailedPrecondition(f'{deed} child "{child_id}" under {self.label}: {held.state}')
        return held
