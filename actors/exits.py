"""Exit reasons: why an actor ended, and what those who asked it are told.

    normal     it was done                         shutdown   it was asked to end
    killed     it was ended from outside           crash      a handler raised
    noproc     it was not alive in the first place

`normal` and `shutdown` are ends in order; the others are abnormal, and a transient child is
restarted after them.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pykka

from .errors import ResourceExhausted


class Kind(enum.StrEnum):
    """The five ways to end."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    KILLED = "killed"
    CRASH = "crash"
    NOPROC = "noproc"


@dataclass(frozen=True, slots=True)
class Exit:
    """Why an actor ended.

    `exception` is there for those told of the end as it happens (a monitor, a link, the
    caller). A reference keeps the reason without it, since a traceback holds every frame.
    """

    kind: Kind
    detail: Any = None
    exception: BaseException | None = field(default=None, compare=False)

    @property
    def abnormal(self) -> bool:
        """Whether the end was neither normal nor an orderly shutdown."""
        return self.kind not in (Kind.NORMAL, Kind.SHUTDOWN)

    def without_exception(self) -> "Exit":
        """The same reason, holding no frames."""
        return self if self.exception is None else Exit(self.kind, self.detail)

    def __str__(self) -> str:
        said = [self.kind.value]
        if self.detail is not None:
            said.append(str(self.detail))
        if self.exception is not None:
            said.append(repr(self.exception))
        return ": ".join(said)


NORMAL: Final = Exit(Kind.NORMAL)
SHUTDOWN: Final = Exit(Kind.SHUTDOWN)
KILL: Final = Exit(Kind.KILLED, "kill")
"""Sent as a signal it cannot be trapped. Those linked to the killed actor see KILLED."""
KILLED: Final = Exit(Kind.KILLED)
NOPROC: Final = Exit(Kind.NOPROC)


class _NoAnswer(enum.Enum):
    NO_ANSWER = enum.auto()


NO_ANSWER: Final = _NoAnswer.NO_ANSWER


class StopActor(Exception):
    """Raised in a handler to end the actor with a reason; `on_stop` runs.

    With `answer` the caller of the current message gets it; without, it is told of the end.
    """

    def __init__(self, reason: Exit = NORMAL, *, answer: Any = NO_ANSWER) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


class ActorExited(pykka.ActorDeadError):
    """The actor was dead, or ended before it answered."""

    def __init__(self, target: object, reason: Exit, text: str | None = None) -> None:
        super().__init__(text or f"{target} has ended: {reason}")
        self.target = target
        self.reason = reason


class StartFailed(Exception):
    """The actor did not come up: `__init__` or `on_start` raised, or took too long."""

    def __init__(self, actor: str, reason: Exit) -> None:
        super().__init__(f"{actor} did not start: {reason}")
        self.actor = actor
        self.reason = reason


class CallTimeout(pykka.Timeout):
    """The answer did not come in time. The request is withdrawn if it was not yet begun."""

    def __init__(self, target: object, timeout_s: float) -> None:
        super().__init__(f"{target} did not answer within {timeout_s} s")
        self.target = target
        self.timeout_s = timeout_s


class MailboxFull(ResourceExhausted):
    """The mailbox is at its bound, and the message was not taken."""


class DeadlockError(RuntimeError):
    """The call would close a ring of actors that wait for each other; none could answer."""

    def __init__(self, ring: Sequence[object]) -> None:
        super().__init__("call would wait for itself: " + " -> ".join(map(str, ring)))
        self.ring = tuple(ring)


class WouldBlockLoop(RuntimeError):
    """A blocking call on the loop's own thread, which the answer could never reach."""
