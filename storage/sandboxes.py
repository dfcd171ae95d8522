"""Sandbox records: what is to be a sandbox. As a container, it is metadata; the runtime's
`Sandboxes` make it live.

Invariant: id, sandboxer and the runtime's name never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..actors.errors import AlreadyExists, InvalidArgument, NotFound
from .containers import (
    Extensions,
    Opaque,
    Runtime,
    extensions_from,
    extensions_to,
    masked_extensions,
    opaque_from,
    opaque_to,
    runtime_from,
    runtime_to,
)
from .filters import compile_filters
from .labels import (
    Labels,
    check_identifier,
    check_labels,
    check_namespace,
    map_field,
    masked_labels,
    quoted,
    stored_labels,
)
from .store import Record, Store, Transaction

KIND = "sandbox"
MUTABLE = ("labels", "extensions", "spec", "runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A sandbox record. Times in nanoseconds since 1970; the store sets them."""

    id: str
    runtime: Runtime = field(default_factory=lambda: Runtime(name=""))
    spec: Opaque | None = None
    labels: Labels = field(default_factory=dict[str, str])
    extensions: Extensions = field(default_factory=dict[str, Opaque])
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0


class SandboxStore:
    """The verbs on sandbox records."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        """The record, or `NotFound`."""
        check_namespace(namespace)
        record = self._store.get(KIND, namespace, sandbox_id)
        if record is None:
            raise _not_found(sandbox_id)
        return _from_record(sandbox_id, record)

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Sandbox]:
        """The records that match, in the order of their ids."""
        check_namespace(namespace)
        accepts = compile_filters(filters)
        found = [_from_record(row.key, row.value) for row in self._store.scan(KIND, namespace)]
        return [sandbox for sandbox in found if accepts(partial(sandbox_field, sandbox))]

    async def create(self, namespace: str, sandbox: Sandbox) -> Sandbox:
        """Keep a new record."""
        check_namespace(namespace)
        check_sandbox(sandbox)

        def work(tx: Transaction) -> Sandbox:
            if tx.exists(KIND, namespace, sandbox.id):
                raise AlreadyExists(f"sandbox {quoted(sandbox.id)}: already exists")
            labels = stored_labels(sandbox.labels)
            created = replace(sandbox, labels=labels, created_at=tx.now_ns, updated_at=tx.now_ns)
            tx.put(KIND, namespace, sandbox.id, _to_record(created))
            return created

        return await self._store.write(work)

    async def update(self, namespace: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """Change what may change: all of it without `paths`, else what they name.

        Paths: `labels`, `labels.<key>`, `extensions`, `extensions.<key>`, `spec`, `runtime`.
        """
        check_namespace(namespace)

        def work(tx: Transaction) -> Sandbox:
            record = tx.get(KIND, namespace, sandbox.id)
            if record is None:
                raise _not_found(sandbox.id)
            masked = masked_sandbox(_from_record(sandbox.id, record), sandbox, paths)
            check_sandbox(masked)
            updated = replace(masked, updated_at=tx.now_ns)
            tx.put(KIND, namespace, sandbox.id, _to_record(updated))
            return updated

        return await self._store.write(work)

    async def delete(self, namespace: str, sandbox_id: str) -> None:
        """Forget a record; the sandbox itself is the caller's to shut down."""
        check_namespace(namespace)

        def work(tx: Transaction) -> None:
            if not tx.delete(KIND, namespace, sandbox_id):
                raise NotFound(f"failed to delete sandbox {quoted(sandbox_id)}: not found")

        await self._store.write(work)


def masked_sandbox(old: Sandbox, new: Sandbox, paths: Sequence[str]) -> Sandbox:
    """The record after an update of `paths`; of all that may change without."""
    if not paths and old.runtime.name != new.runtime.name:
        raise InvalidArgument("sandbox.Runtime.Name field is immutable: invalid argument")
    result = old
    for path in paths or MUTABLE:
        head, _, key = path.partition(".")
        match head, key:
            case "labels", _:
                result = replace(result, labels=masked_labels(result.labels, new.labels, [path]))
            case "extensions", _:
                extensions = masked_extensions(result.extensions, new.extensions, key)
                result = replace(result, extensions=extensions)
            case "spec", "":
                result = replace(result, spec=new.spec)
            case "runtime", "":
                result = replace(result, runtime=new.runtime)
            case _:
                raise InvalidArgument(
                    f"cannot update {quoted(path)} field on sandbox {quoted(new.id)}:"
                    " invalid argument"
                )
    return result


def check_sandbox(sandbox: Sandbox) -> None:
    """Refuse a record that may not be stored."""
    try:
        check_identifier(sandbox.id)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to validate sandbox: invalid sandbox ID: {error}") from error
    check_labels("sandbox.Labels", sandbox.labels)


def sandbox_field(sandbox: Sandbox, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of a record."""
    match path:
        case ["id", *_]:
            return sandbox.id, bool(sandbox.id)
        case ["runtime", "name", *_]:
            return sandbox.runtime.name, bool(sandbox.runtime.name)
        case ["sandboxer", *_]:
            return sandbox.sandboxer, bool(sandbox.sandboxer)
        case ["labels", *rest]:
            return map_field(sandbox.labels, rest)
        case _:
            return "", False


def _not_found(sandbox_id: str) -> NotFound:
    return NotFound(f"sandbox {quoted(sandbox_id)}: not found")


def _from_record(sandbox_id: str, record: Record) -> Sandbox:
    return Sandbox(
        id=sandbox_id,
        runtime=runtime_from(record["runtime"]),
        spec=opaque_from(record["spec"]),
        labels=record["labels"],
        extensions=extensions_from(record["extensions"]),
        sandboxer=record["sandboxer"],
        created_at=record["created_at"],
        updated_at=record["updated_at"],
    )


def _to_record(sandbox: Sandbox) -> Record:
    return {
        "runtime": runtime_to(sandbox.runtime),
        "spec": opaque_to(sandbox.spec),
        "labels": dict(sandbox.labels),
        "extensions": extensions_to(sandbox.extensions),
        "sandboxer": sandbox.sandboxer,
        "created_at": sandbox.created_at,
        "updated_at": sandbox.updated_at,
    }
