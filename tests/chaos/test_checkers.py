"""Each judge is silent about a good history, and finds what is wrong in a bad one."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast.chaos import checkers
from holdfast.chaos.history import (
    Boot,
    Call,
    Event,
    Harm,
    Heal,
    History,
    Left,
    Listed,
    MayBeLost,
    Process,
    Record,
    Streamed,
    Trouble,
    Visible,
)

AT_NS = 1_000


def call(verb: str, at_s: float, subject: str = "a", took_s: float = 0.1, **more: object) -> Call:
    fields = {"outcome": "ok", "ended_at_s": at_s + took_s, **more}
    return Call(verb=verb, subject=subject, begun_at_s=at_s, **fields)  # type: ignore[arg-type]


def event(sequence: int, topic: str, subject: str = "a", **more: object) -> Event:
    name = f"/tasks/{topic}"
    return Event(sequence=sequence, topic=name, subject=subject, **more)  # type: ignore[arg-type]


def exited(sequence: int, status: int = 7, exec_id: str = "") -> Event:
    return event(sequence, "exit", exec_id=exec_id, status=status, exited_at_ns=AT_NS)


def streamed(lost: int = 0, extra: int = 0, ended: bool = True, terminal: bool = False) -> Streamed:
    return Streamed(
        subject="a",
        stream="stdout",
        terminal=terminal,
        wanted_bytes=10,
        got_bytes=10 - lost + extra,
        lost_bytes=lost,
        extra_bytes=extra,
        ended=ended,
    )


LIFE: Sequence[Record] = (
    Process(subject="a", status=7),
    Process(subject="a", exec_id="x", status=3),
    call("Containers.Create", 1.0),
    call("Tasks.Create", 2.0),
    call("Tasks.Start", 3.0),
    call("Tasks.Wait", 3.2, took_s=60.0, status=7, exited_at_ns=AT_NS),
    Listed(kind="tasks", names=("a",), at_s=4.0),
    Listed(kind="containers", names=("a",), at_s=4.0),
    call("Tasks.Delete", 5.0, status=7, exited_at_ns=AT_NS),
    call("Containers.Delete", 6.0),
    Listed(kind="containers", names=(), at_s=7.0),
    event(1, "create"),
    event(2, "start"),
    event(3, "exec-added", exec_id="x"),
    event(4, "exec-started", exec_id="x"),
    exited(5, 3, "x"),
    exited(6),
    event(7, "delete"),
    streamed(),
    streamed(terminal=True),
    Boot(started_at_s=0.0, answered_at_s=0.4),
)
HANG = Harm(nemesis="hang", at_s=1.0, subjects=("a",))
SEEN = Visible(nemesis="hang", at_s=1.5, reason="create takes long")
FULL = (Harm(nemesis="full-disk", at_s=1.0), Heal(nemesis="full-disk", at_s=9.0))
STARTED = (Process(subject="a", status=7), event(1, "create"), event(2, "start"))

GOOD: dict[str, Sequence[Record]] = {
    "a whole life": LIFE,
    "nothing": (),
    "an exit that may be lost": (*STARTED, MayBeLost(subjects=("a",)), exited(3, 255)),
    "a gap that was told": (event(1, "create", "b"), event(9, "oom", "b", lost_from=2)),
    "a name in its second life": (
        *(event(1, "create"), event(2, "start"), exited(3), event(4, "delete")),
        *(event(5, "create"), event(6, "oom")),
    ),
    "a create that hangs beside another's that does not": (
        *(HANG, SEEN, call("Tasks.Create", 1.1, took_s=60.0), call("Tasks.Create", 1.2, "b")),
        Heal(nemesis="hang", at_s=70.0),
    ),
    "a create that is refused on a full disk": (
        *FULL,
        call("Tasks.Create", 2.0, outcome="ResourceExhausted"),
        call("Snapshots.Remove", 3.0, outcome="NotFound"),
        call("Tasks.Delete", 10.0, outcome="Unknown"),
    ),
}
BAD: dict[str, tuple[checkers.Checker, Sequence[Record]]] = {
    "no exit": (checkers.one_exit_per_process, STARTED),
    "no exit of what was acknowledged": (
        checkers.one_exit_per_process,
        (Process(subject="a", status=7), call("Tasks.Start", 1.0)),
    ),
    "a sandbox that ended twice": (
        checkers.one_life_per_sandbox,
        [
            Event(sequence=number, topic=f"/sandboxes/{name}", subject="pod")
            for number, name in enumerate(("create", "start", "exit", "exit"), 1)
        ],
    ),
    "two exits": (checkers.one_exit_per_process, (*STARTED, exited(3), exited(4))),
    "a wrong code of one that may be lost": (
        checkers.one_exit_per_process,
        (*STARTED, MayBeLost(subjects=("a",)), exited(3, 137)),
    ),
    "lost, and another's may be": (
        checkers.one_exit_per_process,
        (*STARTED, MayBeLost(subjects=("b",)), exited(3, 255)),
    ),
    "a wrong code": (checkers.one_exit_per_process, (*STARTED, exited(3, 137))),
    "Wait and the event differ": (
        checkers.one_exit_per_process,
        (*STARTED, exited(3), call("Tasks.Wait", 1.0, status=0, exited_at_ns=AT_NS)),
    ),
    "Get and the event differ in the time": (
        checkers.one_exit_per_process,
        (*STARTED, exited(3), call("Tasks.Get", 1.0, status=7, exited_at_ns=AT_NS + 1)),
    ),
    "what was made is not listed": (
        checkers.acknowledged_survives,
        (call("Tasks.Create", 1.0), Listed(kind="tasks", names=(), at_s=2.0)),
    ),
    "what was removed is listed": (
        checkers.acknowledged_survives,
        (
            *(call("Containers.Create", 1.0), call("Containers.Delete", 2.0)),
            Listed(kind="containers", names=("a",), at_s=3.0),
        ),
    ),
    "never answered": (checkers.daemon_starts, (Boot(started_at_s=0.0, answered_at_s=None),)),
    "answered late": (checkers.daemon_starts, (Boot(started_at_s=0.0, answered_at_s=99.0),)),
    "a delete is refused on a full disk": (
        checkers.deletes_on_a_full_disk,
        (*FULL, call("Tasks.Delete", 2.0, outcome="ResourceExhausted")),
    ),
    "a mount is left": (checkers.nothing_is_left, (Left(kind="mount", what="/run/x"),)),
    "another waits": (
        checkers.stuck_delays_only_its_own,
        (HANG, SEEN, call("Tasks.Create", 1.2, "b", took_s=30.0)),
    ),
    "another is refused": (
        checkers.stuck_delays_only_its_own,
        (HANG, SEEN, call("Tasks.Create", 1.2, "b", outcome="Unavailable")),
    ),
    "nobody can see what hangs": (checkers.stuck_delays_only_its_own, (HANG,)),
    "seen late": (
        checkers.stuck_delays_only_its_own,
        (HANG, Visible(nemesis="hang", at_s=3.0, reason="create takes long")),
    ),
    "exit before start": (
        checkers.events_in_order,
        (event(1, "create"), exited(2), event(3, "start")),
    ),
    "delete without exit": (checkers.events_in_order, (event(1, "create"), event(2, "delete"))),
    "an exec's exit after its task's": (
        checkers.events_in_order,
        (*STARTED[1:], event(3, "exec-added", exec_id="x"), exited(4), exited(5, 3, "x")),
    ),
    "a hole": (checkers.events_in_order, (event(1, "create"), event(3, "start"))),
    "a number twice": (checkers.events_in_order, (event(2, "create"), event(2, "start"))),
    "lost bytes": (checkers.no_byte_is_lost, (streamed(lost=2),)),
    "lost bytes of a terminal": (checkers.no_byte_is_lost, (streamed(lost=4, terminal=True),)),
    "doubled bytes": (checkers.no_byte_is_lost, (streamed(extra=2),)),
    "no end of the stream": (checkers.no_byte_is_lost, (streamed(ended=False),)),
    "a life that got stuck": (
        checkers.everyone_came_to_an_end,
        (Trouble(subject="a", text="no end within 90 s"),),
    ),
}


def written(records: Sequence[Record]) -> History:
    history = History(seed=7)
    for record in records:
        history.add(record)
    return history


@pytest.mark.parametrize("records", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_passes(records: Sequence[Record]) -> None:
    assert checkers.judge(written(records)) == []


@pytest.mark.parametrize(("checker", "records"), BAD.values(), ids=BAD.keys())
def test_a_bad_history_is_found_by_its_judge(
    checker: checkers.Checker, records: Sequence[Record]
) -> None:
    found = list(checker(written(records)))
    assert len(found) == 1
    assert found[0] in checkers.judge(written(records))


def test_each_judge_has_a_history_that_fails_it() -> None:
    assert {checker for checker, _ in BAD.values()} == set(checkers.CHECKERS)


def test_a_history_is_the_same_after_a_file(tmp_path: Path) -> None:
    history = written([*LIFE, HANG, SEEN, *FULL, Trouble(subject="a", text="é")])
    history.save(tmp_path / "history.jsonl")
    again = History.load(tmp_path / "history.jsonl")
    assert (again.seed, again.records) == (7, history.records)


@pytest.mark.parametrize(
    ("got", "difference"),
    [
        (b"a\nb\nc\n", (0, 0)),
        (b"a\nc\n", (2, 0)),
        (b"a\nb\nb\nc\n", (0, 2)),
        (b"a\nxx\nc\n", (2, 3)),
        (b"b\na\nc\n", (0, 1)),
    ],
)
def test_bytes_are_compared_by_lines_and_their_order(
    got: bytes, difference: tuple[int, int]
) -> None:
    assert checkers.difference(b"a\nb\nc\n", got) == difference
