"""The parts of a host as containerd's plugins: what clients ask for before they use it.

The names are containerd's. Each part stands for something that is really there, or says why it is
not; what a client can call follows from the services that are served.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ..actors.errors import Refusal
from ..storage.native import Native
from ..storage.overlay import Overlay
from .config import MOUNTS_NAME
from .host import Host
from .proxies.plugins import of_type

CONTENT = "io.containerd.content.v1"
DIFFER = "io.containerd.differ.v1"
EVENT = "io.containerd.event.v1"
GC = "io.containerd.gc.v1"
GRPC = "io.containerd.grpc.v1"
INTERNAL = "io.containerd.internal.v1"
LEASE = "io.containerd.lease.v1"
METADATA = "io.containerd.metadata.v1"
MOUNT_MANAGER = "io.containerd.mount-manager.v1"
RUNTIME = "io.containerd.runtime.v2"
SANDBOX_CONTROLLER = "io.containerd.sandbox.controller.v1"
SANDBOX_STORE = "io.containerd.sandbox.store.v1"
SERVICE = "io.containerd.service.v1"
STREAMING = "io.containerd.streaming.v1"
TRANSFER = "io.containerd.transfer.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"

# What a part of each type stands on.
REQUIRES: Mapping[str, Sequence[str]] = {
    DIFFER: (METADATA,),
    GC: (METADATA,),
    GRPC: (SERVICE,),
    LEASE: (METADATA, GC),
    METADATA: (CONTENT, SNAPSHOTTER, EVENT),
    MOUNT_MANAGER: (METADATA,),
    RUNTIME: (METADATA, EVENT),
    SANDBOX_CONTROLLER: (RUNTIME, EVENT),
    SANDBOX_STORE: (METADATA,),
    SERVICE: (METADATA,),
}
# Those bound to what the machine runs.
NATIVE: Collection[str] = (DIFFER, RUNTIME, SNAPSHOTTER)

PROXIED: Mapping[str, str] = {"snapshot": SNAPSHOTTER, "content": CONTENT, "diff": DIFFER}
"""The type of part that a proxy plugin is, by its type in the configuration."""

SNAPSHOTTERS = (Native.name, Overlay.name)
"""What we have drivers for, whether or not they work here."""

# A served package -> containerd's names for it among its gRPC parts, where they differ.
GRPC_NAMES: Mapping[str, Sequence[str]] = {
    "grpc.health.v1": ("healthcheck",),
    "containerd.services.sandbox.v1": ("sandbox-controllers", "sandboxes"),
}
# What clients look for behind the gRPC parts.
SERVICES = (
    "containers", "content", "diff", "images", "introspection", "leases", "namespaces",
    "snapshots", "tasks",
)  # fmt: skip
CONTAINERDS = "containerd.services."
# The gRPC parts of a daemon; a host without a socket serves none.
SERVED = (
    "containers", "content", "diff", "events", "healthcheck", "images", "introspection", "leases",
    "mounts", "namespaces", "sandbox-controllers", "sandboxes", "snapshots", "streaming", "tasks",
    "transfer", "version",
)  # fmt: skip
# Parts that every host has, and one of each.
SINGLE: Mapping[str, str] = {
    CONTENT: "content",
    METADATA: "bolt",
    DIFFER: "walking",
    EVENT: "exchange",
    GC: "scheduler",
    INTERNAL: "opt",
    LEASE: "manager",
    MOUNT_MANAGER: "bolt",
    RUNTIME: "task",
    SANDBOX_CONTROLLER: "shim",
    SANDBOX_STORE: "local",
    STREAMING: "manager",
    TRANSFER: "local",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A part as containerd's clients look for it. `fault` is why it is not there."""

    type: str
    id: str
    exports: Mapping[str, str] = field(default_factory=dict[str, str])
    capabilities: Sequence[str] = ()
    fault: Refusal | None = None

    @property
    def requires(self) -> Sequence[str]:
        """The types of the parts below it."""
        return REQUIRES.get(self.type, ())

    @property
    def native(self) -> bool:
        """Whether it is bound to this machine's platform."""
        return self.type in NATIVE


def plugins_of(host: Host, packages: Collection[str]) -> Sequence[Plugin]:
    """The parts of a host that serves these packages, in the order of type and id."""
    config = host.config
    exports: Mapping[str, Mapping[str, str]] = {
        CONTENT: {"root": str(config.root / "content")},
        INTERNAL: {"path": str(config.opt)},
        METADATA: {"path": str(host.store.path)},
        MOUNT_MANAGER: {"root": str(config.state / MOUNTS_NAME)},
        RUNTIME: {"state": str(config.state)},
    }
    found = [Plugin(type=type, id=id, exports=exports.get(type, {})) for type, id in SINGLE.items()]
    found += _snapshotters(host)
    found += [
        Plugin(type=PROXIED[proxy.type], id=name, exports={"address": proxy.address})
        for name, proxy in config.proxy_plugins.items()
    ]
    for package in packages:
        name = package.removeprefix(CONTAINERDS).partition(".")[0]
        if package in GRPC_NAMES or package.startswith(CONTAINERDS):
            ids = GRPC_NAMES.get(package, (name,))
            found += [Plugin(type=GRPC, id=id) for id in ids]
        if package.startswith(CONTAINERDS) and name in SERVICES:
            found.append(Plugin(type=SERVICE, id=f"{name}-service"))
    return sorted(found, key=lambda plugin: (plugin.type, plugin.id))


def _snapshotters(host: Host) -> Sequence[Plugin]:
    proxied = of_type(host.config, "snapshot").keys()
    own = {*SNAPSHOTTERS, *host.snapshotters} - proxied
    return [
        Plugin(
            type=SNAPSHOTTER,
            id=name,
            exports={"root": str(host.config.root / name)},
            fault=host.absent.get(name),
        )
        for name in sorted(own)
    ]


def is_part(name: str) -> bool:
    """Whether a daemon has the part of this name, `<type>.<id>`, or a driver for it."""
    type, _, id = name.rpartition(".")
    if type == SNAPSHOTTER:
        return id in SNAPSHOTTERS
    if type == SERVICE:
        return id.removesuffix("-service") in SERVICES
    if type == GRPC:
        return id in SERVED
    return SINGLE.get(type) == id
