"""Asking: how a process's actor is reached, whoever falls meanwhile."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from ..actors.errors import AlreadyExists, DeadlineExceeded, Unavailable
from ..actors.exits import ActorExited, CallTimeout
from ..actors.message import Request
from ..actors.reference import Ref
from ..actors.system import System
from ..supervision.spec import ChildSpec

R = TypeVar("R")

StartChild = Callable[[ChildSpec], Awaitable[Ref[Any]]]
"""Starts an actor under one of the two dynamic supervisors, `tasks` and `execs`."""

ASK_AGAIN_S = 0.005
ASK_SLACK_S = 5.0


class Asking:
    """The ways to the actors of one host. `within_s`: how long one may take to give up its name."""

    def __init__(self, system: System, within_s: float) -> None:
        self._system = system
        self._within_s = within_s

    async def ask(
        self,
        name: str,
        request: Request[R],
        within_s: float,
        done: Callable[[], R | None] = lambda: None,
    ) -> R:
        """Ask the actor of that name; when it falls, ask the one that follows it.

        `done` tells the answer of a request that took effect before the fall.
        """
        # The shim's own deadline comes first; this one is for a mailbox that is full of others.
        deadline = trio.current_time() + within_s + ASK_SLACK_S
        while True:
            ref = self._system.whereis(name)
            if ref is not None:
                try:
                    left_s = max(deadline - trio.current_time(), 0.0)
                    return await ref.call(request, timeout_s=left_s)
                except ActorExited:
                    pass
                except CallTimeout as error:
                    raise DeadlineExceeded(str(error)) from error
            answer = done()
            if answer is not None:
                return answer
            if trio.current_time() >= deadline or (
                ref is None and trio.current_time() >= deadline - within_s
            ):
                raise Unavailable(f"{name}: not running")
            await trio.sleep(ASK_AGAIN_S)

    async def start(self, start: StartChild, child: ChildSpec) -> Ref[Any]:
        """Start the actor of a record that was just written; one before it may be about to end."""
        deadline = trio.current_time() + self._within_s
        while True:
            try:
                return await start(child)
            except AlreadyExists:
                if trio.current_time() >= deadline:
                    raise
                await trio.sleep(ASK_AGAIN_S)

    async def ended(self, name: str) -> None:
        """Wait until the actor of a deleted process has given up its name."""
        ref = self._system.whereis(name)
        if ref is not None:
            with trio.move_on_after(self._within_s):
                await ref.wait_exit()
