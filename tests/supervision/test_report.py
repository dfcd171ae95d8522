"""What is known of a fall afterwards."""

import gc
import weakref
from typing import Any

import pytest
import trio

from holdfast.actors.actor import Actor
from holdfast.actors.exits import KILL, Exit, Kind, StartFailed
from holdfast.supervision.report import (
    TRACEBACK_MAX,
    CrashLog,
    CrashReport,
    crash_log,
    crash_report,
    is_within,
)
from holdfast.supervision.spec import ChildSpec, Intensity, Tree
from holdfast.supervision.supervisor import Supervisor, open_tree


class Clerk(Actor):
    """Stumbles over the message "bad"."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = {"a": 1}

    async def on_receive(self, message: Any) -> Any:
        if message == "wait":
            await trio.sleep(1)
        if message == "bad":
            raise ValueError("ledger torn")


async def test_a_report_tells_reason_message_state_and_mailbox(system, talk):
    sup = await open_tree(Tree("root", children=[ChildSpec("clerk", Clerk)]))
    clerk = await talk.child(sup, "clerk")
    for message in ("wait", "bad", "next", "last"):
        clerk.tell(message)
    await clerk.wait_exit()
    await talk.calm()
    [report] = crash_log().reports()
    assert (report.supervisor, report.child, report.next_step) == ("root", "clerk", "restart")
    assert report.reason.startswith("crash: ValueError")
    assert "ledger torn" in report.exception
    assert "on_receive" in report.traceback
    assert report.last_message == "'bad'"
    assert "'ledger': {'a': 1}" in (report.state or "")
    assert (report.mailbox, report.mailbox_depth) == (("'next'", "'last'"), 2)
    assert report.handled == 1
    assert report.age_s == pytest.approx(1.0)


async def test_a_kill_is_reported_and_an_orderly_end_is_not(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("ab"), intensity=Intensity(restarts=9, within_s=5))
    (await talk.child(sup, "a")).exit(KILL)
    await talk.harm(sup, "b", "stop")
    assert [report.child for report in crash_log().reports()] == ["a"]
    assert crash_log().reports()[0].exception == ""


async def test_the_log_line_always_has_the_same_four_fields(system, diary, talk, told):
    diary.failing["a"] = {2}
    diary.stop_takes_s["b"] = 100.0
    sup = await Supervisor.spawn(
        diary.specs("ab"), intensity=Intensity(restarts=2, within_s=5), label="root"
    )
    await talk.harm(sup, "a")
    (await talk.child(sup, "a")).tell("crash")
    await sup.wait_exit()
    events = {entry["event"] for entry in told}
    assert events == {"child.ended", "child.not_started", "supervisor.gave_up", "child.killed"}
    for entry in told:
        assert set(entry) == {"event", "log_level", "supervisor", "child", "reason", "next_step"}


async def test_a_start_that_failed_is_reported_with_its_traceback(system, diary):
    diary.failing["b"] = {1}
    with pytest.raises(StartFailed):
        await Supervisor.spawn(diary.specs("ab"), label="root")
    [report] = crash_log().reports(supervisor="root", child="b")
    assert "start 1 of b fails" in report.exception
    assert "on_start" in report.traceback
    assert report.next_step == "give up"


async def test_reports_are_asked_for_by_system_supervisor_and_child(system, diary, talk):
    top = await open_tree(
        Tree("root", children=[Tree("x", children=diary.specs("ab")), *diary.specs("a")])
    )
    inner = await talk.child(top, "x")
    await talk.harm(inner, "a")
    await talk.harm(inner, "b")
    await talk.harm(top, "a")
    log = crash_log(system)
    assert len(log.reports()) == log.total == 3
    assert len(log.reports(supervisor="root")) == 3
    assert len(log.reports(supervisor="root/x")) == 2
    assert len(log.reports(supervisor="root/x", child="a")) == 1


async def test_the_log_holds_no_actor_alive(system, diary, talk):
    sup = await Supervisor.spawn(diary.specs("ab"))
    seen = weakref.ref((await talk.child(sup, "a")).cell.actor)
    await talk.harm(sup, "a")
    await talk.harm(sup, "b")  # a loop holds its last signal until the next one
    gc.collect()
    assert len(crash_log().reports()) == 2
    assert seen() is None


def a_report(supervisor: str = "root", child: str = "a") -> CrashReport:
    return crash_report(
        supervisor=supervisor,
        child=child,
        reason=Exit(Kind.KILLED),
        next_step="restart",
        restarts=0,
        obituary=None,
    )


def test_a_full_log_keeps_the_newest():
    log = CrashLog(bound=3)
    for number in range(10):
        log.add(a_report(child=str(number)))
    assert [report.child for report in log.reports()] == ["7", "8", "9"]
    assert log.total == 10


def test_a_path_is_within_itself_and_those_above():
    assert is_within("root", "root")
    assert is_within("root/a/b", "root/a")
    assert not is_within("root/ab", "root/a")


def test_a_long_traceback_keeps_its_end():
    error = ValueError("x" * (2 * TRACEBACK_MAX))
    report = crash_report(
        supervisor="root",
        child="a",
        reason=Exit(Kind.CRASH, "ValueError", error),
        next_step="restart",
        restarts=0,
        obituary=None,
    )
    assert len(report.traceback) == TRACEBACK_MAX
    assert report.traceback.startswith("…")
