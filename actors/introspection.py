"""Looking into live actors, as OTP's `sys` does: what each does now, and holding one still.

`info` reads; it never waits for the actor, so it answers also about one that hangs. `suspend`,
`resume` and `trace` go through the system lane, and take effect between two messages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from .cell import Cell
from .exits import NOPROC, ActorExited, Exit
from .message import Resume, SetTrace, Suspend
from .obituary import short_repr
from .reference import Ref
from .system import System


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorInfo:
    """One actor at one moment. `current` is the message in work, if it has been waited for."""

    actor: str
    name: str | None
    urn: str
    parent: str | None
    alive: bool
    suspended: bool
    exit: Exit | None
    state: str
    mailbox_depth: int
    mailbox_bound: int | None
    dropped: int
    postponed: int
    handled: int
    current: str | None
    current_age_s: float
    waiting_on: tuple[str, ...]
    links: tuple[str, ...]
    monitored_by: int
    tasks: int
    age_s: float


def info(ref: Ref[Any]) -> ActorInfo:
    """What an actor does now; of a dead one, what is left to know."""
    return _info_of(ref.cell)


def everyone(system: System) -> list[ActorInfo]:
    """All live actors, in start order."""
    return [_info_of(cell) for cell in system.cells]


def suspend(ref: Ref[Any]) -> None:
    """Have an actor handle nothing but the system lane; its mailbox fills meanwhile."""
    _alive(ref).mailbox.put_system(Suspend())


def resume(ref: Ref[Any]) -> None:
    """Let a suspended actor go on."""
    _alive(ref).mailbox.put_system(Resume())


def trace(ref: Ref[Any], sink: Callable[[Any], None] | None) -> None:
    """Tell `sink` of each message just before it is handled; None ends it."""
    _alive(ref).mailbox.put_system(SetTrace(sink))


def _alive(ref: Ref[Any]) -> Cell:
    if ref.cell.exit is not None:
        raise ActorExited(ref, ref.reason or NOPROC)
    return ref.cell


def _info_of(cell: Cell) -> ActorInfo:
    now_s = trio.current_time()
    box = cell.mailbox
    current = cell.current
    return ActorInfo(
        actor=cell.ref.actor_class.__name__,
        name=cell.ref.name,
        urn=cell.ref.actor_urn,
        parent=None if cell.parent is None else str(cell.parent),
        alive=cell.exit is None,
        suspended=cell.suspended,
        exit=cell.exit,
        state="" if cell.actor is None else cell.actor.describe_state(),
        mailbox_depth=len(box),
        mailbox_bound=box.bound,
        dropped=box.dropped,
        postponed=len(box.held or ()),
        handled=cell.handled,
        current=None if current is None else short_repr(current.message),
        current_age_s=0.0 if current is None else now_s - cell.current_since_s,
        waiting_on=tuple(str(other) for other in cell.waiting_on or ()),
        links=tuple(str(other) for other in cell.links or ()),
        monitored_by=len(cell.monitors or ()),
        tasks=len(cell.tasks or ()),
        age_s=now_s - cell.started_at_s,
    )
