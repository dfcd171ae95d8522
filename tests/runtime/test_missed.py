"""Who comes late is told of the ends that it missed, for a while."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from holdfast.runtime import ledger
from holdfast.runtime.missed import TOLD_FOR_S, Missed
from holdfast.runtime.records import ExecRecord, ExecState, ExitRecord, State, TaskRecord
from holdfast.runtime.stdio import Stdio
from holdfast.storage.store import Store

ENDED = ExitRecord(pid=7, status=3, exited_at_ns=1_000_000_005)
TASK = TaskRecord(
    namespace="moby", id="web", state=State.RUNNING, bundle="/b", stdio=Stdio(), pid=7
)
EXEC = ExecRecord(
    namespace="moby", task_id="web", id="e", state=ExecState.RUNNING, spec=b"{}", stdio=Stdio()
)


async def test_the_missed_ends_are_those_of_what_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(tmp_path / "meta.db") as store:
        missed = Missed(store)
        await store.write(ledger.intend_task(TASK))
        await store.write(ledger.exec_added(EXEC))
        assert missed.ends(os.getpid()) == []
        with store.events.subscribe(['topic=="/tasks/exit"']) as subscription:
            await store.write(
                ledger.exec_exited(replace(EXEC, state=ExecState.STOPPED, exit=ENDED))
            )
            stopped = TASK.stopped(ENDED)
            await store.write(ledger.task_exited(stopped))
            live = [await subscription.receive() for _ in range(2)]
        again = missed.ends(os.getpid())
        # The same events, the exec's before that of the container.
        assert [(e.namespace, e.topic, e.type_name, e.payload) for e in again] == [
            (e.namespace, e.topic, e.type_name, e.payload) for e in live
        ]
        assert [event.timestamp_ns for event in again] == [ENDED.exited_at_ns] * 2
        with subprocess.Popen(["sleep", "10"]) as younger:
            assert missed.ends(younger.pid) == ()
            younger.kill()
        started = trio.current_time()
        monkeypatch.setattr(trio, "current_time", lambda: started + TOLD_FOR_S + 1)
        assert missed.ends(os.getpid()) == ()
        monkeypatch.undo()
        await store.write(ledger.task_deleted(stopped))
        assert missed.ends(os.getpid()) == []
