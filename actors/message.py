"""Messages: typed requests, and what the system lane carries.

A request names the type of its answer, and `ref.call` returns exactly that:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class GetPid(Request[int]):
        "Asked by the shim client; answered with the pid of the first process."

    pid = await ref.call(GetPid())   # int
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .exits import Exit

if TYPE_CHECKING:
    from .cell import Cell
    from .reference import Ref

R_co = TypeVar("R_co", covariant=True)


class Request(Generic[R_co]):
    """The base of every message that is answered; `R_co` is the answer's type."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Monitor:
    """One watch of one actor over another; ends with exactly one `Down`, or by demonitor."""

    target: "Ref[Any]"
    watcher: "Cell | None"
    callback: "Callable[[Down], None] | None" = None


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored actor ended. Sent by its end, once per monitor."""

    monitor: Monitor
    target: "Ref[Any]"
    reason: Exit


@dataclass(frozen=True, slots=True)
class ExitSignal:
    """A linked actor ended, or someone sent a signal (`sender` is None), and this actor traps
    exits."""

    sender: "Ref[Any] | None"
    reason: Exit


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End in order: after the current message, before those that wait."""

    reason: Exit


@dataclass(frozen=True, slots=True)
class Suspend:
    """Handle nothing but the system lane until `Resume`. Sent by introspection."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after `Suspend`. Sent by introspection."""


@dataclass(frozen=True, slots=True)
class SetTrace:
    """Tell `sink` of each message before it is handled, or no longer (None)."""

    sink: Callable[[Any], None] | None


SystemMessage = Down | ExitSignal | Shutdown | Suspend | Resume | SetTrace
