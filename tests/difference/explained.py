"""What the rows of the table look at: a step and both outcomes, or an event.

Each function here says exactly how far a deliberate difference goes.
"""

import re
from collections.abc import Sequence
from typing import Any

from .answer import Outcome
from .step import SIZES, Step

REFUSED = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ALREADY_EXISTS"})


def _in(step: Step, *methods: str) -> bool:
    return step.method in methods or step.method.partition(".")[0] in methods


def same_but_code(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = theirs.message.removesuffix(": unknown")
    same = ours.message in (words, words + CODE_WORDS) and ours.answer == theirs.answer
    return theirs.code == "UNKNOWN" and ours.code in REFUSED and same


CODE_WORDS = ": failed precondition"
MORE_TOLD = frozenset({"expected", "total"})
LABEL_SIZE = re.compile(
    r"label key and value (?:length \(\d+ bytes\) )?greater than maximum size \(4096 bytes\), key:"
)


def label_too_long(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    here, there = LABEL_SIZE.split(ours.message), LABEL_SIZE.split(theirs.message)
    return len(here) == len(there) == 2 and here[0] == there[0]


def bolt_words(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = ("key required", "bucket name required", "key too large", "incompatible value")
    own = theirs.code == "UNKNOWN" and any(theirs.message.endswith(each) for each in words)
    return own and ours.code in REFUSED


def half_committed(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and theirs.message.endswith("key required")
        and ours.code in REFUSED
    )


def half_made(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Snapshots") and theirs.message.endswith("key required") and ours.code in REFUSED
    )


def committed_as_itself(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Snapshots.Commit")
        and step.request["name"] == step.request["key"]
        and ours.code == theirs.code == "NOT_FOUND"
    )


def no_bucket(_: Step, ours: Outcome, theirs: Outcome) -> bool:
    words = r'cannot (delete|update) container ".*" in namespace|can not find snapshotter'
    there = re.match(words, theirs.message, re.DOTALL)
    return ours.code in REFUSED and theirs.code == "NOT_FOUND" and there is not None


def update_of_namespace(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Namespaces.Update")
        and ours.code == theirs.code == "OK"
        and theirs.answer == {"namespace": {}}
    )


def bad_namespace_made(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Namespaces.Update")
        and ours.code == "INVALID_ARGUMENT"
        and ours.message.startswith("identifier")
        and theirs.code in ("OK", "UNKNOWN", "INVALID_ARGUMENT")
    )


def no_namespace_in_metadata(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    publishing = "failed publishing event: namespace is required: failed precondition"
    return _in(step, "Namespaces") and ours.code == "OK" and theirs.message == publishing


def repeated_answer(step: Step, ours: Outcome, theirs: Outcome) -> bool:
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


def bad_expectation(step: Step, ours: Outcome, _: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and ours.code == "INVALID_ARGUMENT"
        and ours.message.endswith("failed validation")
    )


def bad_offset(step: Step, ours: Outcome, _: Outcome) -> bool:
    return (
        _in(step, "Content.Write")
        and ours.code == "OUT_OF_RANGE"
        and ours.message.startswith("write @-1 must occur")
    )


def commit_does_not_truncate(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Write") and any(
        each.get("action") == 2 and not each.get("offset") and not each.get("data")
        for each in step.request
    )


def native_place(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        step.method in ("Snapshots.Prepare", "Snapshots.View", "Snapshots.Mounts")
        and step.request["snapshotter"] == "native"
        and repr(ours.answer).replace("/fs", "") == repr(theirs.answer)
    )


def not_active(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Snapshots")
        and ours.code == theirs.code
        and re.sub(r"^failed to [\w ]+: |r\d+-\w/\d+/", "", theirs.message) == ours.message
    )


def newer_resource(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Leases")
        and step.request.get("resource", {}).get("type") == "images"
        and theirs.code == "UNIMPLEMENTED"
    )


def null_in_lease(step: Step, ours: Outcome, _: Outcome) -> bool:
    return _in(step, "Leases") and ours.message.startswith("lease id must not contain null")


def empty_extension(step: Step, ours: Outcome, theirs: Outcome) -> bool:
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


def emptied_extensions(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    """Seen by whoever asks after the update."""
    return (
        _in(step, "Containers.Get", "Containers.List", "Containers.Update")
        and ours.code == theirs.code == "OK"
        and repr(ours.answer).count("'e") < repr(theirs.answer).count("'e")
        and _without(ours.answer, "extensions") == _without(theirs.answer, "extensions")
    )


def whole_characters(_: Step, ours: Outcome, theirs: Outcome) -> bool:
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


def status_expects(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    pairs = _statuses(step, ours, theirs)
    return bool(pairs) and all(
        its == {key: value for key, value in told.items() if key in its or key not in MORE_TOLD}
        for told, its in pairs
    )


def began_anew(steps: Sequence[Step]) -> bool:
    """Whether an ingest was given two totals, or a namespace was deleted."""
    totals: dict[str, set[int]] = {}
    for step in steps:
        if step.method == "Content.Write":
            for message in step.request:
                if message.get("total"):
                    totals.setdefault(step.request[0].get("ref", ""), set()).add(message["total"])
    return any(len(each) > 1 for each in totals.values()) or any(
        step.method == "Namespaces.Delete" for step in steps
    )


def begun_over(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    pairs = _statuses(step, ours, theirs)
    return any("offset" not in told and its.get("offset") for told, its in pairs) and all(
        _without(_without(told, "offset"), "expected") == _without(its, "offset")
        for told, its in pairs
    )


COMMIT_SIZE = re.compile(r"unexpected commit size (\d+), expected (\d+): failed precondition")
OFFSET = re.compile(r"write @\d+ must occur at current offset (\d+)")


def written_over(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    if not _in(step, "Content.Write"):
        return False
    if ours.answer and theirs.answer:
        first, its = ours.answer[0], theirs.answer[0]
        left = "offset" not in first and its.get("offset", 0) > 0
        if left and first == {**_without(its, "offset"), "digest": first.get("digest")}:
            return True
    here, there = OFFSET.fullmatch(ours.message), OFFSET.fullmatch(theirs.message)
    if here and there:
        return int(here[1]) == 0 < int(there[1])
    counted = COMMIT_SIZE.fullmatch(theirs.message)
    return ours.code == "OK" and counted is not None and int(counted[1]) > int(counted[2])


def _statuses(step: Step, ours: Outcome, theirs: Outcome) -> list[tuple[Any, Any]]:
    """Each status of ours with containerd's of the same ingest; none, where one lacks one."""
    if not _in(step, "Content.Status", "Content.ListStatuses"):
        return []
    told, its = (
        {
            each["ref"]: each
            for each in answer.get("statuses") or [answer.get("status", {"ref": ""})]
        }
        for answer in (ours.answer or {}, theirs.answer or {})
    )
    return [(told[ref], its[ref]) for ref in told] if told.keys() == its.keys() else []


def other_algorithms(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Write") and "@sha512" in repr(step.request)


def list_tells_updates(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.List") and _without(ours.answer, "updated_at") == theirs.answer


def shared_status(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    if step.method == "Content.Status":
        return theirs.message.endswith("/data: no such file or directory: not found")
    return _in(step, "Content.ListStatuses") and all(
        each in (ours.answer or {}).get("statuses", [])
        for each in (theirs.answer or {}).get("statuses", [])
    )


def read_offsets(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Content.Read") and _without(ours.answer, "offset") == _without(
        theirs.answer, "offset"
    )


def bad_ref(step: Step, ours: Outcome, _: Outcome) -> bool:
    return _in(step, "Content") and ours.message.endswith("is malformed: invalid argument")


def deleted_is_gone(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    """containerd's backend still has the blob, and shares it."""
    if not _in(step, "Content.Write") or not theirs.answer:
        return False
    if not ours.answer:
        expected = step.request[0].get("expected")
        return bool(expected) and ours.message.endswith("must occur at current offset 0")
    first, its = ours.answer[0], theirs.answer[0]
    return its.get("offset") in SIZES and its.get("offset") == its.get("total") and its != first


def process_named(step: Step, ours: Outcome, theirs: Outcome) -> bool:
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


def no_json(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return _in(step, "Tasks.Update") and ours.message.startswith("spec is no JSON")


def crun_fails(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    fails = "crun did not terminate successfully" in theirs.message
    return _in(step, "Tasks.ListPids") and ours == Outcome(answer={}) and fails


def killed_by_delete(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    if not _in(step, "Tasks.Delete") or ours.answer is None:
        return False
    fields = {"pid": ours.answer["pid"]}
    return ours.answer["exit_status"] == 137 and theirs.answer == fields


def exec_in_created(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    refused = ours.message == "cannot exec in a created state"
    return _in(step, "Tasks.Start") and refused and theirs.code == "OK"


def exec_in_ended_or_paused(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return (
        _in(step, "Tasks.Start")
        and (
            ours.message.endswith("init process is not running: failed precondition")
            or ours.message == "cannot exec in a paused state"
        )
        and (
            theirs.message.startswith("OCI runtime exec failed: ")
            or theirs.message == "ttrpc: closed: unknown"  # its shim fell over a second try
        )
    )


def kill_of_ended(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    ended = ours.message == "process already finished: not found"
    return _in(step, "Tasks.Kill") and step.request.get("all") and ended and theirs.code == "OK"


def delete_of_running(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    running = "task must be stopped before deletion: "
    process = "failed to delete task: cannot delete a "
    return (
        _in(step, "Tasks.Delete")
        and ours.message.startswith(running)
        and theirs.message.startswith(process)
    )


def newer_event(event: dict[str, Any], _: bool) -> dict[str, Any] | None:
    return None if event["topic"] == "/content/create" else event


def newer_field(event: dict[str, Any], _: bool) -> dict[str, Any]:
    if not event["topic"].startswith("/snapshot/"):
        return event
    fields = {key: one for key, one in event["event"]["value"].items() if key != "snapshotter"}
    return {**event, "event": {**event["event"], "value": fields}}


def told_in(event: dict[str, Any], _: bool) -> dict[str, Any]:
    if not event["topic"].startswith("/namespaces/"):
        return event
    return {**event, "namespace": event["event"]["value"].get("name", "")}


def collected(event: dict[str, Any], collects: bool) -> dict[str, Any] | None:
    gone = event["topic"] in ("/snapshot/remove", "/content/delete")
    return None if collects and gone else event


def end_of_created(event: dict[str, Any], _: bool) -> dict[str, Any]:
    fields = event["event"]["value"]
    if event["topic"] not in ("/tasks/exit", "/tasks/delete") or fields.get("exit_status") not in (
        None,
        137,
    ):
        return event
    hidden = ("exit_status", "exited_at") if event["topic"] == "/tasks/delete" else ("exited_at",)
    kept = {key: one for key, one in fields.items() if key not in hidden}
    return {**event, "event": {**event["event"], "value": kept}}


def exec_started_again(steps: Sequence[Step]) -> bool:
    """Whether an exec was started twice, and its task was paused before."""
    starts = [each.request.get("exec_id") for each in steps if each.method == "Tasks.Start"]
    again = {each for each in starts if each and starts.count(each) > 1}
    return bool(again) and any(each.method == "Tasks.Pause" for each in steps)


def shim_fell(step: Step, ours: Outcome, theirs: Outcome) -> bool:
    return step.method.startswith("Tasks.") and theirs.message == "not found"
