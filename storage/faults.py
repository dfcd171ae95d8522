"""Faults: what is damaged, lost or in doubt, each with the way out of it.

    holdfast start:  a record does not verify  -> set aside; a fault
                     a directory, a file without a record, while records are damaged
                                               -> kept, it may be what that record told of; a fault
    remove(id):      what the fault names is given up, for good
    the last damaged record removed            -> what was kept for its sake goes too,
                                                  and garbage is collected again

Who keeps doubtful things is a `FaultKeeper`; `Faults` asks them all. A fault has the same id in
each life, so it can be removed after a restart by what was listed before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
import trio

from ..actors.errors import NotFound, Refusal
from .database import Damaged
from .salvage import remove_aside
from .store import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger()

ID_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it should be."""

    kind: str
    """What it is: `database`, `image record`, `snapshot`, `snapshot directory`, `bundle`, ..."""
    namespace: str
    key: str
    reason: str
    since_ns: int
    """When it was found; what is looked for at each start, when this one found it."""
    held: bool = False
    """It is kept only because records are damaged, and goes with the last of those."""

    @property
    def id(self) -> str:
        """Names the fault, in this life and the next."""
        words = "\0".join((self.kind, self.namespace, self.key, self.reason))
        digest = hashlib.sha256(words.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:ID_DIGITS]


class FaultKeeper(Protocol):
    """Who knows of doubtful things of one sort."""

    def faults(self) -> Sequence[Fault]:
        """What there is now."""
        ...

    async def give_up(self, fault: Fault) -> None:
        """Remove what a fault of its own names. A refusal says what stands in the way."""
        ...


class Records:
    """The keeper of the records that did not verify, and of the damaged file they came from."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def faults(self) -> Sequence[Fault]:
        """The records that were set aside; what a salvage lost is one of kind `database`."""
        return [_record_fault(one) for one in self._store.damaged]

    async def give_up(self, fault: Fault) -> None:
        """Forget a record; for a database, remove the damaged file."""
        same = [one for one in self._store.damaged if _record_fault(one).id == fault.id]
        for one in same:
            if not one.kind:
                path = self._store.path
                await trio.to_thread.run_sync(partial(remove_aside, path, one.found_at_ns))
        await self._store.forget_damaged(same)


def _record_fault(one: Damaged) -> Fault:
    return Fault(
        kind=f"{one.kind} record" if one.kind else "database",
        namespace=one.namespace,
        key=one.key,
        reason=one.reason,
        since_ns=one.found_at_ns,
    )


class Faults:
    """All faults of a host. `collect` is called once no record is damaged any more."""

    def __init__(
        self,
        store: Store,
        keepers: Sequence[FaultKeeper],
        collect: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._keepers = (Records(store), *keepers)
        self._collect = collect

    def list(self) -> Sequence[Fault]:
        """Every fault, the records first."""
        return [fault for keeper in self._keepers for fault in keeper.faults()]

    async def remove(self, ids: Collection[str]) -> Sequence[Fault]:
        """Give up what these faults name; answers all that went, also what was held for them.

        NotFound, and nothing is removed, when an id names none. What is refused does not keep
        the others: the first refusal is raised after them.
        """
        unknown = sorted(set(ids).difference(fault.id for fault in self.list()))
        if unknown:
            raise NotFound(f"fault {unknown[0]}: not found")
        was_damaged = bool(self._store.damaged)
        removed, refusals = await self._give_up(lambda fault: fault.id in ids)
        if was_damaged and not self._store.damaged:
            freed, further = await self._give_up(lambda fault: fault.held)
            removed, refusals = [*removed, *freed], [*refusals, *further]
            await self._collect()
        if refusals:
            raise refusals[0]
        return removed

    async def _give_up(
        self, chosen: Callable[[Fault], bool]
    ) -> tuple[Sequence[Fault], Sequence[Refusal]]:
        removed: list[Fault] = []
        refusals: list[Refusal] = []
        for keeper in self._keepers:
            for fault in [fault for fault in keeper.faults() if chosen(fault)]:
                try:
                    await keeper.give_up(fault)
                except Refusal as refusal:
                    refusals.append(refusal)
                    continue
                removed.append(fault)
                log.info("fault.removed", id=fault.id, kind=fault.kind, key=fault.key)
        return removed, refusals
