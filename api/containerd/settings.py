"""What Holdfast heeds of containerd's configuration, and what it says of the rest.

`HEEDED` is the table of settings that have an equivalent. Whatever else a file sets, and sets to
something that is not containerd's own default, is remarked upon once and has no effect: a
configuration made for containerd starts Holdfast.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from ...actors.errors import InvalidArgument
from ..config import PROXY_TYPES, Config, made
from .document import read
from .migration import (
    CRI,
    CRI_IMAGES,
    CRI_RUNTIME,
    DEBUG,
    GRPC,
    GRPC_TCP,
    METRICS,
    PROMETHEUS,
    TASK,
    TTRPC,
    Table,
)

GC: Final = "io.containerd.gc.v1.scheduler"
TRANSFER: Final = "io.containerd.transfer.v1.local"
OPT: Final = "io.containerd.internal.v1.opt"
VERIFIER: Final = "io.containerd.image-verifier.v1.bindir"
RUNC: Final = "io.containerd.runc.v2"
SNAPSHOTTERS: Final = ("overlayfs", "native")
LEVELS: Mapping[str, str] = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "fatal": "error",
    "panic": "error",
}
UNITS_S: Mapping[str, float] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0
}  # fmt: skip
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")

Keys = tuple[str, ...]


def seconds(value: Any) -> float:
    """A duration as Go writes it, `1m30s`; a bare zero needs no unit."""
    text = str(value)
    parts = DURATION.findall(text)
    if text != "0" and "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(f"{value!r} is no duration")
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def level(value: Any) -> str:
    """A log level by its name here."""
    try:
        return LEVELS[str(value).lower()]
    except KeyError:
        raise InvalidArgument(f'not a valid logrus Level: "{value}"') from None


def place(value: Any) -> Path:
    """A directory, from where the daemon is started."""
    return Path(value).absolute()


def socket_path(value: Any) -> Any:
    """A socket's path, with or without its scheme."""
    return value.removeprefix("unix://") if isinstance(value, str) else value


class Heeded(NamedTuple):
    """A setting of containerd's, which setting of Holdfast's it is, and how it is read."""

    path: Keys
    setting: str
    understand: Callable[[Any], Any] = lambda value: value


HEEDED: Sequence[Heeded] = (
    Heeded(("root",), "root", place),
    Heeded(("state",), "state", place),
    Heeded(("oom_score",), "oom_score"),
    Heeded(("debug", "level"), "log_level", level),
    Heeded(("plugins", GRPC, "address"), "address", socket_path),
    Heeded(("plugins", GRPC, "uid"), "uid"),
    Heeded(("plugins", GRPC, "gid"), "gid"),
    Heeded(("plugins", TTRPC, "address"), "ttrpc_address"),
    Heeded(("plugins", DEBUG, "address"), "debug_address"),
    Heeded(("plugins", GC, "pause_threshold"), "gc_pause_threshold"),
    Heeded(("plugins", GC, "deletion_threshold"), "gc_deletion_threshold"),
    Heeded(("plugins", GC, "mutation_threshold"), "gc_mutation_threshold"),
    Heeded(("plugins", GC, "schedule_delay"), "gc_schedule_delay_s", seconds),
    Heeded(("plugins", GC, "startup_delay"), "gc_startup_delay_s", seconds),
    Heeded(("plugins", OPT, "path"), "opt", place),
    Heeded(("plugins", CRI_IMAGES, "registry", "config_path"), "registry_hosts"),
    Heeded(("plugins", TRANSFER, "config_path"), "registry_hosts"),
    Heeded(("plugins", TRANSFER, "max_concurrent_downloads"), "pull_blobs_at_once"),
    Heeded(("plugins", VERIFIER, "bin_dir"), "image_verifier_bin_dir"),
    Heeded(("plugins", VERIFIER, "max_verifiers"), "image_verifiers_max"),
    Heeded(("plugins", VERIFIER, "per_verifier_timeout"), "image_verifier_within_s", seconds),
    Heeded(("timeouts", "io.containerd.timeout.shim.load"), "attach_within_s", seconds),
)

# Read by functions of their own.
SNAPSHOTTER: Keys = ("plugins", CRI_IMAGES, "snapshotter")
RUNTIMES: Keys = ("plugins", CRI_RUNTIME, "containerd")
SILENT: Sequence[Keys] = (
    *((key,) for key in ("version", "imports", "proxy_plugins")),
    *((key,) for key in ("disabled_plugins", "required_plugins")),
    SNAPSHOTTER,
    RUNTIMES,
)

# containerd's own values, as its `config default` prints them; to set them is to say nothing.
DEFAULTS: Mapping[Keys, Sequence[Any]] = {
    ("plugins", GRPC, "max_recv_message_size"): [16 << 20],
    ("plugins", GRPC, "max_send_message_size"): [16 << 20],
    ("plugins", CRI, "disable_tcp_service"): [True],
    ("plugins", CRI, "stream_server_address"): ["127.0.0.1"],
    ("plugins", CRI, "stream_server_port"): ["0"],
    ("plugins", CRI, "stream_idle_timeout"): ["4h0m0s"],
    ("plugins", CRI_IMAGES, "disable_snapshot_annotations"): [True],
    ("plugins", CRI_IMAGES, "max_concurrent_downloads"): [3],
    ("plugins", CRI_IMAGES, "image_pull_progress_timeout"): ["5m0s"],
    ("plugins", CRI_IMAGES, "stats_collect_period"): [10],
    ("plugins", CRI_IMAGES, "image_decryption", "key_model"): ["node"],
    ("plugins", CRI_IMAGES, "pinned_images", "sandbox"): [
        f"registry.k8s.io/pause:{version}" for version in ("3.6", "3.8", "3.9", "3.10", "3.10.1")
    ],
    ("plugins", CRI_RUNTIME, "disable_hugetlb_controller"): [True],
    ("plugins", CRI_RUNTIME, "tolerate_missing_hugetlb_controller"): [True],
    ("plugins", CRI_RUNTIME, "max_container_log_line_size"): [16384],
    ("plugins", CRI_RUNTIME, "selinux_category_range"): [1024],
    ("plugins", CRI_RUNTIME, "cni", "bin_dirs"): [["/opt/cni/bin"]],
    ("plugins", CRI_RUNTIME, "cni", "conf_dir"): ["/etc/cni/net.d"],
    ("plugins", CRI_RUNTIME, "cni", "max_conf_num"): [1],
    ("plugins", TASK, "platforms"): [["linux/amd64"], ["linux/arm64"]],
    ("plugins", "io.containerd.internal.v1.restart", "interval"): ["10s"],
    ("plugins", "io.containerd.metadata.v1.bolt", "content_sharing_policy"): ["shared"],
    ("plugins", "io.containerd.runtime.v1.linux", "runtime"): ["runc"],
    ("plugins", "io.containerd.runtime.v1.linux", "shim"): ["containerd-shim"],
    ("plugins", "io.containerd.service.v1.diff-service", "default"): [["walking"]],
    ("timeouts", "io.containerd.timeout.bolt.open"): ["0s"],
    ("timeouts", "io.containerd.timeout.metrics.shimstats"): ["2s"],
    ("timeouts", "io.containerd.timeout.shim.cleanup"): ["5s"],
    ("timeouts", "io.containerd.timeout.shim.shutdown"): ["3s"],
    ("timeouts", "io.containerd.timeout.task.state"): ["2s"],
}
OCICRYPT: Final = "io.containerd.ocicrypt.decoder.v1."
# Plugins that listen or measure, and what is missed without them.
WITHOUT: Mapping[str, str] = {
    GRPC_TCP: "no TCP socket is served",
    METRICS: "no metrics are served",
    PROMETHEUS: "no metrics are served",
}


def default_document() -> Table:
    """What `config default` prints: the settings that are heeded, in the latest version."""
    ours = Config()
    document: Table = {
        "version": 4,
        "root": "/var/lib/containerd",
        "state": "/run/containerd",
        "oom_score": 0,
        "disabled_plugins": [],
        "required_plugins": [],
        "imports": [],
        "debug": {"level": "info"},
        "plugins": {
            GC: {
                "pause_threshold": ours.gc_pause_threshold,
                "deletion_threshold": ours.gc_deletion_threshold,
                "mutation_threshold": ours.gc_mutation_threshold,
                "schedule_delay": f"{round(ours.gc_schedule_delay_s * 1000)}ms",
                "startup_delay": f"{round(ours.gc_startup_delay_s * 1000)}ms",
            },
            CRI_IMAGES: {"snapshotter": ours.snapshotter, "registry": {"config_path": ""}},
            CRI_RUNTIME: {
                "containerd": {
                    "default_runtime_name": "runc",
                    "runtimes": {"runc": {"runtime_type": RUNC, "options": {"BinaryName": ""}}},
                }
            },
            OPT: {"path": "/opt/containerd"},
            TRANSFER: {
                "config_path": "",
                "max_concurrent_downloads": ours.pull_blobs_at_once,
            },
            VERIFIER: {
                "bin_dir": "/opt/containerd/image-verifier/bin",
                "max_verifiers": ours.image_verifiers_max,
                "per_verifier_timeout": f"{ours.image_verifier_within_s:g}s",
            },
            GRPC: {"address": "/run/containerd/containerd.sock", "uid": 0, "gid": 0},
            TTRPC: {"address": ""},
            DEBUG: {"address": ""},
        },
        "proxy_plugins": {},
        "timeouts": {"io.containerd.timeout.shim.load": f"{ours.attach_within_s:g}s"},
    }
    return document


def settings(document: Table, about: str) -> tuple[Config, Sequence[str]]:
    """The configuration that a document of the latest version means, and the remarks on what of
    it has no effect. InvalidArgument, by containerd's name, for a value that cannot be."""
    chosen: dict[str, object] = {}
    for path, setting, understand in HEEDED:
        value = at(document, path)
        if value is None or value == "":
            continue
        try:
            chosen[setting] = understand(value)
            made({setting: chosen[setting]}, "containerd")
        except (InvalidArgument, TypeError, AttributeError, ValueError) as error:
            raise InvalidArgument(f"{about}: {dotted(path)}: {value!r}: {error}") from error
    remarks = [*_leftover(document), *_of_plugins(document)]
    proxies, others = _proxies(document.get("proxy_plugins", {}))
    chosen["proxy_plugins"] = proxies
    remarks += others
    snapshotter = at(document, SNAPSHOTTER) or Config().snapshotter
    if snapshotter in SNAPSHOTTERS or at(proxies, (snapshotter, "type")) == "snapshot":
        chosen["snapshotter"] = snapshotter
    else:
        remarks.append(f"{dotted(SNAPSHOTTER)}: there is no snapshotter {snapshotter!r}")
    program, said = _runtime(at(document, RUNTIMES) or {})
    chosen["oci_runtime"] = program
    return made(chosen, about), [*remarks, *said]


def at(document: Table, path: Keys) -> Any:
    """The value at a path; None where there is none."""
    value: Any = document
    for key in path:
        if not isinstance(value, dict):
            return None
        value = cast("Table", value).get(key)
    return value


def dotted(path: Keys) -> str:
    """A path as TOML writes it."""
    return ".".join(f'"{key}"' if "." in key else key for key in path)


def _proxies(tables: Table) -> tuple[Table, Sequence[str]]:
    """The proxy plugins that can be had, each as a setting of ours, and remarks on the others."""
    proxies: Table = {}
    remarks: list[str] = []
    for name, table in tables.items():
        kind, address = at(tables, (name, "type")), at(tables, (name, "address"))
        if name in SNAPSHOTTERS and kind == "snapshot":
            remarks.append(f"proxy_plugins.{name}: there is a snapshotter of this name")
        elif not isinstance(table, dict):
            proxies[name] = table  # to be refused by its name
        elif kind in PROXY_TYPES:
            # What it exports and is able to do, the CRI would ask for.
            proxies[name] = {"type": kind, "address": address or ""}
        else:
            remarks.append(f"proxy_plugins.{name}: type {kind!r}: no effect here")
    return proxies, remarks


def _runtime(table: Any) -> tuple[str, Sequence[str]]:
    """The program of the runtime that the CRI takes by default."""
    name = at(table, ("default_runtime_name",)) or "runc"
    runtime = at(table, ("runtimes", str(name)))
    where = dotted((*RUNTIMES, "runtimes", str(name)))
    if not isinstance(runtime, dict):
        return "", [] if name == "runc" else [f"{where}: not there, so the usual runtime is taken"]
    kind = at(cast("Table", runtime), ("runtime_type",)) or RUNC
    if kind != RUNC:
        return "", [f"{where}: runtime_type {kind!r} is taken only where a container names it"]
    program = at(cast("Table", runtime), ("options", "BinaryName"))
    return (program, []) if isinstance(program, str) else ("", [])


def _of_plugins(document: Table) -> Iterator[str]:
    """A remark for each part that cannot be left out, and for each that is not there."""
    from ..plugins import is_part  # heavy, and of no use to the other commands

    for name in document.get("disabled_plugins", []):
        if is_part(name):
            yield f"disabled_plugins: {name}: no part can be left out here"
    for name in document.get("required_plugins", []):
        if not is_part(name):
            yield f"required_plugins: {name}: there is no such part here"


def _leftover(document: Table) -> Iterator[str]:
    """A remark for each part that is set to something, to no effect."""
    heeded = {path for path, _, _ in HEEDED}
    parts: dict[Keys, list[str]] = {}
    for path, value in leaves(document):
        silent = path in heeded or any(path[: len(one)] == one for one in SILENT)
        # What is empty or containerd's own choice says nothing, and so does its decryption.
        if silent or not value or value in DEFAULTS.get(path, ()):
            continue
        if path[0] == "stream_processors" and path[1].startswith(OCICRYPT):
            continue
        if path[1:2] in ((TTRPC,), (DEBUG,)) and value == at(document, ("plugins", GRPC, path[-1])):
            continue  # all sockets have one owner
        depth = {"plugins": 2, "stream_processors": 2}.get(path[0], 1)
        parts.setdefault(path[:depth], []).append(dotted(path[depth:]))
    for part, keys in parts.items():
        why = WITHOUT.get(part[-1], "no effect here")
        below = ", ".join(key for key in keys if key)
        yield f"{dotted(part)}: {f'{below}: ' if below else ''}{why}"


def leaves(table: Table, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no table, with its path."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(cast("Table", value), (*path, key))
        else:
            yield (*path, key), value


def daemon_config(file: Path, flags: Mapping[str, str]) -> tuple[Config, Sequence[str]]:
    """The configuration of the daemon that a file and the command line's flags ask for; a flag
    that is not empty wins."""
    found = read(file, default_document())
    config, remarks = settings(found.values, str(file))
    given: dict[str, object] = {
        "root": Path(flags["root"]).absolute() if flags["root"] else None,
        "state": Path(flags["state"]).absolute() if flags["state"] else None,
        "address": flags["address"].removeprefix("unix://") or None,
        "log_level": level(flags["log_level"]) if flags["log_level"] else None,
    }
    return made(given, "command line", config), [*found.remarks, *remarks]
