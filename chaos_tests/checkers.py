"""The judges: each a pure function from a history to the violations that it finds in it.

    I1 exactly one exit record per started process     I6 nothing is left without an owner
    I2 what was acknowledged survives                  I7 what is stuck delays only its own
    I4 the daemon starts                               I8 events in order, none missing
    I5 deletes work on a full disk                     I0 every subject came to its end
    bytes  no byte of output is lost or doubled

`python -m chaos_tests.checkers FILE` judges the history in a file.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .history import (
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
    Streamed,
    Trouble,
    Visible,
)
from .patience import PATIENCE

STATUS_LOST = 255
BOOT_WITHIN_S = 10.0 * PATIENCE
ANSWER_WITHIN_S = 5.0 * PATIENCE
VISIBLE_WITHIN_S = 1.0 * PATIENCE

# (what makes an object, what removes it, how lists of it are called)
LASTING = (
    ("Containers.Create", "Containers.Delete", "containers"),
    ("Tasks.Create", "Tasks.Delete", "tasks"),
    ("Snapshots.Prepare", "Snapshots.Remove", "snapshots"),
)
ORDER = ("/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
EXEC_ORDER = ("/tasks/exec-added", "/tasks/exec-started", "/tasks/exit")
SANDBOX_ORDER = ("/sandboxes/create", "/sandboxes/start", "/sandboxes/exit")

Key = tuple[str, str]
"""A subject and an exec id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken promise."""

    invariant: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.subject}: {self.text}"


Checker = Callable[[History], Iterator[Violation]]


def one_exit_per_process(history: History) -> Iterator[Violation]:
    """I1: one exit event per started process; it, Wait, Get and Delete tell the chosen status."""
    wanted = {(p.subject, p.exec_id): p.status for p in history.of(Process)}
    exits: dict[Key, list[Event]] = defaultdict(list)
    started: set[Key] = set()
    for event in history.of(Event):
        key = (event.subject, event.exec_id)
        if event.topic == "/tasks/exit":
            exits[key].append(event)
        elif event.topic in ("/tasks/start", "/tasks/exec-started"):
            started.add(key)
    told: dict[Key, list[Call]] = defaultdict(list)
    for call in history.of(Call):
        key = (call.subject, call.exec_id)
        if call.outcome == "ok" and call.verb == "Tasks.Start":
            started.add(key)
        if call.outcome == "ok" and call.status is not None:
            told[key].append(call)
    may_be_lost = {subject for record in history.of(MayBeLost) for subject in record.subjects}
    for key in sorted(started | set(exits)):
        subject = _name(key)
        found = exits[key]
        if not found:
            yield Violation(invariant="I1", subject=subject, text="no exit event")
            continue
        if len(found) > 1:
            numbers = [event.sequence for event in found]
            yield Violation(invariant="I1", subject=subject, text=f"exits told twice: {numbers}")
        first = found[0]
        # One that never ran was ended by us: whatever the kernel says is right.
        right = first.status == wanted.get(key, first.status)
        lost = first.status == STATUS_LOST and key[0] in may_be_lost
        if key in started and not right and not lost:
            text = f"wrong code: told {first.status}, chosen was {wanted[key]}"
            yield Violation(invariant="I1", subject=subject, text=text)
        for call in told[key]:
            if (call.status, call.exited_at_ns) != (first.status, first.exited_at_ns):
                text = (
                    f"{call.verb} told {call.status} at {call.exited_at_ns}, "
                    f"the event {first.status} at {first.exited_at_ns}"
                )
                yield Violation(invariant="I1", subject=subject, text=text)


def one_life_per_sandbox(history: History) -> Iterator[Violation]:
    """I1: of each sandbox, all of which are shut down: one create, one start, one exit."""
    lives: dict[str, list[str]] = defaultdict(list)
    for event in history.of(Event):
        if event.topic in SANDBOX_ORDER:
            lives[event.subject].append(event.topic)
    for subject, topics in lives.items():
        if tuple(topics) != SANDBOX_ORDER:
            yield Violation(invariant="I1", subject=subject, text=f"told {', '.join(topics)}")


def acknowledged_survives(history: History) -> Iterator[Violation]:
    """I2: what was made is listed until its removal was asked for, and never after its removal."""
    for made_by, removed_by, kind in LASTING:
        made: dict[str, float] = {}
        asked: dict[str, float] = {}
        gone: dict[str, float] = {}
        for call in history.of(Call):
            if call.exec_id:
                continue
            if call.verb == made_by and call.outcome == "ok":
                made[call.subject] = call.ended_at_s
            elif call.verb == removed_by:
                asked.setdefault(call.subject, call.begun_at_s)
                if call.outcome == "ok":
                    gone[call.subject] = call.ended_at_s
        for listed in history.of(Listed):
            if listed.kind != kind:
                continue
            names = set(listed.names)
            for name, at_s in made.items():
                if at_s < listed.at_s < asked.get(name, float("inf")) and name not in names:
                    text = f"the {kind} list misses what {made_by} acknowledged"
                    yield Violation(invariant="I2", subject=name, text=text)
            for name, at_s in gone.items():
                if at_s < listed.at_s and name in names and made.get(name, 0.0) < at_s:
                    text = f"the {kind} list has what {removed_by} acknowledged"
                    yield Violation(invariant="I2", subject=name, text=text)


def daemon_starts(history: History) -> Iterator[Violation]:
    """I4: each start of the daemon answers, and soon."""
    for boot in history.of(Boot):
        if boot.answered_at_s is None:
            yield Violation(invariant="I4", subject="daemon", text=f"never answered: {boot.text}")
        elif boot.answered_at_s - boot.started_at_s > BOOT_WITHIN_S:
            took_s = boot.answered_at_s - boot.started_at_s
            yield Violation(invariant="I4", subject="daemon", text=f"answered after {took_s:.1f} s")


def deletes_on_a_full_disk(history: History) -> Iterator[Violation]:
    """I5: while the disk is full, each delete and remove is answered with ok or NotFound."""
    full = _spells(history, "full-disk")
    for call in history.of(Call):
        removes = call.verb.endswith((".Delete", ".Remove"))
        if removes and _within(call.begun_at_s, full) and call.outcome not in ("ok", "NotFound"):
            text = f"{call.verb} on a full disk: {call.outcome} {call.text}"
            yield Violation(invariant="I5", subject=call.subject, text=text)


def nothing_is_left(history: History) -> Iterator[Violation]:
    """I6: no mount, cgroup, process or file without an owner."""
    for left in history.of(Left):
        yield Violation(invariant="I6", subject=left.kind, text=left.what)


def stuck_delays_only_its_own(history: History) -> Iterator[Violation]:
    """I7: a harm aimed at some delays no other, and what an actor waits for is visible within a
    second."""
    visible = {seen.nemesis: seen for seen in history.of(Visible)}
    for harm in history.of(Harm):
        if not harm.subjects:
            continue
        spell = [(harm.at_s, _healed_at(history, harm))]
        for call in history.of(Call):
            blocked = call.subject in (*harm.subjects, *harm.blocks)
            if blocked or call.verb.endswith(".Wait") or not _within(call.begun_at_s, spell):
                continue
            took_s = call.ended_at_s - call.begun_at_s
            if took_s > ANSWER_WITHIN_S or call.outcome != "ok":
                text = f"{call.verb} beside {harm.nemesis}: {call.outcome} after {took_s:.1f} s"
                yield Violation(invariant="I7", subject=call.subject, text=text)
        seen = visible.get(harm.nemesis)
        if not harm.shown:
            continue
        if seen is None or not seen.reason:
            yield Violation(invariant="I7", subject=harm.nemesis, text="nobody could see it")
        elif seen.at_s - harm.at_s > VISIBLE_WITHIN_S:
            text = f"visible only after {seen.at_s - harm.at_s:.1f} s"
            yield Violation(invariant="I7", subject=harm.nemesis, text=text)


def events_in_order(history: History) -> Iterator[Violation]:
    """I8: numbers without a hole but told ones; create, start, exit, delete, an exec's exit
    before its task's. A name that is used again begins a new life."""
    before: int | None = None
    lives: dict[str, list[Event]] = defaultdict(list)
    for event in history.of(Event):
        if before is not None and event.sequence <= before:
            text = f"event {event.sequence} after {before}"
            yield Violation(invariant="I8", subject="events", text=text)
        elif before is not None and event.sequence != before + 1 and event.lost_from is None:
            text = f"events {before + 1} to {event.sequence - 1} are missing"
            yield Violation(invariant="I8", subject="events", text=text)
        before = event.sequence
        if not event.topic.startswith("/tasks/"):
            continue
        life = lives[event.subject]
        if event.topic == "/tasks/create" and life and life[-1].topic == "/tasks/delete":
            life.clear()
        life.append(event)
        yield from _follows(life)


def _follows(life: Sequence[Event]) -> Iterator[Violation]:
    """Whether the last event of a life may come after the others."""
    event = life[-1]
    order = EXEC_ORDER if event.exec_id else ORDER
    earlier = [e.topic for e in life[:-1] if e.exec_id == event.exec_id]
    subject = _name((event.subject, event.exec_id))
    if event.topic not in order:
        return
    place = order.index(event.topic)
    too_early = [topic for topic in earlier if topic in order[place:]]
    # One that was never started goes from create to exit or delete.
    needed = order[:1] if place else ()
    missing = [topic for topic in needed if topic not in earlier]
    if event.topic == "/tasks/delete" and "/tasks/exit" not in earlier:
        missing.append("/tasks/exit")
    ended = any(e.topic == "/tasks/exit" and not e.exec_id for e in life[:-1])
    if event.exec_id and event.topic == "/tasks/exit" and ended:
        too_early.append("the task's own exit")
    if too_early:
        text = f"{event.topic} ({event.sequence}) after {', '.join(too_early)}"
        yield Violation(invariant="I8", subject=subject, text=text)
    if missing:
        text = f"{event.topic} ({event.sequence}) without {', '.join(missing)}"
        yield Violation(invariant="I8", subject=subject, text=text)


def no_byte_is_lost(history: History) -> Iterator[Violation]:
    """What a process wrote to a FIFO, a file or a terminal is there, once; and its end is seen."""
    for stream in history.of(Streamed):
        subject = f"{_name((stream.subject, stream.exec_id))} {stream.stream}"
        if stream.lost_bytes or stream.extra_bytes:
            text = (
                f"{stream.lost_bytes} bytes lost, {stream.extra_bytes} too many "
                f"({stream.got_bytes} of {stream.wanted_bytes})"
            )
            yield Violation(invariant="bytes", subject=subject, text=text)
        elif not stream.ended:
            yield Violation(invariant="bytes", subject=subject, text="its end never came")


def everyone_came_to_an_end(history: History) -> Iterator[Violation]:
    """I0: the workload could finish with every subject."""
    for trouble in history.of(Trouble):
        yield Violation(invariant="I0", subject=trouble.subject, text=trouble.text)


CHECKERS: Sequence[Checker] = (
    everyone_came_to_an_end,
    one_exit_per_process,
    one_life_per_sandbox,
    acknowledged_survives,
    daemon_starts,
    deletes_on_a_full_disk,
    nothing_is_left,
    stuck_delays_only_its_own,
    events_in_order,
    no_byte_is_lost,
)


def judge(history: History) -> list[Violation]:
    """What all checkers find."""
    return [violation for checker in CHECKERS for violation in checker(history)]


def difference(wanted: bytes, got: bytes) -> tuple[int, int]:
    """How many bytes of `wanted` are missing in `got`, and how many of `got` are too many.

    Counted by lines, which the workload makes unlike each other; order counts as well.
    """
    if wanted == got:
        return 0, 0
    want, have = wanted.splitlines(keepends=True), got.splitlines(keepends=True)
    left = dict[bytes, int]()
    for line in have:
        left[line] = left.get(line, 0) + 1
    lost = 0
    for line in want:
        if left.get(line, 0):
            left[line] -= 1
        else:
            lost += len(line)
    extra = sum(len(line) * count for line, count in left.items())
    return (lost, extra) if lost or extra else (0, 1)  # the same lines in another order


def _name(key: Key) -> str:
    return "/".join(part for part in key if part)


def _healed_at(history: History, harm: Harm) -> float:
    healed = [h.at_s for h in history.of(Heal) if h.nemesis == harm.nemesis and h.at_s >= harm.at_s]
    return min(healed, default=float("inf"))


def _spells(history: History, nemesis: str) -> list[tuple[float, float]]:
    harms = [harm for harm in history.of(Harm) if harm.nemesis == nemesis]
    return [(harm.at_s, _healed_at(history, harm)) for harm in harms]


def _within(at_s: float, spells: Sequence[tuple[float, float]]) -> bool:
    return any(begun <= at_s < over for begun, over in spells)


def main() -> int:
    """The program."""
    violations = judge(History.load(Path(sys.argv[1])))
    for violation in violations:
        print(violation)
    print(f"{len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
