"""The life of a task: from the intent to create it until it is gone. `task.py` is who lives it.

    CREATING --Create--> CREATED --Start--> RUNNING --Exited--> STOPPED --Delete--> GONE
        |                 |   |              |  ^                 ^                  ^
        +--Delete--> GONE |   +--Exited------|--|-----------------+                  |
                          +------Delete------|--|---------------> DELETING --Delete--+
                                       Pause |  | Thawed          |
                                             v  |                 |
                                           PAUSING ---Exited------+
                                             | Frozen             |
                                             v                    |
                         RUNNING <--Resume-- PAUSED ----Exited----+

A task that was never started must be killed to be deleted. That is one step to the world, so
DELETING is written first, and finished by whoever finds it: a client, or the next recovery.

Invariants: (1) `pid` is set from CREATED on, `exit` exactly in STOPPED. (2) Every state leads to
GONE. (3) A start is told before the exit, an exec's exit before its task's. (4) An exit is told
once: the exit record is written in the transaction of its event. (5) Only the shim or the loss of
the whole bundle says that a process has ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from ..actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal
from ..actors.message import Request
from .exec import exited, lost
from .forwarded import CloseStdin, Forwarded, Kill, Resize
from .records import ExitRecord, State
from .shimclient import Exited, OutOfMemory, ShimState


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(Request[int]):
    """Make the bundle, the shim and the first process. Sent by the Tasks verbs, once; answered
    with the pid. When it is refused, nothing is left and the actor ends."""

    config: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Request[int]):
    """Run the first process. Sent by the Tasks verbs; answered with the pid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first process was found running. Sent by the actor to itself after a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Request[None]):
    """Freeze the container. Sent by the Tasks verbs; answered when it is frozen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Request[None]):
    """Thaw the container. Sent by the Tasks verbs; answered when it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The container was found, or got, frozen. Sent by the actor to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thawed:
    """The container was found, or got, thawed, or could not be frozen. Sent by the actor to
    itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Request[None]):
    """Change the limits to an OCI resources object in JSON. Sent by the Tasks verbs."""

    resources: bytes
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class AddExec:
    """May a process be added? Asked by the Tasks verbs of the table alone, never sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Request[ExitRecord]):
    """Remove all that the task has. Sent by the Tasks verbs; answered with the exit, and then
    the actor ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The shim was connected anew, and may know more than was told. Sent by the link. What it knew
    at that moment is not in here: a verb that was under way may have changed it since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLost:
    """No shim can tell anything any more. Sent by the link."""


Step = (
    Create
    | Start
    | Started
    | Pause
    | Resume
    | Frozen
    | Thawed
    | Forwarded
    | Update
    | AddExec
    | Exited
    | Delete
)
Message = Step | OutOfMemory | Seen | BundleLost

LIVE = (State.CREATED, State.RUNNING, State.PAUSING, State.PAUSED)
HALFWAY = (State.CREATING, State.DELETING)
"""What a crash may leave, and a Delete finishes."""

TRANSITIONS: Mapping[tuple[State, type[Step]], State] = {
    (State.CREATING, Create): State.CREATED,
    (State.CREATING, Delete): State.GONE,
    (State.CREATED, Start): State.RUNNING,
    (State.CREATED, Started): State.RUNNING,
    (State.CREATED, Exited): State.STOPPED,
    (State.CREATED, Delete): State.DELETING,
    (State.CREATED, AddExec): State.CREATED,
    (State.RUNNING, Pause): State.PAUSING,
    (State.RUNNING, Frozen): State.PAUSED,
    (State.RUNNING, Exited): State.STOPPED,
    (State.RUNNING, AddExec): State.RUNNING,
    (State.PAUSING, Frozen): State.PAUSED,
    (State.PAUSING, Thawed): State.RUNNING,
    (State.PAUSING, Exited): State.STOPPED,
    (State.PAUSED, Resume): State.RUNNING,
    (State.PAUSED, Thawed): State.RUNNING,
    (State.PAUSED, Exited): State.STOPPED,
    # The shim reports again what it cannot know to be told: the ledger tells it once.
    (State.STOPPED, Exited): State.STOPPED,
    (State.STOPPED, CloseStdin): State.STOPPED,
    (State.STOPPED, Resize): State.STOPPED,
    (State.STOPPED, Delete): State.GONE,
    (State.DELETING, Delete): State.GONE,
    **{(state, step): state for state in LIVE for step in (Kill, Update, Resize, CloseStdin)},
}


def next_state(state: State, step: Step) -> State:
    """The state that a step leads to; raises the refusal when the table has none."""
    found = TRANSITIONS.get((state, type(step)))
    if found is None:
        raise refusal(state, step)
    return found


def refusal(state: State, step: Step) -> Refusal:
    """Why a step is not for a state, in containerd's words where it has some."""
    if state is State.GONE:
        return NotFound(f"{type(step).__name__} of a deleted task: not found")
    match step:
        case Create():
            return AlreadyExists(f"Create while {state}: already exists")
        case Kill() if state in (State.STOPPED, State.DELETING):
            return NotFound("process already finished: not found")
        case Delete():
            text = f"task must be stopped before deletion: {state}: failed precondition"
            return FailedPrecondition(text)
        case Start():
            return FailedPrecondition(f"cannot start a {state} process")
        case Pause() | Resume() if state is State.CREATED:
            return FailedPrecondition(f"cannot {_verb(step)} task in {state} state")
        case Resume() if state is State.RUNNING:
            return FailedPrecondition("cannot resume a running process")
        case Pause() | Resume() | Update():
            return FailedPrecondition(f"cannot {_verb(step)} a {state} container")
        case AddExec():
            return FailedPrecondition(f"cannot exec in a {state} state")
        case Kill() | Resize() | CloseStdin() | Started() | Frozen() | Thawed() | Exited():
            return FailedPrecondition(f"{type(step).__name__} while {state}")
        case _:
            assert_never(step)


def steps_to_truth(state: State, shim: ShimState) -> list[Step]:
    """The steps that bring a record in `state` to what the shim knows; none when it is there."""
    if state not in LIVE:
        return []
    init = shim.processes.get("")
    if init is None:
        return [lost()]
    if init.status == "stopped":
        return [exited(init)]
    steps: list[Step] = []
    if state is State.CREATED and init.status == "running":
        steps.append(Started())
        state = State.RUNNING
    if shim.paused and state in (State.RUNNING, State.PAUSING):
        steps.append(Frozen())
    if not shim.paused and state in (State.PAUSING, State.PAUSED):
        steps.append(Thawed())
    return steps


def _verb(step: Pause | Resume | Update) -> str:
    return type(step).__name__.lower()
