"""Garbage collection: what nothing refers to any longer is forgotten, then reclaimed.

Terms. A *node* is a record that may refer to others. *Roots* are kept for their own sake:

    images without a past containerd.io/gc.expire        leases without one, and their resources
    containers, and what sandboxes' labels name          ingests that have not expired
    content, snapshots and mounts labelled containerd.io/gc.root
    mounts that are being made, and those whose lease counts

A node keeps what it *links* to: an image its target, a container its snapshot, a snapshot its
parent, an ingest the content it expects, and all but leases and ingests what their labels name:

    containerd.io/gc.ref.content[.x]           a digest
    containerd.io/gc.ref.image[.x]             an image's name
    containerd.io/gc.ref.snapshot.<snapshotter>[/x]     a snapshot's key
    containerd.io/gc.bref.{container,content,image}[.x], .snapshot.<snapshotter>[/x]
                                               the other way: kept as long as the named one is
    containerd.io/gc.cond.snapshot.<snapshotter>        see `conditions.py`

What a lease with containerd.io/gc.flat holds is *flat*: it keeps its target or its parents, and
nothing by labels, its own or others'.

The life of a collection. A first job opens a journal of what is written from now on. Marking
walks the read models on the loop, in slices, while writers go on, and then what the journal
holds, until that is short. What is unmarked is *garbage*: `sweep.py` removes it in small
transactions, each of which first marks from what the journal has come to hold.

Invariant: a record that is reachable when its own removal's transaction begins is not removed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .conditions import CONDITION, conditions, met_until_ns
from .expiry import Clock, left_ns
from .leases import FLAT_LABEL, split_key
from .store import Record, Row, Store

ROOT_LABEL = "containerd.io/gc.root"
REFERENCE = "containerd.io/gc.ref."
BACK_REFERENCE = "containerd.io/gc.bref."

COLLECTED = ("lease", "snapshot", "content", "image", "ingest", "mount")
# Whose labels are heeded, and whose backward labels.
REFERRING = frozenset({"content", "snapshot", "image", "container", "sandbox", "mount"})
# Whose writes may make something reachable.
JOURNALED = REFERRING | {"lease", "lease_resource", "ingest"}


Node = tuple[str, str, str, bool]
"""A record in the graph: kind, namespace, key, and whether it is flat.

A plain tuple, which Python's own collector soon leaves alone; a class of its own would have it
walk over all nodes, again and again, and hold up everybody.
"""


Link = tuple[str, Node]
"""How somebody refers to a node: `target`, `parent`, a label, ...; and the node."""


def node_of(kind: str, namespace: str, key: str, flat: bool = False) -> Node:
    """The node of a record."""
    return kind, namespace, key, flat


Get = Callable[[str, str, str], Record | None]
Scan = Callable[[str], Iterable[Row]]


@dataclass(slots=True)
class Marks:
    """What a collection knows: what is kept, what is still to be followed, what keeps whom
    backwards, and until when.

    Invariant: what a kept node links to, as far as that was read, is kept or pending.
    """

    now: Clock
    kept: set[Node] = field(default_factory=set[Node])
    pending: list[Node] = field(default_factory=list[Node])
    backward: defaultdict[Node, list[Link]] = field(
        default_factory=lambda: defaultdict[Node, list[Link]](list)
    )
    next_expiry_ns: int | None = None
    """When the first of what is kept only for a time expires, on the boot's clock."""

    def over(self, left: int | None) -> bool:
        """True when no time is left; else the end of it is remembered."""
        if left is None:
            return False
        if left < 0:
            return True
        at_ns = self.now.boot_ns + left
        if self.next_expiry_ns is None or at_ns < self.next_expiry_ns:
            self.next_expiry_ns = at_ns
        return False

    def holds(self, node: Node) -> bool:
        """True when the node is kept, flat or not."""
        return node in self.kept or (*node[:3], True) in self.kept


def roots(scan: Scan, marks: Marks) -> Iterator[Link | None]:
    """The nodes that are kept for their own sake, and why. Notes backward links in `marks`.

    Yields after each record, so that the walk can be interrupted; None for one that is no root.
    """
    flat: dict[tuple[str, str], bool] = {}
    for namespace, key, record in scan("lease"):
        if marks.over(left_ns("lease", record, marks.now)):
            yield None
        else:
            flat[namespace, key] = FLAT_LABEL in labels_of(record)
            yield "a lease", node_of("lease", namespace, key)
    for namespace, key, _ in scan("lease_resource"):
        lease_id, resource = split_key(key)
        is_flat = flat.get((namespace, lease_id))
        if is_flat is None:
            yield None
        else:
            node = resource_node(namespace, resource.type, resource.id)
            yield f"lease {lease_id}", (*node[:3], is_flat)
    for namespace, key, record in scan("image"):
        node = node_of("image", namespace, key)
        if marks.over(left_ns("image", record, marks.now)):
            note_backward(node, record, marks)
            yield None
        else:
            yield "an image", node
    for namespace, key, record in scan("ingest"):
        over = marks.over(left_ns("ingest", record, marks.now))
        yield None if over else ("an ingest", node_of("ingest", namespace, key))
    for namespace, key, record in scan("container"):
        note_backward(node_of("container", namespace, key), record, marks)
        yield "a container", node_of("container", namespace, key)
    for namespace, key, _ in scan("sandbox"):
        yield "a sandbox", node_of("sandbox", namespace, key)
    for namespace, key, record in scan("mount"):
        is_flat = flat.get((namespace, record["lease"]))
        if record["active"] is None:
            yield "being made", node_of("mount", namespace, key)
        elif is_flat is not None:
            yield f"lease {record['lease']}", node_of("mount", namespace, key, is_flat)
        else:
            yield None
    for kind in ("content", "snapshot", "mount"):
        for namespace, key, record in scan(kind):
            labels = labels_of(record)
            if not labels:
                yield None
                continue
            node = node_of(kind, namespace, key)
            note_backward(node, record, marks)
            label = next((label for label in labels if label.startswith(ROOT_LABEL)), None)
            yield None if label is None else (f"label {label}", node)


def note_backward(node: Node, record: Record, marks: Marks) -> None:
    """Let whoever keeps what the node's backward labels name keep the node."""
    for label, target in label_links(node[1], labels_of(record), BACK_REFERENCE):
        marks.backward[target].append((label, node))


def links(node: Node, get: Get, marks: Marks) -> Iterator[Link]:
    """What a node keeps, and how."""
    kind, namespace, key, flat = node
    if not flat:
        yield from marks.backward.get(node, ())
    record = get(kind, namespace, key)
    if record is None:
        return
    match kind:
        case "image":
            yield "target", node_of("content", namespace, record["target"]["digest"], flat)
        case "container" if record["snapshotter"]:
            snapshot = f"{record['snapshotter']}/{record['snapshot_key']}"
            yield "snapshot", node_of("snapshot", namespace, snapshot)
        case "snapshot" if record.get("parent"):
            snapshotter = key.partition("/")[0]
            yield (
                "parent",
                node_of("snapshot", namespace, f"{snapshotter}/{record['parent']}", flat),
            )
        case "ingest" if record.get("expected"):
            yield "expected", node_of("content", namespace, record["expected"])
        case _:
            pass
    labels = labels_of(record)
    if flat or not labels or kind not in REFERRING:
        return
    yield from label_links(namespace, labels, REFERENCE)
    if kind in ("image", "content") and any(label.startswith(CONDITION) for label in labels):
        yield from _met(namespace, labels, get, marks)


def _met(namespace: str, labels: Mapping[str, str], get: Get, marks: Marks) -> Iterator[Link]:
    for label, condition in conditions(labels):
        record = get("snapshot", namespace, condition.key)
        if record is None:
            continue
        until_ns = met_until_ns(condition, labels_of(record), marks.now.wall_ns)
        if until_ns is not None:
            if until_ns:
                marks.over(until_ns - marks.now.wall_ns)
            yield label, node_of("snapshot", namespace, condition.key)


def label_links(namespace: str, labels: Mapping[str, str], prefix: str) -> Iterator[Link]:
    """The nodes that labels with this prefix name."""
    for label, value in labels.items():
        if not label.startswith(prefix):
            continue
        name = label[len(prefix) :]
        if name.startswith("snapshot."):
            snapshotter = name.removeprefix("snapshot.").partition("/")[0]
            yield label, node_of("snapshot", namespace, f"{snapshotter}/{value}")
            continue
        kind = re.split(r"[./]", name, maxsplit=1)[0]
        if kind in ("content", "image") or (kind == "container" and prefix == BACK_REFERENCE):
            yield label, node_of(kind, namespace, value)


def resource_node(namespace: str, resource_type: str, resource_id: str) -> Node:
    """The node of a lease's resource."""
    kind, _, snapshotter = resource_type.partition("/")
    if kind == "snapshots":
        return node_of("snapshot", namespace, f"{snapshotter}/{resource_id}")
    names = {"content": "content", "images": "image", "ingests": "ingest"}
    return node_of(names[kind], namespace, resource_id)


def labels_of(record: Record) -> Mapping[str, str]:
    """The record's labels, also where it has none."""
    labels: Mapping[str, str] = record.get("labels") or {}
    return labels


def reach(marks: Marks, get: Get) -> Iterator[None]:
    """Keep what is pending, and what can be reached from there.

    Yields after each node, so that the walk can be interrupted, and taken up again.
    """
    pending, kept = marks.pending, marks.kept
    while pending:
        node = pending.pop()
        if node not in kept:
            kept.add(node)
            pending += [target for _, target in links(node, get, marks) if target not in kept]
        yield


def mark(store: Store, marks: Marks) -> Iterator[None]:
    """Keep what can be reached in the read models, a step at a time."""
    for root in roots(store.scan, marks):
        if root is not None:
            marks.pending.append(root[1])
        yield
    yield from reach(marks, store.get)


def mark_written(keys: Iterable[tuple[str, str, str]], marks: Marks) -> None:
    """What was written meanwhile stays, and is to be followed, anew where it was already."""
    for kind, namespace, key in keys:
        if kind not in JOURNALED:
            continue
        nodes = [node_of(kind, namespace, key)]
        if kind == "lease_resource":
            _, resource = split_key(key)
            nodes.append(resource_node(namespace, resource.type, resource.id))
        for node in nodes:
            marks.kept.discard(node)
            marks.pending.append(node)


def unmarked(store: Store, marks: Marks, found: set[Node]) -> Iterator[None]:
    """Gather the records that marking did not reach, a step at a time."""
    leases: set[tuple[str, str]] = set()
    for kind in COLLECTED:
        for namespace, key, _ in store.scan(kind):
            node = node_of(kind, namespace, key)
            if not marks.holds(node):
                found.add(node)
                if kind == "lease":
                    leases.add((namespace, key))
            yield
    # What a lease holds goes before it, in as many steps as it takes.
    if leases:
        for namespace, key, _ in store.scan("lease_resource"):
            if (namespace, split_key(key)[0]) in leases:
                found.add(node_of("lease_resource", namespace, key))
            yield


def forget(nodes: set[Node]) -> Iterator[None]:
    """Empty the set a step at a time: giving back the memory of many takes its time too."""
    while nodes:
        nodes.pop()
        yield
