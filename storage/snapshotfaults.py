"""The faults of one snapshotter: directories that no record names, snapshots that lost theirs."""

from collections.abc import Sequence

from .faults import Fault
from .snapshotrecord import Place
from .snapshots import Snapshots

DIRECTORY, SNAPSHOT = "snapshot directory", "snapshot"


class SnapshotFaults:
    """A `FaultKeeper` over the snapshots of one snapshotter."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def faults(self) -> Sequence[Fault]:
        """What the last recovery left undecided and what it found lost."""
        graph = self._snapshots.graph
        return [
            *(
                Fault(
                    kind=DIRECTORY,
                    namespace="",
                    key=str(graph.directory(snapshot_id)),
                    reason="no record names it; a damaged one may have",
                    since_ns=graph.recovered_at_ns,
                    held=True,
                )
                for snapshot_id in sorted(graph.orphans)
            ),
            *(
                Fault(
                    kind=SNAPSHOT,
                    namespace=place.namespace,
                    key=f"{graph.name}/{place.key}",
                    reason=f"its directory {graph.directory(snapshot.id)} is lost",
                    since_ns=graph.recovered_at_ns,
                )
                for place, snapshot in (graph.scan(None) if graph.missing else ())
                if snapshot.id in graph.missing
            ),
        ]

    async def give_up(self, fault: Fault) -> None:
        """Let go of the directory, or remove the snapshot; refused while it has children."""
        graph = self._snapshots.graph
        if fault.kind == SNAPSHOT:
            place = Place(fault.namespace, fault.key.removeprefix(f"{graph.name}/"))
            await self._snapshots.remove(*place)
            return
        for snapshot_id in [
            found for found in graph.orphans if str(graph.directory(found)) == fault.key
        ]:
            graph.orphans.discard(snapshot_id)
            graph.leftovers.add([snapshot_id])
