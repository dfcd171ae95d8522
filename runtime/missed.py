"""Missed: the ends that a client may not have heard of, because the daemon died in between.

    daemon dies --- a process ends --- daemon starts and tells it --- the client subscribes again

A client loses its subscription with the daemon and is a moment late at the next one. What was told
meanwhile it would never learn: Docker, for one, then takes an ended container for a live one. But
whoever hears of an end deletes the process. So who subscribes in the first minute is told once
more of each process that has ended and is still there. Who is younger than this daemon has missed
nothing, and is left alone: dockerd, when it starts, sees to its containers itself, and an end that
is told at the same time makes it drop their last output.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import trio

from ..actors.errors import DataLoss
from ..storage.events import Event
from ..storage.store import Store
from . import procfs
from .ledger import EXIT_TOPIC, EXIT_TYPE, OOM_TOPIC, OOM_TYPE
from .records import EXEC, TASK, ExecRecord, ExitRecord, TaskRecord, exit_event

TOLD_FOR_S = 60.0
"""Longer than a client takes to come back: Docker tries every three seconds."""


class Missed:
    """Made when clients begin to be served; the minute begins with it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._until = trio.current_time() + TOLD_FOR_S
        since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        # Whole ticks, as a process has its start: who came in the same one is younger.
        self._began_ticks = int(since_boot_s * os.sysconf("SC_CLK_TCK"))

    def ends(self, client_pid: int) -> Sequence[Event]:
        """What the client with this pid may have missed: the exit of each process that has ended
        and is not deleted, after its want of memory. Later, or when it is younger, nothing.

        They are as of this moment: an end that is committed afterwards is a live event.
        """
        client = procfs.identity(client_pid)
        younger = client is None or client.start_time_ticks >= self._began_ticks
        if younger or trio.current_time() >= self._until:
            return ()
        # A container's last end is that of its first process.
        return [*self._execs(), *self._tasks()]

    def _tasks(self) -> Iterator[Event]:
        for row in self._store.scan(TASK):
            try:
                task = TaskRecord.from_record(row.namespace, row.key, row.value)
            except DataLoss:
                continue  # reported when it was recovered
            if task.exit is not None:
                told = exit_event(task.id, task.id, task.exit)
                if task.memory_kills:  # which clients take for the reason of the end
                    yield replace(
                        self._event(row.namespace, {"container_id": task.id}, task.exit),
                        topic=OOM_TOPIC,
                        type_name=OOM_TYPE,
                    )
                yield self._event(row.namespace, told, task.exit)

    def _execs(self) -> Iterator[Event]:
        for row in self._store.scan(EXEC):
            try:
                added = ExecRecord.from_record(row.namespace, row.key, row.value)
            except DataLoss:
                continue
            if added.exit is not None:
                told = exit_event(added.task_id, added.id, added.exit)
                yield self._event(row.namespace, told, added.exit)

    def _event(self, namespace: str, payload: dict[str, Any], exit: ExitRecord) -> Event:
        return Event(
            seq=self._store.events.last_seq,
            timestamp_ns=exit.exited_at_ns,
            namespace=namespace,
            topic=EXIT_TOPIC,
            type_name=EXIT_TYPE,
            payload=payload,
        )
