"""Why something is there: who keeps a record from being collected, or when it goes.

The answer is the shortest chain from a root to the record, by the same rules as a collection:

    lease build  --held-->  content sha256:aa  --containerd.io/gc.ref.content.l.0-->  content ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..actors.errors import InvalidArgument, NotFound
from .collector import Collector
from .content import SHAREABLE_LABEL
from .expiry import expiry_ns, left_ns, read_clock
from .gc import Link, Marks, Node, links, node_of, roots
from .labels import check_namespace, quoted
from .store import Store
from .turns import Turns

KINDS = ("content", "snapshot", "image", "ingest", "container", "lease", "mount")
LEASE_ROOT = "lease "


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One record of the chain, and how the one before it keeps it; of the first, what it is."""

    how: str
    kind: str
    key: str
    flat: bool = False
    """It keeps its target or parents alone: a flat lease holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a record is there."""

    chain: Sequence[Step] = ()
    """From the root to the record; none when it is garbage."""
    until_ns: int | None = None
    """The time of day that the root was told to expire at."""
    left_s: float | None = None
    """How long that is from now, by the boot's clock, which decides."""
    goes: str = ""
    """When garbage goes."""
    also_in: Sequence[str] = ()
    """Which other namespaces have the blob, so that its bytes stay."""

    @property
    def kept(self) -> bool:
        """False for garbage."""
        return bool(self.chain)


@dataclass(slots=True)
class _Way:
    """How each node was reached first, and from where."""

    came: dict[Node, tuple[str, Node | None]] = field(
        default_factory=dict[Node, tuple[str, "Node | None"]]
    )
    queue: deque[Node] = field(default_factory=deque[Node])

    def reach(self, link: Link, before: Node | None) -> None:
        how, node = link
        if node not in self.came:
            self.came[node] = how, before
            self.queue.append(node)

    def walk(self, store: Store, marks: Marks, wanted: Node) -> Iterator[None]:
        """From all roots outwards, until the wanted one is reached."""
        for root in roots(store.scan, marks):
            if root is not None:
                self.reach(root, None)
            yield
        while self.queue and self.found(wanted) is None:
            node = self.queue.popleft()
            for link in links(node, store.get, marks):
                self.reach(link, node)
            yield

    def found(self, wanted: Node) -> Node | None:
        flat: Node = (*wanted[:3], True)
        return wanted if wanted in self.came else flat if flat in self.came else None


async def why(
    store: Store,
    collector: Collector,
    namespace: str,
    kind: str,
    name: str,
    *,
    snapshotter: str = "",
) -> Reason:
    """Why this record of the namespace is there. `NotFound` when it is not."""
    check_namespace(namespace)
    if kind not in KINDS:
        raise InvalidArgument(f"kind {quoted(kind)} is not one of {', '.join(KINDS)}")
    key = f"{snapshotter}/{name}" if kind == "snapshot" else name
    if store.get(kind, namespace, key) is None:
        raise NotFound(f"{kind} {quoted(key)}: not found")
    now = read_clock()
    way, wanted = _Way(), node_of(kind, namespace, key)
    await Turns().walk(way.walk(store, Marks(now), wanted))
    also_in = _also_in(store, namespace, key) if kind == "content" else ()
    found = way.found(wanted)
    if found is None:
        return Reason(goes=collector.outlook(), also_in=also_in)
    chain = _chain(way, found)
    first = chain[0]
    record = store.get(first.kind, namespace, first.key) or {}
    left = left_ns(first.kind, record, now)
    return Reason(
        chain=chain,
        until_ns=expiry_ns(first.kind, record),
        left_s=None if left is None else left / 1e9,
        also_in=also_in,
    )


def _chain(way: _Way, found: Node) -> Sequence[Step]:
    steps: list[Step] = []
    node: Node | None = found
    while node is not None:
        how, before = way.came[node]
        if before is None and how.startswith(LEASE_ROOT):
            steps.append(Step(how="held", kind=node[0], key=node[2], flat=node[3]))
            steps.append(Step(how="a lease", kind="lease", key=how.removeprefix(LEASE_ROOT)))
        else:
            steps.append(Step(how=how, kind=node[0], key=node[2], flat=node[3]))
        node = before
    return steps[::-1]


def _also_in(store: Store, namespace: str, digest: str) -> Sequence[str]:
    names: list[str] = []
    for row in store.scan("namespace", ""):
        if row.key != namespace and store.get("content", row.key, digest) is not None:
            shares = row.value["labels"].get(SHAREABLE_LABEL) == "true"
            names.append(f"{row.key} (shareable)" if shares else row.key)
    return names
