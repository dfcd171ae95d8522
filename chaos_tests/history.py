"""The history of a run: what was asked and answered, what was harmed, what was seen afterwards.

Workloads and nemeses write it, checkers read it. Times are seconds on the monotonic clock. A
file of it holds one JSON object a line, so that a run is judged again without being run again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One question to the daemon and what came of it.

    `outcome` is `ok`, a refusal's class name, or `Unavailable` also when the connection broke.
    """

    verb: str
    subject: str
    exec_id: str = ""
    begun_at_s: float
    ended_at_s: float
    outcome: str
    text: str = ""
    pid: int = 0
    status: int | None = None
    exited_at_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that the workload wants started, and the exit status that it will choose."""

    subject: str
    exec_id: str = ""
    status: int
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """One output of one process, compared with what the process wrote."""

    subject: str
    exec_id: str = ""
    stream: str
    terminal: bool
    wanted_bytes: int
    got_bytes: int
    lost_bytes: int
    extra_bytes: int
    ended: bool = True
    """The reader saw its end: nobody held the writing end any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of the daemon's event log. A gap has `lost_from`."""

    sequence: int
    topic: str
    subject: str = ""
    exec_id: str = ""
    status: int | None = None
    exited_at_ns: int | None = None
    lost_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """A nemesis struck. `subjects` are those that it was aimed at; none means everybody."""

    nemesis: str
    at_s: float
    subjects: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    """Who is held up by it, and must be: their calls are not held to any limit."""
    shown: bool = True
    """An actor of ours waits for it, which the tree must show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heal:
    """A nemesis took its harm back."""

    nemesis: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A start of the daemon; `answered_at_s` is None when it never answered."""

    started_at_s: float
    answered_at_s: float | None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The kernel showed the end of a process that we watched."""

    subject: str
    exec_id: str = ""
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """All objects of a kind that the daemon told of, at one moment."""

    kind: str
    names: tuple[str, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Something stands on the host that has no owner any more."""

    kind: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The workload could not go on with a subject."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MayBeLost:
    """All who may reap these die at once, on a kernel that pins nothing: their exits may be told
    as lost, never as another status."""

    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """A harm was seen from outside, with its reason."""

    nemesis: str
    at_s: float
    reason: str


Record = (
    Call
    | Process
    | Streamed
    | Event
    | Harm
    | Heal
    | Boot
    | Ended
    | Listed
    | Left
    | Trouble
    | MayBeLost
    | Visible
)
KINDS: dict[str, Callable[..., Record]] = {
    kind.__name__: kind
    for kind in (
        Call, Process, Streamed, Event, Harm, Heal, Boot, Ended, Listed, Left, Trouble,
        MayBeLost, Visible,
    )
}  # fmt: skip


@dataclass(slots=True)
class History:
    """The records, in the order in which they were written."""

    seed: int = 0
    records: list[Record] = field(default_factory=list[Record])

    def add(self, record: Record) -> None:
        """Write one down."""
        self.records.append(record)

    def of(self, kind: type[R]) -> Iterator[R]:
        """All records of one kind."""
        return (record for record in self.records if isinstance(record, kind))

    def save(self, path: Path) -> None:
        """Keep it in a file."""
        with path.open("w") as file:
            file.write(json.dumps({"seed": self.seed}) + "\n")
            for record in self.records:
                file.write(json.dumps([type(record).__name__, asdict(record)]) + "\n")

    @classmethod
    def load(cls, path: Path) -> "History":
        """Read it from a file."""
        with path.open() as file:
            history = cls(seed=int(json.loads(next(file))["seed"]))
            for line in file:
                kind, fields = json.loads(line)
                history.add(KINDS[kind](**{k: _tuple(v) for k, v in fields.items()}))
        return history


def _tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(cast("list[str]", value))
    return value
