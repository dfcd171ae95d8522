"""The faults of the runtime: what recovery left alone.

    task, exec     a record that could not be brought back; given up, it is forgotten
    bundle         a process lives in it, and no record tells whose; given up, both end

A `FaultKeeper`: recovery adds, `holdfast faults` lists and removes.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import trio

from ..actors.errors import FailedPrecondition, NotFound, Refusal
from ..storage.faults import Fault
from ..storage.store import Store
from ..storage.transaction import Transaction
from .bundle import bundle_path, remove_bundle
from .foreign import Foreign, left_shims
from .records import EXEC, TASK
from .shimclient import RUNTIME_TIMEOUT_S
from .shimverbs import ShimSource, SpawnShim, opened

BUNDLE = "bundle"
SIGKILL = 9
ENDED_WITHIN_S = 10.0


class TaskFaults:
    """What one host's recoveries have found, by what it is about."""

    def __init__(
        self, store: Store, state: Path, spawn: SpawnShim, foreign: Foreign | None = None
    ) -> None:
        self._store = store
        self._state = state
        self._spawn = spawn
        self._foreign = foreign
        self._faults: dict[tuple[str, str, str], Fault] = {}

    def clear(self) -> None:
        """A recovery begins, which looks at all anew."""
        self._faults.clear()

    def add(self, kind: str, namespace: str, key: str, reason: str) -> Fault:
        """Something was left alone, for a reason."""
        fault = self._faults[kind, namespace, key] = Fault(
            kind=kind, namespace=namespace, key=key, reason=reason, since_ns=time.time_ns()
        )
        return fault

    def faults(self) -> Sequence[Fault]:
        """All that was left alone."""
        return list(self._faults.values())

    async def give_up(self, fault: Fault) -> None:
        """Forget the record, or end what lives in the bundle and remove it."""
        if fault.kind == BUNDLE:
            bundle = bundle_path(self._state, fault.namespace, fault.key)
            source = await trio.to_thread.run_sync(
                left_shims, self._foreign, self._spawn, bundle, fault.namespace, fault.key
            )
            await _end_bundle(source, bundle)
        else:
            await self._store.write(lambda tx: _forget(tx, fault))
        self._faults.pop((fault.kind, fault.namespace, fault.key), None)


def _forget(tx: Transaction, fault: Fault) -> None:
    tx.delete(TASK if fault.kind == TASK else EXEC, fault.namespace, fault.key)


async def _end_bundle(source: ShimSource, bundle: Path) -> None:
    try:
        async with opened(source, bundle) as client:
            try:
                await client.kill(SIGKILL, all=True, timeout_s=ENDED_WITHIN_S)
            except NotFound:
                pass  # it has ended since
            with trio.move_on_after(ENDED_WITHIN_S):
                while (await client.process_state()).status != "stopped":  # noqa: ASYNC110
                    await trio.sleep(0.01)
            await client.delete(timeout_s=RUNTIME_TIMEOUT_S)
            await client.shutdown(timeout_s=ENDED_WITHIN_S)
    except* Refusal as refused:
        reasons = ", ".join(str(error) for error in refused.exceptions)
        raise FailedPrecondition(f"bundle {bundle.name}: {reasons}") from refused
    await trio.to_thread.run_sync(remove_bundle, bundle)
