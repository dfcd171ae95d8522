"""Activations: mounts that the daemon makes under a name, and keeps until they are given up.

Terms. An *activation* is a list of mounts, of which the daemon has made the *active* ones; the
*system* ones are left to whoever asked: `mountplan.py`. Each has a directory of its own in which
its mounts stand: `mountjobs.py`.

    intended --the worker mounts--> active --deactivate, or collected--> gone
        +------refused, or found at a start----------------------------^

Walk-through: a filesystem in a file, that an overlay shall use.

    told = await activations.activate("ns", "web-root", [
        Mount(type="mkfs/loop", source=f"{root}/web.img", options=("X-containerd.mkfs.size=64M",)),
        Mount(type="format/ext4", source="{{ mount 0 }}"),
        Mount(type="format/mkdir/overlay", source="overlay", options=(...)),
    ])
    told.system                     # one overlay, to be mounted by the caller
    await activations.deactivate("ns", "web-root")

The record with the intent is on disk before the first mount is made, and the record is gone from
there before the first is taken off. So a directory that no record of an active one names is a
leftover; a start takes it off. What a start finds active by its record alone, after a reboot, it
forgets. Garbage is what no lease, no backward label and no `containerd.io/gc.root` keeps: `gc.py`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import structlog
import trio

from ..actors import failpoints
from ..actors.actor import Actor
from ..actors.errors import AlreadyExists, InvalidArgument, NotFound, Refusal, Unavailable
from .faults import Fault
from .filters import compile_filters
from .labels import (
    Labels,
    check_label_paths,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
    stored_labels,
)
from .mounts import Mount
from .store import Record, Store, Transaction
from .sweep import Garbage
from .workers import WorkerFault, Workers

if TYPE_CHECKING:
    from .mountplan import Plan

KIND = "mount"
DIRECTORY = "mount directory"
WORKERS_MAX = 3
"""So many are tried, when they die."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveMount:
    """A mount that the daemon made, where, and when (ns)."""

    mount: Mount
    point: str
    mounted_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What is active under a name, and what is left to be mounted."""

    name: str
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()
    labels: Labels = field(default_factory=dict[str, str])


class Activations:
    """The verbs. `home` holds the directories; what mounts want made lies there or in `roots`."""

    def __init__(self, store: Store, workers: Workers, home: Path, roots: Sequence[Path]) -> None:
        self._store = store
        self._workers = workers
        self._home = home
        self._roots = (home, *roots)
        self._busy: WeakValueDictionary[tuple[str, str], trio.Lock] = WeakValueDictionary()
        self._recovered_at_ns = 0
        # Invariant: the ids whose mounts are being made or taken off by a verb.
        self._at_work: set[str] = set()
        self.orphans: set[str] = set()
        """Directories that no record names, kept because a damaged one may have."""

    async def activate(
        self,
        namespace: str,
        name: str,
        mounts: Sequence[Mount],
        labels: Labels | None = None,
        *,
        temporary: bool = False,
        lease: str = "",
    ) -> Activation:
        """Make the mounts. `Unimplemented` when none of them needs the daemon."""
        # Imported when the first asks: the daemon should be up at once.
        from .mountplan import make_plan

        check_namespace(namespace)
        if not name:
            raise InvalidArgument("mount name must not be empty: invalid argument")
        check_labels("mount.Labels", labels or {})
        id = uuid.uuid4().hex
        plan = make_plan(mounts, self._home / id, temporary)
        # Shielded: who withdraws must not leave mounts behind. The worker has a deadline.
        with trio.CancelScope(shield=True):
            async with self._alone(namespace, name), self._working(id):
                return await self._activate(namespace, name, id, plan, labels or {}, lease)
        raise AssertionError("nobody cancels the shield's own scope")

    async def _activate(
        self, namespace: str, name: str, id: str, plan: Plan, labels: Labels, lease: str
    ) -> Activation:
        intent: Record = {"id": id, "active": None, "system": [], "lease": lease}

        def intend(tx: Transaction) -> None:
            if tx.exists(KIND, namespace, name):
                raise AlreadyExists(f"mount {quoted(name)}: already exists")
            if lease and not tx.exists("lease", namespace, lease):
                raise NotFound("lease does not exist: not found")
            stamps = {"created_at": tx.now_ns, "updated_at": tx.now_ns}
            tx.put(KIND, namespace, name, {**intent, **stamps, "labels": stored_labels(labels)})

        await self._store.write(intend)
        failpoints.passed("mount.intended")
        try:
            mounted_at = await self._workers.activate(plan, self._home / id, self._roots)
        except (Refusal, WorkerFault):
            await self._undo(namespace, name, id)
            raise
        active = [
            {"mount": dict(step.mount.to_record()), "point": step.point, "mounted_at": at}
            for step, at in zip(plan.steps, mounted_at, strict=True)
        ]
        system = [dict(mount.to_record()) for mount in plan.system]

        def finish(tx: Transaction) -> Record:
            record = tx.get(KIND, namespace, name)
            assert record is not None
            assert record["id"] == id
            record = {**record, "active": active, "system": system, "updated_at": tx.now_ns}
            tx.put(KIND, namespace, name, record)
            return record

        try:
            record = await self._store.write(finish)
        except Refusal:
            await self._undo(namespace, name, id)
            raise
        failpoints.passed("mount.activated")
        return _from_record(name, record)

    async def deactivate(self, namespace: str, name: str) -> None:
        """Take the mounts off. What others have mounted from them stays theirs."""
        check_namespace(namespace)

        def work(tx: Transaction) -> str:
            record = tx.get(KIND, namespace, name)
            if record is None:
                raise _not_found(name)
            tx.delete(KIND, namespace, name)
            return str(record["id"])

        with trio.CancelScope(shield=True):
            async with self._alone(namespace, name):
                id = await self._store.write(work)
                failpoints.passed("mount.forgotten")
                async with self._working(id):
                    await self._worked_off(id)

    def info(self, namespace: str, name: str) -> Activation:
        """The activation of that name, or `NotFound`."""
        check_namespace(namespace)
        record = self._store.get(KIND, namespace, name)
        if record is None or record["active"] is None:
            raise _not_found(name)
        return _from_record(name, record)

    async def update(
        self, namespace: str, changed: Activation, paths: Sequence[str] = ()
    ) -> Activation:
        """Change labels: all of them without `paths`, else `labels` or `labels.<key>`."""
        check_namespace(namespace)
        check_label_paths(paths, f"mount {quoted(changed.name)}")
        check_labels("mount.Labels", changed.labels)

        def work(tx: Transaction) -> Record:
            record = tx.get(KIND, namespace, changed.name)
            if record is None or record["active"] is None:
                raise _not_found(changed.name)
            labels = masked_labels(record["labels"], changed.labels, paths)
            record = {**record, "labels": labels, "updated_at": tx.now_ns}
            tx.put(KIND, namespace, changed.name, record)
            return record

        return _from_record(changed.name, await self._store.write(work))

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Activation]:
        """The activations that match, in the order of their names."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        found = [
            _from_record(row.key, row.value)
            for row in self._store.scan(KIND, namespace)
            if row.value["active"] is not None
        ]
        return [each for each in found if accepts(partial(_field, each))]

    async def reclaim(self, garbage: Garbage) -> None:
        """Take off what a collected record stood for."""
        id = garbage.record["id"]
        async with self._working(id):
            await self._worked_off(id)

    async def recover(self) -> None:
        """At a start: keep what stands and is recorded, undo and forget everything else."""
        rows = list(self._store.scan(KIND))
        finished = [row for row in rows if row.value["active"] is not None]
        points = [[each["point"] for each in row.value["active"]] for row in finished]
        try:
            standing = await self._workers.standing(points) if points else ()
        except Refusal as error:  # nobody can say: what is recorded is believed
            log.warning("mounts.not_looked_at", reason=str(error))
            standing = [True] * len(points)
        kept = {row.value["id"] for row, stands in zip(finished, standing, strict=True) if stands}
        kept |= self._at_work  # of verbs that outlived the keeper before this one
        for row in rows:
            if row.value["id"] not in kept:
                await self._undo(row.namespace, row.key, row.value["id"])
        found = await trio.to_thread.run_sync(_directories, self._home)
        leftovers = found - kept - {row.value["id"] for row in rows}
        self.orphans, self._recovered_at_ns = set(), time.time_ns()
        if leftovers and any(one.kind in ("", KIND) for one in self._store.damaged):
            self.orphans = leftovers
            log.warning("mounts.orphans_kept", count=len(leftovers))
            return
        for id in sorted(leftovers):
            await self._take_off(id)

    def faults(self) -> Sequence[Fault]:
        """The directories that were kept."""
        return [
            Fault(
                kind=DIRECTORY,
                namespace="",
                key=str(self._home / id),
                reason="no record names it; a damaged one may have",
                since_ns=self._recovered_at_ns,
                held=True,
            )
            for id in sorted(self.orphans)
        ]

    async def give_up(self, fault: Fault) -> None:
        """Take off what stands in the directory."""
        id = Path(fault.key).name
        await self._worked_off(id)
        self.orphans.discard(id)

    # Inside.

    def _alone(self, namespace: str, name: str) -> trio.Lock:
        """One at a time works on a name."""
        return self._busy.setdefault((namespace, name), trio.Lock())

    @asynccontextmanager
    async def _working(self, id: str) -> AsyncGenerator[None]:
        self._at_work.add(id)
        try:
            yield
        finally:
            self._at_work.discard(id)

    async def _undo(self, namespace: str, name: str, id: str) -> None:
        """An intent that came to nothing: the mounts first, since its record finds them."""
        if not await self._take_off(id):
            return

        def work(tx: Transaction) -> None:
            record = tx.get(KIND, namespace, name)
            if record is not None and record["id"] == id:
                tx.delete(KIND, namespace, name)

        with suppress(Refusal):  # the next start finds it
            await self._store.write(work)

    async def _worked_off(self, id: str) -> None:
        """Take off what stands in a directory; the death of a worker at it costs a further one."""
        for _ in range(WORKERS_MAX - 1):
            with suppress(Unavailable):
                await self._workers.deactivate(self._home / id)
                return
        await self._workers.deactivate(self._home / id)

    async def _take_off(self, id: str) -> bool:
        try:
            await self._worked_off(id)
        except Refusal as error:
            log.warning("mount.not_taken_off", id=id, reason=str(error))
            return False
        return True


class ActivationKeeper(Actor):
    """The activations' place in the tree: recovers at its start."""

    def __init__(self, activations: Activations) -> None:
        super().__init__()
        self._activations = activations

    async def on_start(self) -> None:
        """Ready once what was left is sorted."""
        await self._activations.recover()


def _directories(home: Path) -> set[str]:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {path.name for path in home.iterdir()}


def _not_found(name: str) -> NotFound:
    return NotFound(f"mount {quoted(name)}: not found")


def _field(activation: Activation, path: Sequence[str]) -> tuple[str, bool]:
    match path:
        case ["name", *_]:
            return activation.name, True
        case ["labels", *rest]:
            return map_field(activation.labels, rest)
        case _:
            return "", False


def _from_record(name: str, record: Record) -> Activation:
    active: Sequence[Any] = record["active"]
    return Activation(
        name=name,
        active=[
            ActiveMount(
                mount=Mount.from_record(each["mount"]),
                point=each["point"],
                mounted_at=each["mounted_at"],
            )
            for each in active
        ],
        system=[Mount.from_record(each) for each in record["system"]],
        labels=record["labels"],
    )
