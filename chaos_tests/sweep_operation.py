"""An operation of the crash sweep, from the world before it to the world after.

    before(asks...)    brings about what the operation begins with
    work(asks...)      the operation, one call of a client or a client's usual few
    after(asks...)     takes all away again; what is gone already is no error
    left()             what is wrong outside of the daemon once all is taken away

An operation's calls may be repeated after a fall: what was done is then refused as there already,
or as gone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from holdfast.api.cli.session import Session

Deed = Callable[[Session], Awaitable[None]]


def nothing() -> Sequence[str]:
    """Nothing is wrong."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry. Where several calls make it up, a fall leaves any number of them done."""

    name: str
    work: Sequence[Deed]
    before: Sequence[Deed] = ()
    after: Sequence[Deed] = ()
    programs: Sequence[str] = ("daemon",)
    """Whose points are swept."""
    resumes: bool = False
    """Whether what a killed one has brought is kept for the next, and goes with that."""
    left: Callable[[], Sequence[str]] = nothing
