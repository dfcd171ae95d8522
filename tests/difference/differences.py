"""Where Holdfast differs from containerd 1.6 on purpose: one row each, with its reason.

`docs/reference/differences.md` holds the same rows for readers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import explained
from .answer import Outcome
from .step import Step


@dataclass(frozen=True)
class Row:
    """A deliberate difference."""

    name: str
    reason: str
    holds: Callable[[Step, Outcome, Outcome], bool]
    """Whether the row explains this: the step, Holdfast's outcome, containerd's."""
    parts: bool = False
    """Whether the two are in different states from here on, so that the sequence ends."""
    since: Callable[[Sequence[Step]], bool] = lambda _: True
    """Whether what led to it was among the sequence's steps, this one included."""


@dataclass(frozen=True)
class EventRow:
    """A deliberate difference in what is told."""

    name: str
    reason: str
    told: Callable[[dict[str, Any], bool], dict[str, Any] | None]
    """The event in a form that both tell; None for one that 1.6 does not tell. The flag says
    whether a step of the sequence brought a garbage collection about."""


ROWS: tuple[Row, ...] = (
    Row(
        "a refused commit leaves its ingest",
        "containerd's database refuses an empty label when its content store has committed the"
        " bytes already, so that the next Write of that ref finds none.",
        explained.half_committed,
        parts=True,
    ),
    Row(
        "a refused snapshot leaves nothing",
        "containerd's database refuses an empty label of a snapshot when it has made the snapshot's"
        " namespace already.",
        explained.half_made,
        parts=True,
    ),
    Row(
        "a refusal has its code",
        "Where containerd forgets the code (UNKNOWN), Holdfast gives the one that the words mean.",
        explained.same_but_code,
    ),
    Row(
        "a label's size is told",
        "A label that is too long is refused in containerd 2's words, with its size.",
        explained.label_too_long,
    ),
    Row(
        "no words of the database",
        "containerd passes on its database's own errors (`key required`, `bucket name required`)"
        " as UNKNOWN; Holdfast refuses an empty key or name as INVALID_ARGUMENT.",
        explained.bolt_words,
    ),
    Row(
        "never used is as empty",
        "containerd's NOT_FOUND has other words while a namespace has never had a container, or a"
        " snapshot of that snapshotter; Holdfast's are always the same.",
        explained.no_bucket,
    ),
    Row(
        "Namespaces.Update answers",
        "containerd leaves the answer empty; Holdfast gives the namespace as it is now.",
        explained.update_of_namespace,
    ),
    Row(
        "Namespaces.Update checks the name",
        "containerd makes a namespace of any name by an update, which no call can then use.",
        explained.bad_namespace_made,
        parts=True,
    ),
    Row(
        "namespaces need no namespace",
        "containerd 1.6 changes a namespace, then answers UNKNOWN when the request's metadata names"
        " no namespace for the event; Holdfast, as containerd 2, tells it in the namespace itself.",
        explained.no_namespace_in_metadata,
        parts=True,
    ),
    Row(
        "the last answer comes once",
        "containerd sends the last answer of a Write stream a second time when the stream ends.",
        explained.repeated_answer,
    ),
    Row(
        "an expected digest is checked",
        "containerd takes any text as the expected digest of a Write; Holdfast refuses a malformed"
        " one at once.",
        explained.bad_expectation,
        parts=True,
    ),
    Row(
        "a negative offset is refused",
        "containerd takes a negative offset of a Write for no offset.",
        explained.bad_offset,
        parts=True,
    ),
    Row(
        "a commit keeps what was written",
        "A commit message without an offset makes containerd discard what was written before it.",
        explained.commit_does_not_truncate,
        parts=True,
    ),
    Row(
        "extensions can be emptied",
        "An update to no extensions at all is answered by containerd 1.6 and leaves them there.",
        explained.emptied_extensions,
        parts=True,
    ),
    Row(
        "whole characters",
        "containerd's refusal of a filter cuts a character of several bytes in two.",
        explained.whole_characters,
    ),
    Row(
        "a status tells what is expected",
        "containerd does not keep the expected digest of a Write, but in one case, nor the total of"
        " one that another namespace has.",
        explained.status_expects,
    ),
    Row(
        "an ingest begun anew is empty",
        "When a Write names another total than its ingest has, containerd begins it anew over the"
        " bytes that it had, and counts those that are left.",
        explained.begun_over,
        since=explained.began_anew,
    ),
    Row(
        "a Write counts its own bytes",
        "After an ingest has been begun anew, with another total or in a namespace that was deleted"
        " in between, containerd still counts the bytes that it had before.",
        explained.written_over,
        parts=True,
        since=explained.began_anew,
    ),
    Row(
        "an exec may be started again",
        "When an exec could not start, as in a paused container, and is started again, containerd's"
        " shim falls, and its tasks are not found any more.",
        explained.shim_fell,
        parts=True,
        since=explained.exec_started_again,
    ),
    Row(
        "sha512 may be written",
        "containerd hashes what is written with sha256 alone, so that a commit with a sha512 or"
        " sha384 digest always fails; Holdfast hashes with what is expected.",
        explained.other_algorithms,
        parts=True,
    ),
    Row(
        "Content.List tells updates",
        "containerd leaves `updated_at` out of the list.",
        explained.list_tells_updates,
    ),
    Row(
        "a shared ingest has a status",
        "While an ingest stands for a blob that another namespace has, containerd finds no file"
        " for its status.",
        explained.shared_status,
    ),
    Row(
        "a read tells where it is",
        "containerd counts the offsets of what it sends from the start of the read, not of the"
        " content.",
        explained.read_offsets,
    ),
    Row(
        "a ref is text",
        "A ref with a null, or of more than 4096 bytes, is refused.",
        explained.bad_ref,
        parts=True,
    ),
    Row(
        "deleted content is gone",
        "Until its next collection containerd still has the bytes of content that was deleted, and"
        " begins a Write that expects them as if another namespace had them.",
        explained.deleted_is_gone,
        parts=True,
    ),
    Row(
        "native's directories",
        "A native snapshot's files lie in `fs` within its directory, beside Holdfast's own.",
        explained.native_place,
    ),
    Row(
        "no snapshot is committed as itself",
        "Where a Commit names the same snapshot twice, and there is none, containerd finds the one"
        " that it is about to make, and refuses in other words.",
        explained.committed_as_itself,
    ),
    Row(
        "a snapshot's own name",
        "containerd's refusals show its internal key (`ns/12/name`); Holdfast's the client's name.",
        explained.not_active,
    ),
    Row(
        "leases hold images",
        "containerd 1.6 has no lease resource of type images; Holdfast has, as containerd 2.",
        explained.newer_resource,
        parts=True,
    ),
    Row(
        "a process is named",
        "containerd 1.6 leaves the container's id out of what it answers about a task.",
        explained.process_named,
    ),
    Row(
        "resources are JSON",
        "An Update whose resources are no JSON is refused as INVALID_ARGUMENT, in whatever state.",
        explained.no_json,
    ),
    Row(
        "an ended task has no pids",
        "containerd asks the runtime, and Debian's crun falls over a container that has ended.",
        explained.crun_fails,
    ),
    Row(
        "a delete of a created task is an end",
        "containerd answers with status 0 and no time; Holdfast with the SIGKILL that ended it.",
        explained.killed_by_delete,
    ),
    Row(
        "no exec before the start",
        "containerd starts an exec in a task that is only created, beside a process that is not yet"
        " its program.",
        explained.exec_in_created,
        parts=True,
    ),
    Row(
        "no exec in an ended or paused task",
        "containerd passes on the OCI runtime's words as UNKNOWN; Holdfast does not ask it.",
        explained.exec_in_ended_or_paused,
    ),
    Row(
        "an ended task has none to kill",
        "With `all`, containerd asks the runtime to signal whom it finds, which may be nobody;"
        " Holdfast says that the process has finished, as for one process.",
        explained.kill_of_ended,
    ),
    Row(
        "a running task is not deleted",
        "Holdfast refuses as FAILED_PRECONDITION, in the words of containerd's client.",
        explained.delete_of_running,
    ),
    Row(
        "a lease's id has no null",
        "Holdfast's keys are joined by it.",
        explained.null_in_lease,
        parts=True,
    ),
    Row(
        "an extension goes",
        "An update whose mask names an extension that the request lacks stores an empty message in"
        " containerd 1.6; Holdfast removes the extension.",
        explained.empty_extension,
        parts=True,
    ),
)


EVENT_ROWS: tuple[EventRow, ...] = (
    EventRow(
        "content that comes is told",
        "`/content/create` is containerd 2's; 1.6 tells only of content that goes.",
        explained.newer_event,
    ),
    EventRow(
        "a namespace's events are its own",
        "They are told in the namespace itself, as in containerd 2; 1.6 tells them in the one that"
        " the request's metadata names.",
        explained.told_in,
    ),
    EventRow(
        "what is collected is told",
        "containerd 1.6 tells of no snapshot or content that its garbage collection removes.",
        explained.collected,
    ),
    EventRow(
        "the end of a created task is told",
        "containerd's exit and delete events of a task that was never started have no time.",
        explained.end_of_created,
    ),
    EventRow(
        "events name the snapshotter",
        "The field is containerd 2's.",
        explained.newer_field,
    ),
)


def row_for(steps: Sequence[Step], ours: Outcome, theirs: Outcome) -> Row | None:
    """The row that explains a difference at the last of these steps, if there is one."""
    return next((r for r in ROWS if r.holds(steps[-1], ours, theirs) and r.since(steps)), None)


def told_by_both(events: list[dict[str, Any]], *, collects: bool) -> list[dict[str, Any]]:
    """A daemon's events without what the rows explain."""
    told: list[dict[str, Any] | None] = list(events)
    for row in EVENT_ROWS:
        told = [row.told(event, collects) for event in told if event is not None]
    return [event for event in told if event is not None]
