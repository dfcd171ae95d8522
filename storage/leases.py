"""Leases: who holds one keeps its resources from being collected.

A resource is a type and an id: `content` and a digest, `snapshots/<snapshotter>` and a key,
`ingests` and a ref, `images` and a name. It need not exist yet. Labels of a lease:

    containerd.io/gc.expire   a time (RFC 3339) after which the lease counts no longer and goes;
                              `expiry.py` says by which clock
    containerd.io/gc.flat     holds the resources themselves, but not what their labels refer to
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from ..actors.errors import AlreadyExists, InvalidArgument, NotFound, Unimplemented
from .digest import fault_of_digest
from .expiry import EXPIRE_LABEL, stamp_if_expiring
from .filters import compile_wrapped
from .labels import Labels, check_namespace, map_field, quoted, stored_labels
from .store import Record, Store, Transaction

FLAT_LABEL = "containerd.io/gc.flat"
# Set on the leases of the daemon's own jobs, which end with it.
JOB_LABEL = "io.holdfast/job"

JOB_HOURS_MAX = 24

# Lease ids and refs may hold any character but this one.
_SEPARATOR = "\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease. `created_at` in nanoseconds since 1970."""

    id: str
    labels: Labels = field(default_factory=dict[str, str])
    created_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Resource:
    """What a lease holds. `type` is content, images, ingests or snapshots/<snapshotter>."""

    type: str
    id: str


class Leases:
    """The verbs on leases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """The leases that match, expired ones too, in the order of their ids."""
        check_namespace(namespace)
        accepts = compile_wrapped(filters)
        leases = [_from_record(row.key, row.value) for row in self._store.scan("lease", namespace)]
        return [lease for lease in leases if accepts(partial(lease_field, lease))]

    async def create(
        self, namespace: str, lease_id: str = "", labels: Labels | None = None
    ) -> Lease:
        """Make a lease; without an id, one is made up."""
        check_namespace(namespace)
        lease_id = lease_id or _random_id()
        if _SEPARATOR in lease_id:
            raise InvalidArgument("lease id must not contain null: invalid argument")

        def work(tx: Transaction) -> Lease:
            if tx.exists("lease", namespace, lease_id):
                raise AlreadyExists(f"lease {quoted(lease_id)}: already exists")
            kept = stored_labels(labels or {})
            record = {"labels": kept, "created_at": tx.now_ns, **stamp_if_expiring(kept)}
            tx.put("lease", namespace, lease_id, record)
            return Lease(id=lease_id, labels=kept, created_at=tx.now_ns)

        return await self._store.write(work)

    @asynccontextmanager
    async def held(self, namespace: str) -> AsyncGenerator[str]:
        """A lease for the length of a job; its id. Should the job fall with its daemon, the next
        one gives it up; should there be none, it expires after a day."""
        labels = {EXPIRE_LABEL: _in_a_day(), JOB_LABEL: "held"}
        lease_id = _random_id()
        try:
            # Within the block: one that is cancelled here may be written all the same.
            await self.create(namespace, lease_id, labels)
            yield lease_id
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await self.delete(namespace, lease_id)
                except NotFound:
                    pass  # somebody deleted it meanwhile

    async def keep_for_a_day(self, namespace: str, lease_id: str, labels: Labels) -> None:
        """Make the lease, or let it count for a day from now on, with all that it holds."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            before = tx.get("lease", namespace, lease_id) or {"created_at": tx.now_ns}
            kept = stored_labels({**labels, EXPIRE_LABEL: _in_a_day()})
            record = {"created_at": before["created_at"], "labels": kept, **stamp_if_expiring(kept)}
            tx.put("lease", namespace, lease_id, record)

        await self._store.write(work)

    async def end_jobs(self) -> None:
        """At a start, before there are jobs: give up the leases of those that fell."""
        fallen = [
            (row.namespace, row.key)
            for row in self._store.scan("lease")
            if JOB_LABEL in row.value["labels"]
        ]

        def work(tx: Transaction) -> None:
            for namespace, lease_id in fallen:
                drop_lease(tx, namespace, lease_id)

        if fallen:
            await self._store.write(work)

    async def delete(self, namespace: str, lease_id: str) -> None:
        """Give up a lease and what it holds."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            if not drop_lease(tx, namespace, lease_id):
                raise NotFound(f"lease {quoted(lease_id)}: not found")

        await self._store.write(work)

    async def add_resource(self, namespace: str, lease_id: str, resource: Resource) -> None:
        """Hold a resource. Holding it already is no refusal."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            _require(tx, namespace, lease_id)
            check_resource(resource)
            if not resource.id or resource.type.endswith("/"):
                raise InvalidArgument("a lease's resource has a type and an id: invalid argument")
            tx.put("lease_resource", namespace, resource_key(lease_id, resource), {})

        await self._store.write(work)

    async def delete_resource(self, namespace: str, lease_id: str, resource: Resource) -> None:
        """Hold a resource no longer. Not holding it is no refusal."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            _require(tx, namespace, lease_id)
            check_resource(resource)
            tx.delete("lease_resource", namespace, resource_key(lease_id, resource))

        await self._store.write(work)

    def list_resources(self, namespace: str, lease_id: str) -> Sequence[Resource]:
        """What a lease holds, by type and id."""
        check_namespace(namespace)
        if self._store.get("lease", namespace, lease_id) is None:
            raise NotFound(f"lease {quoted(lease_id)}: not found")
        prefix = lease_id + _SEPARATOR
        rows = self._store.scan("lease_resource", namespace, prefix)
        return [split_key(row.key)[1] for row in rows]


def require_lease(store: Store, namespace: str, lease_id: str) -> None:
    """Refuse a request whose lease does not exist; one without a lease is free."""
    if lease_id and store.get("lease", namespace, lease_id) is None:
        raise NotFound("lease does not exist: not found")


def lease_resource(
    tx: Transaction, namespace: str, lease_id: str, resource_type: str, resource_id: str
) -> None:
    """Let the request's lease hold what this job makes. Nothing to do without a lease."""
    if not lease_id:
        return
    if not tx.exists("lease", namespace, lease_id):
        raise NotFound("lease does not exist: not found")
    resource = Resource(type=resource_type, id=resource_id)
    tx.put("lease_resource", namespace, resource_key(lease_id, resource), {})


def release_resource(
    tx: Transaction, namespace: str, lease_id: str, resource_type: str, resource_id: str
) -> None:
    """Let the request's lease no longer hold what this job deletes."""
    if lease_id:
        resource = Resource(type=resource_type, id=resource_id)
        tx.delete("lease_resource", namespace, resource_key(lease_id, resource))


def drop_lease(tx: Transaction, namespace: str, lease_id: str) -> bool:
    """Delete a lease with all that it holds; False when there is none."""
    if not tx.delete("lease", namespace, lease_id):
        return False
    for key in tx.keys("lease_resource", namespace, lease_id + _SEPARATOR):
        tx.delete("lease_resource", namespace, key)
    return True


def check_resource(resource: Resource) -> None:
    """Refuse a resource whose type is unknown or whose id does not fit its type."""
    first, *rest = resource.type.split("/")
    match first:
        case "content" | "ingests" | "images":
            if rest:
                raise InvalidArgument(f"invalid resource type {resource.type}: invalid argument")
            if first == "content" and (fault := fault_of_digest(resource.id)):
                raise InvalidArgument(
                    f"invalid content resource id {resource.id}: {fault}: invalid argument"
                )
        case "snapshots":
            if len(rest) != 1:
                raise InvalidArgument(
                    f"invalid snapshot resource type {resource.type}: invalid argument"
                )
        case _:
            raise Unimplemented(f"resource type {resource.type} not supported yet: not implemented")


def lease_field(lease: Lease, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of a lease."""
    match path:
        case ["id", *_]:
            return lease.id, bool(lease.id)
        case ["labels", *rest]:
            return map_field(lease.labels, rest)
        case _:
            return "", False


def split_key(key: str) -> tuple[str, Resource]:
    """The lease id and the resource of a `lease_resource` record's key."""
    lease_id, resource_type, resource_id = key.split(_SEPARATOR, 2)
    return lease_id, Resource(type=resource_type, id=resource_id)


def resource_key(lease_id: str, resource: Resource) -> str:
    return _SEPARATOR.join((lease_id, resource.type, resource.id))


def _require(tx: Transaction, namespace: str, lease_id: str) -> None:
    if not tx.exists("lease", namespace, lease_id):
        raise NotFound(f"lease {quoted(lease_id)}: not found")


def _in_a_day() -> str:
    expires = datetime.now(UTC) + timedelta(hours=JOB_HOURS_MAX)
    return expires.strftime("%Y-%m-%dT%H:%M:%SZ")


def _random_id() -> str:
    # The form of containerd's own: the nanosecond and three random bytes.
    tail = base64.urlsafe_b64encode(os.urandom(3)).decode()
    return f"{time.time_ns() % 1_000_000_000}-{tail}"


def _from_record(lease_id: str, record: Record) -> Lease:
    return Lease(
        id=lease_id, labels=record.get("labels", {}), created_at=record.get("created_at", 0)
    )
