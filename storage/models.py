"""Read models: every record in memory, changed with each commit, read on the loop.

Lists are answered from here in the order of (namespace, key), without touching the disk. What was
loaded is decoded when somebody first asks for it: most of what a host has stored nobody looks at.

Invariant: outside a commit's delivery the models equal the database's committed records.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator

from .database import Record, Row, decoded


class Shelf:
    """The records of one kind in one namespace, with their keys in order."""

    def __init__(self) -> None:
        # As they were loaded, until somebody asks for them.
        self._records: dict[str, Record | bytes] = {}
        # Invariant: the keys of `_records`, sorted.
        self.keys: list[str] = []

    def put(self, key: str, value: Record | bytes) -> None:
        """Put a record in its place."""
        if key not in self._records:
            insort(self.keys, key)
        self._records[key] = value

    def get(self, key: str) -> Record | None:
        """The record, or None."""
        value = self._records.get(key)
        if isinstance(value, bytes):
            value = self._records[key] = decoded(value)
        return value

    def may_mention(self, key: str, text: bytes) -> bool:
        """False for a record that certainly holds no such text."""
        value = self._records.get(key)
        return not isinstance(value, bytes) or text in value

    def delete(self, key: str) -> None:
        """Take a record away, if it is there."""
        if self._records.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class Models:
    """All shelves."""

    def __init__(self) -> None:
        self._kinds: defaultdict[str, dict[str, Shelf]] = defaultdict(dict)

    def change(self, kind: str, namespace: str, key: str, value: Record | bytes | None) -> None:
        """Apply one committed change, or put what was loaded: its bytes."""
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
        return None if shelf is None else shelf.get(key)

    def count(self, kind: str, namespace: str | None) -> int:
        """How many records of a kind there are."""
        shelves = self._kinds[kind]
        if namespace is None:
            return sum(len(shelf.keys) for shelf in shelves.values())
        return len(shelves[namespace].keys) if namespace in shelves else 0

    def scan(self, kind: str, namespace: str | None, prefix: str, mentioning: str) -> Iterator[Row]:
        """The records of a kind in order; safe against changes while it is walked."""
        text = mentioning.encode()
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
                value = shelf.get(key) if shelf.may_mention(key, text) else None
                if value is not None:
                    yield Row(name, key, value)
