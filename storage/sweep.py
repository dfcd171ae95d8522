"""Removing garbage: in which order, and how much at a time.

Whoever finds a record finds all that it refers to: what refers goes before what it refers to,
and what refers to itself in a circle goes at once. So somebody who refers to a record anew while
its neighbours are being removed has it whole, or is told that it is gone.

A transaction removes for a few milliseconds, then lets others write. Before it removes anything
it marks from what was written since the last one; when that is too much for a transaction, it
removes nothing, and the loop marks first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from .gc import Get, Marks, Node, links, mark_written, node_of, reach
from .images import delete_image
from .leases import drop_lease, split_key
from .store import Journal, Record, Transaction

TRANSACTION_S = 0.002
GROUPS_MAX = 256
MARKED_MAX = 64
"""So many nodes are marked within a transaction, each read from the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """A record that a collection deleted, for whoever reclaims what it stood for."""

    kind: str
    namespace: str
    key: str
    record: Record


Groups = deque[Sequence[Node]]
"""Garbage in the order of its removal; each group goes at once."""


def put_in_order(
    garbage: Collection[Node], get: Get, marks: Marks, groups: Groups
) -> Iterator[None]:
    """Fill `groups`, a step at a time: Tarjan's strongly connected components, last ones first."""
    number: dict[Node, int] = {}
    low: dict[Node, int] = {}
    open_: list[Node] = []
    is_open: set[Node] = set()
    for first in garbage:
        way: list[tuple[Node, Iterator[Node]]] = []
        enter: Node | None = None if first in number else first
        while enter is not None or way:
            if enter is not None:
                number[enter] = low[enter] = len(number)
                open_.append(enter)
                is_open.add(enter)
                way.append((enter, iter([to for _, to in _neighbours(enter, get, marks)])))
                enter = None
                yield
            node, targets = way[-1]
            for target in targets:
                if target not in garbage:
                    continue
                if target not in number:
                    enter = target
                    break
                if target in is_open:
                    low[node] = min(low[node], number[target])
            else:
                way.pop()
                if way:
                    before = way[-1][0]
                    low[before] = min(low[before], low[node])
                if low[node] == number[node]:
                    group = [open_.pop()]
                    while group[-1] != node:
                        group.append(open_.pop())
                    is_open.difference_update(group)
                    groups.appendleft(tuple(group))


def _neighbours(node: Node, get: Get, marks: Marks) -> Iterator[tuple[str, Node]]:
    kind, namespace, key, _ = node
    if kind == "lease_resource":
        yield "lease", node_of("lease", namespace, split_key(key)[0])
    else:
        yield from links(node, get, marks)


@dataclass(slots=True)
class Sweep:
    """The removal of what is in order: `run` is a job, `done` is told of what it answered."""

    marks: Marks
    groups: Groups = field(default_factory=Groups)
    journal: Journal = field(default_factory=Journal)
    read: int = 0
    """So much of the journal is marked."""
    longest_s: float = 0.0
    """How long the longest transaction worked, in time of its own thread."""

    def next(self) -> list[Node]:
        """What the next transaction may remove."""
        return [node for group in islice(self.groups, GROUPS_MAX) for node in group]

    def run(self, tx: Transaction) -> Swept:
        """Mark what was written, then remove for as long as a transaction may take."""
        began_s, worked_s = time.perf_counter(), time.thread_time()
        read = len(self.journal.keys)
        mark_written(self.journal.keys[self.read : read], self.marks)
        for steps, _ in enumerate(reach(self.marks, tx.get), 1):
            if steps >= MARKED_MAX and self.marks.pending:
                return Swept(behind=True)
        garbage: list[Garbage] = []
        done = 0
        for group in islice(self.groups, GROUPS_MAX):
            for node in group:
                garbage += self._remove(tx, node)
            done += 1
            if time.perf_counter() - began_s >= TRANSACTION_S:
                break
        self.longest_s = max(self.longest_s, time.thread_time() - worked_s)
        return Swept(garbage=garbage, done=done, read=read, elapsed_s=time.perf_counter() - began_s)

    def done(self, swept: Swept) -> None:
        """What it answered is on the disk."""
        if not swept.behind:
            self.read = swept.read
            for _ in range(swept.done):
                self.groups.popleft()

    def _remove(self, tx: Transaction, node: Node) -> list[Garbage]:
        kind, namespace, key, _ = node
        if self.marks.holds(node):
            return []
        if kind == "lease_resource":
            tx.delete(kind, namespace, key)
            return []
        record = tx.get(kind, namespace, key)
        if record is None:
            return []
        remove(tx, node)
        return [Garbage(kind=kind, namespace=namespace, key=key, record=record)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one transaction did."""

    garbage: Sequence[Garbage] = ()
    done: int = 0
    """So many groups are removed, or kept after all."""
    read: int = 0
    elapsed_s: float = 0.0
    behind: bool = False
    """Nothing was removed: there was too much to mark first."""


def remove(tx: Transaction, node: Node) -> None:
    """Delete a record, and tell of it where containerd does."""
    kind, namespace, key, _ = node
    match kind:
        case "lease":
            drop_lease(tx, namespace, key)
        case "image":
            delete_image(tx, namespace, key)
        case "snapshot":
            tx.delete(kind, namespace, key)
            snapshotter, _, snapshot_key = key.partition("/")
            tx.emit(
                namespace,
                "/snapshot/remove",
                "containerd.events.SnapshotRemove",
                {"key": snapshot_key, "snapshotter": snapshotter},
            )
        case _:
            # A blob's record goes in silence, as in containerd: `/content/delete` tells of a
            # client's delete alone.
            tx.delete(kind, namespace, key)
