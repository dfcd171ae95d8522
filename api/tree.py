"""The tree of a host, on one screen, in start order, each child with the reason for its place."""

from collections.abc import Awaitable, Callable, Sequence

from ..runtime.asking import StartChild
from ..runtime.ground import Ground
from ..runtime.minder import Minder
from ..runtime.recovery import Recoverer
from ..runtime.shims import NAME as FORK_SERVER
from ..runtime.shims import Shims
from ..storage.activations import ActivationKeeper, Activations
from ..storage.collector import Collector, CollectorKeeper
from ..storage.remotesnapshots import RemoteKeeper
from ..storage.snapshots import SnapshotKeeper, Snapshots
from ..storage.store import Store
from ..storage.storekeeper import StoreKeeper
from ..supervision.dynamic import dynamic
from ..supervision.spec import Backoff, ChildSpec, Intensity, Strategy, Tree
from .snapshotters import AnySnapshots

ROOT = "holdfast"
WORKERS, INGESTS, FETCHES, TASKS, EXECS = "workers", "ingests", "fetches", "tasks", "execs"
OFTEN = Intensity(restarts=50, within_s=10.0)
BACKOFF = Backoff(first_s=0.05, cap_s=5.0)


def host_tree(
    *,
    store: Store,
    collector: Collector,
    snapshotters: Sequence[AnySnapshots],
    activations: Activations,
    ground: Ground,
    start_task: StartChild,
    start_exec: StartChild,
    restarts: ChildSpec,
    serving: ChildSpec | None,
    first: Callable[[], Awaitable[None]],
    tasks_per_shim: int,
) -> Tree:
    """All that a host runs. A fall restarts what was started after it, never what was before."""
    children: list[ChildSpec | Tree] = [
        # Everyone below reads the store. It opened before the tree; its fault is the host's end.
        ChildSpec("store", StoreKeeper, args=(store,), name="store"),
        # Processes that mount, unpack and remove: the snapshots and the collector call them.
        dynamic(WORKERS, OFTEN, name=WORKERS),
        # One actor per open ingest. One's fall is its own.
        dynamic(INGESTS, OFTEN, name=INGESTS),
        # One per blob that comes from a registry, into an ingest. Its pulls start it anew.
        dynamic(FETCHES, OFTEN, name=FETCHES),
        # A keeper per snapshotter, with an actor below it for each snapshot that is worked on.
        Tree(
            "snapshotters",
            Strategy.ONE_FOR_ONE,
            OFTEN,
            [_snapshotter(one) for one in snapshotters],
        ),
        # Sorts what mounts an earlier life left, by way of workers.
        ChildSpec(
            "mounts", ActivationKeeper, args=(activations,), name="mounts", start_within_s=60.0
        ),
        # Removes what nothing refers to, by way of snapshots, mounts and workers.
        ChildSpec("collector", CollectorKeeper, args=(collector,), name="collector"),
        # Forks shims for the tasks. Tasks keep their shims when it falls, so it falls alone.
        Tree(
            "runtime",
            Strategy.ONE_FOR_ONE,
            OFTEN,
            [
                ChildSpec(
                    FORK_SERVER, Shims, args=(ground.state, tasks_per_shim), name=FORK_SERVER
                ),
                # Sees shims that are stopped, and has them replaced.
                ChildSpec("minder", Minder, args=(ground,), name="minder"),
                Tree(
                    "containers",
                    Strategy.REST_FOR_ONE,
                    OFTEN,
                    [
                        # One per container task and per exec, added as clients ask.
                        dynamic(TASKS, OFTEN, name=TASKS, backoff=BACKOFF),
                        dynamic(EXECS, OFTEN, name=EXECS, backoff=BACKOFF),
                        # Brings back recorded tasks, beside everything else: those of an earlier
                        # life, and all of them when a supervisor above had to start anew.
                        ChildSpec(
                            "recovery", Recoverer, args=(ground, start_task, start_exec, first)
                        ),
                        # Keeps tasks as the restart labels of their containers tell, by the
                        # actors above, also those that recovery is about to bring back.
                        restarts,
                    ],
                ),
            ],
            name="runtime",
        ),
    ]
    if serving is not None:
        # Last to start, first to stop: no request meets a half-built house.
        children.append(serving)
    return Tree(
        ROOT, Strategy.REST_FOR_ONE, Intensity(restarts=5, within_s=10.0), children, name=ROOT
    )


def _snapshotter(snapshots: AnySnapshots) -> ChildSpec:
    keeper = SnapshotKeeper if isinstance(snapshots, Snapshots) else RemoteKeeper
    return ChildSpec(snapshots.name, keeper, args=(snapshots,), start_within_s=60.0)
