"""The snapshotters of a host: our own where they work, and those that other processes serve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..actors.errors import Refusal
from ..storage.native import Native
from ..storage.overlay import Overlay
from ..storage.remotesnapshots import RemoteSnapshots
from ..storage.snapshots import Driver, Snapshots
from ..storage.store import Store
from ..storage.workers import Workers
from .config import Config

AnySnapshots = Snapshots | RemoteSnapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshotters:
    """All by their names, our own apart, and why one that we have a driver for does not work."""

    by_name: Mapping[str, AnySnapshots]
    own: Sequence[Snapshots]
    absent: Mapping[str, Refusal]


async def open_snapshotters(
    config: Config, store: Store, workers: Workers, host: str
) -> Snapshotters:
    """Those that work here and those that are configured; `host` is the host's uuid."""
    drivers: list[Driver] = [Native(workers)]
    absent: dict[str, Refusal] = {}
    match await Overlay.probe(config.root):
        case Overlay() as overlay:
            drivers.insert(0, overlay)
        case refusal:
            absent[Overlay.name] = refusal
    own = [Snapshots(store, driver, config.root / driver.name, workers) for driver in drivers]
    by_name: dict[str, AnySnapshots] = {one.name: one for one in own}
    if config.proxy_plugins:
        # Few daemons have one, and all of them should be up at once.
        from .proxies.plugins import snapshotters_of

        by_name.update(snapshotters_of(config, store, host, tuple(by_name)))
    return Snapshotters(by_name=by_name, own=own, absent=absent)
