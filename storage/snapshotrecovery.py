"""Making the disk agree with the records, when a snapshotter starts.

A directory without a record is left over by a crash, unless the store has lost records: then
it may be all that is left of a snapshot, and is kept for repair. A record without its directory
is the work of a power loss or of a stranger. An active snapshot is made anew, for what was in
it was not promised to last; a committed one is lost, and refuses to be used.
"""

import time
from pathlib import Path

import structlog
import trio

from ..actors.errors import DataLoss, Refusal
from .driver import Driver
from .snapshotgraph import Graph
from .snapshotrecord import Place, Snapshot
from .snapshotter import Kind

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def recover(graph: Graph) -> None:
    """Sweep what has no record, make anew what may be, note what is lost."""
    whole, broken = await trio.to_thread.run_sync(_look, graph.home, graph.driver)
    graph.reserve_ids(whole | broken)
    orphans = [found for found in sorted(whole | broken) if not graph.has_record(found)]
    graph.orphans, graph.recovered_at_ns = set(), time.time_ns()
    if orphans and graph.store.damaged:
        graph.orphans.update(orphans)
        log.warning(
            "snapshots.orphans_kept",
            snapshotter=graph.name,
            count=len(orphans),
            reason="the store has damaged records",
        )
    elif orphans:
        log.info("snapshots.swept", snapshotter=graph.name, count=len(orphans))
        graph.leftovers.add(orphans)
    absent = [(place, one) for place, one in graph.scan(None) if one.id not in whole]
    graph.missing = {one.id for _, one in absent}
    for place, snapshot in absent:
        try:
            await _remake(graph, place, snapshot)
        except (Refusal, OSError) as error:
            log.error(
                "snapshot.lost",
                snapshotter=graph.name,
                namespace=place.namespace,
                key=place.key,
                reason=str(error),
            )


async def _remake(graph: Graph, place: Place, snapshot: Snapshot) -> None:
    directory = graph.directory(snapshot.id)
    if snapshot.info.kind is Kind.COMMITTED:
        raise DataLoss(f"directory {directory} is lost")
    parents = graph.chain(place.namespace, snapshot.info.parent)
    await graph.workers.remove_tree(directory)
    await graph.driver.make(directory, snapshot.info.kind, parents)
    graph.missing.discard(snapshot.id)


def _look(home: Path, driver: Driver) -> tuple[set[int], set[int]]:
    """The ids of the directories that are whole, and of those that lack their content."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    whole: set[int] = set()
    broken: set[int] = set()
    for path in home.iterdir():
        if path.name.isdecimal():
            (whole if driver.content(path).is_dir() else broken).add(int(path.name))
    return whole, broken
