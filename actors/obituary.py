"""The obituary: what is known of an actor at its abnormal end, for the crash report.

Everything in it is text or a number; it holds no frame, so keeping it leaks nothing.
"""

import reprlib
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .exits import Exit
from .pykka_compat import Envelope

if TYPE_CHECKING:
    from .cell import Cell

MESSAGES_SHOWN: Final = 10

_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 20


def short_repr(value: object) -> str:
    """The repr of anything, bounded; one that raises is told as such by reprlib."""
    return _short.repr(value)[:2000]


@dataclass(frozen=True, slots=True, kw_only=True)
class Obituary:
    """One abnormal end. `exception` and `traceback` are empty unless a handler raised."""

    actor: str
    name: str | None
    urn: str
    reason: Exit
    exception: str
    traceback: str
    last_message: str | None
    state: str
    mailbox_depth: int
    mailbox: tuple[str, ...]
    handled: int
    age_s: float


def write_obituary(cell: "Cell", reason: Exit, state: str, now_s: float) -> Obituary:
    """Gather what is known; to be called before the mailbox is closed."""
    error = reason.exception
    current: Envelope[Any] | None = cell.current
    waiting = list(cell.mailbox.user)[:MESSAGES_SHOWN]
    return Obituary(
        actor=cell.ref.actor_class.__name__,
        name=cell.ref.name,
        urn=cell.ref.actor_urn,
        reason=reason.without_exception(),
        exception="" if error is None else f"{type(error).__name__}: {short_repr(str(error))}",
        traceback="" if error is None else "".join(traceback.format_exception(error, limit=-20)),
        last_message=None if current is None else short_repr(current.message),
        state=state,
        mailbox_depth=len(cell.mailbox),
        mailbox=tuple(short_repr(envelope.message) for envelope in waiting),
        handled=cell.handled,
        age_s=now_s - cell.started_at_s,
    )
