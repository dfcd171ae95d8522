"""Garbage collection: what nothing refers to any longer is forgotten, then reclaimed.

Terms. A *node* is a record that may refer to others. *Roots* are kept for their own sake:

    images without a past containerd.io/gc.expire        leases without one, and their resources
    containers, sandboxes                                ingests that have not expired
    content and snapshots labelled containerd.io/gc.root

A node keeps what it *refers* to: an image its target, a container its snapshot, a snapshot its
parent, an ingest the content it expects, and all of them what their labels name:

    containerd.io/gc.ref.content[.x]           a digest
    containerd.io/gc.ref.image[.x]             an image's name
    containerd.io/gc.ref.snapshot.<snapshotter>[/x]     a snapshot's key
    containerd.io/gc.bref.{container,content,image}[.x], .snapshot.<snapshotter>[/x]
                                               the other way: kept as long as the named one is

The life of a collection. A first job opens a journal of what is written from now on. Marking
walks the read models on the loop, in slices, while writers go on. One last job marks from what
the journal holds, and deletes the records that are still unmarked: in one transaction, so nobody
ever refers to something half gone. Then what lies on disk is reclaimed.

Invariant: a record that was reachable when the last job began is never deleted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import trio

from .images import delete_image
from .leases import EXPIRE_LABEL, FLAT_LABEL, drop_lease, split_key
from .store import Journal, Record, Row, Store, Transaction

ROOT_LABEL = "containerd.io/gc.root"
REFERENCE = "containerd.io/gc.ref."
BACK_REFERENCE = "containerd.io/gc.bref."

COLLECTED = ("lease", "snapshot", "content", "image", "ingest")

# Marking gives way to the other actors after so many nodes.
SLICE_NODES = 256


class Node(NamedTuple):
    """A record in the graph. From a flat one only parents and targets are followed."""

    kind: str
    namespace: str
    key: str
    flat: bool = False


Get = Callable[[str, str, str], Record | None]


@dataclass(slots=True)
class Marks:
    """What a collection knows: what is kept, what keeps whom backwards, and until when."""

    kept: set[Node] = field(default_factory=set[Node])
    backward: defaultdict[Node, list[Node]] = field(
        default_factory=lambda: defaultdict[Node, list[Node]](list)
    )
    next_expiry_ns: int | None = None
    """When the first of what is kept only for a time expires."""

    def expired(self, labels: Mapping[str, str], now_ns: int) -> bool:
        """True when the labels name a time and it is past. A malformed time never comes."""
        return self.past(parse_time_ns(labels.get(EXPIRE_LABEL, "")), now_ns)

    def past(self, expiry_ns: int | None, now_ns: int) -> bool:
        """True when the time is past; else it is remembered."""
        if expiry_ns is None:
            return False
        if expiry_ns < now_ns:
            return True
        self.next_expiry_ns = min(expiry_ns, self.next_expiry_ns or expiry_ns)
        return False

    def holds(self, node: Node) -> bool:
        """True when the node is kept, flat or not."""
        return node in self.kept or node._replace(flat=True) in self.kept


def roots(rows: Callable[[str], Iterable[Row]], now_ns: int, marks: Marks) -> Iterator[Node]:
    """The nodes that are kept for their own sake. Notes backward references in `marks`."""
    flat: dict[tuple[str, str], bool] = {}
    for namespace, key, record in rows("lease"):
        if not marks.expired(_labels(record), now_ns):
            flat[namespace, key] = FLAT_LABEL in _labels(record)
            yield Node("lease", namespace, key)
    for namespace, key, _ in rows("lease_resource"):
        lease_id, resource = split_key(key)
        if (namespace, lease_id) in flat:
            node = resource_node(namespace, resource.type, resource.id)
            yield node._replace(flat=flat[namespace, lease_id])
    for namespace, key, record in rows("image"):
        node = Node("image", namespace, key)
        if not marks.expired(_labels(record), now_ns):
            yield node
        else:
            note_backward(node, record, marks)
    for namespace, key, record in rows("ingest"):
        if not marks.past(record.get("expires_at"), now_ns):
            yield Node("ingest", namespace, key)
    for namespace, key, record in rows("container"):
        yield Node("container", namespace, key)
        note_backward(Node("container", namespace, key), record, marks)
    for namespace, key, _ in rows("sandbox"):
        yield Node("sandbox", namespace, key)
    for kind in ("content", "snapshot"):
        for namespace, key, record in rows(kind):
            node = Node(kind, namespace, key)
            if any(label.startswith(ROOT_LABEL) for label in _labels(record)):
                yield node
            note_backward(node, record, marks)


def note_backward(node: Node, record: Record, marks: Marks) -> None:
    """Let whoever keeps what the node's backward labels name keep the node."""
    for target in label_nodes(node.namespace, _labels(record), BACK_REFERENCE):
        marks.backward[target].append(node)


def references(node: Node, record: Record) -> Iterator[Node]:
    """The nodes that a record refers to."""
    namespace = node.namespace
    match node.kind:
        case "image":
            yield Node("content", namespace, record["target"]["digest"], node.flat)
        case "container" if record["snapshotter"]:
            key = f"{record['snapshotter']}/{record['snapshot_key']}"
            yield Node("snapshot", namespace, key)
        case "snapshot" if record.get("parent"):
            snapshotter = node.key.partition("/")[0]
            yield Node("snapshot", namespace, f"{snapshotter}/{record['parent']}", node.flat)
        case "ingest" if record.get("expected"):
            yield Node("content", namespace, record["expected"])
        case _:
            pass
    if not node.flat:
        yield from label_nodes(namespace, _labels(record), REFERENCE)


def label_nodes(namespace: str, labels: Mapping[str, str], prefix: str) -> Iterator[Node]:
    """The nodes that labels with this prefix name."""
    for label, value in labels.items():
        if not label.startswith(prefix):
            continue
        kind, *rest = re.split(r"[./]", label.removeprefix(prefix), maxsplit=1)
        if kind == "snapshot" and rest:
            snapshotter = rest[0].partition("/")[0]
            yield Node("snapshot", namespace, f"{snapshotter}/{value}")
        elif kind in ("content", "image") or (kind == "container" and prefix == BACK_REFERENCE):
            yield Node(kind, namespace, value)


def resource_node(namespace: str, resource_type: str, resource_id: str) -> Node:
    """The node of a lease's resource."""
    kind, _, snapshotter = resource_type.partition("/")
    if kind == "snapshots":
        return Node("snapshot", namespace, f"{snapshotter}/{resource_id}")
    names = {"content": "content", "images": "image", "ingests": "ingest"}
    return Node(names[kind], namespace, resource_id)


def reach(start: Iterable[Node], get: Get, marks: Marks, kept: set[Node]) -> Iterator[None]:
    """Add to `kept` what can be reached from `start` and is not in `marks` already.

    Yields after each node, so that the walk can be interrupted.
    """
    pending = list(start)
    while pending:
        node = pending.pop()
        if node in marks.kept or node in kept:
            continue
        kept.add(node)
        pending += marks.backward.get(node._replace(flat=False), ())
        record = get(node.kind, node.namespace, node.key)
        if record is not None:
            pending += references(node, record)
        yield


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([.,]\d+)?([Zz]|[+-]\d\d:\d\d)")


def parse_time_ns(text: str) -> int | None:
    """The nanoseconds since 1970 of an RFC 3339 time, or None when it is not one."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text.upper()).timestamp() * 1_000_000_000)
    except (ValueError, OverflowError):
        return None


def _labels(record: Record) -> Mapping[str, str]:
    labels: Mapping[str, str] = record.get("labels") or {}
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """A record that a collection deleted, for whoever reclaims what it stood for."""

    kind: str
    namespace: str
    key: str
    record: Record


def journal_nodes(journal: Journal) -> Iterator[Node]:
    """The nodes written during a collection: each may have come to refer to something."""
    for kind, namespace, key in journal.keys:
        if kind == "lease_resource":
            _, resource = split_key(key)
            yield resource_node(namespace, resource.type, resource.id)
        else:
            yield Node(kind, namespace, key)


async def mark(store: Store, now_ns: int) -> Marks:
    """What is reachable in the read models, walked in slices."""
    marks = Marks()
    start = list(roots(store.scan, now_ns, marks))
    kept: set[Node] = set()
    for step, _ in enumerate(reach(start, store.get, marks, kept)):
        if step % SLICE_NODES == SLICE_NODES - 1:
            await trio.lowlevel.checkpoint()
    marks.kept = kept
    return marks


def unmarked(store: Store, marks: Marks) -> list[Node]:
    """The records that marking did not reach."""
    return [
        node
        for kind in COLLECTED
        for namespace, key, _ in store.scan(kind)
        if not marks.holds(node := Node(kind, namespace, key))
    ]


def sweep(
    tx: Transaction, candidates: Iterable[Node], marks: Marks, journal: Journal
) -> list[Garbage]:
    """Delete the candidates that the journal's writes do not reach; answer what was deleted."""
    late: set[Node] = set()
    for _ in reach(journal_nodes(journal), tx.get, marks, late):
        pass
    garbage: list[Garbage] = []
    for node in candidates:
        if node in late or node._replace(flat=True) in late:
            continue
        record = tx.get(node.kind, node.namespace, node.key)
        if record is not None:
            _delete(tx, node)
            garbage.append(
                Garbage(kind=node.kind, namespace=node.namespace, key=node.key, record=record)
            )
    return garbage


def _delete(tx: Transaction, node: Node) -> None:
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
