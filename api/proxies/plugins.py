"""The proxy plugins of a configuration, each as the part that it stands for."""

from collections.abc import Mapping, Sequence

from ...actors.errors import InvalidArgument
from ...storage.remotesnapshots import RemoteSnapshots
from ...storage.store import Store
from ..config import Config, ProxyPlugin
from ..grpc.call import LOCAL
from .content import ProxiedContent
from .diff import ProxiedDiffer
from .proxy import Proxy
from .snapshots import ProxiedSnapshots


def snapshotters_of(
    config: Config, store: Store, host_uuid: str, taken: Sequence[str]
) -> Mapping[str, RemoteSnapshots]:
    """The snapshotters, by their names, which must not be taken."""
    found: dict[str, RemoteSnapshots] = {}
    for name, plugin in of_type(config, "snapshot").items():
        if name in taken:
            raise InvalidArgument(f"proxy_plugins.{name}: there is a snapshotter of this name")
        proxy = Proxy(name, plugin.address, plugin.within_s)
        remote = ProxiedSnapshots(proxy, plugin.snapshotter or name)
        found[name] = RemoteSnapshots(store, name, remote, host_uuid)
    return found


def sources_of(config: Config) -> Sequence[ProxiedContent]:
    """The sources of blobs, in the order of the configuration."""
    # One silence is enough: whatever it has, we ask for it besides, and nobody may wait twice.
    return [
        ProxiedContent(
            Proxy(name, plugin.address, plugin.within_s, failures_max=1, metadata={LOCAL: "true"})
        )
        for name, plugin in of_type(config, "content").items()
    ]


def differs_of(config: Config) -> Sequence[ProxiedDiffer]:
    """The differs, in the order of the configuration."""
    return [
        ProxiedDiffer(Proxy(name, plugin.address, plugin.within_s), plugin.media_types)
        for name, plugin in of_type(config, "diff").items()
    ]


def of_type(config: Config, kind: str) -> Mapping[str, ProxyPlugin]:
    """The plugins of one type, by name."""
    return {name: one for name, one in config.proxy_plugins.items() if one.type == kind}
