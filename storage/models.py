"""Read models: every record in memory, changed with each commit, read on the loop.

Lists are answered from here in the order of (namespace, key), without touching the disk.

Invariant: outside a commit's delivery the models equal the database's committed records.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator

from .database import Record, Row


class Shelf:
    """The records of one kind in one namespace, with their keys in order."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        # Invariant: the keys of `records`, sorted.
        self.keys: list[str] = []

    def put(self, key: str, value: Record) -> None:
        """Put a record in its place."""
        if key not in self.records:
            insort(self.keys, key)
        self.records[key] = value

    def delete(self, key: str) -> None:
        """Take a record away, if it is there."""
        if self.records.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class Models:
    """All shelves."""

    def __init__(self) -> None:
        self._kinds: defaultdict[str, dict[str, Shelf]] = defaultdict(dict)

    def change(self, kind: str, namespace: str, key: str, value: Record | None) -> None:
        """Apply one committed change."""
        shelves = self._kinds[kind]
        shelf = shelves.get(namespace)
        if value is not None:
            if shelf is None:
                shelf = shelves[namespace] = Shelf()
            shelf.put(key, value)
        elif shelf is not None:
            shelf.delete(key)
            if not shelf.keys:
                del shelves[namespace]

    def get(self, kind: str, namespace: str, key: str) -> Record | None:
        """The record, or None."""
        shelf = self._kinds[kind].get(namespace)
        return None if shelf is None else shelf.records.get(key)

    def count(self, kind: str, namespace: str | None) -> int:
        """How many records of a kind there are."""
        shelves = self._kinds[kind]
        if namespace is None:
            return sum(len(shelf.keys) for shelf in shelves.values())
        return len(shelves[namespace].keys) if namespace in shelves else 0

    def scan(self, kind: str, namespace: str | None, prefix: str) -> Iterator[Row]:
        """The records of a kind in order; safe against changes while it is walked."""
        shelves = self._kinds[kind]
        names = sorted(shelves) if namespace is None else [namespace]
        for name in names:
            shelf = shelves.get(name)
            if shelf is None:
                continue
            # A copy of references: commits that come between two steps do not shift the walk.
            for key in shelf.keys[bisect_left(shelf.keys, prefix) :]:
                if not key.startswith(prefix):
                    break
                value = shelf.records.get(key)
                if value is not None:
                    yield Row(name, key, value)
