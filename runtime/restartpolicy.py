"""Restart policies: what the labels of a container say is to become of its task.

The labels are containerd's. `restart.status` alone, without a policy, means always.

    no               never
    always, ""       whatever the end
    on-failure[:n]   a status other than 0; at most n times, when n is above 0
    unless-stopped   whatever the end, but not while `restart.explicitly-stopped` is true

What is no policy restarts nothing. All here are plain functions of labels and records; the actor
in `restarts.py` does what they say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from ..actors.errors import DataLoss
from .records import ExitRecord, State

PREFIX = "containerd.io/restart."
STATUS = PREFIX + "status"
POLICY = PREFIX + "policy"
COUNT = PREFIX + "count"
LOG_URI = PREFIX + "loguri"
EXPLICITLY_STOPPED = PREFIX + "explicitly-stopped"

INTENT = "restart"
"""The kind of an intent's record; its key is the container's id."""

TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})


class Desired(StrEnum):
    """The two values of `restart.status` that mean something."""

    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What was decided and is not yet done; on disk before the first deed.

    `exit` is the end that is answered, None when there was no task. A task that has ended otherwise
    is another one: what was decided of the first is done.
    """

    desired: Desired
    exit: ExitRecord | None = None

    def to_record(self) -> dict[str, Any]:
        """For the store."""
        exit = None if self.exit is None else self.exit.to_record()
        return {"desired": self.desired.value, "exit": exit}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """From the store; DataLoss when it is no intent."""
        try:
            exit = record["exit"]
            return cls(
                desired=Desired(record["desired"]),
                exit=None if exit is None else ExitRecord.from_record(exit),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"intent to restart is damaged: {error!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that is known of one container: its labels, its task, what was decided of it."""

    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    state: State = State.GONE
    exit: ExitRecord | None = None
    intent: Intent | None = None


class Step(StrEnum):
    """What is to be done next; after it, one looks again."""

    REST = "rest"
    RESTART = "restart"
    """Write the intent to bring it back, and the count."""
    STOP = "stop"
    """Write the intent to end it."""
    KILL = "kill"
    DELETE = "delete"
    CREATE = "create"
    START = "start"
    FORGET = "forget"
    """The intent is fulfilled, or no longer wanted."""


HALFWAY = (State.CREATING, State.DELETING)


def next_step(view: View) -> Step:
    """What brings a container nearer to what its labels say."""
    desired = view.labels.get(STATUS, "")
    intent = view.intent
    if intent is not None and intent.desired.value != desired:
        return Step.FORGET
    if view.state in HALFWAY:
        return Step.REST  # whoever does it, a client or recovery, comes to an end
    match desired:
        case Desired.STOPPED:
            return _next_to_stopped(view)
        case Desired.RUNNING if intent is not None:
            return _next_to_running(view, intent)
        case Desired.RUNNING:
            ended = view.state in (State.STOPPED, State.GONE)
            return Step.RESTART if ended and allows(view.labels, view.exit) else Step.REST
        case _:
            return Step.REST


def _next_to_stopped(view: View) -> Step:
    if view.intent is None:
        # A task that ended by itself is left to its client, as by containerd.
        return Step.REST if view.state in (State.STOPPED, State.GONE) else Step.STOP
    match view.state:
        case State.GONE:
            return Step.FORGET
        case State.STOPPED:
            return Step.DELETE
        case _:
            return Step.KILL


def _next_to_running(view: View, intent: Intent) -> Step:
    match view.state:
        case State.CREATED:
            return Step.START
        case State.STOPPED if view.exit == intent.exit:
            return Step.DELETE if _still(view.labels, intent) else Step.FORGET
        case State.GONE:
            return Step.CREATE if _still(view.labels, intent) else Step.FORGET
        case _:
            return Step.FORGET


def allows(labels: Mapping[str, str], exit: ExitRecord | None) -> bool:
    """Whether the policy brings back a task that ended so; None: there is none."""
    return _allows(labels, exit, count_of(labels))


def _still(labels: Mapping[str, str], intent: Intent) -> bool:
    """Whether the policy still says what it said before the restart was counted."""
    return _allows(labels, intent.exit, (count_of(labels) or 0) - 1)


def _allows(labels: Mapping[str, str], exit: ExitRecord | None, count: int | None) -> bool:
    name, colon, most = labels.get(POLICY, "").partition(":")
    match name:
        case "" | "always" if not colon:
            return True
        case "unless-stopped" if not colon:
            return labels.get(EXPLICITLY_STOPPED, "") not in TRUE
        case "on-failure":
            if (colon and not _is_number(most)) or count is None:
                return False
            return exit is not None and exit.status != 0 and not 0 < int(most or 0) <= count
        case _:
            return False


def count_of(labels: Mapping[str, str]) -> int | None:
    """How often it was restarted; None when the label is no number."""
    text = labels.get(COUNT, "")
    if not text:
        return 0
    return int(text) if _is_number(text) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", text) is not None


def wishes(labels: Mapping[str, str]) -> Mapping[str, str]:
    """What a client asked for: the labels of restarts, but for the count, which is ours."""
    return {key: value for key, value in labels.items() if key.startswith(PREFIX) and key != COUNT}
