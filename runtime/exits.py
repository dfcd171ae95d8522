"""Waiting for exits: answered from the record, or by the commit that writes it.

A wait holds no actor and no mailbox, only a place here; so it neither blocks a task nor falls
with one. The exit of a process that was never told to have ended comes with its task's delete.
"""

from collections.abc import Sequence

import trio

from ..actors.errors import NotFound
from ..storage.store import Change, Store
from .records import EXEC, EXIT, TASK, ExitRecord, process_key


class _Place:
    """One process's waiters. `exit` stays None when the process went without an exit."""

    __slots__ = ("exit", "told", "waiters")

    def __init__(self) -> None:
        self.told = trio.Event()
        self.exit: ExitRecord | None = None
        self.waiters = 0


class Exits:
    """All waits of one host."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places: dict[tuple[str, str], _Place] = {}
        self._unlisten = store.listen(self._on_changes)

    def close(self) -> None:
        """Hear of no more commits."""
        self._unlisten()

    async def wait(self, namespace: str, task_id: str, exec_id: str = "") -> ExitRecord:
        """The exit of a process that has a record; NotFound when it is deleted without one.

        The process is that of now: a later one with the same id is not waited for.
        """
        key = process_key(task_id, exec_id)
        found = self._store.get(EXIT, namespace, key)
        if found is not None:
            return ExitRecord.from_record(found)
        place = self._places.setdefault((namespace, key), _Place())
        place.waiters += 1
        try:
            await place.told.wait()
        finally:
            place.waiters -= 1
            if not place.waiters and self._places.get((namespace, key)) is place:
                del self._places[namespace, key]
        if place.exit is None:
            raise NotFound(f"process {exec_id or task_id}: deleted before it ended: not found")
        return place.exit

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kind == EXIT and change.value is not None:
                self._tell(change.namespace, change.key, ExitRecord.from_record(change.value))
            elif change.kind == TASK and change.value is None:
                self._tell(change.namespace, process_key(change.key), None)
            elif change.kind == EXEC and change.value is None:
                self._tell(change.namespace, change.key, None)

    def _tell(self, namespace: str, key: str, exit: ExitRecord | None) -> None:
        place = self._places.pop((namespace, key), None)
        if place is not None:
            place.exit = exit
            place.told.set()
