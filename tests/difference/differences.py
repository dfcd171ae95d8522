"""Where Holdfast differs from containerd 1.6 on purpose: one row each, with its reason.

`docs/reference/differences.md` holds the same rows for readers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .answer import Outcome
from .step import SIZES, Step

REFUSED = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS"})


@dataclass(frozen=True)
class Row:
    """A deliberate difference."""

    name: str
    reason: str
    holds: Callable[[Step, Outcome, Outcome], bool]
    """Whether the row explains this: the step, Holdfast's outcome, containerd's."""
    parts: bool = False
    """Whether the two are in different states from here on, so that the sequence ends."""


@dataclass(frozen=True)
class EventRow:
    """A deliberate difference in what is told."""

    name: str
    reason: str
    told: Callable[[dict[str, Any], bool], dict[str, Any] | None]
    """The event in a form that both tell; None for one that 1.6 does not tell. The flag says
    whether a step of the sequence brought a garbage collection about."""


def _in(step: Step, *methods: str) -> bool:
    return step.method in methods or step.method.partition(".")[0] in methods


def _same_but_code(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = theirs.message.removesuffix(": unknown")
    same = ours.message.removesuffix(CODE_WORDS) == words and ours.answer == theirs.answer
    return theirs.code == "UNKNOWN" and ours.code in REFUSED and same


CODE_WORDS = ": failed precondition"
LABEL_SIZE = re.compile(
    r"label key and value (?:length \(\d+ bytes\) )?greater than maximum size \(4096 bytes\), key:"
)


def _label_too_long(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    here, there = LABEL_SIZE.split(ours.message), LABEL_SIZE.split(theirs.message)
    return len(here) == len(there) == 2 and here[0] == there[0]


def _bolt_words(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = ("key required", "bucket name required", "key too large")
    own = theirs.code == "UNKNOWN" and any(theirs.message.endswith(each) for each in words)
    return own and ours.code in REFUSED


def _no_bucket(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = r'cannot (delete|update) container ".*" in namespace|can not find snapshotter'
    there = re.match(words, theirs.message, re.DOTALL)
    return ours.code in REFUSED and theirs.code == "NOT_FOUND" and there is not None


def _update_of_namespace(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Namespaces.Update")
        and ours.code == theirs.code == "OK"
        and theirs.answer == {"namespace": {}}
    )


def _bad_namespace_made(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Namespaces.Update")
        and ours.code == "INVALID_ARGUMENT"
        and ours.message.startswith("identifier")
        and theirs.code in ("OK", "UNKNOWN", "INVALID_ARGUMENT")
    )


def _no_namespace_in_metadata(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    publishing = "failed publishing event: namespace is required: failed precondition"
    return _in(step, "Namespaces") and ours.code == "OK" and theirs.message == publishing


def _repeated_answer(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and ours.code == theirs.code == "OK"
        and bool(ours.answer)
        and _without_end(ours.answer) == _without_repeat(theirs.answer)
    )


def _without_end(answers: list[Any]) -> list[Any]:
    return [each for each in answers if each != "the stream ended"]


def _without_repeat(answers: list[Any]) -> list[Any]:
    return answers[:-1] if len(answers) > 1 and answers[-1] == answers[-2] else answers


def _bad_expectation(step: Step, ours: Outcome, _: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and ours.code == "INVALID_ARGUMENT"
        and ours.message.endswith("failed validation")
    )


def _bad_offset(step: Step, ours: Outcome, _: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and ours.code == "OUT_OF_RANGE"
        and ours.message.startswith("write @-1 must occur")
    )


def _commit_does_not_truncate(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Write") and any(
        each.get("action") == 2 and not each.get("offset") and not each.get("data")
        for each in step.request
    )


def _native_place(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        step.method in ("Snapshots.Prepare", "Snapshots.View", "Snapshots.Mounts")
        and step.request["snapshotter"] == "native"
        and repr(ours.answer).replace("/fs", "") == repr(theirs.answer)
    )


def _not_active(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Snapshots")
        and ours.code == theirs.code
        and re.sub(r"^failed to [\w ]+: |r\d+-\w/\d+/", "", theirs.message) == ours.message
    )


def _newer_resource(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Leases")
        and step.request.get("resource", {}).get("type") == "images"
        and theirs.code == "UNIMPLEMENTED"
    )


def _null_in_lease(step: Step, ours: Outcome, _: Outcome) -> bool:
    return _in(step, "Leases") and ours.message.startswith("lease id must not contain null")


def _empty_extension(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    def without_empty(answer: Any) -> Any:
        container = dict(answer["container"])
        extensions = container.pop("extensions", {})
        kept = {key: one for key, one in extensions.items() if one != EMPTY}
        return container, kept

    return (
        _in(step, "Containers.Update")
        and ours.code == theirs.code == "OK"
        and without_empty(ours.answer) == without_empty(theirs.answer)
    )


EMPTY = {"type_url": "", "value": b""}


def _whole_characters(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = "filters: parse error: ["
    return words in ours.message and words in theirs.message and "\ufffd" in theirs.message


def _without(answer: Any, field: str) -> Any:
    match answer:
        case dict():
            return {key: _without(one, field) for key, one in answer.items() if key != field}
        case list():
            return [_without(one, field) for one in answer]
        case _:
            return answer


def _status_expects(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Content.Status", "Content.ListStatuses")
        and ours.code == theirs.code == "OK"
        and _without(ours.answer, "expected") == _without(theirs.answer, "expected")
    )


def _other_algorithms(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Write") and "@sha512" in repr(step.request)


def _list_tells_updates(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.List") and _without(ours.answer, "updated_at") == theirs.answer


def _shared_status(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    if step.method == "Content.Status":
        return theirs.message.endswith("/data: no such file or directory: not found")
    return _in(step, "Content.ListStatuses") and all(
        each in (ours.answer or {}).get("statuses", [])
        for each in (theirs.answer or {}).get("statuses", [])
    )


def _read_offsets(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Read") and _without(ours.answer, "offset") == _without(
        theirs.answer, "offset"
    )


def _bad_ref(step: Step, ours: Outcome, _: Outcome) -> bool:
    return _in(step, "Content") and ours.message.endswith("is malformed: invalid argument")


def _deleted_is_gone(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    """containerd's backend still has the blob, and shares it."""
    if not _in(step, "Content.Write") or not theirs.answer:
        return False
    if not ours.answer:
        expected = step.request[0].get("expected")
        return bool(expected) and ours.message.endswith("must occur at current offset 0")
    first, its = ours.answer[0], theirs.answer[0]
    return "offset" not in first and its.get("offset", 0) in SIZES and its != first


def _process_named(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    def nameless(answer: Any) -> Any:
        fields = ("container_id", "id") if step.method == "Tasks.Delete" else ("container_id",)
        for field in fields:
            answer = _without(answer, field)
        return answer

    return (
        _in(step, "Tasks.Get", "Tasks.List", "Tasks.Delete", "Tasks.DeleteProcess")
        and ours.code == theirs.code == "OK"
        and nameless(ours.answer) == nameless(theirs.answer)
    )


def _no_json(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Tasks.Update") and ours.message.startswith("spec is no JSON")


def _crun_fails(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    fails = "crun did not terminate successfully" in theirs.message
    return _in(step, "Tasks.ListPids") and ours == Outcome(answer={}) and fails


def _killed_by_delete(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    if not _in(step, "Tasks.Delete") or ours.answer is None:
        return False
    fields = {"pid": ours.answer["pid"]}
    return ours.answer["exit_status"] == 137 and theirs.answer == fields


def _exec_in_ended(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Tasks.Start")
        and ours.message.endswith("init process is not running: failed precondition")
        and theirs.message.startswith("OCI runtime exec failed: ")
    )


def _kill_of_ended(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    ended = ours.message == "process already finished: not found"
    return _in(step, "Tasks.Kill") and step.request.get("all") and ended and theirs.code == "OK"


def _delete_of_running(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    running = "task must be stopped before deletion: "
    process = "failed to delete task: cannot delete a "
    return (
        _in(step, "Tasks.Delete")
        and ours.message.startswith(running)
        and theirs.message.startswith(process)
    )


ROWS: tuple[Row, ...] = (
    Row(
        "a refusal has its code",
        "Where containerd forgets the code (UNKNOWN), Holdfast gives the one that the words mean.",
        _same_but_code,
    ),
    Row(
        "a label's size is told",
        "A label that is too long is refused in containerd 2's words, with its size.",
        _label_too_long,
    ),
    Row(
        "no words of the database",
        "containerd passes on its database's own errors (`key required`, `bucket name required`)"
        " as UNKNOWN; Holdfast refuses an empty key or name as INVALID_ARGUMENT.",
        _bolt_words,
    ),
    Row(
        "never used is as empty",
        "containerd's NOT_FOUND has other words while a namespace has never had a container, or a"
        " snapshot of that snapshotter; Holdfast's are always the same.",
        _no_bucket,
    ),
    Row(
        "Namespaces.Update answers",
        "containerd leaves the answer empty; Holdfast gives the namespace as it is now.",
        _update_of_namespace,
    ),
    Row(
        "Namespaces.Update checks the name",
        "containerd makes a namespace of any name by an update, which no call can then use.",
        _bad_namespace_made,
        parts=True,
    ),
    Row(
        "namespaces need no namespace",
        "containerd 1.6 changes a namespace, then answers UNKNOWN when the request's metadata names"
        " no namespace for the event; Holdfast, as containerd 2, tells it in the namespace itself.",
        _no_namespace_in_metadata,
        parts=True,
    ),
    Row(
        "the last answer comes once",
        "containerd sends the last answer of a Write stream a second time when the stream ends.",
        _repeated_answer,
    ),
    Row(
        "an expected digest is checked",
        "containerd takes any text as the expected digest of a Write; Holdfast refuses a malformed"
        " one at once.",
        _bad_expectation,
        parts=True,
    ),
    Row(
        "a negative offset is refused",
        "containerd takes a negative offset of a Write for no offset.",
        _bad_offset,
        parts=True,
    ),
    Row(
        "a commit keeps what was written",
        "A commit message without an offset makes containerd discard what was written before it.",
        _commit_does_not_truncate,
        parts=True,
    ),
    Row(
        "whole characters",
        "containerd's refusal of a filter cuts a character of several bytes in two.",
        _whole_characters,
    ),
    Row(
        "a status tells what is expected",
        "containerd does not keep the expected digest of a Write, but in one case.",
        _status_expects,
    ),
    Row(
        "sha512 may be written",
        "containerd hashes what is written with sha256 alone, so that a commit with a sha512 or"
        " sha384 digest always fails; Holdfast hashes with what is expected.",
        _other_algorithms,
        parts=True,
    ),
    Row(
        "Content.List tells updates",
        "containerd leaves `updated_at` out of the list.",
        _list_tells_updates,
    ),
    Row(
        "a shared ingest has a status",
        "While an ingest stands for a blob that another namespace has, containerd finds no file"
        " for its status.",
        _shared_status,
    ),
    Row(
        "a read tells where it is",
        "containerd counts the offsets of what it sends from the start of the read, not of the"
        " content.",
        _read_offsets,
    ),
    Row(
        "a ref is text",
        "A ref with a null, or of more than 4096 bytes, is refused.",
        _bad_ref,
        parts=True,
    ),
    Row(
        "deleted content is gone",
        "Until its next collection containerd still has the bytes of content that was deleted, and"
        " begins a Write that expects them as if another namespace had them.",
        _deleted_is_gone,
        parts=True,
    ),
    Row(
        "native's directories",
        "A native snapshot's files lie in `fs` within its directory, beside Holdfast's own.",
        _native_place,
    ),
    Row(
        "a snapshot's own name",
        "containerd's refusals show its internal key (`ns/12/name`); Holdfast's the client's name.",
        _not_active,
    ),
    Row(
        "leases hold images",
        "containerd 1.6 has no lease resource of type images; Holdfast has, as containerd 2.",
        _newer_resource,
        parts=True,
    ),
    Row(
        "a process is named",
        "containerd 1.6 leaves the container's id out of what it answers about a task.",
        _process_named,
    ),
    Row(
        "resources are JSON",
        "An Update whose resources are no JSON is refused as INVALID_ARGUMENT, in whatever state.",
        _no_json,
    ),
    Row(
        "an ended task has no pids",
        "containerd asks the runtime, and Debian's crun falls over a container that has ended.",
        _crun_fails,
    ),
    Row(
        "a delete of a created task is an end",
        "containerd answers with status 0 and no time; Holdfast with the SIGKILL that ended it.",
        _killed_by_delete,
    ),
    Row(
        "no exec in an ended task",
        "containerd passes on the OCI runtime's words as UNKNOWN; Holdfast does not ask it.",
        _exec_in_ended,
    ),
    Row(
        "an ended task has none to kill",
        "With `all`, containerd asks the runtime to signal whom it finds, which may be nobody;"
        " Holdfast says that the process has finished, as for one process.",
        _kill_of_ended,
    ),
    Row(
        "a running task is not deleted",
        "Holdfast refuses as FAILED_PRECONDITION, in the words of containerd's client.",
        _delete_of_running,
    ),
    Row(
        "a lease's id has no null",
        "Holdfast's keys are joined by it.",
        _null_in_lease,
        parts=True,
    ),
    Row(
        "an extension goes",
        "An update whose mask names an extension that the request lacks stores an empty message in"
        " containerd 1.6; Holdfast removes the extension.",
        _empty_extension,
        parts=True,
    ),
)


def _newer_event(event: dict[str, Any], _: bool) -> dict[str, Any] | None:
    return None if event["topic"] == "/content/create" else event


def _newer_field(event: dict[str, Any], _: bool) -> dict[str, Any]:
    if not event["topic"].startswith("/snapshot/"):
        return event
    fields = {key: one for key, one in event["event"]["value"].items() if key != "snapshotter"}
    return {**event, "event": {**event["event"], "value": fields}}


def _told_in(event: dict[str, Any], _: bool) -> dict[str, Any]:
    if not event["topic"].startswith("/namespaces/"):
        return event
    return {**event, "namespace": event["event"]["value"].get("name", "")}


def _collected(event: dict[str, Any], collects: bool) -> dict[str, Any] | None:
    gone = event["topic"] in ("/snapshot/remove", "/content/delete")
    return None if collects and gone else event


def _end_of_created(event: dict[str, Any], _: bool) -> dict[str, Any]:
    fields = event["event"]["value"]
    if event["topic"] not in ("/tasks/exit", "/tasks/delete") or fields.get("exit_status") not in (
        None,
        137,
    ):
        return event
    hidden = ("exit_status", "exited_at") if event["topic"] == "/tasks/delete" else ("exited_at",)
    kept = {key: one for key, one in fields.items() if key not in hidden}
    return {**event, "event": {**event["event"], "value": kept}}


EVENT_ROWS: tuple[EventRow, ...] = (
    EventRow(
        "content that comes is told",
        "`/content/create` is containerd 2's; 1.6 tells only of content that goes.",
        _newer_event,
    ),
    EventRow(
        "a namespace's events are its own",
        "They are told in the namespace itself, as in containerd 2; 1.6 tells them in the one that"
        " the request's metadata names.",
        _told_in,
    ),
    EventRow(
        "what is collected is told",
        "containerd 1.6 tells of no snapshot or content that its garbage collection removes.",
        _collected,
    ),
    EventRow(
        "the end of a created task is told",
        "containerd's exit and delete events of a task that was never started have no time.",
        _end_of_created,
    ),
    EventRow(
        "events name the snapshotter",
        "The field is containerd 2's.",
        _newer_field,
    ),
)


def row_for(step: Step, ours: Outcome, theirs: Outcome) -> Row | None:
    """The row that explains the difference, if there is one."""
    return next((row for row in ROWS if row.holds(step, ours, theirs)), None)


def told_by_both(events: list[dict[str, Any]], *, collects: bool) -> list[dict[str, Any]]:
    """A daemon's events without what the rows explain."""
    told: list[dict[str, Any] | None] = list(events)
    for row in EVENT_ROWS:
        told = [row.told(event, collects) for event in told if event is not None]
    return [event for event in told if event is not None]
