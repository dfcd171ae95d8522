"""containerd's configuration from one version of its format to the next, as containerd does it.

    1  short plugin names                 2  full names: io.containerd.grpc.v1.cri
    3  the CRI's settings in three plugins 4  sockets are plugins: io.containerd.server.v1.grpc

A step takes a document of its version and leaves one of the next. What is already said in the new
place is never overwritten.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Final, cast

LATEST: Final = 4

CRI: Final = "io.containerd.grpc.v1.cri"
CRI_IMAGES: Final = "io.containerd.cri.v1.images"
CRI_RUNTIME: Final = "io.containerd.cri.v1.runtime"
TASK: Final = "io.containerd.runtime.v2.task"
SHIMS: Final = "io.containerd.shim.v1.manager"
GRPC: Final = "io.containerd.server.v1.grpc"
GRPC_TCP: Final = "io.containerd.server.v1.grpc-tcp"
TTRPC: Final = "io.containerd.server.v1.ttrpc"
DEBUG: Final = "io.containerd.server.v1.debug"
METRICS: Final = "io.containerd.server.v1.metrics"
PROMETHEUS: Final = "io.containerd.metrics.v1.grpc-prometheus"

SHORT_NAMES: Mapping[str, str] = {
    "cri": CRI,
    "cgroups": "io.containerd.monitor.v1.cgroups",
    "linux": "io.containerd.runtime.v1.linux",
    "scheduler": "io.containerd.gc.v1.scheduler",
    "bolt": "io.containerd.metadata.v1.bolt",
    "task": TASK,
    "opt": "io.containerd.internal.v1.opt",
    "restart": "io.containerd.internal.v1.restart",
    "tracing": "io.containerd.internal.v1.tracing",
    "otlp": "io.containerd.tracing.processor.v1.otlp",
    **{
        name: f"io.containerd.snapshotter.v1.{name}"
        for name in ("aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs")
    },
}
OF_IMAGES: Final = (
    "registry",
    "image_decryption",
    "max_concurrent_downloads",
    "image_pull_progress_timeout",
    "image_pull_with_sync_fs",
    "stats_collect_period",
)
OF_IMAGES_BELOW_CONTAINERD: Final = (
    "snapshotter",
    "disable_snapshot_annotations",
    "discard_unpacked_layers",
)
OF_THE_SERVER: Final = (
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
)

Table = dict[str, Any]


def migrated(document: Mapping[str, Any]) -> Table:
    """The document in the latest version; one without a version is of the first."""
    after = deepcopy(dict(document))
    for version in range(max(int(after.get("version", 0)), 1), LATEST):
        STEPS[version](after)
    after["version"] = LATEST
    return after


def full_name(plugin: str) -> str:
    """A plugin's name with its type, whatever the first version called it."""
    if "." in plugin:
        return plugin
    if plugin.endswith("-service"):
        return f"io.containerd.service.v1.{plugin}"
    return SHORT_NAMES.get(plugin, f"io.containerd.grpc.v1.{plugin}")


def name_plugins(document: Table) -> None:
    """1 to 2: plugins are named in full."""
    if "plugins" in document:
        document["plugins"] = {full_name(name): value for name, value in _plugins(document).items()}
    for key in ("disabled_plugins", "required_plugins"):
        if key in document:
            document[key] = [full_name(name) for name in document[key]]


def split_plugins(document: Table) -> None:
    """2 to 3: the CRI's settings for images and for running have plugins of their own."""
    plugins = _plugins(document)
    if isinstance(task := plugins.get(TASK), dict):
        core = task.pop("sched_core", False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if core is True:
            plugins.setdefault(SHIMS, {}).setdefault("env", ["SCHED_CORE=1"])
    cri = plugins.get(CRI)
    if not isinstance(cri, dict):
        return
    settings = cast("Table", cri)
    _to_images(settings, plugins.setdefault(CRI_IMAGES, {}))
    _to_runtime(settings, plugins.setdefault(CRI_RUNTIME, {}))
    kept = {key: settings[key] for key in OF_THE_SERVER if key in settings}
    if kept:
        plugins[CRI] = kept
    else:
        del plugins[CRI]


def _to_images(settings: Table, images: Table) -> None:
    below = _table(settings, "containerd")
    _copy(below, images, OF_IMAGES_BELOW_CONTAINERD)
    _copy(settings, images, OF_IMAGES)
    if "sandbox_image" in settings:
        images.setdefault("pinned_images", {}).setdefault("sandbox", settings["sandbox_image"])
    for name, runtime in _table(below, "runtimes").items():
        if isinstance(runtime, dict) and runtime.get("snapshotter"):  # pyright: ignore[reportUnknownMemberType]
            platform = images.setdefault("runtime_platforms", {}).setdefault(name, {})
            platform.setdefault("snapshotter", runtime["snapshotter"])


def _to_runtime(settings: Table, runtime: Table) -> None:
    elsewhere = {*OF_IMAGES, *OF_THE_SERVER, "sandbox_image", "cni", "containerd"}
    _copy(settings, runtime, [key for key in settings if key not in elsewhere])
    if "cni" in settings:
        cni = runtime.setdefault("cni", {})
        given = _table(settings, "cni")
        if "bin_dir" in given:
            cni.setdefault("bin_dirs", [given["bin_dir"]])
        _copy(given, cni, [key for key in given if key != "bin_dir"])
    if "containerd" not in settings:
        return
    below, given = runtime.setdefault("containerd", {}), _table(settings, "containerd")
    _copy(given, below, [key for key in given if key not in OF_IMAGES_BELOW_CONTAINERD])
    for one in _table(below, "runtimes").values():
        if isinstance(one, dict) and "sandbox_mode" in one:
            renamed = cast("Table", one)
            renamed.setdefault("sandboxer", renamed.pop("sandbox_mode"))


def move_servers(document: Table) -> None:
    """3 to 4: what listens is a plugin."""
    plugins = _plugins(document)
    grpc, ttrpc = document.pop("grpc", {}), document.pop("ttrpc", {})
    metrics, debug = document.pop("metrics", {}), document.get("debug", {})
    sizes = _said(grpc, "max_recv_message_size", "max_send_message_size")
    if debug.get("address"):
        _add(plugins, DEBUG, {key: debug.get(key, 0) for key in ("address", "uid", "gid")})
    for key in ("address", "uid", "gid"):
        debug.pop(key, None)
    address, owner = grpc.get("address", ""), _said(grpc, "uid", "gid")
    if address:
        owner = {"address": address, "uid": grpc.get("uid", 0), "gid": grpc.get("gid", 0)}
    if owner or sizes:
        _add(plugins, GRPC, {**owner, **sizes})
    if grpc.get("tcp_address"):
        tcp = _said(grpc, *(f"tcp_{key}" for key in ("address", "tls_ca", "tls_cert", "tls_key")))
        tcp |= _said(grpc, "tcp_tls_common_name")
        _add(plugins, GRPC_TCP, {k.removeprefix("tcp_"): v for k, v in tcp.items()} | sizes)
    shims = _said(ttrpc, "address", "uid", "gid")
    if "address" not in shims and address:  # it lies beside the other, and belongs to the same
        shims = {"address": f"{address}.ttrpc", **_said(grpc, "uid", "gid"), **shims}
    if shims:
        _add(plugins, TTRPC, {"address": "", "uid": 0, "gid": 0, **shims})
    if metrics.get("grpc_histogram"):
        _add(plugins, PROMETHEUS, {"grpc_histogram": True})
    if metrics.get("address"):
        _add(plugins, METRICS, {"address": metrics["address"]})
    if not plugins:
        del document["plugins"]


STEPS: Mapping[int, Callable[[Table], None]] = {
    1: name_plugins,
    2: split_plugins,
    3: move_servers,
}


def _plugins(document: Table) -> Table:
    return cast("Table", document.setdefault("plugins", {}))


def _table(table: Table, key: str) -> Table:
    """The table below a key; an empty one where there is none."""
    value = table.get(key)
    return cast("Table", value) if isinstance(value, dict) else {}


def _said(table: Table, *keys: str) -> Table:
    """What a table says under these keys; nothing, zero and the empty string say nothing."""
    return {key: table[key] for key in keys if table.get(key)}


def _copy(source: Table, target: Table, keys: Any) -> None:
    for key in keys:
        if key in source:
            target.setdefault(key, deepcopy(source[key]))


def _add(plugins: Table, name: str, settings: Table) -> None:
    plugins.setdefault(name, settings)
