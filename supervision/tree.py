"""The live tree as plain data: what `holdfast tree` shows.

It reads and never asks: a supervisor or worker that hangs is shown hanging, with the message it is
at and for how long, and delays nobody. One look is one moment; there is no await in it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..actors.cell import Cell
from ..actors.introspection import info
from ..actors.reference import Ref
from ..actors.system import System
from .keeper import ChildState, Held, Keeper
from .spec import ChildKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One actor in the tree, or a child that is not running now (`actor` is empty then).

    `arrangement`, `restarts_recent` and `restarts_allowed` are a supervisor's: how its children
    hang together, and how near it is to giving up. `restarts` counts this child's own.
    `current` is the message in work and `current_age_s` for how long.
    """

    id: str
    path: str
    kind: str
    state: str
    restart: str = ""
    restarts: int = 0
    actor: str = ""
    name: str | None = None
    age_s: float = 0.0
    mailbox_depth: int = 0
    mailbox_bound: int | None = None
    dropped: int = 0
    handled: int = 0
    suspended: bool = False
    current: str | None = None
    current_age_s: float = 0.0
    waiting_on: Sequence[str] = ()
    arrangement: str = ""
    restarts_recent: int = 0
    restarts_allowed: int = 0
    children: Sequence["Node"] = ()

    def walk(self) -> Iterator["Node"]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def plain(self) -> Mapping[str, Any]:
        """The same in dictionaries and lists, for JSON or CBOR."""
        return asdict(self)


def look(top: Ref[Any]) -> Node:
    """The tree from one actor downwards."""
    below = _below(top.cell.system)
    label = _label(top.cell)
    return _node(top.cell, None, label, label, below)


def look_at_all(system: System | None = None) -> Sequence[Node]:
    """Every tree of a system, in start order: each actor that has no parent is the top of one."""
    system = system or System.current()
    below = _below(system)
    tops = [cell for cell in system.cells if cell.parent is None]
    return [_node(cell, None, _label(cell), _label(cell), below) for cell in tops]


Below = Mapping[Cell, Sequence[Cell]]
"""The live actors under each actor, in start order."""


def _below(system: System) -> Below:
    below: defaultdict[Cell, list[Cell]] = defaultdict(list)
    for cell in system.cells:
        if cell.parent is not None:
            below[cell.parent].append(cell)
    return below


def _label(cell: Cell) -> str:
    """What an actor is called where nobody's care gives it an id: its `label`, the same for as
    long as it lives, else its name or its class's."""
    label = getattr(cell.actor, "label", None)
    if isinstance(label, str):
        return label
    return cell.ref.name or cell.ref.actor_class.__name__


def _node(cell: Cell, held: Held | None, node_id: str, path: str, below: Below) -> Node:
    now = info(cell.ref)
    actor = cell.actor
    keeper = actor if isinstance(actor, Keeper) else None
    starting = cell.started is not None and not cell.started.done()
    if held is not None:
        state = held.state
    elif starting:
        state = ChildState.STARTING
    else:
        state = ChildState.RUNNING if now.alive else ChildState.STOPPED
    return Node(
        id=node_id,
        path=path,
        kind=(ChildKind.WORKER if keeper is None else ChildKind.SUPERVISOR).value,
        state=state.value,
        restart="" if held is None else held.spec.restart.value,
        restarts=0 if held is None else held.restarts,
        actor=now.actor,
        name=now.name,
        age_s=now.age_s,
        mailbox_depth=now.mailbox_depth,
        mailbox_bound=now.mailbox_bound,
        dropped=now.dropped,
        handled=now.handled,
        suspended=now.suspended,
        current=now.current,
        current_age_s=now.current_age_s,
        waiting_on=now.waiting_on,
        arrangement="" if keeper is None else keeper.arrangement(),
        restarts_recent=0 if keeper is None else len(keeper.window.times_s),
        restarts_allowed=0 if keeper is None else keeper.window.intensity.restarts,
        children=list(_children(cell, keeper, path, below)),
    )


def _children(cell: Cell, keeper: Keeper | None, path: str, below: Below) -> Iterator[Node]:
    shown: set[Cell] = set()
    for child_id, held in keeper.all_held().items() if keeper is not None else ():
        child_path = f"{path}/{child_id}"
        ref = held.ref or held.leaving
        if ref is None:
            yield Node(
                id=child_id,
                path=child_path,
                kind=held.spec.kind.value,
                state=held.state.value,
                restart=held.spec.restart.value,
                restarts=held.restarts,
            )
        else:
            shown.add(ref.cell)
            yield _node(ref.cell, held, child_id, child_path, below)
    # On their way up, or started with this actor as their parent but in nobody's care.
    for other in below.get(cell, ()):
        if other not in shown:
            yield _node(other, None, _label(other), f"{path}/{_label(other)}", below)
