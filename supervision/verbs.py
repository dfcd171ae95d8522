"""The verbs: what callers ask of a supervisor, static or dynamic.

    ref = await start_child("a supervisor's Ref or NameRef", ChildSpec("web", Web))
    await terminate_child(supervisor, "web")

A verb waits as long as the supervisor needs: starts and stops have deadlines of their own, in the
spec. A refusal (NotFound, AlreadyExists, ...) is an answer; the supervisor lives on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..actors.exits import StartFailed
from ..actors.future import Future
from ..actors.message import Request
from ..actors.reference import NameRef, Ref
from .keeper import ChildInfo, Counts
from .spec import ChildSpec, Tree

Address = Ref[Any] | NameRef

Started = Ref[Any] | StartFailed
"""The child, or why it did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartChild(Request[Started | Future[Started]]):
    """Asked by `start_child`. A dynamic supervisor answers with a future, and goes on."""

    spec: ChildSpec | Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminateChild(Request[Future[None] | None]):
    """Asked by `terminate_child`. A dynamic supervisor answers with a future, and goes on."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartChild(Request[Started]):
    """Asked by `restart_child` for a stopped child."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteChild(Request[None]):
    """Asked by `delete_child`: drop a stopped child's spec."""

    id: str


@dataclass(frozen=True, slots=True)
class WhichChildren(Request[Sequence[ChildInfo]]):
    """Asked by `which_children`."""


@dataclass(frozen=True, slots=True)
class CountChildren(Request[Counts]):
    """Asked by `count_children`."""


Verb = StartChild | TerminateChild | RestartChild | DeleteChild | WhichChildren | CountChildren


async def start_child(supervisor: Address, child: ChildSpec | Tree) -> Ref[Any]:
    """Add a child after all others; returns when it is ready.

    Raises StartFailed, and the spec is not kept; AlreadyExists when the id is taken;
    ResourceExhausted when a dynamic supervisor is full.
    """
    answer = await supervisor.call(StartChild(spec=child), timeout_s=None)
    return _started(await answer.wait() if isinstance(answer, Future) else answer)


async def terminate_child(supervisor: Address, child_id: str) -> None:
    """Stop a child; returns when it has ended.

    Its spec stays, unless it is temporary or the supervisor is dynamic.
    """
    answer = await supervisor.call(TerminateChild(id=child_id), timeout_s=None)
    if answer is not None:
        await answer.wait()


async def restart_child(supervisor: Address, child_id: str) -> Ref[Any]:
    """Start a stopped child again; raises StartFailed, and it stays stopped."""
    return _started(await supervisor.call(RestartChild(id=child_id), timeout_s=None))


async def delete_child(supervisor: Address, child_id: str) -> None:
    """Drop a stopped child's spec."""
    await supervisor.call(DeleteChild(id=child_id), timeout_s=None)


async def which_children(supervisor: Address) -> Sequence[ChildInfo]:
    """The children in start order."""
    return await supervisor.call(WhichChildren(), timeout_s=None)


async def count_children(supervisor: Address) -> Counts:
    """How many children there are."""
    return await supervisor.call(CountChildren(), timeout_s=None)


def _started(answer: Started) -> Ref[Any]:
    if isinstance(answer, StartFailed):
        raise answer
    return answer
