"""What the actor of a process passes on to its shim, and no record shows.

It is the same for a task and an exec; when it may be asked for stands in the table of each.
"""

from dataclasses import dataclass
from typing import assert_never

from ..actors import failpoints
from ..actors.message import Request
from .shimverbs import Shim


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Request[None]):
    """Send a signal to the process, or to all of its container. Sent by the Tasks verbs."""

    signal: int
    all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Request[None]):
    """Set the size of the terminal. Sent by the Tasks verbs."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStdin(Request[None]):
    """Close our end of stdin. Sent by the Tasks verbs."""


Forwarded = Kill | Resize | CloseStdin


async def forward(shim: Shim, step: Forwarded, exec_id: str, within_s: float) -> None:
    """Ask it of the shim; an empty exec id means the first process."""
    match step:
        case Kill():
            about = "exec" if exec_id else "task"
            failpoints.passed(f"{about}.kill.shim")
            await shim.kill(step.signal, exec_id, all=step.all, timeout_s=within_s)
            failpoints.passed(f"{about}.kill.killed")
        case Resize():
            await shim.resize(step.width, step.height, exec_id, timeout_s=within_s)
        case CloseStdin():
            await shim.close_io(exec_id, timeout_s=within_s)
        case _:
            assert_never(step)
